"""The fast decoder stores what the contract would store, and takes nothing that the contract refuses."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.differential import COMPUTED_FIRST, LIMITS, NOW, PRICES, compare, compare_together
from worker.ingest.plain import Decoder

# One for all examples: what an earlier one left in the caches must not change what a later one becomes.
DECODER: Final = Decoder(LIMITS, PRICES)
COMPUTED: Final = Decoder(LIMITS, COMPUTED_FIRST)

UUIDS = st.uuids().map(str) | st.sampled_from(
    [
        "018f3c1a-7b1c-7d3e-9a55-0123456789ab",
        "018F3C1A-7B1C-7D3E-9A55-0123456789AB",
        "018f3c1a7b1c7d3e9a550123456789ab",
        "{018f3c1a-7b1c-7d3e-9a55-0123456789ab}",
        "018f3c1a-7b1c7d3e-9a55-0123456789ab1",
        "018f3c1a_7b1c_7d3e_9a55_0123456789ab",
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "018f3c1a-7b1c-7d3e-9a55-0123456789a\u0660",
    ]
)
TEXTS = (
    st.sampled_from(
        ["chat", "gpt-5", "a b", " ", "", "é", "\u2028", "\u00a0x", "\x7f", "\t", "\uff58", '"', "\\", "😀"]
    )
    | st.text(max_size=5)
    | st.integers(126, 258).map(lambda length: "x" * length)
)
COUNTS = (
    st.integers(0, 3000)
    | st.sampled_from(
        [10**9, 10**9 + 1, 2 * 10**9, -1, 2**63, 10**40, "7", "-0", "7.0", 7.0, 1e3, True, None]
    )
    | st.sampled_from([Decimal("1.0000000000000000000001"), "٣"])
)
COSTS = (
    st.decimals(0, 100, places=6).map(str)
    | st.decimals(0, 1, places=14).map(str)
    | st.floats(0, 10)
    | st.sampled_from(["0", "0.0", "0.000001", "0.000000999999", "0.000000000001", "0.0000000000004"])
    | st.sampled_from(["1000000", "1000000.000000000000", "1000000.0000000000001", "999999.999999999999"])
    | st.sampled_from(
        ["5.", ".5", "05.5", "00.5", "-0.5", "-0", "+1", "1_0", " 1", "1e-3", "1E2", "NaN", "1e999"]
    )
    | st.sampled_from(["0.٣", "²", "1.²", "0x1", "", None, 3, -0.0, 10**7, True])
)
HOURS = st.sampled_from(["2026-01-31T09", "2026-01-31T24", "2026-02-29T09", "2025-12-27T09", "1969-12-31T23"])
TIMES = (
    st.builds(
        "{}{}{}{}".format,
        st.just("2026-01-31T09") | HOURS,
        st.sampled_from(
            [":30:00", ":40:15", ":45:15", ":45:16", ":59:60", ":60:00", ":3:00", ":30", ":٣0:00"]
        ),
        st.sampled_from(["", ".1", ".123", ".123456", ".1234569", ".", ".12٣", ".²", ",5", "." + "9" * 61]),
        st.sampled_from(["Z", "Z", "Z", "+00:00", "-00:00", "+05:30", "z", "", "+0000", "Z ", "+00:60"]),
    )
    | st.sampled_from(
        ["2026-01-31 09:30:00Z", "2026-01-31t09:30:00z", "9999-12-31T23:59:59.999999Z", 5, None]
    )
    | st.sampled_from(["2025-12-27T09:40:15.122999Z", "2025-12-27T09:40:15.123Z", "2025-12-27T09:40:16Z"])
    | st.sampled_from(["2026-01-31T09:45:15.123Z", "2026-01-31T09:45:15.123001Z", "2026-01-31T09:45:14.9Z"])
)
LEAVES = (
    st.text(max_size=6)
    | st.integers(-(2**70), 2**70)
    | st.integers(-9, 9)
    | st.floats()
    | st.booleans()
    | st.none()
)
KEYS = st.sampled_from(
    ["a", "b", "tenant", "api_key", "maxToken", "_repaired", "_extra", "k" * 129, "é", "x y"]
)
METADATA = (
    st.dictionaries(KEYS | st.text(max_size=3), LEAVES, max_size=4)
    | st.dictionaries(KEYS, st.lists(LEAVES, max_size=2) | LEAVES, max_size=2)
    | st.sampled_from(["text", 5, [], {"_repaired": ["size"]}, {"x": "y" * 8200}, {"x": "y" * 8182}])
    | st.integers(63, 66).map(lambda size: {f"k{n}": n for n in range(size)})
)
# Mostly good, so that one odd member is judged for itself and not hidden by another.
GOOD: dict[str, st.SearchStrategy[object]] = {
    "event_id": st.uuids(version=4).map(str),
    "user_id": st.sampled_from(
        ["7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11", "7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a12"]
    ),
    "feature": st.sampled_from(["chat", "blog_writer", "naïve", "two words"]),
    "provider": st.sampled_from(["openai", "anthropic", ""]),
    "model": st.sampled_from(["gpt-5", "claude", ""]),
    "input_tokens": st.integers(0, 20_000),
    "output_tokens": st.integers(0, 4000),
    "cost_usd": st.decimals(0, 50, places=9).map(str),
    "occurred_at": st.integers(0, 999_999).map("2026-01-31T09:38:09.{:06}Z".format),
}
OPTIONAL: dict[str, st.SearchStrategy[object]] = {
    "v": st.sampled_from([1, 1, 1, 2, "1", 1.0, None]),
    "provider": TEXTS | st.none(),
    "model": TEXTS | st.none(),
    "cache_read_tokens": st.integers(0, 100) | COUNTS,
    "cache_write_tokens": st.integers(0, 100) | COUNTS,
    "reasoning_tokens": st.integers(0, 100) | COUNTS,
    "tokens_used": COUNTS,
    "duration_ms": COUNTS | st.sampled_from([10**12, 10**12 + 1]),
    "status": st.sampled_from(["ok", "error", "OK", "", None, 1]),
    "hold_id": TEXTS | st.none(),
    "producer_id": TEXTS | st.none(),
    "seq": COUNTS | st.sampled_from([2**63 - 1, 2**63]),
    "metadata": METADATA,
}
ODD: dict[str, st.SearchStrategy[object]] = {
    **OPTIONAL,
    "event_id": UUIDS | TEXTS | st.none(),
    "user_id": UUIDS | TEXTS | st.none(),
    "feature": TEXTS | st.integers(),
    "input_tokens": COUNTS,
    "output_tokens": COUNTS,
    "cost_usd": COSTS,
    "occurred_at": TIMES,
    "clerk_id": st.sampled_from(["user_1", None]),
    "corrects": UUIDS | st.none(),
    "void": st.booleans(),
    "unknown": LEAVES,
}
SEPARATORS = st.sampled_from([(",", ":"), (",", ":"), (", ", ": "), ("\n,\t", " :\r")])


def written(value: object, separators: tuple[str, str], *, ascii_only: bool) -> str:
    """JSON of values that Python's encoder does not know as numbers: Decimal keeps its digits."""
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, Pairs):
        comma, colon = separators
        members = [
            f"{json.dumps(name)}{colon}{written(member, separators, ascii_only=ascii_only)}"
            for name, member in value
        ]
        return f"{{{comma.join(members)}}}"
    return json.dumps(value, separators=separators, ensure_ascii=ascii_only)


