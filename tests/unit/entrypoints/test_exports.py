"""Usage exports as the providers write them: records, ids, and what is no usage."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from openai.types.admin.organization.usage_completions_response import UsageCompletionsResponse

from producers import UsageEvent
from producers._ids import keyed_event_id
from worker.entrypoints.cli._events_file import Line
from worker.entrypoints.cli._exports import Owner, read_export

NOW = datetime(2026, 11, 21, 2, 3, tzinfo=UTC)
USER = "0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11"
OTHER = "0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a12"
DAY = 86_400
START = int(datetime(2026, 11, 19, tzinfo=UTC).timestamp())


def openai_page(*results: Mapping[str, Any], start: int = START, end: int = START + DAY) -> dict[str, Any]:
    """A page of the usage API, checked by OpenAI's own model of it."""
    full = [{"object": "organization.usage.completions.result", **result} for result in results]
    page = {
        "object": "page",
        "data": [{"object": "bucket", "start_time": start, "end_time": end, "results": full}],
        "has_more": False,
        "next_page": None,
    }
    UsageCompletionsResponse.model_validate(page)
    return page


COMPLETIONS = {
    "input_tokens": 1000,
    "output_tokens": 500,
    "input_cached_tokens": 800,
    "num_model_requests": 5,
    "project_id": "proj_abc",
    "user_id": None,
    "api_key_id": None,
    "model": "gpt-4o-mini-2024-07-18",
    "batch": None,
}
ANTHROPIC = {
    "uncached_input_tokens": 1500,
    "cache_creation": {"ephemeral_1h_input_tokens": 1000, "ephemeral_5m_input_tokens": 500},
    "cache_read_input_tokens": 200,
    "output_tokens": 500,
    "server_tool_use": {"web_search_requests": 10},
    "api_key_id": "apikey_01",
    "workspace_id": "wrkspc_01",
    "model": "claude-sonnet-4-20250514",
    "service_tier": "standard",
    "context_window": "0-200k",
}
LITELLM = {
    "request_id": "chatcmpl-9x",
    "call_type": "acompletion",
    "api_key": "88dc28d0f030c55ed4ab77ed8faf098196cb1c05df778539800c9f1243fe6b4b",
    "spend": 0.00012345,
    "total_tokens": 120,
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "startTime": "2026-11-20T10:00:00.123000Z",
    "endTime": "2026-11-20T10:00:01.623000Z",
    "model": "gpt-4o-mini",
    "custom_llm_provider": "openai",
    "user": "default_user_id",
    "end_user": USER,
    "team_id": "team-1",
    "cache_hit": "False",
    "metadata": {
        "additional_usage_values": {"cache_read_input_tokens": 60},
        "usage_object": {"completion_tokens_details": {"reasoning_tokens": 8}},
    },
}


def anthropic_page(*results: Mapping[str, Any], day: int = 19) -> dict[str, Any]:
    bucket = {"starting_at": f"2026-11-{day}T00:00:00Z", "ending_at": f"2026-11-{day + 1}T00:00:00Z"}
    return {"data": [{**bucket, "results": list(results)}], "has_more": False, "next_page": None}


def read(kind: str, *documents: Any, indent: int | None = None, **owner: Any) -> list[Line]:
    """What comes out of these documents, one per line unless they are indented."""
    text = "\n".join(json.dumps(document, indent=indent) for document in documents)
    settings: dict[str, Any] = {"feature": "llm", "users": {}, "everybody": USER, **owner}
    found = read_export(io.BytesIO(text.encode()), format=kind, owner=Owner(**settings), now=NOW)
    return [line for line in found if line.event or line.reason or line.skipped]


def one(kind: str, *documents: Any, **owner: Any) -> UsageEvent:
    (line,) = read(kind, *documents, **owner)
    assert line.event is not None, line.detail
    return line.event


