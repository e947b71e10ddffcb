"""What the books ask the platform database: a shard's counters, its windows, their rows, their roll-ups.

A window is (since, cut]. `stored_at` is read under the lock of the shard's row in `ingest_positions`, as the
cut is, so the rows of a window that was cut are all committed and no other will ever come into it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from worker.entries import EntryId
from worker.ingest.content import CONTENT_HASH
from worker.rollups import queries as rollups
from worker.rollups.rules import RollupKey

BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
NO_ID: Final = UUID(int=0)
_MOMENT: Final = timedelta(microseconds=1)
MOST_KEYS: Final = 200
COUNTERS: Final = (
    "entries",
    "events",
    "accepted",
    "duplicates",
    "conflicts",
    "rejected",
    "recovered",
    "replayed",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """The rows of a window: how many, how much, and two fingerprints that no order changes.

    `id_xor` is the exclusive or of their ids, so where one row is gone the difference is its id;
    `content_xor` is that of the hashes of everything that is billed or shown.
    """

    row_count: int = 0
    tokens_used: Decimal = Decimal(0)
    cost_usd: Decimal = Decimal(0)
    id_xor: UUID = NO_ID
    content_xor: int = 0


@dataclass(frozen=True, slots=True)
class Ends:
    """The rows that one shard stored in (since, cut_at]."""

    shard: int
    since: datetime
    cut_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """What was proved of a window; see worker.models.platform.UsageSeal."""

    shard: int
    since: datetime
    cut_at: datetime
    last_entry_id: EntryId
    last_correction_id: EntryId
    events_passed: int
    corrections_passed: int
    counters: Mapping[str, int]
    sums: Sums
    letter_count: int
    sealed_at: datetime
    verified_at: datetime
    accepted_reason: str | None = None

    @property
    def ends(self) -> Ends:
        """The ends of the window."""
        return Ends(self.shard, self.since, self.cut_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A shard at one moment under its lock, and the seal before: together the ends of a window."""

    shard: int
    cut_at: datetime
    events_at: EntryId
    corrections_at: EntryId
    counters: Mapping[str, int]
    before: Seal

    @property
    def ends(self) -> Ends:
        """The ends of the window that begins where the last seal ended."""
        return Ends(self.shard, self.before.cut_at, self.cut_at)

    def grown(self, *names: str) -> int:
        """This function will return by how much these counters together grew since the seal before."""
        return sum(self.counters[name] - self.before.counters[name] for name in names)


def unsealed(shard: int) -> Seal:
    """This function will return what stands before a shard's first seal: nothing, since the beginning."""
    return Seal(
        shard=shard,
        since=BEGINNING,
        cut_at=BEGINNING,
        last_entry_id=EntryId(0, 0),
        last_correction_id=EntryId(0, 0),
        events_passed=0,
        corrections_passed=0,
        counters=dict.fromkeys(COUNTERS, 0),
        sums=Sums(),
        letter_count=0,
        sealed_at=BEGINNING,
        verified_at=BEGINNING,
    )


_SHARDS: Final = text("SELECT shard FROM ingest_positions ORDER BY shard")
_LOCK: Final = text(
    f"SELECT last_entry_id, last_correction_id, {', '.join(COUNTERS)}"  # noqa: S608  names of ours
    " FROM ingest_positions WHERE shard = :shard FOR UPDATE"
)
# A statement of its own: in that of the lock the time would be read before the lock is held.
_NOW: Final = text("SELECT clock_timestamp()")
_SEAL_COLUMNS: Final = (
    "shard, since, cut_at, last_entry_id, last_correction_id, events_passed, corrections_passed, "
    f"{', '.join(COUNTERS)}, row_count, tokens_used, cost_usd, id_xor, content_xor, letter_count, sealed_at, "
    "verified_at, accepted_reason"
)
_LAST_SEAL: Final = text(
    f"SELECT {_SEAL_COLUMNS} FROM usage_seals WHERE shard = :shard ORDER BY cut_at DESC LIMIT 1"  # noqa: S608
)
_SEALS: Final = text(
    f"SELECT {_SEAL_COLUMNS} FROM usage_seals WHERE shard = :shard ORDER BY cut_at"  # noqa: S608  names of ours
)
_OLDEST_VERIFIED: Final = text(
    f"SELECT {_SEAL_COLUMNS} FROM usage_seals WHERE sealed_at < :before"  # noqa: S608  names of ours
    " ORDER BY verified_at, shard, cut_at LIMIT :limit"
)


