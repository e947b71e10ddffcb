"""OpenTelemetry: a span processor that turns ended GenAI spans into usage events; pydantic-ai needs no more.

`tracer_provider.add_span_processor(UsageSpanProcessor(emitter, feature="chat"))`. A span that the sampler
drops is never seen by any processor: with usage to bill, the sampler must keep every span (sample at the
exporter instead).
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from opentelemetry import baggage
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext, StatusCode

from producers._face import UsageEmitter
from producers.integrations._context import current_usage
from producers.integrations._reporting import ImpossibleUsage, OnError, Reporter, counts, provider_id

__all__ = ["UsageSpanProcessor"]

# Only these ask a model. The span of an agent, a chain or a workflow repeats the sum of its children.
_OPERATIONS: Final = frozenset({"chat", "text_completion", "embeddings", "generate_content"})
_MOST_OPEN_SPANS: Final = 10_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

# The current name first, then what older and other instrumentations write.
_INPUT: Final = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_OUTPUT: Final = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
_CACHE_READ: Final = (
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_read_input_tokens",
    "gen_ai.usage.cache_read_tokens",
    "gen_ai.usage.details.cache_read_tokens",
)
_CACHE_WRITE: Final = (
    "gen_ai.usage.cache_creation.input_tokens",
    "gen_ai.usage.cache_creation_input_tokens",
    "gen_ai.usage.cache_write_tokens",
    "gen_ai.usage.details.cache_write_tokens",
)
_REASONING: Final = (
    "gen_ai.usage.reasoning.output_tokens",
    "gen_ai.usage.reasoning_tokens",
    "gen_ai.usage.details.reasoning_tokens",
)


@dataclass
class _Open:
    parent: int | None
    user_id: object
    feature: object
    counted_below: bool = False


class UsageSpanProcessor(SpanProcessor):
    """Emits one event for each ended span that asked a model and says what it used.

    The user comes from the span's attributes, the baggage or the `usage_context` at its start, or is
    `user_id`. `input_includes_cache=False` is for instrumentations that copy Anthropic's own counts; nothing
    is guessed: where more tokens came from the cache than went in at all, `on_error` is told and nothing is
    emitted.
    """

    def __init__(
        self,
        emitter: UsageEmitter,
        *,
        user_id: UUID | str | None = None,
        feature: str | None = None,
        user_attributes: Sequence[str] = ("enduser.id", "user.id"),
        feature_attribute: str = "usage.feature",
        input_includes_cache: bool | Callable[[ReadableSpan], bool] = True,
        on_error: OnError | None = None,
    ) -> None:
        """This function will prepare the processor; span and baggage are asked for the attribute names."""
        self._reporter = Reporter(emitter, user_id=user_id, feature=feature, on_error=on_error)
        self._user_attributes = tuple(user_attributes)
        self._feature_attribute = feature_attribute
        self._includes = input_includes_cache
        self._lock = threading.Lock()
        # Bounded: a span that is never ended must not be kept for ever.
        self._open: OrderedDict[int, _Open] = OrderedDict()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """This function will keep who is known where the span starts; it may end in another context."""
        around = current_usage()
        carried = [baggage.get_baggage(name, parent_context) for name in self._user_attributes]
        started = _Open(
            parent=span.parent.span_id if span.parent is not None else None,
            user_id=next((user for user in carried if user), None) or around.user,
            feature=baggage.get_baggage(self._feature_attribute, parent_context) or around.feature,
        )
        with self._lock:
            self._open[_context_of(span).span_id] = started
            while len(self._open) > _MOST_OPEN_SPANS:
                self._open.popitem(last=False)

    def on_end(self, span: ReadableSpan) -> None:
        """This function will emit the usage of a span that asked a model."""
        context = _context_of(span)
        attributes = span.attributes or {}
        with self._lock:
            started = self._open.pop(context.span_id, None) or _Open(None, None, None)
        if attributes.get("gen_ai.operation.name") not in _OPERATIONS:
            return
        try:
            response_id = attributes.get("gen_ai.response.id")
            # A framework's span around the client's own: without an id, the two would be two events.
            if started.counted_below and not response_id:
                return
            tokens = self._tokens(span, attributes)
            if tokens is None:
                return
            self._mark_above(started.parent)
            event = {
                **tokens,
                "provider": provider_id(_first(attributes, ("gen_ai.provider.name", "gen_ai.system"))),
                "model": _first(attributes, ("gen_ai.response.model", "gen_ai.request.model")),
                "idempotency_key": response_id or f"span:{context.trace_id:032x}:{context.span_id:016x}",
                "status": "error" if span.status.status_code is StatusCode.ERROR else "ok",
                **_times(span),
            }
        except Exception as error:  # noqa: BLE001 the end of a span must not break what it measured
            self._reporter.failed(error)
            return
        self._reporter.report(
            event,
            user_id=_first(attributes, self._user_attributes) or started.user_id,
            feature=attributes.get(self._feature_attribute) or started.feature,
        )

    def _tokens(self, span: ReadableSpan, attributes: Mapping[str, Any]) -> dict[str, int] | None:
        given = _first(attributes, _INPUT)
        read, written = _first(attributes, _CACHE_READ), _first(attributes, _CACHE_WRITE)
        includes = self._includes(span) if callable(self._includes) else self._includes
        if not includes and given is not None:
            given += (read or 0) + (written or 0)
        elif given is None and (read or written):
            raise ImpossibleUsage("the span has cached input tokens and no input tokens")
        return counts(
            input_tokens=given,
            output_tokens=_first(attributes, _OUTPUT),
            cache_read_tokens=read,
            cache_write_tokens=written,
            reasoning_tokens=_first(attributes, _REASONING),
        )

    def _mark_above(self, span_id: int | None) -> None:
        with self._lock:
            while span_id is not None and (above := self._open.get(span_id)) and not above.counted_below:
                above.counted_below = True
                span_id = above.parent


def _context_of(span: ReadableSpan) -> SpanContext:
    return span.get_span_context() or INVALID_SPAN_CONTEXT


def _times(span: ReadableSpan) -> dict[str, Any]:
    if span.end_time is None:
        return {}
    times: dict[str, Any] = {"occurred_at": _EPOCH + timedelta(microseconds=span.end_time // 1000)}
    if span.start_time is not None:
        times["duration_ms"] = max(0, (span.end_time - span.start_time) // 1_000_000)
    return times


def _first(attributes: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((attributes[name] for name in names if attributes.get(name) is not None), None)
