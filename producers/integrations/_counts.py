"""Tokens of one response, whoever counted them: one function for each shape of usage object.

All return the convention of OpenTelemetry: input includes what came from and went to the cache, output
includes the reasoning. None means that nothing was reported, which is not 0. Objects of SDKs (attributes) and
plain JSON (mappings) are read alike.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from producers.integrations._reporting import ImpossibleUsage

Quantity = int | Decimal

# The parts of tokens that may have a price of their own, by the name that OpenAI's details have for them.
_MODALITIES: Final = ("audio", "image", "video")
_MOST_DIGITS: Final = 40
_GEMINI_MODALITIES: Final = {"AUDIO": "audio", "IMAGE": "image", "DOCUMENT": "image", "VIDEO": "video"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """What a response used; made with counts that contradict each other, it raises ImpossibleUsage.

    Without tokens at all (`input_tokens` None) only `units` were used. `cache_write_1h_tokens` are those of
    `cache_write_tokens` that stay for an hour.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    reasoning_tokens: int | None = None
    units: Mapping[str, Quantity] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.input_tokens is None) != (self.output_tokens is None):
            missing = "input" if self.input_tokens is None else "output"
            raise ImpossibleUsage(f"the {missing} tokens are missing beside the others, and missing is not 0")
        cached = (self.cache_read_tokens or 0) + (self.cache_write_tokens or 0)
        _check(cached, "tokens from and to the cache", self.input_tokens, "input tokens")
        _check(self.reasoning_tokens, "reasoning tokens", self.output_tokens, "output tokens")
        _check(
            self.cache_write_1h_tokens, "tokens cached for an hour", self.cache_write_tokens, "cached tokens"
        )
        for name, whole in (("input", self.input_tokens), ("output", self.output_tokens)):
            for kind in _MODALITIES:
                _check(
                    self.units.get(f"{name}_{kind}_tokens"),
                    f"{name} tokens of {kind}",
                    whole,
                    f"{name} tokens",
                )

    def usage(self) -> dict[str, Any]:
        """This function will return the arguments for `emit` that state it; what is unknown is left out."""
        units = dict(self.units)
        if self.cache_write_1h_tokens:
            units["cache_write_1h_tokens"] = self.cache_write_1h_tokens
        if self.input_tokens is None:
            return {"tokens_used": 0, "units": units}
        counts = {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cache_read_tokens": self.cache_read_tokens,
            "cache_write_tokens": self.cache_write_tokens,
            "reasoning_tokens": self.reasoning_tokens,
        }
        stated: dict[str, Any] = {name: count for name, count in counts.items() if count is not None}
        return stated | {"units": units} if units else stated


