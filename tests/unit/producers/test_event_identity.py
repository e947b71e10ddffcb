"""Who, what and with which model: every rule of the fields that name something, with its reason code."""

import itertools
from uuid import UUID

import pytest

from producers import InvalidEvent
from producers._events import parse
from tests.unit.producers.samples import BASE, EVENT, GONE, USER, fields, reason_of

IDS_REFUSED = [
    "",
    "x",
    5,
    True,
    ["a"],
    {},
    "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "{018f3c1a-7b1c-7d3e-9a55-0123456789ab}",
    "urn:uuid:018f3c1a-7b1c-7d3e-9a55-0123456789ab",
    "018f3c1a-7b1c-7d3e-9a55-0123456789a",
    "018f3c1a-7b1c-7d3e-9a55-0123456789abc",
    "018f3c1a7b1c-7d3e-9a55-0123456789ab",
    " 018f3c1a-7b1c-7d3e-9a55-0123456789ab",
    "018f3c1a-7b1c-7d3e-9a55-0123456789ab\n",
    "018f3c1a_7b1c_7d3e_9a55_0123456789ab",
    "018f3c1a-7b1c-7d3e-9a55-\u0660\u0661\u0662\u0663456789ab",
    "018f3c1a-7b1c-7d3e-9a55-0123456789\ud800",
]
TEXTS_REFUSED = [
    5,
    True,
    ["a"],
    {"a": 1},
    "a\nb",
    "a\tb",
    "\x00",
    "a\x7f",
    "\ud800",
    "a\u202eb",
    "a\u200bb",
    "   ",
]


class TestIdentity:
    @pytest.mark.parametrize("value", IDS_REFUSED, ids=itertools.count())
    def test_refuses_what_is_no_id(self, value: object) -> None:
        assert reason_of(fields(event_id=value)) == ("invalid_event_id", "event_id")
        assert reason_of(fields(user_id=value)) == ("invalid_user_id", "user_id")
        assert reason_of(fields(corrects=value), correction=True) == ("invalid_field", "corrects")

    @pytest.mark.parametrize("value", [EVENT.upper(), EVENT.replace("-", ""), EVENT.replace("-", "").upper()])
    def test_has_one_spelling_of_an_id(self, value: str) -> None:
        event = parse(fields(event_id=value, user_id=USER.upper()))
        assert event.event_id == UUID(EVENT)
        assert event.wire()["event_id"] == EVENT
        assert event.user_text == USER

    def test_takes_exactly_one_user(self) -> None:
        assert parse(fields(user_id=GONE, clerk_id="user_2abC")).user_text == "user_2abC"
        assert parse(fields(user_id=None, clerk_id="user_2abC")).user_id is None
        assert reason_of(fields(clerk_id="user_2abC")) == ("invalid_user_id", "user_id")
        assert reason_of(fields(user_id=GONE)) == ("missing_field", "user_id")
        assert reason_of(fields(user_id=None, clerk_id=None)) == ("missing_field", "user_id")

    @pytest.mark.parametrize("value", [*TEXTS_REFUSED, "", "a b", "x" * 256], ids=itertools.count())
    def test_refuses_what_is_no_clerk_id(self, value: object) -> None:
        assert reason_of(fields(user_id=GONE, clerk_id=value)) == ("invalid_user_id", "clerk_id")

    def test_needs_an_event_id(self) -> None:
        assert reason_of(fields(event_id=GONE)) == ("missing_field", "event_id")
        assert reason_of(fields(event_id=None)) == ("missing_field", "event_id")


