"""Events that are alike are taken together; whatever is not so is left to the loop."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from producers import UsageEvent
from producers._stream import encode, pack
from tests.fuzz.differential import PRICES
from worker.ingest import plain_checks as checks
from worker.ingest.plain import Decoder
from worker.ingest.plain_batch import Plain
from worker.ingest.plain_checks import Fields
from worker.ingest.plain_columns import Columns, columns_of
from worker.ingest.rules import AgeLimits

NOW = datetime(2026, 1, 31, 9, 40, 15, tzinfo=UTC)
USER = UUID("7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11")
DECODER = Decoder(AgeLimits(max_age=timedelta(days=35), max_future=timedelta(minutes=5)), PRICES)


def usage(**changes: Any) -> UsageEvent:
    """This function will make an event as our emitters do."""
    fields: dict[str, Any] = {
        "event_id": uuid4(),
        "user_id": USER,
        "feature": "chat",
        "provider": "openai",
        "model": "gpt-5",
        "input_tokens": 812,
        "output_tokens": 455,
        "cost_usd": Decimal("0.004531"),
        "occurred_at": NOW - timedelta(seconds=5),
        "producer_id": "k3jx9q2mz7ab",
        "seq": 7,
    }
    return UsageEvent(**{**fields, **changes})


def together(events: list[Fields]) -> Columns | None:
    """This function will take events that all arrive now, by what the decoder knows."""
    arrivals = [DECODER._window.arrival(NOW)] * len(events)
    window, choice = DECODER._window, DECODER._choice
    return columns_of(events, arrivals, parties=DECODER._parties, hours=window.hours, choice=choice)


def columns(*events: UsageEvent) -> Columns | None:
    """This function will take events as a frame, by a decoder that has seen their users before."""
    data = [encode(event) for event in events]
    ((frame, _),) = pack(data)
    for one in data:
        DECODER.take(one, NOW, Plain())
    read = checks.read(frame)
    assert read is not None
    arrivals = [DECODER._window.arrival(NOW)] * len(events)
    return columns_of(
        read, arrivals, parties=DECODER._parties, hours=DECODER._window.hours, choice=DECODER._choice
    )


def raw(*members: str) -> Columns | None:
    """The same for a frame whose events end in these members."""
    start = ",".join(
        [
            f'"user_id":"{USER}","feature":"chat","provider":"openai","model":"gpt-5"',
            '"input_tokens":1,"output_tokens":2',
        ]
    )
    frame = ",".join(f'{{"event_id":"{uuid4()}",{start},{rest}}}' for rest in members).encode()
    DECODER.take(encode(usage()), NOW, Plain())
    read = checks.read(b"[%b]" % frame)
    assert read is not None
    arrivals = [DECODER._window.arrival(NOW)] * len(members)
    return columns_of(
        read, arrivals, parties=DECODER._parties, hours=DECODER._window.hours, choice=DECODER._choice
    )


@pytest.mark.parametrize(
    ("member", "taken"),
    [
        ('"occurred_at":"2026-01-31T09:40:00Z"', True),
        ('"occurred_at":"2026-01-31T09:60:00Z"', False),
        ('"occurred_at":"2026-01-31T09:40:60Z"', False),
        ('"occurred_at":"2026-01-31T09:40:00"', False),
        ('"occurred_at":"2026-01-31T09:40:00.1234567Z"', False),
        ('"occurred_at":"2026-01-31T09:40:00Z,"', False),
        ('"tokens_used":3,"occurred_at":"2026-01-31T09:40:00Z"', False),
    ],
)
def test_time_and_stated_sum_are_looked_at(member: str, taken: bool) -> None:
    found = raw('"occurred_at":"2026-01-31T09:39:00Z"', member, '"occurred_at":"2026-01-31T09:39:30.5Z"')
    assert (found is not None) == taken


def test_a_time_before_the_window_is_not_taken_because_its_hour_is_known() -> None:
    """Hours are remembered for good; the window of the next arrivals begins later."""
    early = NOW - timedelta(days=30)
    old = usage(occurred_at=early - timedelta(days=10))
    DECODER.take(encode(old), early, Plain())
    assert columns(usage(), old, usage()) is None


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cost_usd": None},
        {"status": "ok", "duration_ms": 1200},
        {"producer_id": None, "seq": None},
        {"provider": None, "model": None},
        {"cost_usd": "9.999999999999"},
        {"cost_usd": "10.5"},
        {"cost_usd": "0.000000000001"},
        {"occurred_at": NOW - timedelta(days=34)},
    ],
)
def test_events_of_our_emitters_are_taken_together(changes: dict[str, Any]) -> None:
    found = columns(usage(**changes), usage(**changes))
    assert found is not None
    assert len(found.ids) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"cache_read_tokens": 5},
        {"reasoning_tokens": 0},
        {"metadata": {"a": 1}},
        {"hold_id": "h"},
        {"cost_usd": None},
        {"occurred_at": NOW + timedelta(minutes=6)},
        {"occurred_at": NOW - timedelta(days=36)},
        {"input_tokens": None, "output_tokens": None, "tokens_used": 9},
    ],
)
def test_one_that_differs_leaves_all_of_them_to_the_loop(changes: dict[str, Any]) -> None:
    assert columns(usage(), usage(**changes), usage()) is None