def chat(usage: object, *, hides_thoughts: bool = False) -> TokenCounts | None:
    """This function will read `prompt_tokens` and `completion_tokens`, which many providers speak.

    OpenAI (chat, embeddings), Azure, Mistral, DeepSeek, Groq, xAI, Perplexity, OpenRouter, LiteLLM. The cache
    is in the input; reasoning may stand beside the output (xAI, Perplexity), which the total tells. Gemini's
    imitation of OpenAI (`hides_thoughts`) has its thoughts in the total and nowhere else.
    """
    inputs, outputs = part(usage, "prompt_tokens_details"), part(usage, "completion_tokens_details")
    prompt, completion = count(usage, "prompt_tokens"), count(usage, "completion_tokens")
    if prompt is None and completion is None:
        return None
    cited, searches = count(usage, "citation_tokens"), count(usage, "num_search_queries")
    inside = count(outputs, "reasoning_tokens")
    beside = count(usage, "reasoning_tokens") if inside is None else None
    reasoning = beside if inside is None else inside
    output, total = completion or 0, count(usage, "total_tokens")
    if hides_thoughts and total is not None and total > (prompt or 0) + output:
        reasoning = total - (prompt or 0) - output
        output += reasoning
    elif _reasoning_is_beside(prompt or 0, output, reasoning or 0, total, perplexity=searches is not None):
        output += reasoning or 0
    given, audio = prompt, count(inputs, "audio_tokens")
    if given is not None and audio and total == given + output + audio:
        # Mistral's Voxtral hears its audio beside the prompt.
        given += audio
    tools = part(usage, "server_tool_use")
    units: dict[str, Quantity | None] = {
        **_modal("input", inputs),
        **_modal("output", outputs),
        "output_citation_tokens": cited,
        "web_searches": count(tools, "web_search_requests") if searches is None else searches,
        "search_sources": count(usage, "num_sources_used"),
        "audio_seconds": amount(usage, "prompt_audio_seconds"),
    }
    return TokenCounts(
        input_tokens=given,
        output_tokens=output + (cited or 0),
        cache_read_tokens=first(
            count(inputs, "cached_tokens"),
            count(usage, "prompt_cache_hit_tokens"),
            count(usage, "cached_tokens"),
            count(usage, "cached_prompt_text_tokens"),
            count(usage, "cache_read_input_tokens"),
        ),
        cache_write_tokens=first(
            count(inputs, "cache_write_tokens"),
            count(inputs, "cache_creation_tokens"),
            count(usage, "cache_creation_input_tokens"),
        ),
        cache_write_1h_tokens=count(
            part(inputs, "cache_creation_token_details"), "ephemeral_1h_input_tokens"
        ),
        reasoning_tokens=reasoning,
        units=_used(units),
    )


def responses(usage: object) -> TokenCounts | None:
    """This function will read `input_tokens` and `output_tokens` that include their parts.

    OpenAI (responses, images, transcriptions by token or by duration, realtime), xAI's responses, and
    LangChain's `usage_metadata`.
    """
    if part(usage, "type") == "duration":
        seconds = amount(usage, "seconds")
        return None if seconds is None else TokenCounts(units={"audio_seconds": seconds})
    given, made = count(usage, "input_tokens"), count(usage, "output_tokens")
    if given is None and made is None:
        return None
    inputs = first(part(usage, "input_tokens_details"), part(usage, "input_token_details"))
    outputs = first(part(usage, "output_tokens_details"), part(usage, "output_token_details"))
    cached = part(inputs, "cached_tokens_details")
    writes = first(
        count(inputs, "cache_write_tokens"),
        count(inputs, "cache_creation"),
        count(inputs, "cache_creation_input_tokens"),
    )
    hour = count(inputs, "ephemeral_1h_input_tokens")
    # LangChain states Anthropic's writes by lifetime beside a `cache_creation` of 0.
    by_lifetime = _sum(count(inputs, "ephemeral_5m_input_tokens"), hour)
    reasoning = first(count(outputs, "reasoning_tokens"), count(outputs, "reasoning"))
    output = made or 0
    if _reasoning_is_beside(given or 0, output, reasoning or 0, count(usage, "total_tokens")):
        output += reasoning or 0
    units = {
        **_modal("input", inputs),
        **_modal("output", outputs),
        **{f"cache_{kind}_read_tokens": count(cached, f"{kind}_tokens") for kind in _MODALITIES},
        "search_sources": count(usage, "num_sources_used"),
    }
    return TokenCounts(
        input_tokens=given,
        output_tokens=output,
        cache_read_tokens=first(
            count(inputs, "cached_tokens"),
            count(inputs, "cache_read"),
            count(inputs, "cache_read_input_tokens"),
            count(usage, "cache_read_input_tokens"),
        ),
        cache_write_tokens=writes if by_lifetime is None else max(writes or 0, by_lifetime),
        cache_write_1h_tokens=hour,
        reasoning_tokens=reasoning,
        units=_used(units),
    )


