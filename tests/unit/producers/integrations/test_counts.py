"""What usage objects may say and what they may not; the table of real ones is in test_counts_table."""

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from producers.integrations import AmbiguousUsage, ImpossibleUsage, usage_of
from producers.integrations import _counts as counts
from producers.integrations._usage import is_pending, usages_of
from producers.integrations._watching import AwsEvents, ServerSentEvents, Whole

CHAT = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
MESSAGE = {"input_tokens": 10, "output_tokens": 5}


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "usage": CHAT | more}


def found(answer: object, **how: Any) -> dict[str, Any]:
    usage = usage_of(answer, **how)
    assert usage is not None
    return usage


class TestImpossible:
    @pytest.mark.parametrize(
        "usage",
        [
            CHAT | {"prompt_tokens_details": {"cached_tokens": 11}},
            CHAT | {"prompt_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 5}},
            CHAT | {"prompt_tokens_details": {"audio_tokens": 11}},
            CHAT | {"completion_tokens_details": {"reasoning_tokens": 6}},
            CHAT | {"completion_tokens_details": {"audio_tokens": 6}},
            CHAT | {"prompt_cache_hit_tokens": 11},
            CHAT | {"prompt_tokens": -1},
            CHAT | {"prompt_tokens": 10.5},
            CHAT | {"prompt_tokens": True},
            CHAT | {"prompt_tokens": "10"},
            CHAT | {"prompt_tokens": float("nan")},
            CHAT | {"prompt_tokens": float("inf")},
            CHAT | {"prompt_tokens": None},
            MESSAGE | {"input_tokens_details": {"cached_tokens": 11}},
            MESSAGE | {"output_tokens_details": {"reasoning_tokens": 6}},
            MESSAGE | {"cache_read_input_tokens": 0, "output_tokens_details": {"thinking_tokens": 6}},
            MESSAGE
            | {
                "cache_creation_input_tokens": 9,
                "cache_creation": {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 2},
            },
            MESSAGE | {"cache_read_input_tokens": 1, "output_tokens": None},
            {"promptTokenCount": 3, "cachedContentTokenCount": 4},
            {"candidatesTokenCount": 3},
            {"inputTokens": 3},
        ],
    )
    def test_is_refused_and_never_made_to_fit(self, usage: dict[str, Any]) -> None:
        with pytest.raises(ImpossibleUsage):
            usage_of({"usage": usage})

    def test_says_what_contradicts_what(self) -> None:
        with pytest.raises(ValueError, match="11 tokens from and to the cache of 10 input tokens"):
            usage_of(chat(prompt_tokens_details={"cached_tokens": 11}))

    def test_more_read_from_the_cache_than_sent_is_ordinary_for_anthropic(self) -> None:
        usage = found({"usage": MESSAGE | {"cache_read_input_tokens": 5000}})
        assert (usage["input_tokens"], usage["cache_read_tokens"]) == (5010, 5000)


class TestAmbiguous:
    BOTH = MESSAGE | {"total_tokens": 15, "cache_read_input_tokens": 4}

    def test_is_refused(self) -> None:
        with pytest.raises(AmbiguousUsage, match="provider= or shape="):
            usage_of(self.BOTH)

    @pytest.mark.parametrize(
        ("how", "given"),
        [
            ({"provider": "anthropic"}, 14),
            ({"shape": "anthropic"}, 14),
            ({"provider": "openai"}, 10),
            ({"provider": "anthropic", "shape": "responses"}, 10),
        ],
    )
    def test_unless_it_is_said(self, how: dict[str, Any], given: int) -> None:
        usage = found(self.BOTH, **how)
        assert (usage["input_tokens"], usage["cache_read_tokens"]) == (given, 4)

    def test_the_total_may_tell(self) -> None:
        assert found(self.BOTH | {"total_tokens": 19})["input_tokens"] == 14

    def test_without_a_cache_both_are_the_same(self) -> None:
        assert found(self.BOTH | {"cache_read_input_tokens": 0})["input_tokens"] == 10

    def test_names_that_nobody_has(self) -> None:
        with pytest.raises(AmbiguousUsage):
            usage_of({"usage": {"tokens_in": 3}})
        with pytest.raises(ValueError, match="shape is one of"):
            usage_of(CHAT, shape="gpt")  # type: ignore[arg-type]  # a mistake of the caller


class TestMissing:
    @pytest.mark.parametrize(
        "answer",
        [
            {},
            {"model": "gpt-4o"},
            {"usage": None},
            {"choices": [], "usage": None},
            {"custom_id": "1", "response": {"status_code": 400, "body": {"error": {}}}, "error": None},
            {"custom_id": "1", "result": {"type": "errored", "error": {}}},
            {"usage": {"prompt_tokens": None, "completion_tokens": None, "total_tokens": 3}, "shape": "chat"},
            {"usage": {"type": "duration", "seconds": None, "input_tokens": None}, "x_groq": None},
        ],
    )
    def test_is_not_zero(self, answer: dict[str, Any]) -> None:
        assert usage_of(answer, shape="chat") is None

    def test_zeros_that_are_stated_are(self) -> None:
        usage = found({"usage": {"prompt_tokens": 0, "completion_tokens": 0}})
        assert (usage["input_tokens"], usage["output_tokens"]) == (0, 0)

    def test_what_is_not_stated_is_left_out(self) -> None:
        assert set(found(CHAT)) == {"input_tokens", "output_tokens", "status"}


class TestAbout:
    def test_the_key_is_the_answer_itself(self) -> None:
        assert found({"id": "chatcmpl-9", "usage": CHAT})["idempotency_key"] == "chatcmpl-9"
        assert (
            found({"responseId": "r-9", "usageMetadata": {"promptTokenCount": 1}})["idempotency_key"] == "r-9"
        )

    def test_a_line_of_a_batch_whose_answer_has_no_id_has_its_own(self) -> None:
        body = {"model": "text-embedding-3-small", "usage": {"prompt_tokens": 8, "total_tokens": 8}}
        usage = found({"id": "batch_req_7", "custom_id": "a", "response": {"body": body}})
        assert usage["idempotency_key"] == "batch_req_7"
        assert usage["metadata"] == {"service_tier": "batch"}

    @pytest.mark.parametrize(
        ("answer", "provider"),
        [
            ({"model": "gpt-4o", "usage": CHAT}, "openai"),
            ({"model": "o3", "usage": CHAT}, "openai"),
            ({"model": "openai/gpt-oss-20b", "usage": CHAT}, None),
            ({"model": "gpt-oss-20b", "usage": CHAT}, None),
            ({"model": "claude-opus-4-8", "usage": MESSAGE}, "anthropic"),
            ({"id": "msg_bdrk_1", "model": "claude-opus-4-8", "usage": MESSAGE}, "aws"),
            ({"model": "grok-4", "usage": CHAT}, "x-ai"),
            ({"id": "gen-1", "model": "x-ai/grok-4", "usage": CHAT}, "openrouter"),
            ({"model": "llama-3.3-70b", "x_groq": {"usage": CHAT}}, "groq"),
            ({"usage": {"inputTokens": 1, "outputTokens": 1}}, "aws"),
            ({"model": "llama3", "usage": CHAT}, None),
        ],
    )
    def test_the_provider_is_known_or_left_out(self, answer: dict[str, Any], provider: str | None) -> None:
        assert found(answer).get("provider") == provider

    @pytest.mark.parametrize("name", ["azure.ai.openai", "azure_openai", "azure"])
    def test_what_is_given_wins_and_is_spelled_as_prices_are(self, name: str) -> None:
        usage = found(chat(), provider=name, model="my-model")
        assert (usage["provider"], usage["model"]) == ("azure", "my-model")

    @pytest.mark.parametrize("status", ["failed", "cancelled", "incomplete", "completed"])
    def test_the_status(self, status: str) -> None:
        usage = found({"status": status, "usage": MESSAGE})
        assert usage["status"] == ("error" if status in ("failed", "cancelled") else "ok")

    def test_what_is_not_made_yet(self) -> None:
        assert is_pending({"status": "queued"})
        assert not is_pending({"status": "completed"})

    @pytest.mark.parametrize("tier", ["default", "standard", "auto", "on_demand", None])
    def test_the_standard_tier_goes_without_saying(self, tier: str | None) -> None:
        assert "metadata" not in found(chat() | {"service_tier": tier})

    def test_a_region_with_a_premium_is_kept(self) -> None:
        usage = MESSAGE | {"cache_read_input_tokens": 0, "inference_geo": "us", "service_tier": "priority"}
        assert found({"usage": usage})["metadata"] == {"service_tier": "priority", "inference_geo": "us"}

    def test_a_cost_is_kept_to_its_last_digit(self) -> None:
        text = (
            '{"id": "gen-1", "usage": {"prompt_tokens": 1, "completion_tokens": 1, "cost": 0.000000123456}}'
        )
        assert found(text)["cost_usd"] == "0.000000123456"
        assert found(json.loads(text))["cost_usd"] == "0.000000123456"
        assert found({"id": "gen-1", "usage": CHAT | {"cost": 0}})["cost_usd"] == "0"
        assert "cost_usd" not in found({"usage": CHAT | {"cost": 5}})

    def test_only_the_message_where_one_is_asked_for(self) -> None:
        extra = {"type": "compaction", "input_tokens": 1000, "output_tokens": 9}
        answer = {"id": "msg_1", "usage": MESSAGE | {"iterations": [extra]}}
        assert found(answer)["input_tokens"] == 10
        both = usages_of(answer)
        assert [one["idempotency_key"] for one in both] == ["msg_1", "msg_1:compaction:0"]


class TestTokenCounts:
    def test_units_alone(self) -> None:
        heard = counts.TokenCounts(units={"audio_seconds": Decimal("1.5")})
        assert heard.usage() == {"tokens_used": 0, "units": {"audio_seconds": Decimal("1.5")}}

    def test_half_a_split_is_no_split(self) -> None:
        with pytest.raises(ImpossibleUsage, match="output tokens are missing"):
            counts.TokenCounts(input_tokens=1)


def keeping(seen: list[Any]) -> Callable[[dict[str, Any]], bool]:
    def keep(event: dict[str, Any]) -> bool:
        seen.append(event)
        return True

    return keep


class TestBodies:
    @pytest.mark.parametrize("size", [1, 3, 17, 4096])
    @pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
    def test_events_in_pieces_pass_on_as_they_are(self, size: int, end: bytes) -> None:
        seen: list[Any] = []
        body = ServerSentEvents(keeping(seen), lambda: None, hides=True)
        whole = (
            b': a comment\n\ndata: {"id": 1}\n\ndata: {"x": 2}\n\nevent: e\ndata: {"usage":\ndata: {}}\n\n'
        )
        whole = whole.replace(b"\n", end)
        pieces = [body.take(whole[start : start + size]) for start in range(0, len(whole), size)]
        assert b"".join(pieces) + body.rest() == whole
        assert seen == [{"id": 1}, {"usage": {}}]

    def test_an_event_that_nothing_follows(self) -> None:
        seen: list[Any] = []
        body = ServerSentEvents(keeping(seen), lambda: None, hides=True)
        assert body.take(b'data: {"id": 1}') == b""
        assert body.rest() == b'data: {"id": 1}'
        assert seen == [{"id": 1}]

    def test_what_a_model_writes_about_usage_is_no_usage(self) -> None:
        seen: list[Any] = []
        body = ServerSentEvents(keeping(seen), lambda: None, hides=False)
        said = json.dumps({"delta": json.dumps({"usage": {"prompt_tokens": 9}})}).encode()
        body.take(b"data: {}\n\ndata: " + said + b"\n\n")
        assert seen == [{}]

    def test_garbage_is_passed_on(self) -> None:
        events = ServerSentEvents(lambda event: True, lambda: None, hides=True)
        assert events.take(b"data: {not json\n\n\xff\xfe\n\n") == b"data: {not json\n\n\xff\xfe\n\n"
        for body in (AwsEvents(lambda event: True), Whole(lambda event: True)):
            assert (
                body.take(b"\x00\x00\x00\x01garbage, and more of it")
                == b"\x00\x00\x00\x01garbage, and more of it"
            )
            assert body.rest() == b""
