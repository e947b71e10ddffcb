"""Which calls of the OpenAI SDK are counted, and how their streams say what was used."""

from collections.abc import Mapping
from typing import Any, Final

from producers.integrations import _counts as counts
from producers.integrations._counts import part
from producers.integrations._usage import usage_object
from producers.integrations._watching import Event

_COMPLETIONS: Final = frozenset(("/chat/completions", "/completions"))
_COUNTED: Final = _COMPLETIONS | frozenset(
    (
        "/audio/transcriptions",
        "/audio/translations",
        "/embeddings",
        "/images/edits",
        "/images/generations",
        "/images/variations",
        "/responses",
        "/responses/compact",
    )
)
_OVER: Final = frozenset(
    (
        "image_edit.completed",
        "image_generation.completed",
        "response.completed",
        "response.failed",
        "response.incomplete",
        "transcript.text.done",
    )
)
_HOSTS: Final = {
    "api.cerebras.ai": "cerebras",
    "api.cohere.ai": "cohere",
    "api.cohere.com": "cohere",
    "api.deepseek.com": "deepseek",
    "api.fireworks.ai": "fireworks",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral",
    "api.moonshot.ai": "moonshotai",
    "api.moonshot.cn": "moonshotai",
    "api.novita.ai": "novita",
    "api.openai.com": "openai",
    "api.perplexity.ai": "perplexity",
    "api.together.xyz": "together",
    "api.x.ai": "x-ai",
    "api.z.ai": "zai",
    "generativelanguage.googleapis.com": "google",
    "openrouter.ai": "openrouter",
}
_ENDINGS: Final = {
    ".amazonaws.com": "aws",
    ".api.openai.com": "openai",
    ".aiplatform.googleapis.com": "google",
    ".openai.azure.com": "azure",
    ".services.ai.azure.com": "azure",
}


def is_counted(path: str) -> bool:
    """This function will say whether a POST to this path of the API uses something."""
    return path.partition("?")[0].rstrip("/") in _COUNTED


def provider_of(client: object) -> str | None:
    """This function will name the provider that a client talks to; None for a host that is not known."""
    name = type(client).__name__
    if "Azure" in name:
        return "azure"
    if "Bedrock" in name:
        return "aws"
    host = str(part(part(client, "base_url"), "host") or "")
    return _HOSTS.get(host) or next((who for end, who in _ENDINGS.items() if host.endswith(end)), None)


def ask_for_usage(path: str, request: dict[str, Any]) -> bool:
    """This function will ask for the usage of a streamed completion, unless the caller has decided it.

    Returns whether the chunk that brings it is to be hidden, as the caller does not expect it.
    """
    body = request.get("body")
    if path.partition("?")[0].rstrip("/") not in _COMPLETIONS or not request.get("stream"):
        return False
    options = request.get("options") or {}
    if not isinstance(body, Mapping) or "stream_options" in (options.get("extra_json") or {}):
        return False
    given = body.get("stream_options")
    if given is not None and (not isinstance(given, Mapping) or "include_usage" in given):
        return False
    request["body"] = {**body, "stream_options": {**(given or {}), "include_usage": True}}
    return True


class Stream:
    """Puts the events of a stream together to what an answer that is not streamed would say.

    Counts in a stream are cumulative: each replaces the one before.
    """

    def __init__(self, *, hides_usage: bool) -> None:
        self.is_over = False
        self._hides_usage = hides_usage
        self._answer: Event = {}

    def take(self, event: Event) -> bool:
        """This function will take what an event says; returns whether the caller is to see it."""
        inner = event.get("response")
        answer = inner if isinstance(inner, dict) else event
        for name in ("id", "model", "service_tier", "status", "output"):
            if answer.get(name) is not None:
                self._answer[name] = answer[name]
        self.is_over = self.is_over or event.get("type") in _OVER
        usage = usage_object(answer)
        if usage is None:
            return True
        self._answer["usage"] = usage
        if answer.get("x_groq") is not None:
            self._answer["x_groq"] = answer["x_groq"]
        return not (self._hides_usage and event.get("choices") == [])

    def done(self) -> None:
        """This function will note that the server has said that this was all."""
        self.is_over = True

    def answer(self) -> Event:
        """This function will return what is known so far."""
        return self._answer


def failed_answer(error: Exception) -> object:
    """This function will return the answer that an error of the SDK carries, None for most."""
    return counts.first(part(error, "completion"))