def anthropic(usage: object) -> TokenCounts | None:
    """This function will read Anthropic's counts: cache reads and writes stand beside the input."""
    given, made = count(usage, "input_tokens"), count(usage, "output_tokens")
    if given is None and made is None:
        return None
    read, written = count(usage, "cache_read_input_tokens"), count(usage, "cache_creation_input_tokens")
    creation = part(usage, "cache_creation")
    hour = count(creation, "ephemeral_1h_input_tokens")
    by_lifetime = _sum(count(creation, "ephemeral_5m_input_tokens"), hour)
    if by_lifetime and written and by_lifetime != written:
        raise ImpossibleUsage(
            f"{written} tokens were written to the cache, and {by_lifetime} of all lifetimes together"
        )
    written = written or by_lifetime if by_lifetime is not None else written
    units = {"web_searches": count(part(usage, "server_tool_use"), "web_search_requests")}
    return TokenCounts(
        input_tokens=None if given is None else given + (read or 0) + (written or 0),
        output_tokens=made,
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_1h_tokens=hour,
        reasoning_tokens=count(part(usage, "output_tokens_details"), "thinking_tokens"),
        units=_used(units),
    )


def gemini(usage: object) -> TokenCounts | None:
    """This function will read Gemini's `usageMetadata`, as JSON or as the SDK spells it.

    The prompts of tools are input, thoughts are output; an answer that was all thoughts has no candidates.
    """
    prompt, tools = _both(usage, "promptTokenCount"), _both(usage, "toolUsePromptTokenCount")
    made, thought = _both(usage, "candidatesTokenCount"), _both(usage, "thoughtsTokenCount")
    if made is None:
        made = _both(usage, "responseTokenCount")
    if prompt is None and made is None and thought is None:
        return None
    cache = _by_modality(usage, "cacheTokensDetails")
    read = _both(usage, "cachedContentTokenCount")
    inputs = _by_modality(usage, "promptTokensDetails", "toolUsePromptTokensDetails")
    outputs = _by_modality(usage, "candidatesTokensDetails")
    units = {
        **{f"input_{kind}_tokens": inputs.get(kind) for kind in _MODALITIES},
        **{f"output_{kind}_tokens": outputs.get(kind) for kind in _MODALITIES},
        **{f"cache_{kind}_read_tokens": cache.get(kind) for kind in _MODALITIES},
    }
    return TokenCounts(
        input_tokens=None if prompt is None else prompt + (tools or 0),
        output_tokens=(made or 0) + (thought or 0),
        cache_read_tokens=(sum(cache.values()) if cache else None) if read is None else read,
        reasoning_tokens=thought,
        units=_used(units),
    )


def converse(usage: object, *, includes_cache: bool = False) -> TokenCounts | None:
    """This function will read Bedrock's Converse usage, which is added up like Anthropic's.

    For the models of OpenAI there (`includes_cache`) the input has the cache in it already.
    """
    given, made = count(usage, "inputTokens"), count(usage, "outputTokens")
    if given is None and made is None:
        return None
    read = first(count(usage, "cacheReadInputTokens"), count(usage, "cacheReadInputTokenCount"))
    written = first(count(usage, "cacheWriteInputTokens"), count(usage, "cacheWriteInputTokenCount"))
    details = part(usage, "cacheDetails")
    hour = [count(detail, "inputTokens") or 0 for detail in _list(details) if part(detail, "ttl") == "1h"]
    if given is not None and not includes_cache:
        given += (read or 0) + (written or 0)
    return TokenCounts(
        input_tokens=given,
        output_tokens=made,
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_1h_tokens=sum(hour) if hour else None,
    )


def cohere(usage: object) -> TokenCounts | None:
    """This function will read Cohere's usage: `tokens`, and what was billed where it has no tokens."""
    billed = part(usage, "billed_units")
    units = _used({"rerank_searches": count(billed, "search_units"), "images": count(billed, "images")})
    tokens = first(part(usage, "tokens"), billed)
    given, made = count(tokens, "input_tokens"), count(tokens, "output_tokens")
    if given is None and made is None:
        return TokenCounts(units=units) if units else None
    return TokenCounts(
        input_tokens=given,
        output_tokens=made or 0,
        cache_read_tokens=count(usage, "cached_tokens"),
        units=units,
    )


