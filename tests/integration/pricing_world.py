"""Prices of one's own in a world with real servers: applied as the worker does it, and costs set anew."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from tests.integration.ingest_world import NOW, World
from worker import db
from worker.ingest import repricing
from worker.ingest.repricing_rules import Repriced, Scope
from worker.pricing import operations, price_file, queries
from worker.pricing.book import Prices
from worker.pricing.rules import CostPolicy

OURS = {"provider": "acme", "model": "sage-1", "from": "2026-01-01T00:00:00Z"}


def apply(*entries: dict[str, Any]) -> list[int | None]:
    """This function will add prices; what is not said is that of acme's sage-1 from January on."""
    read = price_file.read({"prices": [{**OURS, **one} for one in entries]})
    with db.platform_session() as session:
        return [number for _, number in operations.apply(session, read, applied_by="test", now=NOW)]


def prices(policy: CostPolicy = CostPolicy.REPORTED_FIRST) -> Prices:
    """This function will load the prices as they are now."""
    with db.platform_session() as session:
        return Prices(queries.load_book(session), policy)


def preview(policy: CostPolicy = CostPolicy.REPORTED_FIRST, **scope: Any) -> Repriced:
    """This function will look what would change."""
    return repricing.preview(db.platform_session, Scope(**scope), prices(policy))


def reprice(policy: CostPolicy = CostPolicy.REPORTED_FIRST, **arguments: Any) -> Repriced:
    """This function will set costs anew; names of a scope make the scope."""
    scope = {name: arguments.pop(name) for name in Scope.__slots__ if name in arguments}
    return repricing.reprice(
        db.platform_session,
        Scope(**scope),
        prices(policy),
        **{"requested_by": "test", "reason": "a price has come", "clock": lambda: NOW, **arguments},
    )


def costs(world: World) -> dict[str, tuple[Decimal | None, str, str | None]]:
    """This function will return (cost, source, price version) of every row, by its id."""
    return {
        str(row.id): (row.cost_usd, row.cost_source, row.price_version)
        for row in world.rows("SELECT id, cost_usd, cost_source, price_version FROM platform_usage_logs")
    }


def total(world: World) -> tuple[Decimal, Decimal, int]:
    """This function will return the costs of log and roll-ups, and how many events have none."""
    log = world.rows("SELECT coalesce(sum(cost_usd), 0) AS cost FROM platform_usage_logs")[0].cost
    hour = world.rows("SELECT sum(cost_usd) AS cost, sum(unpriced_events) AS open FROM usage_hourly")[0]
    return log, hour.cost, int(hour.open)


def moment(text: str) -> datetime:
    """This function will read a time with its offset."""
    return datetime.fromisoformat(text)
