"""The arithmetic of corrections."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers._events import parse
from worker.ingest.corrections import TOKENS, Target, correct
from worker.ingest.rules import Received

NOW = datetime(2026, 3, 1, tzinfo=UTC)
USER = uuid.UUID("11111111-1111-4111-8111-111111111111")


def target(**changes: Any) -> Target:
    tokens: dict[str, int | None] = dict.fromkeys(TOKENS)
    standard: dict[str, Any] = {
        "user_id": USER,
        "feature": "f",
        "provider": "p",
        "model": None,
        "price_version": "2026-01",
        "is_correction": False,
        "voided": False,
        "tokens_used": 150,
        "cost": Decimal("1.5"),
        "cost_source": "reported",
        "tokens": {**tokens, "input_tokens": 100, "output_tokens": 50, "tokens_used": 150},
        "cost_left": Decimal("1.5"),
    }
    return Target(**{**standard, **changes})


def correction(**fields: Any) -> Received:
    event = parse(
        {
            "event_id": str(uuid.uuid4()),
            "user_id": str(USER),
            "corrects": str(uuid.uuid4()),
            "occurred_at": "2026-03-01T00:00:00Z",
            **fields,
        },
        correction=True,
    )
    return Received("1-0", 0, b"", NOW, True, event, event.event_id, event.user_id)


def applied(one: Received, to: Target) -> Target:
    assert one.event is not None
    return correct(one, one.event, to)


class TestCorrect:
    def test_inherits_everything_but_its_id_and_time(self) -> None:
        one = correction(input_tokens=-10, feature="other", model="other")
        left = applied(one, target())
        assert one.event is not None
        assert (one.event.feature, one.event.provider, one.event.model) == ("f", "p", None)
        assert (one.price_version, one.cost_source, one.cost_usd) == ("2026-01", "reported", Decimal("-0.1"))
        assert left.tokens["input_tokens"] == 90
        assert left.cost_left == Decimal("1.4")

    def test_refused_leaves_the_target_as_it_was(self) -> None:
        one, before = correction(input_tokens=-101), target()
        assert applied(one, before) is before
        assert one.reason == "over_correction"

    @pytest.mark.parametrize(
        ("of", "fields", "reason"),
        [
            ({"voided": True}, {"input_tokens": 1}, "over_correction"),
            ({"is_correction": True}, {"input_tokens": 1}, "invalid_field"),
            ({"user_id": uuid.uuid4()}, {"input_tokens": 1}, "invalid_user_id"),
            (
                {"cost": None, "cost_left": None, "cost_source": "unpriced"},
                {"cost_usd": "1"},
                "over_correction",
            ),
            ({"tokens_used": 0}, {"input_tokens": 1}, "missing_field"),
            ({}, {"cost_usd": "-1.6"}, "over_correction"),
        ],
    )
    def test_refuses_what_cannot_be_a_correction(
        self, of: dict[str, Any], fields: dict[str, Any], reason: str
    ) -> None:
        one = correction(**fields)
        applied(one, target(**of))
        assert one.reason == reason

    def test_takes_no_more_than_costs_stated_before_have_left(self) -> None:
        one = correction(input_tokens=-100, output_tokens=-50)
        left = applied(one, target(cost_left=Decimal("0.25")))
        assert (one.cost_usd, left.cost_left) == (Decimal("-0.25"), Decimal(0))

    @given(
        st.decimals(0, 10**6, places=12),
        st.integers(1, 10**9),
        st.lists(st.integers(1, 10**8), max_size=12),
    )
    def test_follows_the_share_of_tokens_and_ends_at_exactly_zero(
        self, cost: Decimal, tokens: int, steps: list[int]
    ) -> None:
        left = target(
            tokens_used=tokens,
            cost=cost,
            cost_left=cost,
            tokens={**dict.fromkeys(TOKENS), "tokens_used": tokens},
        )
        taken = Decimal(0)
        for step in [*steps, None]:
            remaining = left.tokens["tokens_used"] or 0
            amount = remaining if step is None else min(step, remaining)
            if not amount:
                break
            one = correction(tokens_used=-amount)
            left = applied(one, left)
            assert one.reason is None
            assert one.cost_usd is not None
            assert one.cost_usd <= 0
            assert one.cost_usd == one.cost_usd.quantize(Decimal("1E-12"))
            taken += one.cost_usd
            assert left.cost_left == cost + taken
            assert left.cost_left >= 0
        if left.tokens["tokens_used"] == 0:
            assert taken == -cost

    @given(
        st.lists(
            st.one_of(
                st.fixed_dictionaries({"input_tokens": st.integers(-120, 120)}),
                st.fixed_dictionaries({"output_tokens": st.integers(-60, 60)}),
                st.fixed_dictionaries({"cost_usd": st.decimals(-2, 2, places=3).map(str)}),
                st.just({"void": True}),
            ),
            max_size=8,
        )
    )
    def test_in_any_order_never_goes_below_zero_and_a_void_leaves_nothing(
        self, sent: list[dict[str, Any]]
    ) -> None:
        left = target()
        sums = dict.fromkeys(TOKENS, 0)
        sums.update(input_tokens=100, output_tokens=50, tokens_used=150)
        cost = Decimal("1.5")
        for fields in sent:
            one = correction(**fields)
            left = applied(one, left)
            if one.reason is not None:
                continue
            assert one.event is not None
            for name in TOKENS:
                sums[name] += getattr(one.event, name) or 0
            cost += one.cost_usd or 0
            assert min(sums.values()) >= 0
            assert cost >= 0
            if fields.get("void"):
                assert (set(sums.values()), cost) == ({0}, Decimal(0))
        assert (left.cost_left, left.tokens["tokens_used"]) == (cost, sums["tokens_used"])


class TestVoid:
    def test_reverses_what_remains_and_keeps_what_is_unknown(self) -> None:
        one = correction(void=True)
        left = applied(one, target(cost_left=Decimal("0.7")))
        assert one.event is not None
        assert (one.event.input_tokens, one.event.reasoning_tokens, one.event.tokens_used) == (
            -100,
            None,
            -150,
        )
        assert (one.cost_usd, left.cost_left, left.voided) == (Decimal("-0.7"), Decimal(0), True)

    def test_of_an_unpriced_event_has_no_price(self) -> None:
        one = correction(void=True)
        applied(one, target(cost=None, cost_left=None, cost_source="unpriced"))
        assert (one.cost_usd, one.cost_source, one.reason) == (None, "unpriced", None)