class Pairs(list[tuple[str, object]]):
    """The members of an object in order, repeated keys included."""


@st.composite
def events(draw: st.DrawFn) -> str:
    members: dict[str, object] = {}
    for name, strategy in GOOD.items():
        members[name] = draw(strategy)
    style = draw(st.integers(0, 9))
    if style >= 2:
        for name in draw(st.lists(st.sampled_from(sorted(OPTIONAL)), max_size=3, unique=True)):
            members[name] = draw(OPTIONAL[name])
    if style >= 4:
        name = draw(st.sampled_from(sorted(ODD)))
        members[name] = draw(ODD[name])
    if style >= 8:
        members.pop(draw(st.sampled_from(sorted(members))))
    pairs = Pairs(members.items())
    if draw(st.booleans()):
        pairs = Pairs(draw(st.permutations(pairs)))
    if style == 9:
        again = draw(st.sampled_from(sorted(ODD)))
        pairs.insert(draw(st.integers(0, len(pairs))), (again, members.get(again, draw(ODD[again]))))
    return written(pairs, draw(SEPARATORS), ascii_only=draw(st.sampled_from([False, False, True])))


def to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(events())
def test_single_events_are_stored_as_the_contract_would(event: str) -> None:
    data = to_bytes(event)
    assert compare(data, decoder=DECODER) == compare(data)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.lists(events() | st.sampled_from(["null", "[]", "[{}]", "{}", "1e5", '"x"']), max_size=6),
    st.sampled_from([",", ", ", "\n,", ",,"]),
    st.booleans(),
)
def test_frames_are_split_between_both_ways(parts: list[str], comma: str, repeated: bool) -> None:
    if repeated:
        parts = parts + parts[:2]
    compare(to_bytes(f"[{comma.join(parts)}]"), decoder=DECODER)


