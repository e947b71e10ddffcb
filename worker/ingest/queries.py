"""What ingest asks the platform database: positions, users, rows that exist, dead letters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from worker.ingest.corrections import TOKENS, Target
from worker.rollups import queries as rollups
from worker.valkey import StreamFigures

LetterState = Literal["open", "replayed", "discarded"]


@dataclass(frozen=True, slots=True)
class Position:
    """How far one shard has come and what it counted, as of one moment."""

    shard: int
    last_entry_id: str
    last_correction_id: str
    entries: int
    events: int
    accepted: int
    duplicates: int
    conflicts: int
    rejected: int
    recovered: int
    replayed: int
    epoch: int
    holder: str | None
    lease_until: datetime | None
    updated_at: datetime
    is_held: bool


_POSITIONS: Final = text("""
    SELECT shard, last_entry_id, last_correction_id, entries, events, accepted, duplicates, conflicts,
           rejected, recovered, replayed, epoch, holder, lease_until, updated_at,
           coalesce(lease_until > clock_timestamp(), false) AS is_held
      FROM ingest_positions
     ORDER BY shard
""")


def positions(session: Session) -> list[Position]:
    """This function will return every shard that was ever drained; `is_held` says that its lease is alive."""
    return [Position(**row) for row in session.execute(_POSITIONS).mappings()]


_USERS: Final = text("SELECT clerk_id, id FROM users WHERE clerk_id = ANY(:clerk_ids)")


def users_by_clerk_id(session: Session, clerk_ids: Collection[str]) -> dict[str, UUID]:
    """This function will return the users who have these clerk_ids; unknown ones are left out."""
    rows = session.execute(_USERS, {"clerk_ids": list(clerk_ids)})
    return {row.clerk_id: row.id for row in rows}


_HASHES: Final = text("SELECT id, payload_hash FROM platform_usage_logs WHERE id = ANY(:ids)")


def stored_hashes(session: Session, ids: Collection[UUID]) -> dict[UUID, bytes]:
    """This function will return the payload hash of those of these events that are stored."""
    rows = session.execute(_HASHES, {"ids": list(ids)})
    return {row.id: bytes(row.payload_hash) for row in rows}


# The sums are over the event itself and its corrections, so they are what is left of it.
_TARGETS: Final = text(
    """
    SELECT target.id, target.user_id, target.feature, target.provider, target.model, target.price_version,
           target.corrects IS NOT NULL AS is_correction, target.tokens_used, target.cost_usd AS cost,
           target.cost_source, left_over.*
      FROM platform_usage_logs AS target
     CROSS JOIN LATERAL (
            SELECT bool_or(part.void) AS voided, {sums}, sum(part.cost_usd) AS cost_left
              FROM (SELECT * FROM platform_usage_logs WHERE id = target.id
                     UNION ALL
                    SELECT * FROM platform_usage_logs WHERE corrects = target.id) AS part
           ) AS left_over
     WHERE target.id = ANY(:ids)
    """.replace("{sums}", ", ".join(f"sum(part.{name})::bigint AS left_{name}" for name in TOKENS))
)


def targets(session: Session, ids: Collection[UUID]) -> dict[UUID, Target]:
    """This function will return those of these events that are stored, with what is left of each."""
    found: dict[UUID, Target] = {}
    for row in session.execute(_TARGETS, {"ids": list(ids)}).mappings():
        found[row["id"]] = Target(
            user_id=row["user_id"],
            feature=row["feature"],
            provider=row["provider"],
            model=row["model"],
            price_version=row["price_version"],
            is_correction=row["is_correction"],
            voided=row["voided"],
            tokens_used=row["tokens_used"],
            cost=row["cost"],
            cost_source=row["cost_source"],
            tokens={name: row[f"left_{name}"] for name in TOKENS},
            cost_left=None if row["cost"] is None else row["cost_left"],
        )
    return found


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that was put aside. `raw` is None after an erasure; `corrected_raw` came with a replay."""

    id: UUID
    stream: str
    stream_id: str
    shard: int
    entry_index: int
    raw: bytes | None
    raw_sha256: bytes
    corrected_raw: bytes | None
    reason: str
    detail: str | None
    event_id: UUID | None
    user_id: UUID | None
    clerk_id: str | None
    target_id: UUID | None
    received_at: datetime
    stored_at: datetime
    replayed_at: datetime | None
    discarded_at: datetime | None
    replay_count: int

    @property
    def state(self) -> LetterState:
        """Whether it waits, was replayed into the log, or was given up."""
        if self.replayed_at is not None:
            return "replayed"
        return "open" if self.discarded_at is None else "discarded"


