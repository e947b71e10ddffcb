"""What the books ask the platform database about the numbers of events, and what they write down of them.

Rows are read by the time they were stored, up to a time at which every shard was cut: whatever is stored
later has a later time. So each row is read once, and the index on `stored_at` finds those that are new.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby, islice
from typing import Any, Final

from sqlalchemy import TextClause, text
from sqlalchemy.orm import Session

from worker.audits.books_numbers import Producer, Stretch
from worker.audits.books_queries import BEGINNING
from worker.entries import EntryId
from worker.ingest.numbers import HIGHEST
from worker.models.vocabulary import NumbersSettled

_PAGE: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How far a shard's numbers were read, and up to where its books are proved by now.

    `unstored` and `unstored_at` are the events that left no row, as counted at these two points.
    """

    shard: int
    read_at: datetime
    last_entry_id: EntryId
    last_correction_id: EntryId
    unstored: int
    begins_late: bool
    cut_at: datetime | None
    cut_entry_id: EntryId
    cut_correction_id: EntryId
    cut_unstored: int


# Two runs at once would count the same late number twice.
_ONE_AT_A_TIME: Final = text(
    "SELECT pg_advisory_xact_lock(hashtextextended('usage-worker producer numbers', 0))"
)
# The other run may have much to read.
_PATIENTLY: Final = text("SELECT set_config('lock_timeout', current_setting('statement_timeout'), true)")
_READINGS: Final = text("""
    SELECT ingest.shard, coalesce(position.read_at, :beginning) AS read_at,
           coalesce(position.last_entry_id, '0-0') AS last_entry_id,
           coalesce(position.last_correction_id, '0-0') AS last_correction_id,
           coalesce(position.unstored, 0) AS unstored, coalesce(position.begins_late, false) AS begins_late,
           ingest.audited_at AS cut_at, ingest.audited_entry_id AS cut_entry_id,
           ingest.audited_correction_id AS cut_correction_id,
           coalesce(seal.duplicates + seal.conflicts + seal.rejected, 0) AS cut_unstored
      FROM ingest_positions AS ingest
      LEFT JOIN usage_number_positions AS position USING (shard)
      LEFT JOIN LATERAL (SELECT duplicates, conflicts, rejected FROM usage_seals
                          WHERE usage_seals.shard = ingest.shard ORDER BY cut_at DESC LIMIT 1) AS seal ON true
     ORDER BY ingest.shard
""")
_MOVE: Final = text("""
    INSERT INTO usage_number_positions AS position
           (shard, read_at, last_entry_id, last_correction_id, unstored, begins_late)
    VALUES (:shard, :read_at, :last_entry_id, :last_correction_id, :unstored, false)
    ON CONFLICT (shard) DO UPDATE
       SET read_at = excluded.read_at, last_entry_id = excluded.last_entry_id,
           last_correction_id = excluded.last_correction_id, unstored = excluded.unstored,
           begins_late = false
""")


def lock(session: Session) -> None:
    """This function will let one run at a time take numbers in, until its transaction ends."""
    session.execute(_PATIENTLY)
    session.execute(_ONE_AT_A_TIME)


def readings(session: Session) -> list[Reading]:
    """This function will return how far each shard was read, and how far it can be read now."""
    return [
        Reading(
            **{
                **row,
                **{
                    name: EntryId.parse(row[name])
                    for name in ("last_entry_id", "last_correction_id", "cut_entry_id", "cut_correction_id")
                },
            }
        )
        for row in session.execute(_READINGS, {"beginning": BEGINNING}).mappings()
    ]


def move(session: Session, reading: Reading, *, upto: datetime) -> None:
    """This function will note that a shard was read: its rows up to a time, its entries up to its cut."""
    session.execute(
        _MOVE,
        {
            "shard": reading.shard,
            "read_at": max(upto, reading.read_at),
            "last_entry_id": str(reading.cut_entry_id),
            "last_correction_id": str(reading.cut_correction_id),
            "unstored": reading.cut_unstored,
        },
    )


# Numbers that follow one another are one row, so what leaves the server does not grow with the events.
STRETCHES: Final = """
    SELECT producer_id, min(seq) AS low, max(seq) AS high, min(stored_at) AS since, max(stored_at) AS until
      FROM (SELECT log.producer_id, log.seq, log.stored_at,
                   log.seq - dense_rank() OVER (PARTITION BY log.producer_id ORDER BY log.seq) AS stretch
              FROM platform_usage_logs AS log
             WHERE log.stored_at > :since AND log.stored_at <= :upto
               AND ({windows})
               AND log.producer_id IS NOT NULL AND log.seq BETWEEN 1 AND :highest) AS numbered
     GROUP BY producer_id, stretch
     ORDER BY producer_id, low
"""
_EVERYTHING: Final = text(STRETCHES.replace("{windows}", "true"))
_BEFORE: Final = text("""
    SELECT producer_id, max(seq) AS highest, min(stored_at) AS since, max(stored_at) AS until
      FROM platform_usage_logs
     WHERE shard = :shard AND stored_at > :since AND stored_at <= :upto
       AND producer_id IS NOT NULL AND seq BETWEEN 1 AND :highest
     GROUP BY producer_id
     ORDER BY producer_id
""")


def stretches(
    session: Session, windows: Sequence[Reading], *, upto: datetime
) -> Iterator[tuple[str, list[Stretch]]]:
    """This function will yield what arrived of each producer's numbers since these shards were read.

    All shards are read together, for each has only a part of them. One producer may come several
    times in a row.
    """
    return _grouped(session, *window_statement(windows, upto=upto))


