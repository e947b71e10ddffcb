"""The prices of a process, and the hourly repricing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from worker import db
from worker.entrypoints._clock import utcnow
from worker.ingest import repricing
from worker.ingest.repricing_rules import Scope
from worker.pricing import queries as pricing
from worker.pricing.book import Prices
from worker.pricing.rules import CostPolicy
from worker.settings import Settings

_SECONDS_PER_RUN: Final = 60
_REASON: Final = "a price has come for events that had none"


def load(settings: Settings) -> Prices:
    """This function will read the prices as they are now."""
    with db.platform_session() as session:
        return Prices(pricing.load_book(session), CostPolicy(settings.usage_cost_policy))


def reprice_unpriced(settings: Settings, *, should_stop: Callable[[], bool]) -> Mapping[str, object]:
    """This function will price events whose price has come since, for a minute at most."""
    deadline = time.monotonic() + _SECONDS_PER_RUN
    result = repricing.reprice(
        db.platform_session,
        Scope(),
        load(settings),
        requested_by="pricing.reprice",
        reason=_REASON,
        clock=utcnow,
        should_stop=lambda: should_stop() or time.monotonic() > deadline,
    )
    return {
        "examined": result.examined,
        "changed": result.changed,
        "cost_change": format(result.cost_change, "f"),
        "run_id": None if result.run_id is None else str(result.run_id),
        "is_finished": result.is_finished,
    }
