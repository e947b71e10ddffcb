"""`track` with the real Anthropic SDK, against a local server that answers like Anthropic."""

import asyncio
import base64
import json
import zlib
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import anthropic
import pytest

from producers.integrations import _anthropic_calls, track, usage_context
from producers.integrations.anthropic import usages_of
from producers.testing import RecordingAsyncEmitter, RecordingEmitter
from tests.unit.producers.integrations.provider_server import Provider, sse

KEYS: dict[str, Any] = {"aws_region": "us-east-1", "aws_access_key": "a", "aws_secret_key": "b"}
ALICE = "7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11"
BOB = "7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a12"
MESSAGES: list[Any] = [{"role": "user", "content": "a secret question"}]
MODEL = "claude-opus-4-6"
USAGE = {
    "input_tokens": 10,
    "cache_read_input_tokens": 100,
    "cache_creation_input_tokens": 50,
    "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 30},
    "output_tokens": 7,
    "service_tier": "standard",
}


def message(identity: str = "msg_1", **more: object) -> dict[str, Any]:
    return {
        "id": identity,
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "a secret answer"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": USAGE,
    } | more


def events(*, delta: dict[str, Any] | None = None, stop: bool = True) -> list[dict[str, Any]]:
    start = {"type": "message_start", "message": message(content=[], usage=USAGE | {"output_tokens": 1})}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    text = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a secret"}}
    end = {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": delta or {"output_tokens": 7},
    }
    rest: list[dict[str, Any]] = [{"type": "content_block_stop", "index": 0}, end, {"type": "message_stop"}]
    return [start, block, {"type": "ping"}, text, *(rest if stop else [])]


def aws_message(event: dict[str, Any]) -> bytes:
    """One message of AWS's event stream, as Bedrock frames it."""

    def header(name: str, value: str) -> bytes:
        return bytes([len(name)]) + name.encode() + b"\x07" + len(value).to_bytes(2) + value.encode()

    payload = json.dumps({"bytes": base64.b64encode(json.dumps(event).encode()).decode()}).encode()
    headers = (
        header(":event-type", "chunk")
        + header(":content-type", "application/json")
        + header(":message-type", "event")
    )
    prelude = (16 + len(headers) + len(payload)).to_bytes(4) + len(headers).to_bytes(4)
    begin = prelude + zlib.crc32(prelude).to_bytes(4) + headers + payload
    return begin + zlib.crc32(begin).to_bytes(4)


@pytest.fixture
def client(provider: Provider, recording: RecordingEmitter) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(api_key="k", base_url=provider.url, max_retries=2) as plain:
        yield track(
            plain, emitter=recording, user_id=ALICE, feature="chat", provider="anthropic", strict=True
        )


