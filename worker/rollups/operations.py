"""Adding to the roll-ups, and making them anew from the log."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from worker.rollups import queries, rules

_ADD = """
    INSERT INTO usage_hourly AS hourly ({key}, {sums})
    {hourly}
     ORDER BY 1, 2, 3, 4, 5
    ON CONFLICT ({key}) DO UPDATE SET {set}
"""


def addition(source: str) -> str:
    """This function will return the statement that adds the rows of `source`, text of ours, to the roll-ups.

    It takes the rows' locks in the order of the key, so that no two batches can wait for each other.
    """
    return _addition(queries.hourly(source))


def addition_of_sums(table: str) -> str:
    """This function will return the statement that adds finished sums, one row per key, to the roll-ups."""
    return _addition(f"SELECT {queries.KEY}, {', '.join(queries.SUMS)} FROM {table}")  # noqa: S608  a name of ours


def _addition(hourly: str) -> str:
    return (
        _ADD.replace("{key}", queries.KEY)
        .replace("{sums}", ", ".join(queries.SUMS))
        .replace("{hourly}", hourly)
        .replace("{set}", ", ".join(f"{name} = hourly.{name} + excluded.{name}" for name in queries.SUMS))
    )


# Ingest takes ROW EXCLUSIVE on this table in the statement that inserts its rows, before it inserts them:
# whoever holds this lock sees every batch wholly or not at all, and none begins before the transaction ends.
_LOCK: Final = text("LOCK TABLE usage_hourly IN SHARE ROW EXCLUSIVE MODE")
_DELETE: Final = text("DELETE FROM usage_hourly WHERE hour >= :start AND hour < :end")
_INSERT: Final = text(
    "INSERT INTO usage_hourly ({key}, {sums}) {hourly}".replace("{key}", queries.KEY)
    .replace("{sums}", ", ".join(queries.SUMS))
    .replace(
        "{hourly}",
        queries.hourly("platform_usage_logs WHERE occurred_at >= :start AND occurred_at < :end"),
    )
)


def rebuild(session: Session, *, start: datetime, end: datetime) -> int:
    """This function will recompute the roll-ups of the hours that cover [start, end) and return their number.

    Until the caller commits, ingest waits: rebuild long ranges day by day, each in a transaction of its own.
    """
    first, last = rules.covering_hours(start, end)
    session.execute(_LOCK)
    session.execute(_DELETE, {"start": first, "end": last})
    result = session.execute(_INSERT, {"start": first, "end": last})
    return int(result.rowcount)  # type: ignore[attr-defined]  # a DML result, which text() cannot know