class TestOpenAI:
    def test_a_bucket_becomes_an_event_at_its_start(self) -> None:
        event = one("openai", openai_page(COMPLETIONS))
        assert (event.input_tokens, event.output_tokens, event.cache_read_tokens) == (1000, 500, 800)
        assert (event.provider, event.model) == ("openai", "gpt-4o-mini-2024-07-18")
        assert event.occurred_at == datetime(2026, 11, 19, tzinfo=UTC)
        assert event.cost_usd is None
        assert event.metadata is not None
        assert event.metadata["export"]["requests"] == 5

    def test_its_id_follows_from_what_it_is_about_and_not_from_its_amounts(self) -> None:
        event = one("openai", openai_page(COMPLETIONS))
        again = one("openai", openai_page({**COMPLETIONS, "input_tokens": 7777}))
        to_another = one("openai", openai_page(COMPLETIONS), users={"proj_abc": OTHER})
        assert event.event_id == again.event_id == to_another.event_id
        assert to_another.user_id == uuid.UUID(OTHER)
        others = [
            one("openai", openai_page({**COMPLETIONS, name: value}))
            for name, value in (("model", "o3"), ("project_id", "p"), ("batch", True), ("user_id", "u"))
        ]
        others.append(one("openai", openai_page(COMPLETIONS, start=START - DAY, end=START)))
        others.append(one("openai", openai_page(COMPLETIONS), source="second-account"))
        assert len({other.event_id for other in (event, *others)}) == 7

    def test_a_bucket_that_may_still_grow_is_left_out(self) -> None:
        today = int(datetime(2026, 11, 21, tzinfo=UTC).timestamp())
        for start, end in ((today, today + DAY), (today - DAY, int(NOW.timestamp()) - 3599)):
            (line,) = read("openai", openai_page(COMPLETIONS, start=start, end=end))
            assert (line.event, line.skipped) == (None, "open_bucket")
        assert one("openai", openai_page(COMPLETIONS, end=int(NOW.timestamp()) - 3600)).tokens_used == 1500

    def test_one_that_stands_twice_is_told(self) -> None:
        """Grouped by something that we do not know, both would be one event, and one of them lost."""
        found = read("openai", openai_page(COMPLETIONS, {**COMPLETIONS, "new_dimension": "x"}))
        assert [line.reason for line in found] == [None, "ambiguous_record"]

    @pytest.mark.parametrize(
        ("kind", "amounts", "units"),
        [
            ("images", {"images": 3, "num_model_requests": 1, "size": "1024x1024"}, {"images": 3}),
            ("audio_speeches", {"characters": 450, "num_model_requests": 1}, {"input_characters": 450}),
            ("audio_transcriptions", {"seconds": 20, "num_model_requests": 1}, {"audio_seconds": 20}),
            ("code_interpreter_sessions", {"num_sessions": 2}, {"sessions": 2}),
            ("file_searches", {"num_requests": 6}, {"storage_searches": 6}),
            ("web_searches", {"num_requests": 4, "num_model_requests": 1}, {"web_searches": 4}),
        ],
    )
    def test_what_is_not_tokens_becomes_units(self, kind: str, amounts: dict[str, Any], units: Any) -> None:
        result = {"object": f"organization.usage.{kind}.result", **amounts}
        event = one("openai", openai_page(result))
        assert event.tokens_used == 0
        assert event.units == units

    def test_embeddings_have_no_output(self) -> None:
        result = {
            "object": "organization.usage.embeddings.result",
            "input_tokens": 16,
            "num_model_requests": 2,
        }
        event = one("openai", openai_page(result))
        assert (event.input_tokens, event.output_tokens) == (16, 0)

    def test_costs_and_storage_are_refused_and_nothing_is_skipped(self) -> None:
        found = read(
            "openai",
            openai_page(
                {"object": "organization.costs.result", "amount": {"value": 0.06, "currency": "usd"}},
                {"object": "organization.usage.vector_stores.result", "usage_bytes": 1024},
                {**COMPLETIONS, "input_tokens": 0, "output_tokens": 0, "input_cached_tokens": 0},
            ),
        )
        assert [(line.reason, line.skipped) for line in found] == [
            ("unreadable_record", None),
            ("unreadable_record", None),
            (None, "empty"),
        ]


class TestAnthropic:
    def test_counts_are_added_up(self) -> None:
        event = one("anthropic", anthropic_page({**ANTHROPIC, "server_tool_use": None}))
        assert event.input_tokens == 1500 + 1000 + 500 + 200
        assert (event.cache_read_tokens, event.cache_write_tokens) == (200, 1500)
        assert (event.output_tokens, event.provider) == (500, "anthropic")
        assert event.units == {"cache_write_1h_tokens": Decimal(1000)}
        assert event.metadata is not None
        assert "cache_write_1h" not in event.metadata["export"]

    def test_pages_that_were_fetched_are_free_and_no_unit(self) -> None:
        tools = {"web_search_requests": 10, "web_fetch_requests": 3}
        event = one("anthropic", anthropic_page({**ANTHROPIC, "server_tool_use": tools}))
        assert event.units == {"web_searches": Decimal(10), "cache_write_1h_tokens": Decimal(1000)}

    def test_dimensions_make_the_id(self) -> None:
        event = one("anthropic", anthropic_page(ANTHROPIC))
        assert event.event_id == one("anthropic", anthropic_page({**ANTHROPIC, "output_tokens": 1})).event_id
        others = [
            one("anthropic", anthropic_page({**ANTHROPIC, name: "x"}))
            for name in ("api_key_id", "workspace_id", "model", "service_tier", "context_window")
        ]
        others.append(one("anthropic", anthropic_page(ANTHROPIC, day=18)))
        assert len({other.event_id for other in (event, *others)}) == 7

    def test_a_workspace_says_whose_it_is(self) -> None:
        users = {"wrkspc_01": "user_2abc", "apikey_01": OTHER}
        event = one("anthropic", anthropic_page(ANTHROPIC), users=users, everybody=None)
        assert (event.user_id, event.clerk_id) == (None, "user_2abc")
        (line,) = read("anthropic", anthropic_page(ANTHROPIC), everybody=None)
        assert (line.event, line.reason) == (None, "unmapped_user")

    def test_today_is_left_out(self) -> None:
        assert [line.skipped for line in read("anthropic", anthropic_page(ANTHROPIC, day=21))] == [
            "open_bucket"
        ]


