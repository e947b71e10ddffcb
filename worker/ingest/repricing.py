"""Setting costs anew when a price came later: log, roll-ups, seals and history in one transaction.

A batch holds the rows of all shards in `ingest_positions`: nothing is stored, corrected, sealed or merged
meanwhile, so that what follows from an event (its corrections, the hour it is in, the seal of its window) can
be changed with it. A batch takes less than a tenth of a second. What is committed stands: a run that was
interrupted is continued by the next one, which finds only what is left.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from worker.ingest import repricing_queries as queries
from worker.ingest.repricing_rules import Change, Repriced, Scope, changes_of
from worker.pricing.book import Prices
from worker.rollups import operations as rollups

OpenSession = Callable[[], AbstractContextManager[Session]]
BATCH_SIZE: Final = 500
_WINDOW: Final = timedelta(hours=6)


def preview(open_session: OpenSession, scope: Scope, prices: Prices, *, limit: int | None = None) -> Repriced:
    """This function will return what `reprice` would change, and change nothing."""
    result = Repriced()
    for ids in _pages(open_session, scope):
        if limit is not None and result.changed >= limit:
            result.is_finished = False
            break
        with open_session() as session:
            result.add(len(ids), _changes(session, ids, scope, prices))
    return result


def reprice(
    open_session: OpenSession,
    scope: Scope,
    prices: Prices,
    *,
    requested_by: str,
    reason: str,
    clock: Callable[[], datetime],
    limit: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Repriced:
    """This function will set the costs of a scope anew, batch by batch, each in a transaction of its own.

    `open_session` opens a session that commits at the end. The run and each row that it changes are recorded
    with `requested_by` and `reason`. About `limit` changed rows end it early. Raises what is wrong with the
    server (TransientError); what was committed by then stands.
    """
    run = _Run(scope, prices, requested_by, reason, clock)
    result = run.result
    for ids in _pages(open_session, scope):
        if should_stop() or (limit is not None and result.changed >= limit):
            result.is_finished = False
            break
        with open_session() as session:
            has_any = bool(_changes(session, ids, scope, prices))
        changes: list[Change] = []
        if has_any:
            with open_session() as session:
                changes = _reprice_batch(session, run, ids)
        result.add(len(ids), changes)
    if result.run_id is not None:
        with open_session() as session:
            session.execute(
                _FINISH,
                {
                    "id": result.run_id,
                    "examined": result.examined,
                    "finished_at": clock() if result.is_finished else None,
                },
            )
    return result


@dataclass(slots=True)
class _Run:
    scope: Scope
    prices: Prices
    requested_by: str
    reason: str
    clock: Callable[[], datetime]
    result: Repriced = field(default_factory=Repriced)


def _pages(open_session: OpenSession, scope: Scope) -> Iterator[list[UUID]]:
    """Ids of events that may have another cost, some at a time."""
    if scope.unpriced_only:
        yield from _unpriced_pages(open_session, scope)
        return
    with open_session() as session:
        span = queries.span(session, scope)
    for start, end in queries.windows(*span, width=_WINDOW) if span is not None else ():
        with open_session() as session:
            ids = queries.events(session, scope, start=start, end=end)
        for at in range(0, len(ids), BATCH_SIZE):
            yield ids[at : at + BATCH_SIZE]


def _unpriced_pages(open_session: OpenSession, scope: Scope) -> Iterator[list[UUID]]:
    with open_session() as session:
        models = queries.unpriced_models(session, scope)
    after: tuple[datetime, UUID] | None = None
    while models:
        with open_session() as session:
            page = queries.unpriced(session, scope, models, after=after, limit=BATCH_SIZE)
        if not page:
            return
        after = page[-1]
        yield [event_id for _, event_id in page]


def _changes(session: Session, ids: Sequence[UUID], scope: Scope, prices: Prices) -> list[Change]:
    rows, following = queries.rows(session, ids), queries.following(session, ids)
    return changes_of(rows, following, prices, unpriced_only=scope.unpriced_only)


# In the order of the shards, as everybody who takes more than one: nobody waits in a circle. The second lock
# is that of corrections, for a shard whose row came in the meantime.
_LOCK: Final = text("SELECT shard FROM ingest_positions ORDER BY shard FOR UPDATE")
_SERIALISE: Final = text("""
    SELECT pg_advisory_xact_lock(hashtextextended(target, 0))
      FROM (SELECT unnest(CAST(:targets AS text[])) AS target ORDER BY 1) AS ordered
""")
# A statement of its own: in that of the lock the time would be read before the lock is held.
_NOW: Final = text("SELECT clock_timestamp()")
_BEGIN: Final = text("""
    INSERT INTO usage_repricings (id, started_at, requested_by, reason, scope, policy)
    VALUES (:id, :started_at, :requested_by, :reason, CAST(:scope AS jsonb), :policy)
""")
_CHANGED: Final = text("""
    CREATE TEMP TABLE IF NOT EXISTS usage_repriced_1 (
        id uuid, corrects uuid, cost_before numeric, cost_after numeric, computed_before numeric,
        computed_after numeric, source_before text, source_after text, version_before text,
        version_after text, shard smallint, stored_at timestamptz, user_id uuid, feature text, provider text,
        model text, hour timestamptz, unpriced_events bigint, cost_change numeric
    ) ON COMMIT DELETE ROWS
