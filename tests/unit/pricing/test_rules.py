"""The arithmetic of a cost: exact, rounded once, and never 0 where it is unknown."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.pricing.rules import (
    CACHE_READ,
    CACHE_WRITE,
    CACHE_WRITE_1H,
    INPUT,
    OUTPUT,
    REASONING,
    REQUESTS,
    CostPolicy,
    Price,
    Rate,
    TokenUse,
    choose_cost,
    rates_in_order,
    spelled,
)

WITHIN = {
    CACHE_READ: frozenset({INPUT}),
    CACHE_WRITE: frozenset({INPUT}),
    CACHE_WRITE_1H: frozenset({INPUT, CACHE_WRITE}),
    REASONING: frozenset({OUTPUT}),
}
MILLION = 10**6


def price(*rates: Rate, covered: frozenset[str] = frozenset(), **per_million: str) -> Price:
    names = {
        "input": INPUT,
        "output": OUTPUT,
        "cache_read": CACHE_READ,
        "cache_write": CACHE_WRITE,
        "cache_write_1h": CACHE_WRITE_1H,
        "reasoning": REASONING,
    }
    stated = [Rate(names[name], Decimal(text), MILLION) for name, text in per_million.items()]
    return Price("test", rates_in_order([*stated, *rates], WITHIN), covered)


class TestChooseCost:
    def test_takes_the_first_that_is_known(self) -> None:
        reported, computed = Decimal("0.25"), Decimal("0.3")
        first, second = CostPolicy.REPORTED_FIRST, CostPolicy.COMPUTED_FIRST
        assert choose_cost(reported, computed, first) == (reported, "reported")
        assert choose_cost(reported, computed, second) == (computed, "computed")
        assert choose_cost(None, computed, first) == (computed, "computed")
        assert choose_cost(reported, None, second) == (reported, "reported")

    def test_nothing_known_is_unpriced_and_0_is_a_cost(self) -> None:
        for policy in CostPolicy:
            assert choose_cost(None, None, policy) == (None, "unpriced")
            assert choose_cost(Decimal(0), None, policy) == (Decimal(0), "reported")
            assert choose_cost(None, Decimal(0), policy) == (Decimal(0), "computed")


AMOUNT = st.decimals(min_value=0, max_value=1000, places=12, allow_nan=False)
TOKENS = st.integers(0, 10**9)


@st.composite
def uses(draw: st.DrawFn) -> TokenUse:
    inputs, outputs = draw(TOKENS), draw(TOKENS)
    read = draw(st.integers(0, inputs))
    write = draw(st.integers(0, inputs - read))
    return TokenUse(inputs, outputs, read, write, draw(st.integers(0, outputs)), inputs + outputs)


@st.composite
def tables(draw: st.DrawFn) -> tuple[Price, dict[str, tuple[Decimal, Decimal]], int]:
    kinds = [
        INPUT,
        OUTPUT,
        *draw(st.lists(st.sampled_from([CACHE_READ, CACHE_WRITE, REASONING]), unique=True)),
    ]
    start = draw(st.integers(0, 10**9))
    amounts = {kind: (draw(AMOUNT), draw(AMOUNT)) for kind in kinds}
    rates = [Rate(kind, base, MILLION, ((start, above),)) for kind, (base, above) in amounts.items()]
    return Price("test", rates_in_order(rates, WITHIN)), amounts, start


class TestCost:
    @given(tables(), uses())
    def test_is_exact_and_rounded_once(
        self, table: tuple[Price, dict[str, tuple[Decimal, Decimal]], int], use: TokenUse
    ) -> None:
        found, amounts, start = table
        assert use.input_tokens is not None
        assert use.output_tokens is not None
        is_long = use.input_tokens > start

        def per(kind: str, whole: str) -> Fraction:
            return Fraction(amounts.get(kind, amounts[whole])[is_long])

        read, write, thought = (
            use.cache_read_tokens or 0,
            use.cache_write_tokens or 0,
            use.reasoning_tokens or 0,
        )
        by_hand = (
            (use.input_tokens - read - write) * per(INPUT, INPUT)
            + read * per(CACHE_READ, INPUT)
            + write * per(CACHE_WRITE, INPUT)
            + (use.output_tokens - thought) * per(OUTPUT, OUTPUT)
            + thought * per(REASONING, OUTPUT)
        ) / MILLION
        scaled = found.scaled(use.input_tokens, use.output_tokens, read, write, thought)
        assert scaled == round(by_hand * 10**12)
        assert found.exact(use) == by_hand
        cost = found.cost(use)
        assert cost is not None
        assert scaled is not None
        assert Fraction(cost) * 10**12 == scaled
        assert cost.as_tuple().exponent == -12
        assert Decimal(spelled(scaled)) == cost

    @given(st.decimals(0, 1000, places=6), st.decimals(0, 1000, places=6), TOKENS, TOKENS)
    def test_is_linear_where_it_says_so(
        self, per_in: Decimal, per_out: Decimal, used: int, made: int
    ) -> None:
        found = price(input=str(per_in), output=str(per_out))
        linear = found.linear
        assert linear is not None
        most, request, inputs, outputs = linear
        assert used <= most
        assert request + used * inputs + made * outputs == found.scaled(used, made)

    @pytest.mark.parametrize(
        ("per_million", "tokens", "cost"),
        [
            ("0.0000005", 1, "0.000000000000"),
            ("0.0000015", 1, "0.000000000002"),
            ("0.0000025", 1, "0.000000000002"),
            ("0.00000050001", 1, "0.000000000001"),
        ],
    )
    def test_rounds_half_to_even(self, per_million: str, tokens: int, cost: str) -> None:
        found = price(input=per_million, output="0")
        assert found.cost(TokenUse(tokens, 0, tokens_used=tokens)) == Decimal(cost)
        assert found.linear is None

    def test_a_part_without_a_price_is_charged_as_its_whole(self) -> None:
        found = price(input="2", output="8")
        assert found.scaled(10, 5, 4, 3, 2) == found.scaled(10, 5) == 60 * MILLION

    def test_a_kind_without_a_price_is_unknown_and_not_free(self) -> None:
        embedding = price(input="0.02")
        assert embedding.scaled(10, 0) == 200_000
        assert embedding.scaled(10, 1) is None
        assert embedding.cost(TokenUse(10, 1, tokens_used=11)) is None
        assert price(output="1").scaled(1, 1) is None
        assert price(output="1", cache_read="1").scaled(5, 1, 5) == 6 * MILLION

    def test_of_a_total_alone_is_unknown(self) -> None:
        found = price(input="2", output="2")
        assert found.cost(TokenUse(tokens_used=7)) is None
        assert found.cost(TokenUse(tokens_used=0)) == 0

    @pytest.mark.parametrize(("size", "per"), [(199_999, 1), (200_000, 1), (200_001, 2)])
    def test_a_long_context_counts_cached_input_and_reprices_everything(self, size: int, per: int) -> None:
        found = price(
            Rate(INPUT, Decimal(1), MILLION, ((200_000, Decimal(2)),)),
            Rate(OUTPUT, Decimal(10), MILLION, ((200_000, Decimal(20)),)),
            Rate(CACHE_READ, Decimal("0.1"), MILLION, ((200_000, Decimal("0.2")),)),
        )
        cached = size - 1000
        by_hand = per * (1000 * Decimal(1) + cached * Decimal("0.1") + 500 * Decimal(10)) / MILLION
        use = TokenUse(size, 500, cached, tokens_used=size + 500)
        assert found.cost(use) == found.exact(use) == by_hand

    def test_a_request_costs_one_unless_it_says_how_many(self) -> None:
        found = price(Rate(REQUESTS, Decimal(12), 1000), input="1", output="1")
        assert found.cost(TokenUse(0, 0)) == Decimal("0.012")
        assert found.scaled(1, 1) == 12_000_000_000 + 2 * MILLION
        assert found.cost(TokenUse(0, 0, units={"requests": Decimal(3)})) == Decimal("0.036")

    def test_no_column_holds_more_than_it_can(self) -> None:
        found = price(Rate("images", Decimal(MILLION), 1), input="1", output="1")
        assert found.cost(TokenUse(0, 0, units={"images": Decimal(10**5)})) == 10**11
        assert found.cost(TokenUse(0, 0, units={"images": Decimal(10**6)})) is None


class TestUnits:
    def test_are_priced_beside_tokens(self) -> None:
        found = price(Rate("images", Decimal("0.04"), 1), input="1", output="4")
        use = TokenUse(10, 0, tokens_used=10, units={"images": Decimal(2)})
        assert found.cost(use) == Decimal("0.080010000000")

    def test_one_without_a_price_makes_the_whole_unknown_unless_there_is_none_of_it(self) -> None:
        found = price(Rate("images", Decimal("0.04"), 1), input="1", output="4")
        assert found.cost(TokenUse(10, 0, units={"images": Decimal(2), "calls": Decimal(1)})) is None
        assert found.cost(TokenUse(10, 0, units={"calls": Decimal(0)})) == Decimal("0.00001")

    def test_a_part_of_the_tokens_has_its_own_price(self) -> None:
        found = price(input="1", output="4", cache_write="1.25", cache_write_1h="2")
        use = TokenUse(100, 0, 0, 60, tokens_used=100, units={CACHE_WRITE_1H: Decimal(50)})
        assert found.cost(use) == (40 + 10 * Decimal("1.25") + 50 * 2) / MILLION

    def test_a_part_that_its_whole_covers_needs_none(self) -> None:
        found = price(input="1", output="4", covered=frozenset({"input_audio_tokens"}))
        use = TokenUse(100, 0, tokens_used=100, units={"input_audio_tokens": Decimal(30)})
        assert found.cost(use) == Decimal("0.0001")

    def test_a_part_larger_than_its_whole_is_impossible(self) -> None:
        found = price(input="1", output="4", cache_write="1.25", cache_write_1h="2")
        use = TokenUse(100, 0, 0, 40, tokens_used=100, units={CACHE_WRITE_1H: Decimal(50)})
        assert found.cost(use) is None

    def test_what_is_used_at_all_is_charged_as_the_least(self) -> None:
        found = price(Rate("audio_seconds", Decimal("0.36"), 3600, least=10), input="1", output="1")
        assert found.cost(TokenUse(units={"audio_seconds": Decimal("2.5")})) == Decimal("0.001")
        assert found.cost(TokenUse(units={"audio_seconds": Decimal(60)})) == Decimal("0.006")
        assert found.cost(TokenUse(units={"audio_seconds": Decimal(0)})) == 0