class TestLiteLLM:
    def test_a_row_becomes_an_event(self) -> None:
        event = one("litellm", LITELLM, everybody=OTHER)
        assert event.user_id == uuid.UUID(USER), "end_user is what the app has passed on"
        assert (event.input_tokens, event.output_tokens) == (100, 20)
        assert (event.cache_read_tokens, event.reasoning_tokens) == (60, 8)
        assert event.cost_usd == Decimal("0.00012345")
        assert (event.duration_ms, event.status) == (1500, "ok")
        assert event.occurred_at == datetime(2026, 11, 20, 10, 0, 0, 123000, tzinfo=UTC)
        assert event.event_id == keyed_event_id(USER, "chatcmpl-9x")

    def test_rows_come_in_a_list_a_page_or_lines_and_metadata_as_text(self) -> None:
        second = {**LITELLM, "request_id": "b", "metadata": json.dumps(LITELLM["metadata"])}
        expected = [event_of(line) for line in read("litellm", LITELLM, second)]
        assert [event_of(line) for line in read("litellm", [LITELLM, second])] == expected
        assert [event_of(line) for line in read("litellm", {"data": [LITELLM, second]}, indent=2)] == expected
        assert len({event.event_id for event in expected}) == 2

    def test_a_time_without_offset_is_utc(self) -> None:
        for text in ("2026-11-20 10:00:00.123", "2026-11-20T10:00:00.123", "2026-11-20T11:00:00.123+01:00"):
            assert one("litellm", {**LITELLM, "startTime": text}).occurred_at.hour == 10

    def test_a_spend_of_nothing_is_unknown_unless_its_cache_answered(self) -> None:
        assert one("litellm", {**LITELLM, "spend": 0.0}).cost_usd is None
        assert one("litellm", {**LITELLM, "spend": 0.0, "cache_hit": "True"}).cost_usd == 0

    def test_failures_without_usage_are_left_out(self) -> None:
        nothing = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, "spend": 0.0}
        (line,) = read("litellm", {**LITELLM, **nothing, "status": "failure"})
        assert line.skipped == "failed"
        assert one("litellm", {**LITELLM, "status": "failure"}).status == "error"

    def test_impossible_parts_are_refused_not_cut(self) -> None:
        metadata = {"additional_usage_values": {"cache_read_input_tokens": 101}}
        (line,) = read("litellm", {**LITELLM, "metadata": metadata})
        assert line.reason == "inconsistent_tokens"
        assert "chatcmpl-9x" in str(line.detail)


class TestDocuments:
    @pytest.mark.parametrize("indent", [None, 2])
    def test_pages_one_behind_the_other(self, indent: int | None) -> None:
        pages = [openai_page(COMPLETIONS, start=START - DAY * n, end=START - DAY * (n - 1)) for n in range(3)]
        assert len({event_of(line).event_id for line in read("openai", *pages, indent=indent)}) == 3

    @pytest.mark.parametrize("kind", ["openai", "anthropic"])
    def test_another_document_is_refused_as_a_whole(self, kind: str) -> None:
        for document in ({"a": 1}, 7, {"data": [{"x": 1}]}, LITELLM, {"data": [7]}):
            assert [line.reason for line in read(kind, document)] == ["unknown_record"], document

    def test_a_broken_line_harms_no_neighbour(self) -> None:
        text = "\n".join([json.dumps(LITELLM), "{", json.dumps({**LITELLM, "request_id": "b"}), "[7]"])
        owner = Owner(feature="llm", users={}, everybody=USER)
        found = list(read_export(io.BytesIO(text.encode()), format="litellm", owner=owner, now=NOW))
        assert sum(line.size_bytes for line in found) == len(text)
        assert [(line.number, line.reason) for line in found if line.reason or line.event] == [
            (1, None),
            (2, "not_json"),
            (3, None),
            (4, "unreadable_record"),
        ]

    @pytest.mark.parametrize("text", [b"", b"\n \n", b"{", b"\xff", b"[" * 100_000, b'{"a": NaN}'])
    def test_what_is_no_json_is_told_once(self, text: bytes) -> None:
        owner = Owner(feature="llm", users={}, everybody=USER)
        found = [
            line.reason
            for line in read_export(io.BytesIO(text), format="litellm", owner=owner, now=NOW)
            if line.reason
        ]
        assert found == (["not_json"] if text.strip() else [])

    @pytest.mark.parametrize("value", ["-1", "true", '"7"', "1.5", "[]", "1" * 31, "1e999999999"])
    def test_a_count_that_is_none_is_refused(self, value: str) -> None:
        text = json.dumps({**LITELLM, "prompt_tokens": 0}).replace(
            '"prompt_tokens": 0', f'"prompt_tokens": {value}'
        )
        owner = Owner(feature="llm", users={}, everybody=USER)
        found = list(read_export(io.BytesIO(text.encode()), format="litellm", owner=owner, now=NOW))
        assert [line.reason for line in found if line.reason] in (["unreadable_record"], ["invalid_tokens"])


def event_of(line: Line) -> UsageEvent:
    assert line.event is not None, line.detail
    return line.event
