"""What the framework integrations share: who used it, one event per response, and never a broken call."""

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final
from uuid import UUID

from producers._face import UsageEmitter
from producers.integrations._context import current_usage

OnError = Callable[[Exception], None]

_log = logging.getLogger(__name__)

# The frameworks' names for a provider, in the spelling that prices and roll-ups have (the ids of
# genai-prices).
_PROVIDERS: Final = {
    "amazon_bedrock": "aws",
    "anthropic_bedrock": "aws",
    "aws.bedrock": "aws",
    "azure.ai.inference": "azure",
    "azure.ai.openai": "azure",
    "azure_ai": "azure",
    "azure_openai": "azure",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "fireworks_ai": "fireworks",
    "gcp.gemini": "google",
    "gcp.gen_ai": "google",
    "gcp.vertex_ai": "google",
    "gemini": "google",
    "google-gla": "google",
    "google-vertex": "google",
    "google_genai": "google",
    "google_vertexai": "google",
    "mistral_ai": "mistral",
    "mistralai": "mistral",
    "together_ai": "together",
    "vertex_ai": "google",
    "x_ai": "x-ai",
    "xai": "x-ai",
}


class ImpossibleUsage(ValueError):
    """The counts contradict each other: a part is larger than its whole."""


class Reporter:
    """Emits what an integration found; a failure is logged and told to `on_error`, and goes no further."""

    def __init__(
        self,
        emitter: UsageEmitter,
        *,
        user_id: UUID | str | None = None,
        feature: str | None = None,
        on_error: OnError | None = None,
    ) -> None:
        """This function will keep the emitter, and whom and what to count where nothing else says so.

        Raises TypeError for an emitter whose `emit` must be awaited: frameworks call back without awaiting.
        """
        if inspect.iscoroutinefunction(emitter.emit):
            raise TypeError(
                f"{type(emitter).__name__} must be awaited, and frameworks call back without awaiting: "
                "give a BufferedEmitter, which never blocks the event loop"
            )
        self._emitter = emitter
        self._user_id = user_id
        self._feature = feature
        self._on_error = on_error

    def report(
        self,
        usage: Mapping[str, Any],
        *,
        user_id: object = None,
        feature: object = None,
        fallback_user_id: object = None,
    ) -> UUID | None:
        """This function will emit one event and return its id, or None where that failed.

        What the call itself says (`user_id`, `feature`) comes first, then the `usage_context` around it, then
        `fallback_user_id`, then what the integration was made with.
        """
        try:
            around = current_usage()
            event = dict(usage)
            event.update(
                named(user_id) or named(around.user) or named(fallback_user_id) or named(self._user_id) or {}
            )
            event["feature"] = feature or around.feature or self._feature
            return self._emitter.emit(**event)
        except Exception as error:  # noqa: BLE001 the app's own call has succeeded: usage must not undo that
            self.failed(error)
            return None

    def failed(self, error: Exception) -> None:
        """This function will log that usage was not recorded, and tell `on_error`."""
        _log.warning("usage was not recorded: %s: %s", type(error).__name__, error)
        if self._on_error is None:
            return
        try:
            self._on_error(error)
        except Exception:  # noqa: BLE001 the last resort must not break the caller either
            _log.warning("on_error itself failed", exc_info=True)


def named(user: object) -> dict[str, str] | None:
    """This function will name the user in an event: a UUID is the `user_id`, other text a `clerk_id`."""
    if user is None or user == "":
        return None
    text = str(user)
    try:
        UUID(text)
    except ValueError:
        return {"clerk_id": text}
    return {"user_id": text}


def provider_id(name: object) -> str | None:
    """This function will return a provider's name in the spelling that prices have."""
    if not isinstance(name, str) or not name:
        return None
    return _PROVIDERS.get(name.lower(), name)


def counts(
    *,
    input_tokens: int | None,
    output_tokens: int | None,
    cache_read_tokens: int | None = None,
    cache_write_tokens: int | None = None,
    reasoning_tokens: int | None = None,
) -> dict[str, int] | None:
    """This function will return the token fields of an event, or None for missing usage, which is not 0.

    The input includes what came from and went to the cache. Raises ImpossibleUsage where a part is larger
    than its whole.
    """
    if input_tokens is None and output_tokens is None:
        return None
    found = {"input_tokens": input_tokens or 0, "output_tokens": output_tokens or 0}
    cached = (cache_read_tokens or 0) + (cache_write_tokens or 0)
    if cached > found["input_tokens"]:
        raise ImpossibleUsage(
            f"{cached} cached input tokens of {found['input_tokens']} input tokens: the input leaves out the "
            "cache, or the counts are wrong"
        )
    if (reasoning_tokens or 0) > found["output_tokens"]:
        raise ImpossibleUsage(
            f"{reasoning_tokens} reasoning tokens of {found['output_tokens']} output tokens"
        )
    parts = {
        "cache_read_tokens": cache_read_tokens,
        "cache_write_tokens": cache_write_tokens,
        "reasoning_tokens": reasoning_tokens,
    }
    return found | {name: count for name, count in parts.items() if count is not None}
