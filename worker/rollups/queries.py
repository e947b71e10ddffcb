"""What was used, from the roll-ups; and whether they are what the log says."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final, Literal
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from worker.rollups import rules
from worker.rollups.rules import RollupKey

By = Literal["feature", "model", "day"]

KEY: Final = "user_id, feature, provider, model, hour"
SUMS: Final = ("events", "unpriced_events", "input_tokens", "output_tokens", "tokens_used", "cost_usd")

# The definition of a roll-up, in one place: ingest adds it up over the rows it has just inserted, `rebuild`
# and `differences` over the log. A void takes its target's event away, any other correction counts for none.
_HOURLY: Final = """
    SELECT user_id, feature, coalesce(provider, '') AS provider, coalesce(model, '') AS model,
           date_trunc('hour', occurred_at, 'UTC') AS hour,
           sum(CASE WHEN void THEN -1 WHEN corrects IS NULL THEN 1 ELSE 0 END) AS events,
           coalesce(sum(CASE WHEN void THEN -1 WHEN corrects IS NULL THEN 1 ELSE 0 END)
                    FILTER (WHERE cost_usd IS NULL), 0) AS unpriced_events,
           coalesce(sum(input_tokens), 0) AS input_tokens,
           coalesce(sum(output_tokens), 0) AS output_tokens,
           sum(tokens_used) AS tokens_used,
           coalesce(sum(cost_usd), 0) AS cost_usd
      FROM {source}
     GROUP BY 1, 2, 3, 4, 5
"""


def hourly(source: str) -> str:
    """This function will return the SELECT that sums rows of `source` by key; `source` is text of ours."""
    return _HOURLY.replace("{source}", source)


@dataclass(frozen=True, slots=True)
class Usage:
    """What one user used in a period, under one feature, model or day."""

    group: str
    events: int
    unpriced_events: int
    input_tokens: int
    output_tokens: int
    tokens_used: int
    cost_usd: Decimal


# Whole hours come from the roll-ups; the minutes at both ends, if the period has such, from the log.
_USAGE = """
    WITH part AS (
        SELECT user_id, feature, provider, model, hour, events, unpriced_events,
               input_tokens, output_tokens, tokens_used, cost_usd
          FROM usage_hourly
         WHERE user_id = :user_id AND hour >= :first AND hour < :last
         UNION ALL
        {ends}
    )
    SELECT {group} AS "group", sum(events)::bigint AS events, sum(unpriced_events)::bigint AS unpriced_events,
           sum(input_tokens)::bigint AS input_tokens, sum(output_tokens)::bigint AS output_tokens,
           sum(tokens_used)::bigint AS tokens_used, sum(cost_usd) AS cost_usd
      FROM part
     GROUP BY 1
     ORDER BY 1
"""
_ENDS: Final = (
    "platform_usage_logs WHERE user_id = :user_id AND "
    "(occurred_at >= :start AND occurred_at < least(:first, :end) "
    "OR occurred_at >= greatest(:last, :start) AND occurred_at < :end)"
)
_GROUPS: Final[dict[By, str]] = {
    "feature": "feature",
    "model": "model",
    "day": "to_char(hour AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
}
_USAGE_BY: Final = {
    by: text(_USAGE.replace("{ends}", hourly(_ENDS)).replace("{group}", group))
    for by, group in _GROUPS.items()
}


def usage(session: Session, user_id: UUID, *, start: datetime, end: datetime, by: By) -> list[Usage]:
    """This function will return what a user used in [start, end), by feature, model or UTC day, in order.

    An absent model is ''. `cost_usd` sums what is priced; `unpriced_events` counts the rest.
    """
    first, last = rules.whole_hours(start, end)
    parameters = {"user_id": user_id, "start": start, "end": end, "first": first, "last": last}
    return [Usage(**row) for row in session.execute(_USAGE_BY[by], parameters).mappings()]


_UNPRICED: Final = text("SELECT coalesce(sum(unpriced_events), 0)::bigint FROM usage_hourly")


def unpriced_events(session: Session) -> int:
    """This function will count the events of all users that have no cost yet."""
    return int(session.execute(_UNPRICED).scalar_one())


@dataclass(frozen=True, slots=True)
class Difference:
    """A roll-up row that is not what the log says; None stands for a row that is missing on that side."""

    key: RollupKey
    rollup: dict[str, Decimal] | None
    log: dict[str, Decimal] | None


_DIFFERENCES = text(
    """
    WITH log AS ({hourly}), rollup AS (
        SELECT * FROM usage_hourly WHERE hour >= :start AND hour < :end
    )
    SELECT user_id, feature, provider, model, hour,
           rollup.events IS NOT NULL AS in_rollup, log.events IS NOT NULL AS in_log, {columns}
      FROM rollup FULL JOIN log USING (user_id, feature, provider, model, hour)
     WHERE ({rollup}) IS DISTINCT FROM ({log})
     ORDER BY user_id, feature, provider, model, hour
     LIMIT :most
    """.replace("{hourly}", hourly("platform_usage_logs WHERE occurred_at >= :start AND occurred_at < :end"))
    .replace(
        "{columns}", ", ".join(f"rollup.{name} AS rollup_{name}, log.{name} AS log_{name}" for name in SUMS)
    )
    .replace("{rollup}", ", ".join(f"rollup.{name}" for name in SUMS))
    .replace("{log}", ", ".join(f"log.{name}" for name in SUMS))
)


def differences(session: Session, *, start: datetime, end: datetime, most: int = 100) -> list[Difference]:
    """This function will compare the roll-ups of the hours that cover [start, end) with the log, exactly.

    It returns at most `most` differing keys, in order. One statement, so one moment: a batch in flight shows
    on both sides or on neither.
    """
    first, last = rules.covering_hours(start, end)
    rows = session.execute(_DIFFERENCES, {"start": first, "end": last, "most": most}).mappings()
    return [
        Difference(
            key=RollupKey(row["user_id"], row["feature"], row["provider"], row["model"], row["hour"]),
            rollup={name: Decimal(row[f"rollup_{name}"]) for name in SUMS} if row["in_rollup"] else None,
            log={name: Decimal(row[f"log_{name}"]) for name in SUMS} if row["in_log"] else None,
        )
        for row in rows
    ]
