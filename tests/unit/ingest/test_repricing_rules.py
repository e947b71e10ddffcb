"""A price that comes later leaves what would stand there had it come before the event."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers._events import parse
from worker.ingest import corrections
from worker.ingest.corrections import TOKENS, Target
from worker.ingest.repricing_rules import Change, Repriced, Row, changes_of
from worker.ingest.rules import Received
from worker.pricing.book import Override, PriceBook, Prices
from worker.pricing.rules import INPUT, OUTPUT

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
USER = uuid.UUID(int=5)


def prices(per_input: str, per_output: str) -> Prices:
    tokens = {INPUT: Decimal(per_input), OUTPUT: Decimal(per_output)}
    row = Override(
        id=1, provider="acme", model="sage", effective_from=datetime(2026, 1, 1, tzinfo=UTC), tokens=tokens
    )
    return Prices(PriceBook([row]))


def row(**fields: Any) -> Row:
    standard: dict[str, Any] = {
        "id": uuid.uuid4(),
        "user_id": USER,
        "feature": "f",
        "provider": "acme",
        "model": "sage",
        **dict.fromkeys(TOKENS),
        "tokens_used": 0,
        "units": None,
        "service_tier": None,
        "cost_usd": None,
        "cost_reported_usd": None,
        "cost_computed_usd": None,
        "cost_source": "unpriced",
        "price_version": None,
        "occurred_at": NOW,
        "stored_at": NOW,
        "shard": 0,
        "corrects": None,
        "void": False,
        "content": 0,
    }
    return Row(**{**standard, **fields})


def ingested(target: Target, changes: list[tuple[int, int]], *, ends_void: bool) -> list[Received]:
    """What ingest makes of corrections of a target, one after the other."""
    found: list[Received] = []
    wires: list[dict[str, Any]] = [{"input_tokens": one, "output_tokens": other} for one, other in changes]
    for fields in [*wires, *([{"void": True}] if ends_void else [])]:
        event = parse(
            {
                "event_id": str(uuid.uuid4()),
                "user_id": str(USER),
                "corrects": str(uuid.uuid4()),
                "occurred_at": NOW.isoformat(),
                **fields,
            },
            correction=True,
        )
        received = Received("1-0", 0, b"", NOW, True, event, event.event_id, event.user_id)
        target = corrections.correct(received, event, target)
        if received.outcome is None:
            found.append(received)
    return found


COUNT = st.integers(0, 10**6)


class TestChangesOf:
    @given(
        COUNT,
        COUNT,
        st.lists(st.tuples(st.integers(-(10**6), 0), st.integers(-(10**6), 0)), max_size=4),
        st.booleans(),
        st.decimals(0, 100, places=6),
        st.decimals(0, 100, places=6),
    )
    def test_it_is_as_if_the_price_had_been_there(
        self,
        inputs: int,
        outputs: int,
        changes: list[tuple[int, int]],
        ends_void: bool,
        per_in: Decimal,
        per_out: Decimal,
    ) -> None:
        priced = prices(str(per_in), str(per_out))
        price = priced.book.price_at("acme", "sage", NOW)
        assert price is not None
        scaled = price.scaled(inputs, outputs)
        assert scaled is not None
        cost = Decimal(scaled).scaleb(-12)
        tokens: dict[str, int | None] = dict.fromkeys(TOKENS)
        tokens |= {"input_tokens": inputs, "output_tokens": outputs, "tokens_used": inputs + outputs}
        before = Target(
            USER, "f", "acme", "sage", None, False, False, inputs + outputs, None, "unpriced", tokens, None
        )
        after = replace(before, cost=cost, cost_left=cost, cost_source="computed")
        unpriced = ingested(before, changes, ends_void=ends_void)
        foreseen = ingested(after, changes, ends_void=ends_void)
        assert [one.cost_usd for one in unpriced] == [None] * len(unpriced)
        target = row(input_tokens=inputs, output_tokens=outputs, tokens_used=inputs + outputs)
        following = [
            row(
                corrects=target.id,
                void=one.event.void,
                tokens_used=one.event.tokens_used,
                input_tokens=one.event.input_tokens,
                output_tokens=one.event.output_tokens,
            )
            for one in unpriced
            if one.event is not None
        ]
        found = changes_of([target], following, priced, unpriced_only=True)
        assert [one.cost_usd for one in found] == [cost, *(one.cost_usd for one in foreseen)]
        assert {one.cost_source for one in found} == {"computed"}
        left = sum((one.cost_usd or Decimal(0) for one in found), Decimal(0))
        assert left >= 0
        if ends_void:
            assert left == 0
            assert sum(one.unpriced_change for one in found) == 0

    def test_leaves_alone_what_has_no_price_and_what_has_a_cost(self) -> None:
        known = row(
            input_tokens=1, output_tokens=1, tokens_used=2, cost_usd=Decimal(1), cost_source="computed"
        )
        other = row(model="other", input_tokens=1, output_tokens=1, tokens_used=2)
        total = row(tokens_used=2)
        assert changes_of([known, other, total], [], prices("1", "1"), unpriced_only=True) == []
        assert changes_of([other, total], [], prices("1", "1"), unpriced_only=False) == []
        (change,) = changes_of([known], [], prices("1", "1"), unpriced_only=False)
        assert change.cost_usd == Decimal("0.000002")

    @pytest.mark.parametrize(("stated", "is_kept"), [("-0.000003", True), ("-0.000002", False)])
    def test_a_correction_that_states_its_cost_keeps_it_or_everything_stays(
        self, stated: str, is_kept: bool
    ) -> None:
        old = Decimal("0.000008")
        target = row(input_tokens=2, output_tokens=0, tokens_used=2, cost_usd=old, cost_source="computed")
        cost = Decimal(stated)
        following = row(corrects=target.id, cost_usd=cost, cost_reported_usd=cost, cost_source="reported")
        found = changes_of([target], [following], prices("1", "1"), unpriced_only=False)
        assert (found == []) is is_kept
        if found:
            assert [(one.cost_usd, one.cost_source) for one in found] == [
                (Decimal("0.000002"), "computed"),
                (cost, "reported"),
            ]


def test_a_tally_sums_up_by_model() -> None:
    one = row(input_tokens=1, output_tokens=1, tokens_used=2)
    result = Repriced()
    result.add(
        7,
        [
            Change(one, Decimal(3), Decimal(3), "computed", "x"),
            Change(one, Decimal(2), None, "computed", "x"),
        ],
    )
    assert (result.examined, result.changed, result.cost_change) == (7, 2, Decimal(5))
    (tally,) = result.models.values()
    assert (tally.events, tally.unpriced_before, tally.unpriced_after, len(tally.first_ids)) == (2, 2, 0, 2)