LETTER_COLUMNS: Final = (
    "id, stream, stream_id, shard, entry_index, raw, raw_sha256, corrected_raw, reason, detail, event_id, "
    "user_id, clerk_id, target_id, received_at, stored_at, replayed_at, discarded_at, replay_count"
)

_LETTERS: Final = text(
    """
    SELECT {columns} FROM usage_dead_letters
     WHERE (CAST(:reason AS text) IS NULL OR reason = :reason)
       AND (CAST(:since AS timestamptz) IS NULL OR stored_at >= :since)
       AND (CAST(:until AS timestamptz) IS NULL OR stored_at < :until)
       AND (CAST(:state AS text) IS NULL OR :state = CASE
                WHEN replayed_at IS NOT NULL THEN 'replayed'
                WHEN discarded_at IS NOT NULL THEN 'discarded' ELSE 'open' END)
     ORDER BY stored_at DESC, shard, stream_id, entry_index
     LIMIT :limit
    """.replace("{columns}", LETTER_COLUMNS)
)
_LETTER: Final = text(
    "SELECT {columns} FROM usage_dead_letters WHERE id = :id".replace("{columns}", LETTER_COLUMNS)
)


def dead_letters(
    session: Session,
    *,
    reason: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    state: LetterState | None = "open",
    limit: int = 100,
) -> list[DeadLetter]:
    """This function will return dead letters stored in [since, until), newest first; None is no filter."""
    parameters = {"reason": reason, "since": since, "until": until, "state": state, "limit": limit}
    return [DeadLetter(**row) for row in session.execute(_LETTERS, parameters).mappings()]


def dead_letter(session: Session, letter_id: UUID) -> DeadLetter | None:
    """This function will return one dead letter with its bytes, None when there is none with this id."""
    row = session.execute(_LETTER, {"id": letter_id}).mappings().one_or_none()
    return None if row is None else DeadLetter(**row)


_LETTERS_OF: Final = text(
    """
    SELECT {columns} FROM usage_dead_letters
     WHERE stream = :stream AND shard = :shard AND replayed_at IS NULL
       AND (stream_id, entry_index) IN (
               SELECT * FROM unnest(CAST(:entry_ids AS text[]), CAST(:indices AS integer[])))
    """.replace("{columns}", LETTER_COLUMNS)
)


def letters_of(
    session: Session, places: Sequence[tuple[str, int]], *, stream: str, shard: int
) -> list[DeadLetter]:
    """This function will return the letters, not replayed, of events at these places: (entry id, index)."""
    parameters = {
        "stream": stream,
        "shard": shard,
        "entry_ids": [entry_id for entry_id, _ in places],
        "indices": [index for _, index in places],
    }
    return [DeadLetter(**row) for row in session.execute(_LETTERS_OF, parameters).mappings()]


_REASONS: Final = text("""
    SELECT reason, count(*) AS letters FROM usage_dead_letters
     WHERE replayed_at IS NULL AND discarded_at IS NULL
     GROUP BY reason ORDER BY letters DESC, reason
""")


def open_letters_by_reason(session: Session) -> Mapping[str, int]:
    """This function will count the dead letters that wait for somebody, by reason, most first."""
    rows: Any = session.execute(_REASONS)
    return {row.reason: row.letters for row in rows}