def shards(session: Session) -> list[int]:
    """This function will return every shard that was ever drained."""
    return list(session.execute(_SHARDS).scalars())


def cut(session: Session, *, shard: int) -> Cut:
    """This function will lock the shard's row and return its counters, the time and the last seal.

    End the transaction at once: ingest waits for it. The time always lies behind that of the last seal.
    """
    row = session.execute(_LOCK, {"shard": shard}).mappings().one()
    now = session.execute(_NOW).scalar_one()
    before = last_seal(session, shard=shard) or unsealed(shard)
    return Cut(
        shard=shard,
        cut_at=max(now, before.cut_at + _MOMENT),
        events_at=EntryId.parse(row["last_entry_id"]),
        corrections_at=EntryId.parse(row["last_correction_id"]),
        counters={name: row[name] for name in COUNTERS},
        before=before,
    )


def last_seal(session: Session, *, shard: int) -> Seal | None:
    """This function will return the newest seal of a shard, None when there is none."""
    row = session.execute(_LAST_SEAL, {"shard": shard}).mappings().one_or_none()
    return None if row is None else _seal(row)


def seals(session: Session, *, shard: int) -> list[Seal]:
    """This function will return every seal of a shard, the oldest first."""
    return [_seal(row) for row in session.execute(_SEALS, {"shard": shard}).mappings()]


def longest_unverified(session: Session, *, before: datetime, limit: int) -> list[Seal]:
    """This function will return the seals that were not verified for longest, of those made before a time."""
    parameters = {"before": before, "limit": limit}
    return [_seal(row) for row in session.execute(_OLDEST_VERIFIED, parameters).mappings()]


def _seal(row: Mapping[Any, Any]) -> Seal:
    return Seal(
        shard=row["shard"],
        since=row["since"],
        cut_at=row["cut_at"],
        last_entry_id=EntryId.parse(row["last_entry_id"]),
        last_correction_id=EntryId.parse(row["last_correction_id"]),
        events_passed=row["events_passed"],
        corrections_passed=row["corrections_passed"],
        counters={name: row[name] for name in COUNTERS},
        sums=Sums(**{part.name: row[part.name] for part in fields(Sums)}),
        letter_count=row["letter_count"],
        sealed_at=row["sealed_at"],
        verified_at=row["verified_at"],
        accepted_reason=row["accepted_reason"],
    )


WINDOW: Final = "platform_usage_logs WHERE shard = :shard AND stored_at > :since AND stored_at <= :cut_at"
_SUMS: Final = text(
    """
    SELECT count(*) AS row_count, coalesce(sum(tokens_used), 0) AS tokens_used,
           coalesce(sum(cost_usd), 0) AS cost_usd,
           coalesce(bit_xor(('x' || replace(id::text, '-', ''))::bit(128)), 0::bit(128))::text AS id_bits,
           coalesce(bit_xor({content}), 0) AS content_xor
      FROM {window}
    """.replace("{content}", CONTENT_HASH).replace("{window}", WINDOW)
)
_LETTERS: Final = text("""
    SELECT count(*) FROM usage_dead_letters
     WHERE shard = :shard AND stored_at > :since AND stored_at <= :cut_at
""")
_WINDOW_IDS: Final = text("SELECT id FROM {window}".replace("{window}", WINDOW))