def heard(usage: object) -> TokenCounts | None:
    """This function will read Mistral's usage of a transcription: its seconds are charged, not its tokens."""
    seconds = amount(usage, "prompt_audio_seconds")
    return None if seconds is None else TokenCounts(units={"audio_seconds": seconds})


def pages(usage: object) -> TokenCounts | None:
    """This function will read Mistral's `usage_info` of documents, which has pages and no tokens."""
    processed = count(usage, "pages_processed")
    return None if processed is None else TokenCounts(units={"input_document_pages": processed})


def part(whole: object, name: str) -> Any:
    """This function will return a member of a mapping or of an SDK's object, None where there is none."""
    return whole.get(name) if isinstance(whole, Mapping) else getattr(whole, name, None)


def count(whole: object, name: str) -> int | None:
    """This function will return a count, also one that is spelled 812.0; anything else is ImpossibleUsage."""
    found = amount(whole, name)
    if found is None or isinstance(found, int):
        return found
    if found != found.to_integral_value():
        raise ImpossibleUsage(f"{name} is not a whole number: {found}")
    return int(found)


def amount(whole: object, name: str) -> Quantity | None:
    """This function will return a quantity that may have decimal places."""
    found = part(whole, name)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float | Decimal):
        raise ImpossibleUsage(f"{name} is not a number")
    exact = found if isinstance(found, int) else Decimal(repr(found) if isinstance(found, float) else found)
    if isinstance(exact, Decimal) and not exact.is_finite():
        raise ImpossibleUsage(f"{name} is not finite")
    if isinstance(exact, Decimal) and abs(exact.adjusted()) > _MOST_DIGITS:
        # Written out, 1e999999999 would fill the memory.
        raise ImpossibleUsage(f"{name} is out of any range: {exact}")
    if exact < 0:
        raise ImpossibleUsage(f"{name} is below zero: {exact}")
    return exact


def first(*found: Any) -> Any:
    """This function will return the first that is not None."""
    return next((one for one in found if one is not None), None)


def _reasoning_is_beside(
    given: int, made: int, reasoning: int, total: int | None, *, perplexity: bool = False
) -> bool:
    if not reasoning:
        return False
    # Perplexity's total leaves its reasoning and citations out, and so does its output.
    return perplexity or total == given + made + reasoning


def _modal(side: str, details: object) -> dict[str, Quantity | None]:
    return {
        f"{side}_{kind}_tokens": first(count(details, f"{kind}_tokens"), count(details, kind))
        for kind in _MODALITIES
    }


def _used(units: Mapping[str, Quantity | None]) -> dict[str, Quantity]:
    return {name: quantity for name, quantity in units.items() if quantity}


def _sum(*counts: int | None) -> int | None:
    stated = [one for one in counts if one is not None]
    return sum(stated) if stated else None


def _both(usage: object, name: str) -> int | None:
    return first(count(usage, name), count(usage, _snake(name)))  # type: ignore[no-any-return]


def _by_modality(usage: object, *names: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names:
        for detail in _list(first(part(usage, name), part(usage, _snake(name)))):
            modality = part(detail, "modality")
            kind = _GEMINI_MODALITIES.get(str(getattr(modality, "value", modality)).upper(), "text")
            found[kind] = found.get(kind, 0) + (_both(detail, "tokenCount") or 0)
    return found


def _list(found: object) -> Iterable[object]:
    return found if isinstance(found, Sequence) and not isinstance(found, str) else ()


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def _check(size: Quantity | None, what: str, whole: int | None, of: str) -> None:
    if size and size > (whole or 0):
        raise ImpossibleUsage(f"{size} {what} of {whole or 0} {of}: a part is larger than its whole")
