"""pydantic-ai needs no integration of its own: the spans it makes are enough."""

import asyncio
from collections.abc import Iterator
from uuid import UUID

import pytest
from opentelemetry.sdk.trace import TracerProvider
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.instrumented import InstrumentationSettings
from pydantic_ai.models.test import TestModel as FakeModel
from pydantic_ai.usage import RequestUsage

from producers.integrations._context import usage_context
from producers.integrations.opentelemetry import UsageSpanProcessor
from producers.testing import RecordingEmitter

ALICE = "0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11"


@pytest.fixture
def emitter() -> Iterator[RecordingEmitter]:
    recording = RecordingEmitter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(UsageSpanProcessor(recording, feature="agent"))
    Agent.instrument_all(InstrumentationSettings(tracer_provider=provider))
    yield recording
    Agent.instrument_all(False)


def test_each_request_of_a_run_is_one_event_and_the_run_is_none(emitter: RecordingEmitter) -> None:
    agent = Agent(FakeModel())

    @agent.tool_plain
    def double(number: int) -> int:
        return number * 2

    with usage_context(user_id=ALICE):
        total = asyncio.run(agent.run("a secret question")).usage
    assert len(emitter.events) == 2
    assert sum(event.input_tokens or 0 for event in emitter.events) == total.input_tokens
    assert sum(event.output_tokens or 0 for event in emitter.events) == total.output_tokens
    assert {event.user_id for event in emitter.events} == {UUID(ALICE)}
    assert {event.feature for event in emitter.events} == {"agent"}
    assert "secret" not in "".join(event.model_dump_json() for event in emitter.events)


def test_cached_and_reasoning_tokens_and_the_providers_id(emitter: RecordingEmitter) -> None:
    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        usage = RequestUsage(
            input_tokens=500,
            cache_read_tokens=400,
            cache_write_tokens=50,
            output_tokens=20,
            details={"reasoning_tokens": 5},
        )
        first = len(messages) == 1
        parts = [ToolCallPart("half", {"number": 4})] if first else [TextPart("2")]
        return ModelResponse(
            parts=parts,
            usage=usage,
            provider_name="anthropic",
            provider_response_id=f"msg_{len(messages)}",
        )

    agent = Agent(FunctionModel(answer, model_name="claude-sonnet-4-5"))

    @agent.tool_plain
    def half(number: int) -> int:
        return number // 2

    with usage_context(user_id=ALICE, feature="arithmetic"):
        asyncio.run(agent.run("q"))
        asyncio.run(agent.run("q"))
    assert len(emitter.events) == 4
    # The same answers of the provider are the same events.
    assert len({event.event_id for event in emitter.events}) == 2
    event = emitter.events[0]
    assert event.feature == "arithmetic"
    assert event.model == "claude-sonnet-4-5"
    assert (event.input_tokens, event.cache_read_tokens, event.cache_write_tokens) == (500, 400, 50)
    assert (event.output_tokens, event.reasoning_tokens) == (20, 5)