class TestMessages:
    def test_the_input_includes_the_cache(
        self, client: anthropic.Anthropic, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will(message())
        answer = client.messages.create(model=MODEL, max_tokens=64, messages=MESSAGES)
        assert answer.usage.input_tokens == 10
        [event] = recording.events
        assert (event.provider, event.model, event.feature) == ("anthropic", MODEL, "chat")
        assert (event.input_tokens, event.cache_read_tokens, event.cache_write_tokens) == (160, 100, 50)
        assert (event.output_tokens, event.status) == (7, "ok")
        assert event.units == {"cache_write_1h_tokens": Decimal(30)}
        assert "secret" not in str(event)

    def test_repetitions_inside_the_sdk_are_one_event(
        self, client: anthropic.Anthropic, provider: Provider, recording: RecordingEmitter
    ) -> None:
        slow = {"type": "error", "error": {"type": "rate_limit_error", "message": "slow"}}
        provider.will(slow, status=429, headers={"retry-after-ms": "1"}).will(message())
        client.messages.create(model=MODEL, max_tokens=64, messages=MESSAGES)
        assert (len(provider.requests), len(recording.events)) == (2, 1)

    def test_an_error_used_nothing_that_is_known(
        self, client: anthropic.Anthropic, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will({"type": "error", "error": {"type": "x", "message": "no"}}, status=400)
        with pytest.raises(anthropic.BadRequestError):
            client.messages.create(model=MODEL, max_tokens=64, messages=MESSAGES)
        assert recording.events == []

    def test_server_tools_and_tiers(
        self, client: anthropic.Anthropic, provider: Provider, recording: RecordingEmitter
    ) -> None:
        tools = {"web_search_requests": 3, "web_fetch_requests": 2}
        usage = {
            "input_tokens": 10,
            "output_tokens": 7,
            "server_tool_use": tools,
            "service_tier": "priority",
        }
        provider.will(message(usage=usage))
        client.messages.create(model=MODEL, max_tokens=64, messages=MESSAGES)
        [event] = recording.events
        assert event.units == {"web_searches": Decimal(3)}
        assert event.metadata == {"service_tier": "priority"}

    def test_compactions_and_advisors_stand_apart(
        self, client: anthropic.Anthropic, provider: Provider, recording: RecordingEmitter
    ) -> None:
        plain = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
        iterations = [
            {"type": "compaction", "input_tokens": 1000, "output_tokens": 90, **plain},
            {"type": "message", "input_tokens": 10, "output_tokens": 7, **plain},
            {
                "type": "advisor_message",
                "model": "claude-opus-4-8",
                "input_tokens": 500,
                "output_tokens": 40,
                **plain,
            },
        ]
        usage = {"input_tokens": 10, "output_tokens": 7, **plain, "iterations": iterations}
        provider.will(message(usage=usage))
        client.beta.messages.create(model=MODEL, max_tokens=64, messages=MESSAGES)
        told = [(event.model, event.input_tokens, event.output_tokens) for event in recording.events]
        assert told == [(MODEL, 10, 7), (MODEL, 1000, 90), ("claude-opus-4-8", 500, 40)]
        assert len({event.event_id for event in recording.events}) == 3
        assert len(usages_of(message(usage=usage))) == 3

    def test_counting_tokens_uses_none(
        self, client: anthropic.Anthropic, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will({"input_tokens": 10})
        client.messages.count_tokens(model=MODEL, messages=MESSAGES)
        assert recording.events == []

    def test_raw_and_copied(
        self, client: anthropic.Anthropic, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will(message()).will(message("msg_2"))
        raw = client.messages.with_raw_response.create(model=MODEL, max_tokens=64, messages=MESSAGES)
        assert raw.parse().id == "msg_1"
        client.with_options(timeout=9).messages.create(model=MODEL, max_tokens=64, messages=MESSAGES)
        assert [event.tokens_used for event in recording.events] == [167, 167]

    def test_the_address_tells_the_provider(self) -> None:
        for address, expected in (
            ("https://api.anthropic.com", "anthropic"),
            ("https://openrouter.ai/api", "openrouter"),
            ("http://127.0.0.1:1", None),
        ):
            with anthropic.Anthropic(api_key="k", base_url=address) as one:
                assert _anthropic_calls.provider_of(one) == expected
        with anthropic.AnthropicBedrock(**KEYS) as one:
            assert _anthropic_calls.provider_of(one) == "aws"


class TestStreams:
    def test_a_stream(
        self, client: anthropic.Anthropic, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will_stream(sse(*events(), named=True))
        seen = list(client.messages.create(model=MODEL, max_tokens=64, messages=MESSAGES, stream=True))
        assert seen[-1].type == "message_stop"
        [event] = recording.events
        assert (event.input_tokens, event.output_tokens, event.cache_read_tokens) == (160, 7, 100)
        assert event.units == {"cache_write_1h_tokens": Decimal(30)}
        assert event.status == "ok"

    def test_the_helper_that_puts_a_stream_together(
        self, client: anthropic.Anthropic, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will_stream(sse(*events(), named=True))
        with client.messages.stream(model=MODEL, max_tokens=64, messages=MESSAGES) as seen:
            assert "".join(seen.text_stream) == "a secret"
        assert [event.tokens_used for event in recording.events] == [167]

    def test_counts_replace_one_another_and_null_says_nothing(
        self, client: anthropic.Anthropic, provider: Provider, recording: RecordingEmitter
    ) -> None:
        raised = {
            "input_tokens": 12,
            "cache_read_input_tokens": None,
            "cache_creation_input_tokens": None,
            "output_tokens": 9,
            "server_tool_use": {"web_search_requests": 1, "web_fetch_requests": 0},
        }
        provider.will_stream(sse(*events(delta=raised), named=True))
        list(client.messages.create(model=MODEL, max_tokens=64, messages=MESSAGES, stream=True))
        [event] = recording.events
        assert (event.input_tokens, event.cache_read_tokens, event.output_tokens) == (162, 100, 9)
        assert event.units == {"cache_write_1h_tokens": Decimal(30), "web_searches": Decimal(1)}

    def test_a_stream_that_is_left_counts_what_is_known(
        self, client: anthropic.Anthropic, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will_stream(sse(*events(), named=True))
        with client.messages.create(model=MODEL, max_tokens=64, messages=MESSAGES, stream=True) as seen:
            for _ in seen:
                break
        [event] = recording.events
        assert (event.input_tokens, event.output_tokens, event.status) == (160, 1, "error")
        assert event.metadata == {"incomplete": True}

    def test_an_error_within_the_stream(
        self, client: anthropic.Anthropic, provider: Provider, recording: RecordingEmitter
    ) -> None:
        broken = {"type": "error", "error": {"type": "overloaded_error", "message": "overloaded"}}
        provider.will_stream(sse(*events(stop=False), broken, named=True))
        with pytest.raises(anthropic.APIError, match="overloaded"):
            list(client.messages.create(model=MODEL, max_tokens=64, messages=MESSAGES, stream=True))
        assert [(event.input_tokens, event.status) for event in recording.events] == [(160, "error")]


class TestBatches:
    def test_each_result_is_an_event_and_the_same_when_it_is_read_again(
        self, client: anthropic.Anthropic, provider: Provider, recording: RecordingEmitter
    ) -> None:
        batch = {
            "id": "msgbatch_1",
            "type": "message_batch",
            "processing_status": "ended",
            "request_counts": {"processing": 0, "succeeded": 2, "errored": 1, "canceled": 0, "expired": 0},
            "created_at": "2026-01-01T00:00:00Z",
            "expires_at": "2026-01-02T00:00:00Z",
            "results_url": f"{provider.url}/v1/messages/batches/msgbatch_1/results",
        }
        error = {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}
        lines = [
            {"custom_id": "a", "result": {"type": "succeeded", "message": message("msg_a")}},
            {"custom_id": "b", "result": {"type": "errored", "error": error}},
            {"custom_id": "c", "result": {"type": "succeeded", "message": message("msg_c")}},
        ]
        body = b"\n".join(json.dumps(line).encode() for line in lines)
        for _ in range(2):
            provider.will(batch).will(body, content_type="application/x-jsonl")
            assert len(list(client.messages.batches.results("msgbatch_1"))) == 3
        assert [event.tokens_used for event in recording.events] == [167] * 4
        assert len({event.event_id for event in recording.events}) == 2
        assert {str(event.metadata) for event in recording.events} == {"{'service_tier': 'batch'}"}
        assert recording.events[0].duration_ms is None


class TestBedrock:
    def test_the_model_has_the_name_that_was_asked_for(
        self, provider: Provider, recording: RecordingEmitter
    ) -> None:
        name = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
        with anthropic.AnthropicBedrock(**KEYS, base_url=provider.url) as plain:
            tracked = track(plain, emitter=recording, user_id=ALICE, feature="chat", strict=True)
            provider.will(message("msg_bdrk_1"))
            tracked.messages.create(model=name, max_tokens=64, messages=MESSAGES)
            provider.will(
                [aws_message(event) for event in events()],
                content_type="application/vnd.amazon.eventstream",
            )
            seen = list(tracked.messages.create(model=name, max_tokens=64, messages=MESSAGES, stream=True))
        assert provider.requests[0]["path"].endswith("/invoke")
        assert seen[-1].type == "message_stop"
        told = [(event.provider, event.model, event.tokens_used, event.status) for event in recording.events]
        assert told == [("aws", name, 167, "ok")] * 2


class TestAsync:
    def test_messages_and_streams(self, provider: Provider) -> None:
        emitter = RecordingAsyncEmitter()

        async def use() -> None:
            async with anthropic.AsyncAnthropic(api_key="k", base_url=provider.url) as plain:
                tracked = track(plain, emitter=emitter, user_id=ALICE, feature="chat", strict=True)
                provider.will(message()).will_stream(sse(*events(), named=True))
                await tracked.messages.create(model=MODEL, max_tokens=64, messages=MESSAGES)
                with usage_context(user_id=BOB):
                    async with tracked.messages.stream(model=MODEL, max_tokens=64, messages=MESSAGES) as seen:
                        answer = await seen.get_final_message()
                assert answer.usage.output_tokens == 7

        asyncio.run(use())
        told = [(event.user_text, event.tokens_used) for event in emitter.events]
        assert told == [(ALICE, 167), (BOB, 167)]

    def test_the_results_of_a_batch(self, provider: Provider) -> None:
        emitter = RecordingAsyncEmitter()
        lines = [
            {"custom_id": name, "result": {"type": "succeeded", "message": message(name)}} for name in "ab"
        ]
        body = b"\n".join(json.dumps(line).encode() for line in lines)
        batch = {"id": "msgbatch_1", "results_url": f"{provider.url}/v1/messages/batches/msgbatch_1/results"}

        async def use() -> None:
            async with anthropic.AsyncAnthropic(api_key="k", base_url=provider.url) as plain:
                tracked = track(plain, emitter=emitter, user_id=ALICE, feature="chat", strict=True)
                provider.will(batch).will(body, content_type="application/x-jsonl")
                read = [one async for one in await tracked.messages.batches.results("msgbatch_1")]
                assert len(read) == 2

        asyncio.run(use())
        assert [event.tokens_used for event in emitter.events] == [167, 167]
