"""What ingest writes: the lease of a shard, and a batch of events in one transaction.

Every function works inside the caller's transaction and never commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from worker import log
from worker.entries import EntryId
from worker.ingest import corrections, costs, plain_rows, queries, rows, rules
from worker.ingest.effects import DrainLimits, LeaseLost, ShardPaused
from worker.ingest.leases import Lease
from worker.ingest.plain_rows import ConnectionLost, Staged
from worker.ingest.rules import Batch, Counts, Outcome, Received
from worker.pricing.book import Prices
from worker.rollups import operations as rollups
from worker.sqlstate import FailureKind, kind_of, sqlstate_of

_log = log.get_logger(__name__)


FLOOD: Final = "flood"
_LIMITS: Final = DrainLimits()


# The row's lock makes true that nobody takes the shard over before this transaction ends, however long it
# takes, and that a replay of dead letters, which locks it first as well, cannot wait for us while we wait
# for it. A process that stops answering in the middle gives up what it holds when its lease would end.
# Where commits may be lost (synchronous_commit off), ours may not: they are acknowledged.
_LOCK: Final = text("""
    SELECT last_entry_id, last_correction_id,
           set_config('idle_in_transaction_session_timeout', :patience, true),
           CASE current_setting('synchronous_commit') WHEN 'off'
                THEN set_config('synchronous_commit', 'on', true) END,
           paused_at
      FROM ingest_positions
     WHERE shard = :shard AND epoch = :epoch
       FOR UPDATE
""")
# The window of the flood breaker begins with the first batch after the last one ended.
_ADVANCE: Final = text("""
    UPDATE ingest_positions AS position
       SET last_entry_id = CASE WHEN :correction THEN last_entry_id ELSE :last_id END,
           last_correction_id = CASE WHEN :correction THEN :last_id ELSE last_correction_id END,
           entries = entries + :entries, events = events + :events, accepted = accepted + :accepted,
           duplicates = duplicates + :duplicates, conflicts = conflicts + :conflicts,
           rejected = rejected + :rejected, recovered = recovered + :recovered,
           careful_left = greatest(careful_left - :events, 0), suspect_id = NULL, suspect_deliveries = 0,
           crashes = CASE WHEN careful_left > :events THEN crashes ELSE 0 END,
           flood_since = CASE WHEN goes_on THEN flood_since ELSE clock_timestamp() END,
           flood_events = seen, flood_refused = refused,
           paused_at = CASE WHEN is_flood THEN clock_timestamp() END,
           paused_by = CASE WHEN is_flood THEN 'usage-worker' END,
           paused_reason = CASE WHEN is_flood THEN :flood END,
           lease_until = clock_timestamp() + :duration, updated_at = now()
      FROM (SELECT shard AS of_shard, goes_on, seen, refused,
                   seen >= :flood_events AND refused > :flood_share * seen AS is_flood
              FROM (SELECT shard, goes_on,
                           CASE WHEN goes_on THEN flood_events ELSE 0 END + :events AS seen,
                           CASE WHEN goes_on THEN flood_refused ELSE 0 END + :refused AS refused
                      FROM (SELECT shard, flood_events, flood_refused,
                                   coalesce(flood_since > clock_timestamp() - :flood_window, false) AS goes_on
                              FROM ingest_positions WHERE shard = :shard) AS before) AS counted) AS flood
     WHERE position.shard = :shard AND position.epoch = :epoch AND flood.of_shard = position.shard
    RETURNING last_entry_id, last_correction_id, careful_left, paused_at
