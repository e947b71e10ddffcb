"""What a response says about its use, ready for `emit`: any provider's object, mapping or JSON text."""

import json
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Final, Literal, get_args

from producers.integrations import _counts as counts
from producers.integrations._counts import TokenCounts, part
from producers.integrations._reporting import provider_id

Shape = Literal["chat", "responses", "anthropic", "gemini", "converse", "cohere", "pages", "heard"]

_SHAPES: Final = frozenset(get_args(Shape))
_INCLUSIVE: Final = frozenset(("azure", "deepseek", "groq", "mistral", "openai", "perplexity", "x-ai"))
# How the names of models begin that one provider alone serves, or that are called so after their maker.
_MAKERS: Final = {
    "chatgpt-": "openai",
    "claude-": "anthropic",
    "codestral-": "mistral",
    "command-a": "cohere",
    "command-r": "cohere",
    "dall-e-": "openai",
    "deepseek-chat": "deepseek",
    "deepseek-reasoner": "deepseek",
    "gemini-": "google",
    "gpt-3.5": "openai",
    "gpt-4": "openai",
    "gpt-5": "openai",
    "gpt-image-": "openai",
    "grok-": "x-ai",
    "magistral-": "mistral",
    "mistral-large": "mistral",
    "mistral-medium": "mistral",
    "mistral-ocr": "mistral",
    "mistral-small": "mistral",
    "o1": "openai",
    "o3": "openai",
    "o4": "openai",
    "sonar": "perplexity",
    "text-embedding-": "openai",
    "whisper-1": "openai",
}
_STANDARD_TIERS: Final = frozenset(("", "auto", "default", "standard", "on_demand"))
_NO_PREMIUM: Final = frozenset(("", "global", "not_available"))
_BATCH: Final = "batch"
_TICKS_PER_DOLLAR: Final = Decimal(10) ** 10
_SEPARATE: Final = ("compaction", "advisor_message")
_PENDING: Final = ("queued", "in_progress")


class AmbiguousUsage(ValueError):
    """The usage object could follow either of two conventions: say which, with `shape` or `provider`."""


def usage_of(
    response: object, *, provider: str | None = None, shape: Shape | None = None, model: str | None = None
) -> dict[str, Any] | None:
    """This function will return the arguments for `emit` of one response, without user and feature.

    `response` is an SDK's object, a mapping, JSON text, a line of a batch's results, or a bare usage object.
    `provider`, `shape` and `model` win over what it says itself. None: it reports no usage, which is not 0.
    Raises ImpossibleUsage where its counts contradict each other, and AmbiguousUsage.
    """
    return next(iter(usages_of(response, provider=provider, shape=shape, model=model)), None)


def usages_of(
    response: object, *, provider: str | None = None, shape: Shape | None = None, model: str | None = None
) -> list[dict[str, Any]]:
    """This function will return one or more events' arguments: what is charged apart stands apart.

    Anthropic's compactions and advisors are not in the usage of the message; an advisor is another model.
    """
    if shape is not None and shape not in _SHAPES:
        raise ValueError(f"shape is one of {', '.join(sorted(_SHAPES))}")
    whole = _read(response)
    answer, tier = _unwrapped(whole)
    usage = usage_object(answer)
    if usage is None:
        return []
    stated_model = model or _text(part(answer, "model")) or _text(counts.first(
        part(answer, "modelVersion"), part(answer, "model_version")
    ))  # fmt: skip
    known_provider = provider_id(provider)
    form = shape or _recognised(usage, known_provider)
    if shape is None and form == "chat" and _is_transcription(answer, usage):
        form = "heard"
    who = known_provider or _provider_of(answer, form, stated_model)
    found = _counted(form, usage, who, stated_model)
    if found is None:
        return []
    event = found.usage()
    _add_tools(event, answer)
    event |= _about(answer, usage, who, stated_model, tier)
    if tier == _BATCH and "idempotency_key" not in event and _text(part(whole, "id")) is not None:
        event["idempotency_key"] = part(whole, "id")
    return [event, *_separate(event, usage)]


