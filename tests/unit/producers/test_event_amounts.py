"""Tokens and money: every rule with its reason code, for events and for corrections."""

import decimal
import itertools
from decimal import Decimal
from uuid import UUID

import pytest

from producers._events import parse
from tests.unit.producers.samples import EVENT, GONE, OTHER, VOID, correction, fields, reason_of

INTEGERS_REFUSED = [
    True,
    False,
    -1,
    10**9 + 1,
    10**400,
    1.5,
    Decimal("1.5"),
    Decimal("1E400"),
    Decimal("1E+999999999"),
    Decimal("1E-999999999"),
    Decimal("NaN"),
    Decimal("Infinity"),
    float("inf"),
    float("nan"),
    "",
    " 5",
    "5 ",
    "+5",
    "-5",
    "1_200",
    "1,200",
    "1.0",
    "1e3",
    "0x10",
    "\u0661\u0662\u0660\u0660",
    "\uff11\uff12",
    "9" * 5000,
    "five",
    [5],
    {},
]
COSTS_REFUSED = [
    True,
    -1,
    "-0.01",
    "-0",
    "+0.01",
    "1_0.5",
    "1,5",
    "$1",
    "1.",
    ".5",
    "1e",
    "",
    " 1",
    "1\n",
    "NaN",
    "nan",
    "sNaN",
    "Infinity",
    "-inf",
    "1\uff10",
    "\u0661.\u0665",
    "1e999999999",
    "1e-999999999",
    "9" * 5000,
    Decimal("1E+999999999"),
    Decimal("1E-999999999"),
    Decimal("NaN"),
    Decimal("sNaN"),
    Decimal("Infinity"),
    float("nan"),
    float("-inf"),
    10**6 + 1,
    10**5000,
    "1000000.0000000000001",
    [1],
    {},
]


class TestTokens:
    @pytest.mark.parametrize("name", ["input_tokens", "output_tokens"])
    @pytest.mark.parametrize("value", INTEGERS_REFUSED, ids=itertools.count())
    def test_refuses_what_is_no_whole_number(self, name: str, value: object) -> None:
        assert reason_of(fields(**{name: value})) == ("invalid_tokens", name)

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            *((0, 0), (10**9, 10**9), ("7", 7), ("007", 7), (3.0, 3), (Decimal("3.0"), 3)),
            *((Decimal("1E3"), 1000), (-0.0, 0), (Decimal("-0.0"), 0)),
        ],
    )
    def test_takes_whole_numbers(self, value: object, expected: int) -> None:
        event = parse(fields(input_tokens=value))
        assert (event.input_tokens, event.tokens_used) == (expected, expected + 455)
        assert type(event.input_tokens) is int

    def test_needs_the_split_or_the_sum(self) -> None:
        assert parse(fields(input_tokens=GONE, output_tokens=GONE, tokens_used=5)).tokens_used == 5
        assert parse(fields(tokens_used=812 + 455)).tokens_used == 1267
        both = fields(input_tokens=None, output_tokens=GONE)
        assert reason_of(both) == ("missing_field", "input_tokens")
        assert reason_of(fields(output_tokens=GONE)) == ("missing_field", "output_tokens")
        assert reason_of(fields(input_tokens=GONE, tokens_used=5)) == ("missing_field", "input_tokens")
        assert reason_of(fields(tokens_used=1266)) == ("inconsistent_tokens", "tokens_used")

    def test_bounds_the_sum(self) -> None:
        whole = fields(input_tokens=GONE, output_tokens=GONE, tokens_used=2 * 10**9)
        assert parse(whole).tokens_used == 2 * 10**9
        assert reason_of({**whole, "tokens_used": 2 * 10**9 + 1}) == ("invalid_tokens", "tokens_used")
        assert reason_of({**whole, "tokens_used": "-1"}) == ("invalid_tokens", "tokens_used")

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"cache_read_tokens": 813}, "input_tokens"),
            ({"cache_write_tokens": 813}, "input_tokens"),
            ({"cache_read_tokens": 800, "cache_write_tokens": 13}, "input_tokens"),
            ({"reasoning_tokens": 456}, "output_tokens"),
            (
                {"input_tokens": GONE, "output_tokens": GONE, "tokens_used": 9, "cache_read_tokens": 1},
                "input_tokens",
            ),
        ],
    )
    def test_refuses_subsets_that_are_none(self, changes: dict[str, object], field: str) -> None:
        assert reason_of(fields(**changes)) == ("inconsistent_tokens", field)

    def test_takes_subsets_up_to_the_whole(self) -> None:
        event = parse(fields(cache_read_tokens=800, cache_write_tokens="12", reasoning_tokens=455.0))
        assert (event.cache_read_tokens, event.cache_write_tokens, event.reasoning_tokens) == (800, 12, 455)

    @pytest.mark.parametrize("value", INTEGERS_REFUSED, ids=itertools.count())
    def test_refuses_a_subset_that_is_no_number(self, value: object) -> None:
        assert reason_of(fields(cache_read_tokens=value)) == ("invalid_tokens", "cache_read_tokens")