""")


def ingest_batch(
    session: Session,
    batch: Batch,
    *,
    lease: Lease,
    stream: str,
    correction: bool,
    duration: timedelta,
    prices: Prices,
    limits: DrainLimits = _LIMITS,
    staged: Staged | None = None,
) -> tuple[Lease, Counts]:
    """This function will answer each event of a batch, store what is new, and move the shard's position.

    It returns the lease as it is then, and the counts. Afterwards each event has its outcome. Raises
    LeaseLost when somebody has taken the shard, or moved it, since the batch was read; ShardPaused; NotPlain
    when a batch with plain events has to be stored the slow way. `staged` says that this very session has
    its plain rows already.
    """
    if batch.plain is not None and staged is None:
        staged = plain_rows.stage(session, batch.plain)
    patience = f"{int(duration.total_seconds() * 1000)}ms"
    locked = session.execute(
        _LOCK, {"shard": lease.shard, "epoch": lease.epoch, "patience": patience}
    ).one_or_none()
    if locked is None:
        raise LeaseLost
    if locked.paused_at is not None:
        raise ShardPaused
    stands_at = locked.last_correction_id if correction else locked.last_entry_id
    both = EntryId.parse(locked.last_entry_id), EntryId.parse(locked.last_correction_id)
    if EntryId.parse(stands_at) != batch.position or both != (lease.events_at, lease.corrections_at):
        raise LeaseLost("The shard's position moved since the batch was read: read it again.")
    if batch.plain is not None and staged is not None:
        plain_rows.store(session, batch.plain, staged, shard=lease.shard)
    if batch.events:
        _leave_put_aside(session, batch.events, stream=stream, shard=lease.shard)
        settle(session, batch.events, shard=lease.shard, correction=correction, prices=prices)
        put_aside(session, batch.events, stream=stream, shard=lease.shard)
    counts = rules.count(batch)
    row = session.execute(
        _ADVANCE,
        {
            **{name: getattr(counts, name) for name in rules.COUNTERS},
            "refused": rules.count_flood(batch),
            "shard": lease.shard,
            "epoch": lease.epoch,
            "correction": correction,
            "last_id": str(batch.last_id),
            "duration": duration,
            "flood": FLOOD,
            "flood_share": limits.flood_share,
            "flood_events": limits.flood_events,
            "flood_window": timedelta(seconds=limits.flood_window_seconds),
        },
    ).one()
    held = replace(
        lease,
        events_at=EntryId.parse(row.last_entry_id),
        corrections_at=EntryId.parse(row.last_correction_id),
        is_careful=row.careful_left > 0,
        is_paused=row.paused_at is not None,
        suspect_id=None,
    )
    return held, counts


def _leave_put_aside(session: Session, events: Sequence[Received], *, stream: str, shard: int) -> None:
    """Leaves the answer of an event that was put aside when its entry was read before.

    Its user or target may have come since, but then its letter is replayed; what was discarded stays so.
    """
    again = {(one.entry_id, one.index): one for one in events if not one.counted and one.outcome is None}
    if again:
        for letter in queries.letters_of(session, list(again), stream=stream, shard=shard):
            conflict = letter.reason == "conflict"
            again[letter.stream_id, letter.entry_index].refuse(
                letter.reason, letter.detail, outcome=Outcome.CONFLICT if conflict else Outcome.REJECTED
            )


def settle(
    session: Session, events: Sequence[Received], *, shard: int, correction: bool, prices: Prices
) -> None:
    """This function will give each event that has none its outcome, and store and price the new ones."""
    if correction:
        first = rules.first_of_each(events)
        _inherit(session, first)
    else:
        clerk_ids = rules.unresolved(events)
        rules.resolve_users(events, queries.users_by_clerk_id(session, clerk_ids) if clerk_ids else {})
        first = rules.first_of_each(events)
        costs.price(first, prices)
    _store([event for event in first if event.outcome is None], session=session, shard=shard)
    # A repeat was answered by the first of its id in the batch; where that one lost against a stored event,
    # what is stored answers.
    lost = {event.event_id: event for event in first if event.outcome is Outcome.CONFLICT}
    _answer_known(
        session,
        [
            event
            for event in events
            if event.event is not None and lost.get(event.event_id, event) is not event
        ],
    )


# Two transactions that correct one event would each see what the other has not committed. The lock makes true
# that the second one sees the first one's rows; it is taken in order, and goes with the transaction.
_SERIALISE: Final = text("""
    SELECT pg_advisory_xact_lock(hashtextextended(target, 0))
      FROM (SELECT unnest(CAST(:targets AS text[])) AS target ORDER BY 1) AS ordered
""")


def _inherit(session: Session, events: Sequence[Received]) -> None:
    target_ids = sorted({event.target_id for event in events if event.target_id is not None})
    if not target_ids:
        return
    session.execute(_SERIALISE, {"targets": [f"usage-correction:{target_id}" for target_id in target_ids]})
    targets = queries.targets(session, target_ids)
    stored = queries.stored_hashes(
        session, [event.event_id for event in events if event.event_id is not None]
    )
    for received in events:
        if received.event is None or received.event_id is None or received.target_id is None:
            continue
        if received.event_id in stored:
            # Known already: what is left of the target says nothing about it, it is in there.
            rules.answer_repeat(received, stored[received.event_id])
            continue
        target_id = received.target_id
        target = targets.get(target_id)
        if target is None:
            received.refuse(
                "unknown_target", "the event that is corrected is not stored; replayed when it is"
            )
        else:
            targets[target_id] = corrections.correct(received, received.event, target)


_BATCH: Final = "pg_temp.usage_ingest_batch_2"
# One per connection: behind a pooler in transaction mode that is the server's, which keeps it as well. A
# change of the columns changes the name, for an old table may live as long as its connection. One transaction
# may use it more than once: halves of a batch, dead letters of several shards.
_STAGE: Final = """
    CREATE TEMP TABLE IF NOT EXISTS usage_ingest_batch_2 (
        n integer, id uuid, user_id uuid, feature text, provider text, model text, input_tokens bigint,
        output_tokens bigint, cache_read_tokens bigint, cache_write_tokens bigint, reasoning_tokens bigint,
        tokens_used bigint, cost_usd numeric, cost_reported_usd numeric, cost_computed_usd numeric,
        cost_source text, payload_hash bytea, price_version text, occurred_at timestamptz,
        received_at timestamptz, duration_ms bigint, status text, corrects uuid, void boolean, hold_id text,
        producer_id text, seq bigint, shard smallint, metadata jsonb, units jsonb
    ) ON COMMIT DELETE ROWS;
    TRUNCATE pg_temp.usage_ingest_batch_2