def is_pending(response: object) -> bool:
    """This function will say whether a response is still being made in the background."""
    return part(response, "status") in _PENDING


def usage_object(answer: object) -> Any:
    """This function will find the usage in a response, which may be usage itself; None: there is none."""
    for name in ("usage", "usageMetadata", "usage_metadata", "usage_info"):
        found = part(answer, name)
        if found is not None:
            return found
    found = part(part(answer, "x_groq"), "usage")
    if found is None and part(part(answer, "meta"), "billed_units") is not None:
        found = part(answer, "meta")
    return answer if found is None and _shape_of(answer) is not None else found


def _read(response: object) -> object:
    if isinstance(response, str | bytes | bytearray):
        return json.loads(response, parse_float=Decimal)
    return response


def _unwrapped(answer: object) -> tuple[object, str | None]:
    """The response inside of a batch's line or of a stream's last event, and the tier that this means."""
    if part(answer, "custom_id") is not None:
        inner = part(part(answer, "response"), "body")
        return counts.first(inner, part(part(answer, "result"), "message"), answer), _BATCH
    inner = part(answer, "response")
    if usage_object(answer) is None and isinstance(inner, Mapping) and "usageMetadata" in inner:
        return inner, _BATCH
    if str(part(answer, "type")).startswith("response.") and inner is not None:
        return inner, None
    return answer, None


def _shape_of(usage: object) -> Shape | None:
    """The shape that the names of the counts show; None: these are no counts."""

    def has(*names: str) -> bool:
        return any(part(usage, name) is not None for name in names)

    if has("promptTokenCount", "prompt_token_count", "candidatesTokenCount", "candidates_token_count"):
        return "gemini"
    if has("thoughtsTokenCount", "thoughts_token_count"):
        return "gemini"
    if has("inputTokens", "outputTokens"):
        return "converse"
    if has("billed_units") or isinstance(part(usage, "tokens"), Mapping):
        return "cohere"
    if has("pages_processed"):
        return "pages"
    if has("prompt_tokens", "completion_tokens"):
        return "chat"
    if has("input_tokens", "output_tokens"):
        return "responses"
    return "responses" if part(usage, "type") == "duration" and has("seconds") else None


def _recognised(usage: object, provider: str | None) -> Shape:
    shape = _shape_of(usage)
    if shape is None:
        raise AmbiguousUsage("no provider that is known here names its counts like this: give shape=")
    if shape != "responses" or provider in _INCLUSIVE or part(usage, "input_token_details") is not None:
        return shape
    if provider == "anthropic":
        return "anthropic"
    names = ("cache_read_input_tokens", "cache_creation_input_tokens", "cache_creation", "server_tool_use")
    if all(part(usage, name) is None for name in names):
        return shape
    if part(usage, "input_tokens_details") is None and part(usage, "total_tokens") is None:
        return "anthropic"
    cached = sum(counts.count(usage, name) or 0 for name in names[:2])
    total = counts.count(usage, "total_tokens")
    plain = sum(counts.count(usage, name) or 0 for name in ("input_tokens", "output_tokens"))
    if cached and total != plain + cached:
        raise AmbiguousUsage(
            "the cache may be in input_tokens (OpenAI) or beside it (Anthropic): give provider= or shape="
        )
    return "anthropic"


def _is_transcription(answer: object, usage: object) -> bool:
    return bool(part(usage, "prompt_audio_seconds")) and isinstance(part(answer, "text"), str)


def _provider_of(answer: object, shape: Shape, model: str | None) -> str | None:
    identity = _text(part(answer, "id")) or ""
    if part(answer, "x_groq") is not None:
        return "groq"
    if identity.startswith("gen-") and shape == "chat":
        return "openrouter"
    if identity.startswith("msg_bdrk_") or shape == "converse":
        return "aws"
    of_shape = {"gemini": "google", "cohere": "cohere", "pages": "mistral", "heard": "mistral"}.get(shape)
    if of_shape is not None or model is None:
        return of_shape
    return next((maker for begin, maker in _MAKERS.items() if model.startswith(begin)), None)


