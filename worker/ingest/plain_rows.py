"""Storing plain events: one COPY, one look for known ids, one INSERT, one addition to the roll-ups.

`ON CONFLICT` would cost a quarter more WAL and time, and nearly every id is new. Known ids are looked up
first, under the lock of the shard's row, and left out. Whatever else may be wrong (another shard or a replay
stored the id in the same moment, a constraint refuses a row) fails the statement, and the caller stores the
batch the slow way.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from sqlalchemy.orm import Session

from worker.errors import TransientError
from worker.ingest.preparing import PlainPart
from worker.rollups import operations as rollups
from worker.rollups.queries import KEY, SUMS
from worker.sqlstate import FailureKind, kind_of

_NOTHING: Final[Set[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Staged:
    """Rows that a connection has; `known` are the ids that were stored before, and whether as the same event.

    None: the batch before may have stored some meanwhile.
    """

    known: list[tuple[str, bool]] | None


class NotPlain(TransientError):
    """Something about plain events is unusual after all: roll back, and store the batch the slow way."""


class ConnectionLost(TransientError):
    """The connection to the database was closed under the batch."""


# One each per connection: behind a pooler in transaction mode that is the server's, which keeps it as well. A
# change of the columns changes the name, for an old table may live as long as its connection. The types are
# those of the tables that the rows go to, so that nothing is left to convert under the lock.
_STAGE: Final = """
    CREATE TEMP TABLE IF NOT EXISTS usage_ingest_plain_2 (
        id uuid, user_id uuid, feature varchar(128), provider varchar(128), model varchar(256),
        input_tokens bigint, output_tokens bigint, cache_read_tokens bigint, cache_write_tokens bigint,
        reasoning_tokens bigint, tokens_used bigint, cost_usd numeric(24, 12), cost_source varchar(16),
        cost_reported_usd numeric(24, 12), cost_computed_usd numeric(24, 12), price_version text,
        payload_hash bytea, occurred_at timestamptz, received_at timestamptz, duration_ms bigint,
        status varchar(16), hold_id text, producer_id text, seq bigint, metadata jsonb
    ) ON COMMIT DELETE ROWS;
    CREATE TEMP TABLE IF NOT EXISTS usage_ingest_sums_2 (
        user_id uuid, feature varchar(128), provider varchar(128), model varchar(256), hour timestamptz,
        events bigint, unpriced_events bigint, input_tokens bigint, output_tokens bigint, tokens_used bigint,
        cost_usd numeric(38, 12)
    ) ON COMMIT DELETE ROWS
"""
_COPY_SUMS: Final = f"""
    COPY pg_temp.usage_ingest_sums_2 ({", ".join((KEY, *SUMS))}) FROM STDIN
"""
# OFFSET keeps the planner from joining by a scan of the whole log: the temporary table has no statistics.
_KNOWN: Final = """
    SELECT batch.id::text, batch.payload_hash = known.payload_hash
      FROM pg_temp.usage_ingest_plain_2 AS batch
     CROSS JOIN LATERAL (SELECT payload_hash FROM platform_usage_logs WHERE id = batch.id OFFSET 0) AS known
"""
# When a row was stored: the statement began under the lock of the shard's row, so whoever takes that lock
# later sees every row with an earlier time. Never before the last cut of the books, should the clock go back.
STORED_AT: Final = """greatest(statement_timestamp(),
           (SELECT audited_at + interval '1 microsecond' FROM ingest_positions WHERE shard = {shard}))"""
# The rows lie in the order of their ids, as every batch takes them.
_INSERT: Final = """
    INSERT INTO platform_usage_logs ({columns}, shard, stored_at)
    SELECT {columns}, {shard}, {stored_at}
      FROM pg_temp.usage_ingest_plain_2
     WHERE {condition}
"""
_ADD: Final = rollups.addition_of_sums("pg_temp.usage_ingest_sums_2")


def stage(session: Session, part: PlainPart, *, unseen: Set[str] = _NOTHING) -> Staged:
    """This function will copy the rows to the session's connection, and look which ids are known already.

    It needs no lock and changes no table, so that it can run while the batch before is being stored. That
    one's ids are `unseen` here: where one of them comes again, it is looked for under the lock.
    """
    columns = ", ".join(part.plain.columns)
    with _cursor(session) as cursor:
        cursor.execute(_STAGE)
        with cursor.copy(f"COPY pg_temp.usage_ingest_plain_2 ({columns}) FROM STDIN") as copy:
            copy.write(part.rows)
        with cursor.copy(_COPY_SUMS) as copy:
            copy.write(part.sums)
        return Staged(_known(cursor) if unseen.isdisjoint(part.plain.ids) else None)


def store(session: Session, part: PlainPart, staged: Staged, *, shard: int) -> None:
    """This function will store what is new of staged rows, and note how many were known already.

    It works inside the caller's transaction, which holds the lock of the shard's row; the rows were staged on
    the same connection. Raises NotPlain, after which that transaction has to be rolled back.
    """
    plain = part.plain
    columns = ", ".join(plain.columns)
    with _cursor(session) as cursor:
        known = _known(cursor) if staged.known is None else staged.known
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
            cursor.execute("DELETE FROM pg_temp.usage_ingest_sums_2")
            with cursor.copy(_COPY_SUMS) as copy:
                copy.write(plain.sums_text().encode())
        if inserted:
            cursor.execute(_ADD)


def _known(cursor: psycopg.Cursor[Any]) -> list[tuple[str, bool]]:
    # Planned anew each time: a plan that was kept from an empty log scans the full one for every id.
    return cursor.execute(_KNOWN, prepare=False).fetchall()


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