def window_sums(session: Session, ends: Ends) -> Sums:
    """This function will sum up the rows that one shard stored in (since, cut_at]."""
    row = session.execute(_SUMS, asdict(ends)).one()
    return Sums(
        row_count=row.row_count,
        tokens_used=Decimal(row.tokens_used),
        cost_usd=Decimal(row.cost_usd),
        id_xor=UUID(int=int(row.id_bits, 2)),
        content_xor=row.content_xor,
    )


def window_letters(session: Session, ends: Ends) -> int:
    """This function will count the dead letters that one shard put aside in (since, cut_at]."""
    return int(session.execute(_LETTERS, asdict(ends)).scalar_one())


def window_ids(session: Session, ends: Ends) -> Iterator[UUID]:
    """This function will yield the ids of the rows that one shard stored in (since, cut_at]."""
    result = session.execute(_WINDOW_IDS, asdict(ends), execution_options={"yield_per": 10_000})
    return iter(result.scalars())


# Only what the window touched, and of that every row of the hour: the log by (user_id, occurred_at), the
# roll-ups by their key. OFFSET keeps each look a look, whatever the planner thinks of how many there are.
_TOUCHED: Final = text(
    """
    WITH pair AS (
        SELECT DISTINCT user_id, date_trunc('hour', occurred_at, 'UTC') AS hour FROM {window}
    ), log AS ({hourly})
    SELECT log.user_id, log.feature, log.provider, log.model, log.hour,
           rollup.events IS NOT NULL AS in_rollup, {columns}
      FROM log
      LEFT JOIN LATERAL (
               SELECT * FROM usage_hourly AS hourly
                WHERE hourly.user_id = log.user_id AND hourly.feature = log.feature
                  AND hourly.provider = log.provider AND hourly.model = log.model AND hourly.hour = log.hour
               OFFSET 0
           ) AS rollup ON true
     WHERE ({rollup}) IS DISTINCT FROM ({log})
     ORDER BY 1, 2, 3, 4, 5
     LIMIT :most
    """.replace("{window}", WINDOW)
    .replace(
        "{hourly}",
        rollups.hourly(
            "(SELECT found.* FROM pair CROSS JOIN LATERAL (SELECT * FROM platform_usage_logs AS log"
            " WHERE log.user_id = pair.user_id AND log.occurred_at >= pair.hour"
            " AND log.occurred_at < pair.hour + interval '1 hour' OFFSET 0) AS found) AS touched"
        ),
    )
    .replace(
        "{columns}",
        ", ".join(f"rollup.{name} AS rollup_{name}, log.{name} AS log_{name}" for name in rollups.SUMS),
    )
    .replace("{rollup}", ", ".join(f"rollup.{name}" for name in rollups.SUMS))
    .replace("{log}", ", ".join(f"log.{name}" for name in rollups.SUMS))
)


def touched_differences(session: Session, ends: Ends, *, most: int = MOST_KEYS) -> list[rollups.Difference]:
    """This function will compare the roll-ups that a window touched with the log, exactly.

    One statement, so one moment: a batch in flight shows on both sides or on neither.
    """
    parameters = {**asdict(ends), "most": most}
    return [
        rollups.Difference(
            key=RollupKey(row["user_id"], row["feature"], row["provider"], row["model"], row["hour"]),
            rollup=_amounts(row, "rollup") if row["in_rollup"] else None,
            log=_amounts(row, "log"),
        )
        for row in session.execute(_TOUCHED, parameters).mappings()
    ]


def _amounts(row: Mapping[Any, Any], side: str) -> dict[str, Decimal]:
    return {name: Decimal(row[f"{side}_{name}"]) for name in rollups.SUMS}


@dataclass(frozen=True, slots=True)
class Stored:
    """What the log has under an id that came in an entry."""

    payload_hash: bytes
    user_id: UUID


_STORED: Final = text("SELECT id, payload_hash, user_id FROM platform_usage_logs WHERE id = ANY(:ids)")
_LETTERS_OF: Final = text("""
    SELECT stream_id, entry_index FROM usage_dead_letters
     WHERE stream = :stream AND shard = :shard AND stream_id = ANY(:entry_ids)
""")
_LETTER_EVENTS: Final = text("SELECT event_id FROM usage_dead_letters WHERE event_id = ANY(:ids)")


