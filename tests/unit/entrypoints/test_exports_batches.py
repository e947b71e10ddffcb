"""Batches as the providers write them: a line is read as the app itself reads a response."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest

from producers._ids import keyed_event_id
from tests.unit.entrypoints.test_exports import NOW, START, USER, one, read
from worker.entrypoints.cli._exports import Owner, read_export


def openai_line(body: Mapping[str, Any] | None, *, custom_id: str = "job-1") -> dict[str, Any]:
    response = None if body is None else {"status_code": 200, "request_id": "r", "body": body}
    return {"id": "batch_req_1", "custom_id": custom_id, "response": response, "error": None}


class TestOpenAI:
    def test_a_batch_line_has_the_id_of_its_response(self) -> None:
        """So that a response that was also tracked in the app counts once."""
        body = {
            "id": "chatcmpl-123",
            "object": "chat.completion",
            "created": START,
            "model": "gpt-4o-mini",
            "usage": {
                "prompt_tokens": 22,
                "completion_tokens": 20,
                "total_tokens": 42,
                "prompt_tokens_details": {"cached_tokens": 10},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
        }
        event = one("openai", openai_line(body))
        assert event.event_id == keyed_event_id(USER, "chatcmpl-123")
        assert (event.input_tokens, event.output_tokens) == (22, 20)
        assert (event.cache_read_tokens, event.reasoning_tokens) == (10, 3)
        assert event.occurred_at.timestamp() == START

    def test_a_batch_line_is_read_as_the_app_reads_it(self) -> None:
        """At the price of a batch, with the parts of its tokens that have prices of their own."""
        usage = {
            "prompt_tokens": 64,
            "completion_tokens": 9,
            "total_tokens": 73,
            "prompt_tokens_details": {"audio_tokens": 44, "cached_tokens": 8, "cache_write_tokens": 5},
        }
        body = {"id": "chatcmpl-1", "created": START, "model": "gpt-4o-audio-preview", "usage": usage}
        event = one("openai", openai_line(body))
        assert (event.provider, event.cache_read_tokens, event.cache_write_tokens) == ("openai", 8, 5)
        assert event.units == {"input_audio_tokens": Decimal(44)}
        assert event.metadata == {
            "service_tier": "batch",
            "export": {"kind": "openai.batch", "custom_id": "job-1"},
        }

    @pytest.mark.parametrize("value", ["-1", "true", '"7"', "1.5", "1e999999999", "1e-999999999", "65"])
    def test_a_batch_line_with_counts_that_are_none_is_refused(self, value: str) -> None:
        usage = {"prompt_tokens": 64, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": -9}}
        text = json.dumps(openai_line({"id": "chatcmpl-1", "created": START, "usage": usage}))
        owner = Owner(feature="llm", users={}, everybody=USER)
        source = io.BytesIO(text.replace("-9", value).encode())
        (reason,) = [
            line.reason
            for line in read_export(source, format="openai", owner=owner, now=NOW)
            if line.reason or line.event
        ]
        assert reason == "unreadable_record"

    def test_a_batch_line_whose_usage_cannot_be_read_is_refused_not_left_out(self) -> None:
        nothing = openai_line({"id": "chatcmpl-1", "created": START, "usage": {}})
        nobody = openai_line({"id": "chatcmpl-1", "usage": {"prompt_tokens": 1}}) | {"custom_id": None}
        assert [line.reason for line in read("openai", nothing, nobody)] == ["unreadable_record"] * 2

    def test_batch_lines_of_responses_and_embeddings(self) -> None:
        usage = {"input_tokens": 36, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 87}
        response = {"id": "resp_1", "created_at": START, "model": "gpt-4.1", "usage": usage}
        vectors = {"model": "text-embedding-3-small", "usage": {"prompt_tokens": 8, "total_tokens": 8}}
        first, second = read("openai", openai_line(response), openai_line(vectors))
        assert first.event is not None
        assert second.event is not None
        assert (first.event.input_tokens, first.event.cache_read_tokens) == (36, 4)
        assert (second.event.input_tokens, second.event.output_tokens) == (8, 0)
        assert second.event.event_id == keyed_event_id(USER, "batch_req_1")

    def test_a_request_that_failed_used_nothing(self) -> None:
        failed = openai_line({"error": {"message": "no"}})
        assert [line.skipped for line in read("openai", failed, openai_line(None))] == ["no_usage"] * 2


class TestAnthropic:
    def test_batch_results(self) -> None:
        usage = {
            "input_tokens": 11,
            "cache_creation_input_tokens": 5,
            "cache_read_input_tokens": 4,
            "output_tokens": 36,
        }
        message = {"id": "msg_1", "model": "claude-sonnet-4-20250514", "usage": usage}
        good = {"custom_id": "a", "result": {"type": "succeeded", "message": message}}
        bad = [{"custom_id": "b", "result": {"type": kind}} for kind in ("errored", "canceled", "expired")]
        first, *others = read("anthropic", good, *bad, occurred_at="2026-11-20T00:00:00Z")
        assert first.event is not None
        assert (first.event.input_tokens, first.event.output_tokens) == (20, 36)
        assert first.event.event_id == keyed_event_id(USER, "msg_1")
        assert first.event.occurred_at.day == 20
        assert [line.skipped for line in others] == ["no_usage"] * 3

    def test_a_batch_result_is_read_as_the_app_reads_it(self) -> None:
        usage = {
            "input_tokens": 11,
            "cache_creation_input_tokens": 5,
            "cache_creation": {"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 3},
            "cache_read_input_tokens": 4,
            "output_tokens": 36,
            "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
            "service_tier": "batch",
        }
        message = {"id": "msg_1", "model": "claude-sonnet-4-20250514", "usage": usage}
        result = {"custom_id": "a", "result": {"type": "succeeded", "message": message}}
        event = one("anthropic", result)
        assert (event.provider, event.cache_write_tokens) == ("anthropic", 5)
        assert event.units == {"web_searches": Decimal(2), "cache_write_1h_tokens": Decimal(3)}
        assert event.metadata == {
            "service_tier": "batch",
            "export": {"kind": "anthropic.batch", "custom_id": "a"},
        }
        del message["id"]
        (line,) = read("anthropic", result)
        assert (line.reason, line.detail) == ("unreadable_record", "custom_id a: the message has no id")