class TestTexts:
    @pytest.mark.parametrize("value", TEXTS_REFUSED, ids=itertools.count())
    def test_refuses_what_is_not_printable(self, value: object) -> None:
        assert reason_of(fields(feature=value)) == ("invalid_feature", "feature")
        assert reason_of(fields(provider=value)) == ("invalid_provider", "provider")
        assert reason_of(fields(model=value)) == ("invalid_model", "model")

    def test_bounds_their_length_in_characters(self) -> None:
        event = parse(fields(feature="ü" * 128, provider="p" * 128, model="😀" * 256))
        assert event.model == "😀" * 256
        assert reason_of(fields(feature="x" * 129)) == ("invalid_feature", "feature")
        assert reason_of(fields(provider="x" * 129)) == ("invalid_provider", "provider")
        assert reason_of(fields(model="x" * 257)) == ("invalid_model", "model")

    def test_needs_a_feature(self) -> None:
        assert reason_of(fields(feature="")) == ("invalid_feature", "feature")
        assert reason_of(fields(feature=GONE)) == ("missing_field", "feature")

    @pytest.mark.parametrize("value", ["", None, GONE])
    def test_an_empty_provider_or_model_is_absent(self, value: object) -> None:
        event = parse(fields(provider=value, model=value))
        assert (event.provider, event.model) == (None, None)

    @pytest.mark.parametrize("value", ["'; DROP TABLE users; --", "%s {0} ${x}", "<script>", "=1+1"])
    def test_keeps_what_only_looks_dangerous(self, value: str) -> None:
        assert parse(fields(model=value)).model == value


class TestOtherFields:
    @pytest.mark.parametrize("value", [2, 0, "2", "x", True, 1.5, [1], {}])
    def test_refuses_another_version_before_anything_else(self, value: object) -> None:
        assert reason_of({"v": value}) == ("unknown_version", "v")

    @pytest.mark.parametrize("value", [1, "1", 1.0, None, GONE])
    def test_takes_version_1(self, value: object) -> None:
        assert parse(fields(v=value)).wire()["v"] == 1

    @pytest.mark.parametrize("value", [True, -1, 1.5, "x", 10**13])
    def test_refuses_a_duration_that_is_none(self, value: object) -> None:
        assert reason_of(fields(duration_ms=value)) == ("invalid_field", "duration_ms")

    @pytest.mark.parametrize("value", ["OK", "", "timeout", 1, True, ["ok"], {}])
    def test_refuses_another_status(self, value: object) -> None:
        assert reason_of(fields(status=value)) == ("invalid_field", "status")

    @pytest.mark.parametrize("name", ["hold_id", "producer_id"])
    @pytest.mark.parametrize("value", ["", "a b", "x" * 129, 5, "a\n"])
    def test_refuses_identifiers_that_are_none(self, name: str, value: object) -> None:
        assert reason_of(fields(**{name: value})) == ("invalid_field", name)

    @pytest.mark.parametrize("value", [-1, 2**63, "1_0", True])
    def test_refuses_a_number_out_of_sequence(self, value: object) -> None:
        assert reason_of(fields(seq=value)) == ("invalid_field", "seq")

    def test_takes_them(self) -> None:
        event = parse(
            fields(duration_ms="1500", status="error", hold_id="h-1", producer_id="web-1", seq=2**63 - 1)
        )
        assert (event.duration_ms, event.status, event.hold_id) == (1500, "error", "h-1")
        assert (event.producer_id, event.seq) == ("web-1", 2**63 - 1)

    def test_keeps_unknown_fields_in_metadata(self) -> None:
        event = parse(fields(region="eu", metadata={"a": 1}, token="S3cret"))  # noqa: S106 - to be redacted
        assert event.metadata == {
            "a": 1,
            "_extra": {"region": "eu", "token": "[redacted]"},
            "_repaired": ["redacted"],
        }

    @pytest.mark.parametrize("value", ["text", 5, [1], True, "\ud800", float("nan")])
    def test_no_metadata_refuses_an_event(self, value: object) -> None:
        event = parse(fields(metadata=value))
        assert event.metadata is not None
        assert "not_an_object" in event.metadata["_repaired"]

    def test_no_message_shows_a_value(self) -> None:
        for name in BASE:
            for value in ("S3cret\n", ["S3cret"], {"S3cret": 1}):
                with pytest.raises(InvalidEvent) as caught:
                    parse(fields(**{name: value}))
                assert "S3cret" not in str(caught.value)