# Two halves, for each has its partial index of letters that wait.
_WAITING: Final = text("""
    WITH waiting AS (
        SELECT letter.id, letter.received_at
          FROM usage_dead_letters AS letter
          JOIN users ON users.clerk_id = letter.clerk_id
         WHERE letter.reason = 'unknown_user' AND letter.replayed_at IS NULL AND letter.discarded_at IS NULL
           AND (letter.raw IS NOT NULL OR letter.corrected_raw IS NOT NULL)
         UNION ALL
        SELECT letter.id, letter.received_at
          FROM usage_dead_letters AS letter
          JOIN platform_usage_logs AS target ON target.id = letter.target_id
         WHERE letter.reason = 'unknown_target' AND letter.replayed_at IS NULL AND letter.discarded_at IS NULL
           AND (letter.raw IS NOT NULL OR letter.corrected_raw IS NOT NULL)
    )
    SELECT id FROM waiting ORDER BY received_at, id LIMIT :limit
""")


def waiting_letters(session: Session, *, limit: int) -> list[UUID]:
    """This function will return the dead letters whose user or target has come meanwhile, oldest first."""
    return list(session.execute(_WAITING, {"limit": limit}).scalars())


@dataclass(frozen=True, slots=True)
class BookDifference:
    """A sentence of the books that is not true: the shard (None: all), both sides, and what it names."""

    check: str
    shard: int | None
    expected: int
    found: int
    names: tuple[str, ...] = ()


_BOOKS: Final = text("""
    SELECT shard, last_entry_id, last_correction_id, entries, events,
           accepted, duplicates, conflicts, rejected, recovered, replayed,
           (SELECT count(*) FROM platform_usage_logs AS log WHERE log.shard = position.shard) AS log_rows,
           (SELECT count(*) FROM usage_dead_letters AS letter WHERE letter.shard = position.shard) AS letters
      FROM ingest_positions AS position
     ORDER BY shard
""")
_SPAN: Final = text("""
    SELECT least(min(occurred_at), (SELECT min(hour) FROM usage_hourly)) AS first,
           greatest(max(occurred_at), (SELECT max(hour) FROM usage_hourly)) AS last
      FROM platform_usage_logs
""")


def books(
    session: Session, *, figures: Callable[[int, str, str], Sequence[StreamFigures]]
) -> list[BookDifference]:
    """This function will compare streams, counters, log and roll-ups, and return what does not agree.

    `figures(shard, last_entry_id, last_correction_id)` asks the server about both streams of a shard. It is
    called after the counters were read, so the comparison holds while events arrive and are drained.
    """
    found: list[BookDifference] = []

    def compare(check: str, shard: int | None, expected: int, actual: int) -> None:
        if expected != actual:
            found.append(BookDifference(check, shard, expected, actual))

    for row in session.execute(_BOOKS).all():
        streams = figures(row.shard, row.last_entry_id, row.last_correction_id)
        compare(
            "entries added to the stream = entries counted + in flight",
            row.shard,
            sum(stream.added for stream in streams),
            row.entries + sum(stream.above for stream in streams),
        )
        compare(
            "events counted = accepted + duplicates + conflicts + rejected",
            row.shard,
            row.events,
            row.accepted + row.duplicates + row.conflicts + row.rejected,
        )
        compare(
            "rows in the log = accepted + recovered + replayed",
            row.shard,
            row.accepted + row.recovered + row.replayed,
            row.log_rows,
        )
        # A replayed frame leaves a letter for each bad event in it, so there may be more, never fewer.
        compare(
            "conflicts + rejected have a dead letter each",
            row.shard,
            max(row.conflicts + row.rejected, row.letters),
            row.letters,
        )
    span = session.execute(_SPAN).one()
    if span.first is not None:
        differing = rollups.differences(session, start=span.first, end=span.last + timedelta(hours=1))
        if differing:
            names = tuple(
                f"{one.key.user_id} {one.key.feature} {one.key.hour.isoformat()}" for one in differing
            )
            found.append(BookDifference("roll-ups = aggregation of the log", None, 0, len(names), names))
    return found