""")
_CLEAR: Final = text("TRUNCATE pg_temp.usage_repriced_1")
_FILL: Final = text("""
    INSERT INTO pg_temp.usage_repriced_1
    VALUES (:id, :corrects, :cost_before, :cost_after, :computed_before, :computed_after, :source_before,
            :source_after, :version_before, :version_after, :shard, :stored_at, :user_id, :feature, :provider,
            :model, :hour, :unpriced_events, :cost_change)
""")
_UPDATE: Final = text("""
    UPDATE platform_usage_logs AS log
       SET cost_usd = changed.cost_after, cost_computed_usd = changed.computed_after,
           cost_source = changed.source_after, price_version = changed.version_after
      FROM pg_temp.usage_repriced_1 AS changed
     WHERE log.id = changed.id
""")
_RECORD: Final = text("""
    INSERT INTO usage_repricing_events (run_id, event_id, corrects, cost_before, cost_after, computed_before,
           computed_after, source_before, source_after, version_before, version_after, shard, stored_at,
           repriced_at)
    SELECT :run_id, id, corrects, cost_before, cost_after, computed_before, computed_after, source_before,
           source_after, version_before, version_after, shard, stored_at, :repriced_at
      FROM pg_temp.usage_repriced_1
""")
_ROLL_UP: Final = text(
    rollups.addition_of_sums(
        """(SELECT user_id, feature, provider, model, hour, 0 AS events,
                  sum(unpriced_events) AS unpriced_events, 0 AS input_tokens, 0 AS output_tokens,
                  0 AS tokens_used, sum(cost_change) AS cost_usd
             FROM pg_temp.usage_repriced_1
            GROUP BY user_id, feature, provider, model, hour) AS changed"""
    )
)
# The window of a row that is sealed already says from now on what the row says.
_SEAL: Final = text("""
    UPDATE usage_seals AS seal
       SET cost_usd = seal.cost_usd + changed.cost_change, content_xor = seal.content_xor # changed.content
      FROM (SELECT seal.shard, seal.cut_at, sum(changed.cost_change) AS cost_change,
                   bit_xor(changed.content) AS content
              FROM unnest(CAST(:shards AS smallint[]), CAST(:stored_at AS timestamptz[]),
                          CAST(:cost_changes AS numeric[]), CAST(:contents AS bigint[]))
                   AS changed (shard, stored_at, cost_change, content)
              JOIN usage_seals AS seal
                ON seal.shard = changed.shard AND changed.stored_at > seal.since
               AND changed.stored_at <= seal.cut_at
             GROUP BY seal.shard, seal.cut_at) AS changed
     WHERE seal.shard = changed.shard AND seal.cut_at = changed.cut_at
""")
_COUNT: Final = text("""
    UPDATE usage_repricings SET changed = changed + :changed, cost_change = cost_change + :cost_change
     WHERE id = :id
""")
_FINISH: Final = text("""
    UPDATE usage_repricings SET examined = :examined, finished_at = :finished_at WHERE id = :id
""")


def _reprice_batch(session: Session, run: _Run, ids: Sequence[UUID]) -> list[Change]:
    session.execute(_LOCK)
    session.execute(_SERIALISE, {"targets": [f"usage-correction:{one}" for one in ids]})
    changes = _changes(session, ids, run.scope, run.prices)
    if not changes:
        return []
    _begin(session, run)
    session.execute(_CHANGED)
    session.execute(_CLEAR)
    session.execute(_FILL, [_row(change) for change in changes])
    session.execute(_UPDATE)
    repriced_at = session.execute(_NOW).scalar_one()
    session.execute(_RECORD, {"run_id": run.result.run_id, "repriced_at": repriced_at})
    session.execute(_ROLL_UP)
    after = queries.content(session, [change.row.id for change in changes])
    session.execute(
        _SEAL,
        {
            "shards": [change.row.shard for change in changes],
            "stored_at": [change.row.stored_at for change in changes],
            "cost_changes": [change.cost_change for change in changes],
            "contents": [change.row.content ^ after[change.row.id] for change in changes],
        },
    )
    session.execute(
        _COUNT,
        {
            "id": run.result.run_id,
            "changed": len(changes),
            "cost_change": sum(change.cost_change for change in changes),
        },
    )
    return changes


def _begin(session: Session, run: _Run) -> None:
    """Records the run with its first change: one that changes nothing leaves no trace."""
    if run.result.run_id is not None:
        return
    run.result.run_id = uuid.uuid4()
    session.execute(
        _BEGIN,
        {
            "id": run.result.run_id,
            "started_at": run.clock(),
            "requested_by": run.requested_by,
            "reason": run.reason,
            "scope": json.dumps(run.scope.told()),
            "policy": run.prices.policy.value,
        },
    )


def _row(change: Change) -> dict[str, object]:
    row = change.row
    return {
        "id": row.id,
        "corrects": row.corrects,
        "cost_before": row.cost_usd,
        "cost_after": change.cost_usd,
        "computed_before": row.cost_computed_usd,
        "computed_after": change.cost_computed_usd,
        "source_before": row.cost_source,
        "source_after": change.cost_source,
        "version_before": row.price_version,
        "version_after": change.price_version,
        "shard": row.shard,
        "stored_at": row.stored_at,
        **row.key._asdict(),
        "unpriced_events": change.unpriced_change,
        "cost_change": change.cost_change,
    }