@settings(max_examples=1200, deadline=None, derandomize=True)
@given(
    events() | st.lists(events(), min_size=1, max_size=3).map(lambda some: f"[{','.join(some)}]"),
    st.lists(
        st.tuples(
            st.floats(0, 1),
            st.integers(0, 3),
            st.binary(min_size=1, max_size=3)
            | st.sampled_from([b'"', b",", b"}", b"]", b'\\"', b" ", b"\x00", b"-"]),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_damaged_bytes_are_judged_alike(text: str, damages: list[tuple[float, int, bytes]]) -> None:
    data = to_bytes(text)
    for place, removed, added in damages:
        at = int(place * len(data))
        data = data[:at] + added + data[at + removed :]
    compare(data, decoder=DECODER)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(events(), min_size=2, max_size=2), st.floats(0, 1))
def test_two_events_spliced_into_one_are_judged_alike(texts: list[str], place: float) -> None:
    first, second = map(to_bytes, texts)
    compare(first[: int(place * len(first))] + second[int(place * len(second)) :], decoder=DECODER)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(events() | st.sampled_from(["", "{}", "[]", "\n"]), min_size=1, max_size=6), st.booleans())
def test_many_together_are_taken_as_each_alone(texts: list[str], framed: bool) -> None:
    entries = [to_bytes(text) for text in texts]
    if framed:
        entries[-1] = b"[" + b",".join(entries) + b"]"
    compare_together(entries, decoder=DECODER)


SHARED: dict[str, st.SearchStrategy[object]] = {
    name: GOOD[name]
    for name in ("event_id", "user_id", "feature", "provider", "model", "input_tokens", "output_tokens")
}
LIKE_COSTS = (
    st.decimals(0, 9, places=12).map("{:f}".format)
    | st.decimals(0, 12, places=6).map("{:f}".format)
    | st.sampled_from(
        ["0", "0.0", "1", "9.999999999999", "0.000001", "0.000000999999", "5.", "10.5", "1.2.3"]
    )
    | st.sampled_from(["0.1234567890123", "0.1e3", "0.-1", "0.٣", "0. 1", "12345678901234", "1.²"])
)


@st.composite
def alike(draw: st.DrawFn) -> list[dict[str, object]]:
    """Events as one emitter writes them, one member of which may be odd in one of them."""
    kinds = dict(SHARED)
    if draw(st.booleans()):
        kinds["duration_ms"] = st.integers(0, 10**12)
        kinds["status"] = st.sampled_from(["ok", "error"])
    if draw(st.booleans()):
        kinds["producer_id"] = st.sampled_from(["k3jx9q2mz7ab", "k3jx9q2mz7ac"])
        kinds["seq"] = st.integers(1, 2**63 - 1)
    if draw(st.booleans()):
        kinds["cost_usd"] = st.decimals("0.000001", "9.99", places=9).map("{:f}".format)
    kinds["occurred_at"] = GOOD["occurred_at"]
    found = draw(st.lists(st.fixed_dictionaries(kinds), min_size=2, max_size=8))
    if draw(st.booleans()):
        name = draw(st.sampled_from(["cost_usd", "occurred_at", "tokens_used", *sorted(ODD)]))
        odd = draw(st.sampled_from(found))
        odd[name] = draw(LIKE_COSTS if name == "cost_usd" else ODD[name])
    if draw(st.booleans()):
        found.append(draw(st.sampled_from(found)))
    return found


@settings(max_examples=800, deadline=None, derandomize=True)
@given(alike())
def test_frames_of_like_events_are_stored_as_the_contract_would(found: list[dict[str, object]]) -> None:
    texts = [written(Pairs(members.items()), (",", ":"), ascii_only=False) for members in found]
    frame = to_bytes(f"[{','.join(texts)}]")
    compare(frame, decoder=DECODER)
    compare(frame, decoder=COMPUTED, prices=COMPUTED_FIRST)
    compare_together([to_bytes(text) for text in texts], decoder=DECODER)


@pytest.mark.parametrize("name", sorted(ODD))
def test_each_odd_member_alone(name: str) -> None:
    """Every member takes its turn beside good ones: the mixture above may hide it behind another."""

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.fixed_dictionaries({**GOOD, name: ODD[name]}), SEPARATORS)
    def judged_alike(members: dict[str, object], separators: tuple[str, str]) -> None:
        text = written(Pairs(members.items()), separators, ascii_only=False)
        compare(to_bytes(text), decoder=DECODER, received_at=NOW)

    judged_alike()