class TestCost:
    @pytest.mark.parametrize("value", COSTS_REFUSED, ids=itertools.count())
    def test_refuses_what_is_no_amount(self, value: object) -> None:
        assert reason_of(fields(cost_usd=value)) == ("invalid_cost", "cost_usd")

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("0.000241", "0.000241"),
            (0.1, "0.1"),
            (Decimal("0.1"), "0.1"),
            (1e-7, "0.0000001"),
            # Halves as they are spelt; their binary fractions lie above and below.
            (6.5e-12, "0.000000000006"),
            (7.5e-12, "0.000000000008"),
            ("1E-7", "0.0000001"),
            ("1.5e2", "150"),
            (3, "3"),
            ("1000000", "1000000"),
            (10**6, "1000000"),
            ("0", "0"),
            (-0.0, "0"),
            ("0.0000000000005", "0"),
            ("0.0000000000015", "0.000000000002"),
            ("0.0000000000025", "0.000000000002"),
            ("0.00000000000250001", "0.000000000003"),
            ("999999.9999999999995", "1000000"),
            ("00012.50", "12.5"),
            (Decimal("0." + "1" * 5000), "0.111111111111"),
        ],
    )
    def test_quantises_half_even_to_twelve_places(self, value: object, expected: str) -> None:
        event = parse(fields(cost_usd=value))
        assert event.cost_usd == Decimal(expected)
        assert event.cost_usd is not None
        assert event.cost_usd.as_tuple().exponent == -12
        assert event.wire()["cost_usd"] == expected

    @pytest.mark.parametrize("value", [None, GONE])
    def test_an_absent_cost_is_unknown(self, value: object) -> None:
        assert parse(fields(cost_usd=value)).cost_usd is None

    @pytest.mark.parametrize(
        ("value", "vanished"), [("4e-13", True), (5e-324, True), ("0", False), ("1e-12", False)]
    )
    def test_says_that_a_cost_became_zero(self, value: object, vanished: bool) -> None:
        event = parse(fields(cost_usd=value))
        assert event.cost_became_zero is vanished
        # The emitter rounds, the worker counts: the mark has to survive the wire.
        assert parse(event.wire()).cost_became_zero is vanished

    def test_does_not_depend_on_the_context_of_the_application(self) -> None:
        with decimal.localcontext(prec=3, rounding=decimal.ROUND_UP):
            assert parse(fields(cost_usd="123456.0000000000005")).cost_usd == Decimal("123456")


class TestCorrections:
    def test_only_they_name_a_target(self) -> None:
        assert parse(correction(cost_usd="-0.5"), correction=True).corrects == UUID(OTHER)
        assert reason_of(correction(cost_usd="-0.5")) == ("not_a_correction", "corrects")
        assert reason_of(fields(), correction=True) == ("not_a_correction", "corrects")
        assert reason_of(fields(void=True)) == ("not_a_correction", "void")

    def test_may_be_negative(self) -> None:
        negative = {**correction(cost_usd="-0.25"), "input_tokens": -10, "output_tokens": "-5"}
        event = parse(negative, correction=True)
        assert (event.input_tokens, event.output_tokens, event.tokens_used) == (-10, -5, -15)
        assert event.cost_usd == Decimal("-0.25")

    def test_states_differences_so_halves_and_subsets_stand_alone(self) -> None:
        event = parse({**correction(), "cache_read_tokens": -50}, correction=True)
        assert (event.input_tokens, event.cache_read_tokens, event.tokens_used) == (None, -50, 0)
        event = parse({**correction(), "input_tokens": -50}, correction=True)
        assert event.tokens_used == -50

    def test_changes_something(self) -> None:
        assert reason_of(correction(), correction=True) == ("missing_field", "input_tokens")

    def test_has_bounds(self) -> None:
        low = {**correction(), "input_tokens": -(10**9) - 1}
        assert reason_of(low, correction=True) == ("invalid_tokens", "input_tokens")
        assert reason_of(correction(cost_usd="-1000001"), correction=True) == ("invalid_cost", "cost_usd")
        wrong = {**correction(), "input_tokens": -5, "tokens_used": 5}
        assert reason_of(wrong, correction=True) == ("inconsistent_tokens", "tokens_used")

    def test_cannot_correct_itself(self) -> None:
        assert reason_of({**VOID, "corrects": EVENT}, correction=True) == ("invalid_field", "corrects")

    @pytest.mark.parametrize("value", [1, "true", "yes", []])
    def test_void_is_true_or_false(self, value: object) -> None:
        assert reason_of({**VOID, "void": value}, correction=True) == ("invalid_field", "void")

    def test_a_void_needs_no_tokens_and_no_feature(self) -> None:
        event = parse(VOID, correction=True)
        assert (event.void, event.feature, event.tokens_used, event.cost_usd) == (True, "", 0, None)
        assert parse(event.wire(), correction=True) == event

    def test_a_void_has_no_amounts_of_its_own(self) -> None:
        event = parse({**VOID, "input_tokens": 5, "output_tokens": 5, "cost_usd": "1"}, correction=True)
        assert (event.input_tokens, event.tokens_used, event.cost_usd) == (None, 0, None)
        assert reason_of({**VOID, "input_tokens": "x"}, correction=True) == ("invalid_tokens", "input_tokens")