"""
_COPY: Final = f"COPY {_BATCH} ({', '.join(rows.COLUMNS)}) FROM STDIN"
_STORED: Final = ", ".join(rows.COLUMNS[1:])
# Ids and keys in order: no two batches can wait for each other. The roll-ups take what this very statement
# inserted, so an event that is known already adds nothing. The answer: the places of those that were known.
_INSERT: Final = text(
    """
    WITH fresh AS (
        INSERT INTO platform_usage_logs ({stored}, stored_at)
        SELECT {stored}, {stored_at} FROM {batch} ORDER BY id
        ON CONFLICT (id) DO NOTHING
        RETURNING id, user_id, feature, provider, model, occurred_at, input_tokens, output_tokens,
                  tokens_used, cost_usd, corrects, void
    ), added AS (
        {rollups}
    )
    SELECT n FROM {batch} AS batch WHERE NOT EXISTS (SELECT FROM fresh WHERE fresh.id = batch.id)
    """.replace("{stored}", _STORED)
    .replace("{batch}", _BATCH)
    .replace("{stored_at}", plain_rows.STORED_AT.format(shard=":shard"))
    .replace("{rollups}", rollups.addition("fresh"))
)


def _store(events: list[Received], *, session: Session, shard: int) -> None:
    """Stores events with new ids, and gives each its outcome.

    The reason of a refusal that lies in the data lies in one event: halves are tried until it stands alone.
    """
    if not events:
        return
    try:
        with session.begin_nested():
            known = _insert(session, events, shard=shard)
    except Exception as exc:
        if kind_of(exc) is not FailureKind.DATA:
            raise
        if len(events) == 1:
            state = sqlstate_of(exc) or type(exc).__name__
            events[0].refuse("refused_by_database", f"SQLSTATE {state}")
            return
        middle = len(events) // 2
        _store(events[:middle], session=session, shard=shard)
        _store(events[middle:], session=session, shard=shard)
        return
    for event in events:
        event.outcome = Outcome.ACCEPTED
    _answer_known(session, [events[n] for n in known])


def _insert(session: Session, events: Sequence[Received], *, shard: int) -> list[int]:
    connection = session.connection().connection.driver_connection
    if connection is None:
        raise ConnectionLost
    lines = [
        rows.line(n, one, one.event, shard=shard) for n, one in enumerate(events) if one.event is not None
    ]
    with connection.cursor() as cursor:
        cursor.execute(_STAGE)
        with cursor.copy(_COPY) as copy:
            copy.write("".join(lines))
    return list(session.execute(_INSERT, {"shard": shard}).scalars())


def _answer_known(session: Session, events: Sequence[Received]) -> None:
    if not events:
        return
    stored = queries.stored_hashes(
        session, [event.event_id for event in events if event.event_id is not None]
    )
    for event in events:
        if event.event_id is None:
            continue
        event.outcome = None
        rules.answer_repeat(event, stored[event.event_id])


_PUT_ASIDE: Final = text("""
    INSERT INTO usage_dead_letters (stream, stream_id, shard, entry_index, raw, raw_sha256, reason, detail,
                                    event_id, user_id, clerk_id, target_id, received_at)
    VALUES (:stream, :stream_id, :shard, :entry_index, :raw, :raw_sha256, :reason, :detail,
            :event_id, :user_id, :clerk_id, :target_id, :received_at)
    ON CONFLICT (stream, shard, stream_id, entry_index) DO NOTHING
""")


def put_aside(session: Session, events: Sequence[Received], *, stream: str, shard: int) -> None:
    """This function will keep the bytes of every refused event, once, whatever was done with them since."""
    letters = [
        {
            "stream": stream,
            "stream_id": event.entry_id,
            "shard": shard,
            "entry_index": event.index,
            "raw": event.raw,
            "raw_sha256": sha256(event.raw).digest(),
            "reason": event.reason,
            "detail": event.detail,
            "event_id": event.event_id,
            "user_id": event.user_id,
            "clerk_id": rules.storable(event.clerk_id),
            "target_id": event.target_id,
            "received_at": event.received_at,
        }
        for event in events
        if event.outcome in (Outcome.CONFLICT, Outcome.REJECTED)
    ]
    if letters:
        session.execute(_PUT_ASIDE, letters)
