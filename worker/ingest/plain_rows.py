"""Storing plain events: one COPY, one look for known ids, one INSERT, one addition to the roll-ups.

`ON CONFLICT` would cost a quarter more WAL and time, and nearly every id is new. Known ids are looked up
first, under the lock of the shard's row, and left out. Whatever else may be wrong (another shard or a replay
stored the id in the same moment, a constraint refuses a row) fails the statement, and the caller stores the
batch the slow way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from sqlalchemy.orm import Session

from worker.errors import TransientError
from worker.ingest.preparing import PlainPart
from worker.rollups import operations as rollups
from worker.sqlstate import FailureKind, kind_of


class NotPlain(TransientError):
    """Something about plain events is unusual after all: roll back, and store the batch the slow way."""


class ConnectionLost(TransientError):
    """The connection to the database was closed under the batch."""


# One each per connection: behind a pooler in transaction mode that is the server's, which keeps it as well. A
# change of the columns changes the name, for an old table may live as long as its connection.
_STAGE: Final = """
    CREATE TEMP TABLE IF NOT EXISTS usage_ingest_plain_1 (
        id uuid, user_id uuid, feature text, provider text, model text, input_tokens bigint,
        output_tokens bigint, cache_read_tokens bigint, cache_write_tokens bigint, reasoning_tokens bigint,
        tokens_used bigint, cost_usd numeric, cost_source text, payload_hash bytea, occurred_at timestamptz,
        received_at timestamptz, duration_ms bigint, status text, hold_id text, producer_id text, seq bigint,
        metadata jsonb
    ) ON COMMIT DELETE ROWS;
    CREATE TEMP TABLE IF NOT EXISTS usage_ingest_sums_1 (
        user_id uuid, feature text, provider text, model text, hour timestamptz, events bigint,
        unpriced_events bigint, input_tokens bigint, output_tokens bigint, tokens_used bigint,
        cost_usd numeric
    ) ON COMMIT DELETE ROWS
"""
_SUMS: Final = (
    "user_id, feature, provider, model, hour, events, unpriced_events, input_tokens, output_tokens, "
    "tokens_used, cost_usd"
)
# OFFSET keeps the planner from joining by a scan of the whole log: the temporary table has no statistics.
_KNOWN: Final = """
    SELECT batch.id::text, batch.payload_hash = known.payload_hash
      FROM pg_temp.usage_ingest_plain_1 AS batch
     CROSS JOIN LATERAL (SELECT payload_hash FROM platform_usage_logs WHERE id = batch.id OFFSET 0) AS known
"""
# When a row was stored: the statement began under the lock of the shard's row, so whoever takes that lock
# later sees every row with an earlier time. Never before the last cut of the books, should the clock go back.
STORED_AT: Final = """greatest(statement_timestamp(),
           (SELECT audited_at + interval '1 microsecond' FROM ingest_positions WHERE shard = {shard}))"""
# A price that was reported is the cost. Ids in order, as every batch takes them.
_INSERT: Final = """
    INSERT INTO platform_usage_logs ({columns}, cost_reported_usd, shard, stored_at)
    SELECT {columns}, cost_usd, {shard}, {stored_at}
      FROM pg_temp.usage_ingest_plain_1
     WHERE {condition}
     ORDER BY id
"""
_ADD: Final = rollups.addition_of_sums("pg_temp.usage_ingest_sums_1")


def stage(session: Session, part: PlainPart) -> None:
    """This function will copy the rows to the session's connection; it needs no lock and changes no table."""
    columns = ", ".join(part.plain.columns)
    with _cursor(session) as cursor:
        cursor.execute(_STAGE)
        with cursor.copy(f"COPY pg_temp.usage_ingest_plain_1 ({columns}) FROM STDIN") as copy:
            copy.write(part.rows)


def store(session: Session, part: PlainPart, *, shard: int) -> None:
    """This function will store what is new of staged rows, and note how many were known already.

    It works inside the caller's transaction, which holds the lock of the shard's row. Raises NotPlain, after
    which that transaction has to be rolled back.
    """
    plain, sums = part.plain, part.sums
    columns = ", ".join(plain.columns)
    with _cursor(session) as cursor:
        # Planned anew each time: a plan that was kept from an empty log scans the full one for every id.
        known = cursor.execute(_KNOWN, prepare=False).fetchall()
        if not all(same for _, same in known):
            raise NotPlain("an id is taken by another event")
        known_ids = [event_id for event_id, _ in known]
        condition = "id <> ALL (%s::uuid[])" if known_ids else "true"
        stored_at = STORED_AT.format(shard=int(shard))
        statement = _INSERT.format(
            columns=columns, shard=int(shard), stored_at=stored_at, condition=condition
        )
        inserted = cursor.execute(statement, [known_ids] if known_ids else None).rowcount
        if inserted != len(plain.ids) - len(known_ids):
            raise NotPlain(f"{inserted} rows instead of {len(plain.ids) - len(known_ids)}")
        part.known = len(known_ids)
        if known_ids:
            plain.without(known_ids)
            sums = plain.sums_text().encode()
        if inserted:
            with cursor.copy(f"COPY pg_temp.usage_ingest_sums_1 ({_SUMS}) FROM STDIN") as copy:
                copy.write(sums)
            cursor.execute(_ADD)


@contextmanager
def _cursor(session: Session) -> Iterator[psycopg.Cursor[Any]]:
    connection = session.connection().connection.driver_connection
    if connection is None:
        raise ConnectionLost
    try:
        with connection.cursor() as cursor:
            yield cursor
    except psycopg.Error as error:
        if kind_of(error) is FailureKind.DATA:
            raise NotPlain(f"SQLSTATE {error.sqlstate}") from error
        raise
