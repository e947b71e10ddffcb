"""The bytes that `emit` writes itself are those of the contract; what is not plain it leaves to it."""

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Final, cast
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from producers import Batch, InvalidEvent, UsageEvent
from producers._emitter import Usage, event_of
from producers._fast import Encoded, encoded, written
from producers._stream import encode

USER: Final = UUID("0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11")
NOW_NS: Final = 1_790_000_000_123_456_789
BASE: Final[dict[str, Any]] = {
    "user_id": USER,
    "feature": "blog_writer",
    "provider": "openai",
    "model": "gpt-4o-mini",
    "input_tokens": 812,
    "output_tokens": 455,
    "cost_usd": "0.000394800000",
}


class Text(str):
    """Equal to its string, and yet not plain."""


class Number(int):
    def __str__(self) -> str:
        return "many"


class Moment(datetime):
    def isoformat(self, sep: str = "T", timespec: str = "auto") -> str:
        return "soon"


class Members(dict[str, object]):
    repeated_keys = True


def _naive(year: int) -> datetime:
    """Hypothesis takes its bounds without a zone."""
    return datetime(year, 12, 31, tzinfo=UTC).replace(tzinfo=None)


TEXTS = st.sampled_from(
    [
        "chat",
        "gpt-5",
        "a b",
        " ",
        "",
        "é",
        "\u2028",
        "\u00a0x",
        "\x7f",
        "\t",
        '"',
        "\\",
        "😀",
        "\ud800",
        "\x00",
    ]
) | st.builds(lambda text, length: text * length, st.sampled_from("xé😀"), st.integers(126, 258))
NAMES = st.one_of(TEXTS, st.text(max_size=4), TEXTS.map(Text), st.sampled_from([None, 5, b"x", ["x"], True]))
USERS = st.one_of(
    st.uuids(),
    st.uuids().map(str),
    st.uuids().map(lambda value: str(value).upper()),
    st.uuids().map(lambda value: value.hex),
    st.sampled_from([UUID(int=0), UUID(int=2**128 - 1), str(UUID(int=0)), str(UUID(int=2**128 - 1))]),
    st.sampled_from([None, None, None, "", "x", 7, Text(USER), f"{USER}\n", f"{{{USER}}}", b"x"]),
)
COUNTS = st.one_of(
    st.none(),
    st.integers(0, 3000),
    st.sampled_from([10**9, 10**9 + 1, 2 * 10**9, -1, 10**12, 10**12 + 1, 2**63 - 1, 2**63, 10**5000]),
    st.sampled_from([True, False, "7", "-0", 7.0, 7.5, Decimal(7), Number(7), float("nan"), [7]]),
)
COSTS = st.one_of(
    st.none(),
    st.decimals(0, 100, places=6),
    st.decimals(0, 100, places=6).map(str),
    st.decimals(0, 1, places=14).map(str),
    st.floats(0, 10),
    st.floats(),
    st.integers(-1, 10**6 + 1),
    st.sampled_from(
        ["0", "0.0", "-0", "00.5", "0.", ".5", "1e-3", "1E2", "+1", "1_0", " 1", "0.5\n", "0.٣", ""]
    ),
    st.sampled_from(["999999.999999999999", "1000000", "1000000.0000000000001", "0.0000000000004", "NaN"]),
    st.sampled_from([Decimal("1E-7"), Decimal("0E-20"), Decimal("-0"), Decimal("NaN"), Decimal("1E+999999")]),
    st.sampled_from([True, 10**5000, Number(3), Text("0.5"), b"1"]),
)
TIMES = st.one_of(
    st.none(),
    st.datetimes(timezones=st.just(UTC), min_value=_naive(1969)),
    st.datetimes(timezones=st.just(timezone(timedelta(hours=5, minutes=30)))),
    st.datetimes(),
    st.datetimes(timezones=st.just(UTC), min_value=_naive(1980)).map(lambda at: at.replace(fold=1)),
    st.sampled_from(["2026-01-31T09:30:00Z", "2026-01-31", "", 5, Moment(2026, 1, 31, tzinfo=UTC)]),
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    TEXTS,
    TEXTS.map(Text),
    st.sampled_from(
        [Decimal("0.1"), USER, NOW_NS, 2**63, -(2**63), b"x", Number(3), datetime(2026, 1, 1, tzinfo=UTC)]
    ),
)
KEYS = st.sampled_from(
    ["tone", "max_token", "api_key", "password", "_repaired", "_extra", "é", "\x00", "k" * 129]
)
OBJECTS = st.dictionaries(KEYS | st.text(max_size=3) | st.just(7), LEAVES, max_size=18)
METADATA = st.one_of(
    st.none(),
    OBJECTS,
    st.dictionaries(KEYS, LEAVES | OBJECTS | st.lists(LEAVES, max_size=3), max_size=3),
    st.integers(1, 20).map(lambda count: {f"k{number}": "é" * 300 for number in range(count)}),
    st.sampled_from([Members(a=1), "text", [1], 5]),
)
IDS = st.one_of(st.none(), USERS)
ANY = st.fixed_dictionaries(
    {},
    optional={
        "user_id": USERS,
        "clerk_id": NAMES,
        "feature": NAMES,
        "provider": NAMES,
        "model": NAMES,
        **dict.fromkeys(("input_tokens", "output_tokens", "tokens_used", "duration_ms", "seq"), COUNTS),
        **dict.fromkeys(("cache_read_tokens", "cache_write_tokens", "reasoning_tokens"), COUNTS),
        "cost_usd": COSTS,
        "occurred_at": TIMES,
        "status": st.sampled_from([None, "ok", "error", "OK", "", Text("ok"), ["ok"], True]),
        "metadata": METADATA,
        "hold_id": NAMES,
        "producer_id": NAMES,
        "event_id": IDS,
        "idempotency_key": st.one_of(st.none(), NAMES),
    },
)
FEW = st.sets(st.sampled_from(sorted(Usage.__optional_keys__ | Usage.__required_keys__)), max_size=3)


