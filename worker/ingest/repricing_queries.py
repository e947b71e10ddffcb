"""What a repricing asks the platform database: which rows may have another cost, and all that hangs on it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from worker.ingest.content import CONTENT_HASH
from worker.ingest.repricing_rules import Row, Scope

_NO_ID: Final = UUID(int=0)
_BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
_END: Final = datetime(9999, 1, 1, tzinfo=UTC)

_ROW: Final = f"""
    SELECT id, user_id, feature, provider, model, input_tokens, output_tokens, cache_read_tokens,
           cache_write_tokens, reasoning_tokens, tokens_used, units::text AS units,
           CASE WHEN jsonb_typeof(metadata -> 'service_tier') = 'string' THEN metadata ->> 'service_tier' END
               AS service_tier,
           cost_usd, cost_reported_usd, cost_computed_usd, cost_source, price_version, occurred_at, stored_at,
           shard, corrects, void, {CONTENT_HASH} AS content
      FROM platform_usage_logs
"""  # noqa: S608  names of ours
_ROWS: Final = text(_ROW + " WHERE id = ANY(:ids) AND corrects IS NULL ORDER BY id")
# In the order in which they were applied: nothing comes behind a void.
_FOLLOWING: Final = text(_ROW + " WHERE corrects = ANY(:ids) ORDER BY void, stored_at, id")


def rows(session: Session, ids: Collection[UUID]) -> list[Row]:
    """This function will return those of these events that are stored, in the order of their ids."""
    return [_row(one) for one in session.execute(_ROWS, {"ids": list(ids)}).mappings()]


def following(session: Session, ids: Collection[UUID]) -> list[Row]:
    """This function will return the corrections of these events, in the order in which they were applied."""
    return [_row(one) for one in session.execute(_FOLLOWING, {"ids": list(ids)}).mappings()]


_CONTENT: Final = text(f"SELECT id, {CONTENT_HASH} FROM platform_usage_logs WHERE id = ANY(:ids)")  # noqa: S608


def content(session: Session, ids: Collection[UUID]) -> dict[UUID, int]:
    """This function will return the fingerprints of rows as they are now."""
    return {one.id: one[1] for one in session.execute(_CONTENT, {"ids": list(ids)})}


_USED: Final = text("""
    SELECT DISTINCT nullif(provider, '') AS provider, nullif(model, '') AS model
      FROM usage_hourly
     ORDER BY 1, 2
""")


def used_models(session: Session) -> list[tuple[str | None, str | None]]:
    """This function will return every (provider, model) that was ever used, in order."""
    return [(one.provider, one.model) for one in session.execute(_USED)]


_MODELS: Final = text("""
    SELECT DISTINCT nullif(provider, '') AS provider, nullif(model, '') AS model
      FROM usage_hourly
     WHERE unpriced_events > 0 AND hour >= date_trunc('hour', CAST(:start AS timestamptz), 'UTC')
       AND hour < :end
""")


def unpriced_models(session: Session, scope: Scope) -> list[tuple[str | None, str | None]]:
    """This function will return (provider, model) of events without a cost, as the roll-ups have them."""
    found = session.execute(_MODELS, {"start": scope.start or _BEGINNING, "end": scope.end or _END})
    return [(one.provider, one.model) for one in found]


_FILTER: Final = """
       AND (CAST(:provider AS text) IS NULL OR provider = :provider)
       AND (CAST(:model AS text) IS NULL OR model = :model)
"""
# Events of which only a total is known can have no price: they are not even looked at.
_UNPRICED: Final = text(
    """
    SELECT occurred_at, id FROM platform_usage_logs
     WHERE cost_usd IS NULL AND corrects IS NULL
       AND (occurred_at, id) > (:after, :after_id) AND occurred_at < :end
       AND (input_tokens IS NOT NULL OR tokens_used = 0)
       AND (coalesce(provider, ''), coalesce(model, '')) IN (
               SELECT * FROM unnest(CAST(:providers AS text[]), CAST(:models AS text[])))
       {filter}
     ORDER BY occurred_at, id
     LIMIT :limit
""".replace("{filter}", _FILTER)
)


def unpriced(
    session: Session,
    scope: Scope,
    models: Collection[tuple[str | None, str | None]],
    *,
    after: tuple[datetime, UUID] | None,
    limit: int,
) -> list[tuple[datetime, UUID]]:
    """This function will return (time, id) of the next events of these models without a cost, oldest first.

    `after` is the last one of the page before.
    """
    at, event_id = after or ((scope.start or _BEGINNING) - timedelta(microseconds=1), _NO_ID)
    parameters = {
        "after": at,
        "after_id": event_id,
        "end": scope.end or _END,
        "providers": [provider or "" for provider, _ in models],
        "models": [model or "" for _, model in models],
        "provider": scope.provider,
        "model": scope.model,
        "limit": limit,
    }
    return [(one.occurred_at, one.id) for one in session.execute(_UNPRICED, parameters)]


_HOURS: Final = text("SELECT min(hour) AS first, max(hour) AS last FROM usage_hourly")
_ALL: Final = text(
    """
    SELECT id FROM platform_usage_logs
     WHERE corrects IS NULL AND occurred_at >= :start AND occurred_at < :end
       {filter}
     ORDER BY id
""".replace("{filter}", _FILTER)
)


def span(session: Session, scope: Scope) -> tuple[datetime, datetime] | None:
    """This function will return the [start, end) that holds the events of a scope, None for none."""
    row = session.execute(_HOURS).one()
    if row.first is None:
        return None
    start = max(scope.start or _BEGINNING, row.first)
    end = min(scope.end or _END, row.last + timedelta(hours=1))
    return (start, end) if start < end else None


def events(session: Session, scope: Scope, *, start: datetime, end: datetime) -> list[UUID]:
    """This function will return the events of a scope that occurred in [start, end)."""
    parameters = {"start": start, "end": end, "provider": scope.provider, "model": scope.model}
    return list(session.execute(_ALL, parameters).scalars())


_HISTORY: Final = text("""
    SELECT event.run_id, event.event_id, event.repriced_at, event.cost_before, event.cost_after,
           event.source_before, event.source_after, event.version_before, event.version_after,
           run.requested_by, run.reason
      FROM usage_repricing_events AS event
      JOIN usage_repricings AS run ON run.id = event.run_id
     WHERE event.event_id = :event_id
     ORDER BY event.repriced_at
""")


def history(session: Session, event_id: UUID) -> list[Mapping[str, Any]]:
    """This function will return what was changed about an event's cost, by whom and why, the oldest first."""
    return [dict(one) for one in session.execute(_HISTORY, {"event_id": event_id}).mappings()]


def windows(start: datetime, end: datetime, *, width: timedelta) -> Iterator[tuple[datetime, datetime]]:
    """This function will cut [start, end) into pieces."""
    while start < end:
        until = min(start + width, end)
        yield start, until
        start = until


def _row(one: Mapping[Any, Any]) -> Row:
    units = None if one["units"] is None else json.loads(one["units"], parse_float=Decimal, parse_int=Decimal)
    return Row(**{**one, "units": units})