def stored(session: Session, ids: Collection[UUID]) -> dict[UUID, Stored]:
    """This function will return those of these events that are in the log."""
    rows = session.execute(_STORED, {"ids": list(ids)})
    return {row.id: Stored(bytes(row.payload_hash), row.user_id) for row in rows}


def letters_of(
    session: Session, *, stream: str, shard: int, entry_ids: Iterable[str]
) -> set[tuple[str, int]]:
    """This function will return (entry id, place in it) of the dead letters of these entries."""
    parameters = {"stream": stream, "shard": shard, "entry_ids": list(entry_ids)}
    return {(row.stream_id, row.entry_index) for row in session.execute(_LETTERS_OF, parameters)}


def events_with_letters(session: Session, ids: Collection[UUID]) -> set[UUID]:
    """This function will return those of these events that a dead letter names."""
    return set(session.execute(_LETTER_EVENTS, {"ids": list(ids)}).scalars())


# A correction inherits its target's names, so its row does not tell what was hashed.
CONTENT: Final = """
    SELECT id, user_id, feature, provider, model, input_tokens, output_tokens, cache_read_tokens,
           cache_write_tokens, reasoning_tokens, tokens_used, cost_usd AS chosen_cost,
           cost_reported_usd AS cost_usd, cost_computed_usd, cost_source, payload_hash, corrects, void, units
      FROM {where}
"""
_WINDOW_CONTENT: Final = text(CONTENT.replace("{where}", WINDOW))
_KEY_CONTENT: Final = text(
    CONTENT.replace(
        "{where}",
        "platform_usage_logs WHERE user_id = :user_id AND occurred_at >= :hour"
        " AND occurred_at < :hour + interval '1 hour' AND feature = :feature"
        " AND coalesce(provider, '') = :provider AND coalesce(model, '') = :model",
    )
)


def window_content(session: Session, ends: Ends) -> Iterator[Any]:
    """This function will yield what the rows of a window say of themselves."""
    return iter(session.execute(_WINDOW_CONTENT, asdict(ends), execution_options={"yield_per": 5000}))


def key_content(session: Session, key: RollupKey) -> Iterator[Any]:
    """This function will yield what the rows of one roll-up say of themselves."""
    return iter(session.execute(_KEY_CONTENT, key._asdict(), execution_options={"yield_per": 5000}))


# What was sealed counts with its seal's rows: a difference that was accepted there is none here either.
_BY_SHARD: Final = text("""
    SELECT coalesce(position.shard, log.shard) AS shard, coalesce(log.row_count, 0) AS row_count,
           coalesce(position.accepted + position.recovered + position.replayed, 0)
               + coalesce(sealed.row_count - sealed.counted, 0) AS counted
      FROM ingest_positions AS position
      LEFT JOIN (SELECT shard, sum(row_count) AS row_count, max(accepted + recovered + replayed) AS counted
                   FROM usage_seals GROUP BY shard) AS sealed USING (shard)
      FULL JOIN (SELECT shard, count(*) AS row_count FROM platform_usage_logs GROUP BY shard) AS log
           USING (shard)
     ORDER BY 1
""")
_SPAN: Final = text("""
    SELECT least(min(occurred_at), (SELECT min(hour) FROM usage_hourly)) AS first,
           greatest(max(occurred_at), (SELECT max(hour) FROM usage_hourly)) AS last
      FROM platform_usage_logs
""")


def rows_by_shard(session: Session) -> list[tuple[int, int, int]]:
    """This function will return (shard, rows in the log, rows counted) of every shard there is, as of now."""
    return [(row.shard, row.row_count, row.counted) for row in session.execute(_BY_SHARD)]


def span(session: Session) -> tuple[datetime, datetime] | None:
    """This function will return the first and the last time in log and roll-ups, None when both are empty."""
    row = session.execute(_SPAN).one()
    return None if row.first is None else (row.first, row.last)
