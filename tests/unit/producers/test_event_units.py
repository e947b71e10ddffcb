"""What is not tokens: quantities by the name of their unit, by the same rules on the wire and in Python."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers import UsageEvent
from producers._events import InvalidEvent
from producers._stream import decode, encode

USER = "11111111-1111-4111-8111-111111111111"
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,63}", fullmatch=True)
QUANTITIES = st.decimals(0, 10**9, places=6)


def good(**fields: Any) -> dict[str, Any]:
    return {
        "event_id": "22222222-2222-4222-8222-222222222222",
        "user_id": USER,
        "feature": "images",
        "occurred_at": "2026-03-01T12:30:00Z",
        **fields,
    }


def judged(text: str) -> Any:
    (one,) = decode(text.encode())
    return one


class TestUnits:
    @pytest.mark.parametrize(
        ("written", "quantity"),
        [
            ("2", "2"),
            ('"2"', "2"),
            ("12.5", "12.5"),
            ('"12.500000"', "12.5"),
            ('"12.5000000000"', "12.5"),
            ("1e3", "1000"),
            ("0.000001", "0.000001"),
            ("1000000000", "1000000000"),
            ("0", "0"),
        ],
    )
    def test_are_decimals_by_name(self, written: str, quantity: str) -> None:
        text = json.dumps(good(units={"images": "@"})).replace('"@"', written)
        event = judged(text).event
        assert event.units == {"images": Decimal(quantity)}
        assert (event.tokens_used, event.input_tokens, event.metadata) == (0, None, None)

    @pytest.mark.parametrize(
        "written",
        [
            "-1",
            '"-0"',
            "0.0000001",
            "1000000001",
            "true",
            "null",
            '"NaN"',
            '"1_000"',
            "1e400",
            '""',
            "[]",
        ],
    )
    def test_hostile_quantities_are_refused(self, written: str) -> None:
        text = json.dumps(good(units={"images": "@"})).replace('"@"', written)
        assert judged(text).reason == "invalid_units"

    @pytest.mark.parametrize(
        "units",
        [[], "images", 5, {"Images": 1}, {"": 1}, {"1x": 1}, {"a-b": 1}, {"a" * 65: 1}, {"ä": 1}],
        ids=str,
    )
    def test_hostile_names_are_refused(self, units: object) -> None:
        assert judged(json.dumps(good(units=units))).reason == "invalid_units"

    def test_at_most_eight_and_none_twice(self) -> None:
        eight = {f"u{n}": n for n in range(8)}
        assert judged(json.dumps(good(units=eight))).event.units == {
            name: Decimal(n) for name, n in eight.items()
        }
        assert judged(json.dumps(good(units={**eight, "u8": 1}))).reason == "invalid_units"
        twice = json.dumps(good(units={"images": 1})).replace('"images": 1', '"images": 1, "images": 1')
        assert judged(twice).reason == "invalid_units"

    def test_absent_null_and_empty_are_the_same(self) -> None:
        absent: list[dict[str, Any]] = [{}, {"units": None}, {"units": {}}]
        for fields in absent:
            assert judged(json.dumps(good(tokens_used=1, **fields))).event.units is None
        assert judged(json.dumps(good(units={}))).reason == "missing_field"

    def test_a_correction_has_none_and_a_void_ignores_them(self) -> None:
        target = "33333333-3333-4333-8333-333333333333"
        with pytest.raises(InvalidEvent) as caught:
            UsageEvent(user_id=USER, feature="f", corrects=target, tokens_used=-1, units={"images": 1})
        assert caught.value.reason == "invalid_units"
        void = UsageEvent(user_id=USER, feature="f", corrects=target, void=True, units={"images": 1})
        assert void.units is None

    @given(st.dictionaries(NAMES, QUANTITIES, min_size=1, max_size=8), st.integers(0, 10**9))
    def test_come_back_from_the_wire_as_they_went(self, units: dict[str, Decimal], tokens: int) -> None:
        event = UsageEvent(user_id=USER, feature="f", input_tokens=tokens, output_tokens=0, units=units)
        assert event.units == units
        assert list(event.units) == sorted(units)
        (back,) = decode(encode(event))
        assert back.event == event

    def test_python_numbers_are_taken_by_the_same_rules(self) -> None:
        event = UsageEvent(
            user_id=USER, feature="f", units={"a": 0.1, "b": 3, "c": Decimal("2.50"), "d": "7"}
        )
        assert event.wire()["units"] == {"a": "0.1", "b": 3, "c": "2.5", "d": 7}
        for wrong in (True, float("nan"), 1e-7, -1):
            with pytest.raises(InvalidEvent):
                UsageEvent(user_id=USER, feature="f", units={"a": wrong})