def by_the_contract(usage: dict[str, Any], made: Encoded | None) -> bytes | tuple[object, ...]:
    """What the long way says about the call, with the id and the time that the short one has settled."""
    settled = dict(usage)
    if made is not None and settled.get("idempotency_key") is None:
        settled["event_id"] = made.event_id
    if settled.get("occurred_at") is None:
        settled["occurred_at"] = datetime.fromtimestamp(NOW_NS // 10**9, UTC).replace(microsecond=123456)
    try:
        return encode(event_of(cast(Usage, settled)))
    except InvalidEvent as error:
        return (error.reason, error.field, error.detail)


def same(usage: dict[str, Any]) -> bool:
    """Whether the short way was taken; if so, it ended where the long one does."""
    made = written(NOW_NS, **usage)
    if made is None:
        return False
    assert made.data == by_the_contract(usage, made)
    assert made.event_id == UUID(json.loads(made.data)["event_id"])
    event = event_of(cast(Usage, {**usage, "event_id": made.event_id, "idempotency_key": None}))
    assert made.user_text == event.user_text
    if usage.get("event_id") is not None:
        assert made.event_id == event_of(cast(Usage, usage)).event_id
    # What an emitter names in StreamUnavailable is what a reader makes of the bytes that it sent.
    assert (made.event.event_id, made.event.user_text) == (made.event_id, made.user_text)
    return True


class TestWritten:
    @settings(max_examples=600, deadline=None)
    @given(changes=ANY, names=FEW)
    def test_is_what_the_contract_says_or_nothing(self, changes: dict[str, Any], names: set[str]) -> None:
        same({**BASE, **{name: value for name, value in changes.items() if name in names}})
        same({**BASE, **changes})
        same(changes)

    @settings(max_examples=300, deadline=None)
    @given(cost=COSTS, metadata=METADATA, moment=TIMES)
    @example(cost="0.000000000000", metadata={}, moment=None)
    @example(cost=Decimal("-0"), metadata={"max_tokens": 5}, moment=datetime(1970, 1, 1, tzinfo=UTC))
    @example(cost=None, metadata={"_extra": float("inf")}, moment=None)
    @example(cost=1e-5, metadata={"token": "x"}, moment=datetime(9999, 12, 31, tzinfo=UTC))
    def test_money_metadata_and_time(self, cost: object, metadata: object, moment: object) -> None:
        same({**BASE, "cost_usd": cost})
        same({**BASE, "metadata": metadata})
        same({**BASE, "occurred_at": moment})

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"user_id": str(USER)},
            {"user_id": None, "clerk_id": "user_2abC"},
            {"feature": 'a "quoted" feature', "provider": None, "model": ""},
            {"cost_usd": None},
            {"cost_usd": Decimal("0.10")},
            {"cost_usd": 0.25},
            {"cost_usd": 3},
            {
                "cache_read_tokens": 800,
                "cache_write_tokens": 12,
                "reasoning_tokens": 455,
                "tokens_used": 1267,
            },
            {"duration_ms": 950, "status": "ok", "hold_id": "h-1", "producer_id": "web-1", "seq": 5},
            {"metadata": {"tone": "dry", "tries": 2, "score": 0.5, "cached": False, "note": None}},
            {"metadata": {f"k{number}": "é" * 300 for number in range(16)}},
            {"metadata": {"password": "x", "nested": {"list": [1, 2]}}},
            {"occurred_at": datetime(2026, 1, 31, 9, 30, tzinfo=UTC)},
            {"event_id": UUID("018f3c1a-7b1c-7d3e-9a55-0123456789ab")},
            {"idempotency_key": "chatcmpl-9x"},
        ],
    )
    def test_is_the_way_of_ordinary_calls(self, changes: dict[str, Any]) -> None:
        assert same({**BASE, **changes})

    @pytest.mark.parametrize(
        "changes",
        [
            {"input_token": 5},
            {"user_id": str(USER).upper()},
            {"user_id": USER, "clerk_id": "user_2abC"},
            {"output_tokens": None},
            {"tokens_used": 1268},
            {"cache_read_tokens": 813},
            {"reasoning_tokens": 456},
            # Python refuses to write it in decimal digits.
            {"cache_read_tokens": 10**5000},
            {"cost_usd": 10**5000},
            {"input_tokens": True},
            {"cost_usd": "0.0000000000004"},
            {"event_id": USER, "idempotency_key": "k"},
            {"idempotency_key": ""},
            {"idempotency_key": "\ud800"},
        ],
    )
    def test_leaves_the_rest_to_the_contract(self, changes: dict[str, Any]) -> None:
        assert written(NOW_NS, **{**BASE, **changes}) is None

    def test_settles_id_and_time_at_the_moment_of_the_call(self) -> None:
        made = written(NOW_NS, **BASE)
        assert made is not None
        assert (made.event_id.version, made.event_id.int >> 80) == (7, NOW_NS // 10**6)
        assert json.loads(made.data)["occurred_at"] == "2026-09-21T14:13:20.123456Z"

    @pytest.mark.parametrize(("at_ns", "text"), [(999, "00:00:00Z"), (1000, "00:00:00.000001Z")])
    def test_writes_the_fraction_as_datetime_does(self, at_ns: int, text: str) -> None:
        made = written(at_ns, **BASE)
        assert made is not None
        assert json.loads(made.data)["occurred_at"] == f"1970-01-01T{text}"
        assert made.event.wire()["occurred_at"] == f"1970-01-01T{text}"


class TestBatch:
    def test_has_the_events_of_both_ways(self) -> None:
        batch = Batch()
        ids = [batch.emit(**BASE), batch.emit(**{**BASE, "user_id": str(USER).upper()})]
        event = UsageEvent(user_id=USER, feature="x", corrects=ids[0], cost_usd="-0.5")
        assert batch.add(event) == event.event_id
        assert batch.event_ids == [*ids, event.event_id]
        assert [one.event_id for one in batch.events] == batch.event_ids
        assert batch.events[2] is event
        assert [one.corrects for one in batch.events] == [None, None, ids[0]]

    def test_a_correction_is_told_from_an_event(self) -> None:
        event = UsageEvent(user_id=USER, feature="x", corrects=UUID(int=5), cost_usd="-0.5")
        assert encoded(event).is_correction
        made = written(NOW_NS, **BASE)
        assert made is not None
        assert not made.is_correction
