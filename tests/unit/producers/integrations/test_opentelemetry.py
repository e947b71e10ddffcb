"""The span processor, on the SDK's own spans."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from opentelemetry import baggage, context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Status, StatusCode, Tracer

from producers import StreamUnavailable
from producers.integrations._context import usage_context
from producers.integrations.opentelemetry import UsageSpanProcessor
from producers.testing import RecordingEmitter

ALICE = "0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11"
BOB = "0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a12"
CHAT: dict[str, Any] = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "gcp.gemini",
    "gen_ai.request.model": "gemini-2.5",
    "gen_ai.response.model": "gemini-2.5-flash",
    "gen_ai.usage.input_tokens": 100,
    "gen_ai.usage.output_tokens": 20,
    "gen_ai.input.messages": "a secret question",
}


@pytest.fixture
def emitter() -> RecordingEmitter:
    return RecordingEmitter()


@pytest.fixture
def errors() -> list[Exception]:
    return []


@pytest.fixture
def tracing(emitter: RecordingEmitter, errors: list[Exception]) -> Iterator[TracerProvider]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(UsageSpanProcessor(emitter, feature="chat", on_error=errors.append))
    yield provider
    provider.shutdown()


@pytest.fixture
def tracer(tracing: TracerProvider) -> Tracer:
    return tracing.get_tracer("test")


def _span(tracer: Tracer, **changes: Any) -> None:
    attributes = {**CHAT, "enduser.id": ALICE, **changes.pop("attributes", {})}
    with tracer.start_as_current_span("chat", attributes=attributes, **changes):
        pass


class TestNames:
    def test_emits_what_the_conventions_say(self, tracer: Tracer, emitter: RecordingEmitter) -> None:
        more = {
            "gen_ai.usage.cache_read.input_tokens": 60,
            "gen_ai.usage.cache_creation.input_tokens": 10,
            "gen_ai.usage.reasoning.output_tokens": 5,
        }
        start = datetime(2026, 11, 21, 12, tzinfo=UTC)
        started = int(start.timestamp()) * 10**9
        span = tracer.start_span("chat", attributes={**CHAT, "enduser.id": ALICE, **more}, start_time=started)
        span.end(started + 1_500_000_000)
        (event,) = emitter.events
        assert (event.user_id, event.feature) == (UUID(ALICE), "chat")
        assert (event.provider, event.model) == ("google", "gemini-2.5-flash")
        assert (event.input_tokens, event.cache_read_tokens, event.cache_write_tokens) == (100, 60, 10)
        assert (event.output_tokens, event.reasoning_tokens) == (20, 5)
        assert (event.duration_ms, event.status) == (1500, "ok")
        assert event.occurred_at == start.replace(second=1, microsecond=500_000)
        assert "secret" not in event.model_dump_json()

    def test_older_names_are_read_too(self, tracer: Tracer, emitter: RecordingEmitter) -> None:
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.system": "openai",
            "gen_ai.request.model": "gpt-4o-mini",
            "gen_ai.usage.prompt_tokens": 100,
            "gen_ai.usage.completion_tokens": 20,
            "gen_ai.usage.cache_read_tokens": 60,
            "user.id": BOB,
        }
        tracer.start_span("completion", attributes=attributes).end()
        (event,) = emitter.events
        assert (event.user_id, event.provider, event.model) == (UUID(BOB), "openai", "gpt-4o-mini")
        assert (event.input_tokens, event.output_tokens, event.cache_read_tokens) == (100, 20, 60)

    @pytest.mark.parametrize("operation", ["invoke_agent", "execute_tool", "create_agent", None])
    def test_sums_of_others_are_not_counted(
        self, tracer: Tracer, emitter: RecordingEmitter, operation: str | None
    ) -> None:
        attributes = {**CHAT, "enduser.id": ALICE}
        attributes.pop("gen_ai.operation.name")
        if operation is not None:
            attributes["gen_ai.operation.name"] = operation
        with tracer.start_as_current_span("agent", attributes=attributes):
            _span(tracer)
        assert len(emitter.events) == 1
        tracer.start_span("agent alone", attributes=attributes).end()
        assert len(emitter.events) == 1

    def test_no_usage_is_no_event(self, tracer: Tracer, emitter: RecordingEmitter) -> None:
        tracer.start_span("chat", attributes={"gen_ai.operation.name": "chat"}).end()
        assert emitter.events == []

    def test_a_failed_span_counts_what_it_used(self, tracer: Tracer, emitter: RecordingEmitter) -> None:
        span = tracer.start_span("chat", attributes={**CHAT, "user.id": ALICE})
        span.set_status(Status(StatusCode.ERROR, "a secret reason"))
        span.end()
        assert [event.status for event in emitter.events] == ["error"]


class TestOnce:
    def test_the_response_id_is_the_key(self, tracer: Tracer, emitter: RecordingEmitter) -> None:
        for _ in range(2):
            _span(tracer, attributes={"gen_ai.response.id": "resp_1"})
        _span(tracer)
        _span(tracer)
        assert len({event.event_id for event in emitter.events}) == 3

    def test_a_frameworks_span_around_the_clients_is_not_counted(
        self, tracer: Tracer, emitter: RecordingEmitter
    ) -> None:
        attributes = {**CHAT, "enduser.id": ALICE}
        with (
            tracer.start_as_current_span("framework", attributes=attributes),
            tracer.start_as_current_span("http"),
        ):
            _span(tracer)
        _span(tracer)
        assert len(emitter.events) == 2


class TestUser:
    def test_comes_from_the_baggage_where_the_span_started(
        self, tracer: Tracer, emitter: RecordingEmitter
    ) -> None:
        token = context.attach(baggage.set_baggage("user.id", BOB))
        span = tracer.start_span("chat", attributes=CHAT)
        context.detach(token)
        span.end()
        assert [event.user_id for event in emitter.events] == [UUID(BOB)]

    def test_comes_from_the_usage_context_where_the_span_started(
        self, tracer: Tracer, emitter: RecordingEmitter
    ) -> None:
        with usage_context(user_id=ALICE, feature="stories"):
            first = tracer.start_span("chat", attributes=CHAT)
        with usage_context(user_id=BOB, feature="poems"):
            second = tracer.start_span("chat", attributes=CHAT)
            first.end()
        second.end()
        found = [(str(event.user_id), event.feature) for event in emitter.events]
        assert found == [(ALICE, "stories"), (BOB, "poems")]

    def test_nobody_is_told(self, tracer: Tracer, emitter: RecordingEmitter, errors: list[Exception]) -> None:
        tracer.start_span("chat", attributes=CHAT).end()
        assert (emitter.events, len(errors)) == ([], 1)


class TestCache:
    ADDITIVE: dict[str, Any] = {"gen_ai.usage.cache_read.input_tokens": 400}  # noqa: RUF012 read only

    def test_more_cache_than_input_is_told_not_guessed(
        self, tracer: Tracer, emitter: RecordingEmitter, errors: list[Exception]
    ) -> None:
        _span(tracer, attributes=self.ADDITIVE)
        assert emitter.events == []
        assert isinstance(errors[0], ValueError)

    def test_additive_counts_are_added_where_that_is_said(self, emitter: RecordingEmitter) -> None:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(UsageSpanProcessor(emitter, feature="x", input_includes_cache=False))
        _span(provider.get_tracer("test"), attributes=self.ADDITIVE)
        (event,) = emitter.events
        assert (event.input_tokens, event.cache_read_tokens) == (500, 400)


def test_a_failing_emitter_does_not_break_the_span(
    tracer: Tracer, emitter: RecordingEmitter, errors: list[Exception]
) -> None:
    emitter.fail_next(StreamUnavailable)
    _span(tracer)
    assert [type(error) for error in errors] == [StreamUnavailable]


def test_spans_that_never_end_are_not_kept_for_ever(emitter: RecordingEmitter) -> None:
    processor = UsageSpanProcessor(emitter)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("test")
    spans = [tracer.start_span("open") for _ in range(10_050)]
    assert len(processor._open) == 10_000
    for span in spans:
        span.end()
    assert len(processor._open) == 0