def _counted(shape: Shape, usage: object, provider: str | None, model: str | None) -> TokenCounts | None:
    if shape == "converse":
        return counts.converse(usage, includes_cache="openai." in (model or ""))
    if shape == "chat":
        return counts.chat(usage, hides_thoughts=provider == "google")
    readers: dict[Shape, Callable[[object], TokenCounts | None]] = {
        "responses": counts.responses,
        "anthropic": counts.anthropic,
        "gemini": counts.gemini,
        "cohere": counts.cohere,
        "pages": counts.pages,
        "heard": counts.heard,
    }
    return readers[shape](usage)


def _about(
    answer: object, usage: object, provider: str | None, model: str | None, tier: str | None
) -> dict[str, Any]:
    """Everything but the amounts."""
    failed = part(answer, "status") in ("failed", "cancelled")
    event: dict[str, Any] = {"status": "error" if failed else "ok"}
    if provider is not None:
        event["provider"] = provider
    if model is not None:
        event["model"] = model.removeprefix("models/")
    identity = counts.first(part(answer, "id"), part(answer, "responseId"), part(answer, "response_id"))
    identity = _text(identity) or _text(part(answer, "_request_id"))
    if identity is not None:
        event["idempotency_key"] = identity
    cost = _cost(usage, provider)
    if cost is not None:
        event["cost_usd"] = cost
    place = _text(part(usage, "inference_geo"))
    metadata = {
        "service_tier": tier or _tier(answer, usage),
        "inference_geo": None if place in _NO_PREMIUM else place,
    }
    stated = {name: value for name, value in metadata.items() if value is not None}
    return event | {"metadata": stated} if stated else event


def _tier(answer: object, usage: object) -> str | None:
    if part(usage, "speed") == "fast":
        return "fast"
    tier = _text(counts.first(part(answer, "service_tier"), part(usage, "service_tier")))
    return None if tier is None or tier in _STANDARD_TIERS else tier


def _cost(usage: object, provider: str | None) -> str | None:
    """What the provider says that it charged, in US dollars; 0 is a cost."""
    ticks = counts.count(usage, "cost_in_usd_ticks")
    if ticks is not None:
        return format(ticks / _TICKS_PER_DOLLAR, "f")
    stated, details = part(usage, "cost"), part(usage, "cost_details")
    if isinstance(stated, Mapping) or part(stated, "total_cost") is not None:
        total = counts.amount(stated, "total_cost")
    elif provider == "openrouter" or details is not None:
        total = counts.amount(usage, "cost")
        if total is not None and part(usage, "is_byok") is True:
            # With a key of one's own, `cost` is only the router's fee: the provider charges beside it.
            total += counts.amount(details, "upstream_inference_cost") or 0
    else:
        total = None
    return None if total is None else format(Decimal(total), "f")


def _add_tools(event: dict[str, Any], answer: object) -> None:
    """Counts the calls of OpenAI's own tools, which its usage leaves out."""
    output = part(answer, "output")
    if not isinstance(output, list):
        return
    units = dict(event.get("units", ()))
    for item in output:
        kind, action = part(item, "type"), part(part(item, "action"), "type")
        # Opening and searching within a page that was found costs nothing.
        if kind == "web_search_call" and action in (None, "search"):
            units["web_searches"] = units.get("web_searches", 0) + 1
        elif kind == "file_search_call":
            units["storage_searches"] = units.get("storage_searches", 0) + 1
    if units:
        event["units"] = units


def _separate(event: Mapping[str, Any], usage: object) -> Iterator[dict[str, Any]]:
    iterations = part(usage, "iterations")
    for number, iteration in enumerate(iterations if isinstance(iterations, list) else ()):
        found = counts.anthropic(iteration) if part(iteration, "type") in _SEPARATE else None
        if found is None:
            continue
        kept = {name: event[name] for name in ("provider", "model", "status", "metadata") if name in event}
        own = kept | found.usage()
        if part(iteration, "model") is not None:
            own["model"] = part(iteration, "model")
        if "idempotency_key" in event:
            own["idempotency_key"] = f"{event['idempotency_key']}:{part(iteration, 'type')}:{number}"
        yield own


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