def window_statement(windows: Sequence[Reading], *, upto: datetime) -> tuple[TextClause, dict[str, Any]]:
    """This function will return the statement that reads these windows, and its values."""
    condition = " OR ".join(
        f"log.shard = :shard{place} AND log.stored_at > :since{place}" for place in range(len(windows))
    )
    # The earliest of them stands alone, so that the index is asked once.
    values: dict[str, Any] = {"since": min(one.read_at for one in windows), "upto": upto, "highest": HIGHEST}
    for place, one in enumerate(windows):
        values |= {f"shard{place}": one.shard, f"since{place}": one.read_at}
    return text(STRETCHES.replace("{windows}", condition)), values


def all_stretches(session: Session, *, upto: datetime) -> Iterator[tuple[str, list[Stretch]]]:
    """This function will yield every producer's numbers of the whole log up to a time."""
    return _grouped(session, _EVERYTHING, {"since": BEGINNING, "upto": upto, "highest": HIGHEST})


def _grouped(
    session: Session, statement: TextClause, values: dict[str, Any]
) -> Iterator[tuple[str, list[Stretch]]]:
    rows = session.execute(statement, values, execution_options={"yield_per": _PAGE})
    for producer_id, own in groupby(rows, key=lambda row: row.producer_id):
        # In parts: one that numbers its events at random has a stretch for each.
        while part := list(islice(own, _PAGE)):
            yield producer_id, [Stretch(row.low, row.high, row.since, row.until) for row in part]


def highest_before(session: Session, reading: Reading, *, age: timedelta) -> Iterator[tuple[str, Stretch]]:
    """This function will yield the highest number of each producer that a shard stored before it was read.

    Only rows of at most `age` are looked at: whatever is older sends no more.
    """
    parameters = {
        "shard": reading.shard,
        "since": reading.read_at - age,
        "upto": reading.read_at,
        "highest": HIGHEST,
    }
    rows = session.execute(_BEFORE, parameters, execution_options={"yield_per": _PAGE})
    for row in rows:
        yield row.producer_id, Stretch(row.highest, row.highest, row.since, row.until)


_COLUMNS: Final = (
    "producer_id",
    "received",
    "seen_from",
    "seen_to",
    "missing",
    "settled_upto",
    "settled_because",
    "settled_reason",
    "unnamed",
    "unnamed_from",
    "first_stored_at",
    "last_stored_at",
)
_SELECT: Final = f"SELECT {', '.join(_COLUMNS)} FROM usage_producers"  # noqa: S608  names of ours
_PRODUCERS: Final = text(f"{_SELECT} WHERE producer_id = ANY(:ids)")
# By the partial index, and in the same order from run to run.
_INCOMPLETE: Final = text(f"{_SELECT} WHERE missing > 0 ORDER BY first_stored_at, producer_id")
_CASTS: Final = {"received": "int8multirange", "seen_from": "timestamptz[]", "seen_to": "timestamptz[]"}
_VALUES: Final = ", ".join(
    f"CAST(:{name} AS {_CASTS[name]})" if name in _CASTS else f":{name}" for name in _COLUMNS
)
_STORE: Final = text(
    f"INSERT INTO usage_producers ({', '.join(_COLUMNS)}) VALUES ({_VALUES})"  # noqa: S608
    " ON CONFLICT (producer_id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[1:])
)
_PRUNE: Final = text("""
    DELETE FROM usage_producers WHERE last_stored_at < :before AND missing = 0
""")


def producers(session: Session, ids: Iterable[str]) -> dict[str, Producer]:
    """This function will return those of these producers that are known."""
    rows = session.execute(_PRODUCERS, {"ids": list(ids)}).mappings()
    return {row["producer_id"]: _producer(row) for row in rows}


def incomplete(session: Session) -> Iterator[Producer]:
    """This function will yield every producer of which numbers are missing, the oldest first."""
    rows = session.execute(_INCOMPLETE, execution_options={"yield_per": 100}).mappings()
    return map(_producer, rows)


def store(session: Session, changed: Sequence[Producer]) -> None:
    """This function will write producers down, in the order of their names."""
    if changed:
        ordered = sorted(changed, key=lambda one: one.producer_id)
        session.execute(_STORE, [_row(one) for one in ordered])


def prune(session: Session, *, before: datetime) -> None:
    """This function will forget producers without a hole that stored nothing since a time."""
    session.execute(_PRUNE, {"before": before})


def _producer(row: Any) -> Producer:
    ends = zip(row["received"], row["seen_from"], row["seen_to"], strict=True)
    because = row["settled_because"]
    return Producer(
        producer_id=row["producer_id"],
        stretches=[Stretch(one.lower, one.upper - 1, since, until) for one, since, until in ends],
        settled_upto=row["settled_upto"],
        settled_because=None if because is None else NumbersSettled(because),
        settled_reason=row["settled_reason"],
        unnamed=row["unnamed"],
        unnamed_from=row["unnamed_from"],
        first_stored_at=row["first_stored_at"],
        last_stored_at=row["last_stored_at"],
    )


def _row(producer: Producer) -> dict[str, Any]:
    found = producer.stretches
    return {
        **{name: getattr(producer, name) for name in _COLUMNS if name not in _CASTS},
        "received": "{" + ",".join(f"[{one.low},{one.high + 1})" for one in found) + "}",
        "seen_from": [one.since for one in found],
        "seen_to": [one.until for one in found],
    }
