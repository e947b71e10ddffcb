"""The database of one shard in memory: its row, what was stored and put aside, and one lock.

It does what `worker/ingest/operations.py` and `leases.py` do in SQL, statement by statement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from tests.simulation.stream import BAD, ZERO, Entry
from worker.entries import EntryId
from worker.ingest.core import CAREFUL_AFTER
from worker.ingest.effects import DrainLimits, LeaseLost, ShardPaused
from worker.ingest.rules import Counts

POISON: Final = "poison"
Letter = tuple[str, EntryId, int]


@dataclass(frozen=True, slots=True)
class Lease:
    """As in `worker.ingest.leases`."""

    epoch: int
    events_at: EntryId
    corrections_at: EntryId
    is_careful: bool = False
    is_paused: bool = False
    suspect_id: str | None = None

    def position(self, *, correction: bool) -> EntryId:
        return self.corrections_at if correction else self.events_at


@dataclass(frozen=True, slots=True)
class Batch:
    """What Prepare made: entries in order, and the position that they were judged by."""

    key: str
    entries: Sequence[Entry]
    position: EntryId
    last_id: EntryId
    park: int
    # What had been added when its first entry was read: whatever came later may lie below, unread.
    read_at: int


@dataclass(slots=True)
class Row:
    """The shard's row of `ingest_positions`, and what the transaction stores beside it."""

    epoch: int = 0
    holder: str | None = None
    lease_until: float = -1.0
    events_at: EntryId = ZERO
    corrections_at: EntryId = ZERO
    counts: Counts = Counts()  # noqa: RUF009  frozen
    crashes: int = 0
    careful_left: int = 0
    suspect: str | None = None
    suspect_deliveries: int = 0
    is_paused: bool = False
    # The epoch that noted the suspect.
    noted_by: int = -1
    # Kept for the check and read by nobody else: how many vanished over it.
    vanished: int = 0


class Transaction:
    """A batch on its way; `answer` is what its Finish is told."""

    __slots__ = ("answer", "batch", "generation", "is_done", "lease")

    def __init__(self, batch: Batch, lease: Lease) -> None:
        self.batch = batch
        self.lease = lease
        self.is_done = False
        self.answer: tuple[Lease, Counts] | Exception | None = None
        self.generation = 0


class Database:
    """One transaction at a time holds the row; `late` is one that nobody waits for any more."""

    def __init__(self, corrections_key: str, limits: DrainLimits) -> None:
        self._corrections_key = corrections_key
        self._limits = limits
        self.row = Row()
        self.rows: dict[int, int] = {}
        self.letters: dict[Letter, str] = {}
        self.parked: dict[Letter, int] = {}
        self.generation = 0
        self.late: Transaction | None = None

    def position(self, key: str) -> EntryId:
        return self.row.corrections_at if key == self._corrections_key else self.row.events_at

    def snapshot(self) -> tuple[Row, dict[int, int], dict[Letter, str], dict[Letter, int]]:
        return replace(self.row), dict(self.rows), dict(self.letters), dict(self.parked)

    def restore(self, old: tuple[Row, dict[int, int], dict[Letter, str], dict[Letter, int]]) -> None:
        row, rows, letters, parked = old
        self.row, self.rows, self.letters, self.parked = (
            replace(row),
            dict(rows),
            dict(letters),
            dict(parked),
        )
        self.generation += 1
        self.late = None

    def has_outcome(self, entry: Entry) -> bool:
        """This function will say whether each event of an entry is stored or put aside."""
        letters, rows = self.letters, self.rows
        if (entry.key, entry.entry_id, -1) in letters:
            return True
        for index, event in enumerate(entry.events):
            if rows.get(event.event_id, BAD) != event.content or event.content == BAD:
                if (entry.key, entry.entry_id, index) not in letters:
                    return False
        return True

    def take(self, holder: str, now: float) -> Lease | None:
        row = self.row
        if row.is_paused:
            raise ShardPaused
        if row.lease_until > now:
            return None
        if row.holder is not None:
            if row.noted_by == row.epoch and row.suspect is not None:
                row.vanished += 1
            if row.crashes + 1 >= CAREFUL_AFTER:
                row.careful_left = max(row.careful_left, 2 * self._limits.batch_size)
            row.crashes += 1
        row.epoch += 1
        row.holder, row.lease_until = holder, now + self._limits.lease_seconds
        return self._lease()

    def _lease(self) -> Lease:
        row = self.row
        return Lease(
            row.epoch,
            row.events_at,
            row.corrections_at,
            is_careful=row.careful_left > 0,
            suspect_id=row.suspect,
        )

    def renew(self, lease: Lease, now: float) -> Lease:
        row = self.row
        if row.epoch != lease.epoch:
            raise LeaseLost
        row.lease_until = now + self._limits.lease_seconds
        if row.is_paused:
            raise ShardPaused
        return self._lease()

    def note_suspect(self, lease: Lease, entry: str) -> int:
        row = self.row
        if row.epoch != lease.epoch:
            raise LeaseLost
        if row.suspect != entry:
            row.suspect, row.suspect_deliveries, row.vanished = entry, 0, 0
        if row.suspect_deliveries == 0 or row.noted_by != row.epoch:
            row.suspect_deliveries += 1
        row.noted_by = row.epoch
        return row.suspect_deliveries

    def release(self, lease: Lease) -> None:
        row = self.row
        if row.epoch == lease.epoch:
            row.holder, row.lease_until = None, -1.0
            if row.suspect is not None and row.noted_by == row.epoch:
                # Whoever can give the shard back has survived its suspect.
                row.suspect_deliveries -= 1
                row.noted_by = -1

    def lock(self, transaction: Transaction) -> None:
        """The first statement of `ingest_batch`: raises what it raises, and holds the row."""
        row, batch = self.row, transaction.batch
        if row.epoch != transaction.lease.epoch:
            raise LeaseLost
        if row.is_paused:
            raise ShardPaused
        if self.position(batch.key) != batch.position:
            raise LeaseLost
        if (row.events_at, row.corrections_at) != (
            transaction.lease.events_at,
            transaction.lease.corrections_at,
        ):
            raise LeaseLost

    def commit(self, transaction: Transaction, now: float, *, pauses: bool = False) -> tuple[Lease, Counts]:
        """The rest of it, at once. `pauses`: the breaker sees a flood."""
        row, batch, lease = self.row, transaction.batch, transaction.lease
        counts = self._settle(batch)
        if batch.key == self._corrections_key:
            advanced = replace(lease, corrections_at=batch.last_id)
        else:
            advanced = replace(lease, events_at=batch.last_id)
        row.events_at, row.corrections_at = advanced.events_at, advanced.corrections_at
        row.counts += counts
        row.crashes = row.crashes if row.careful_left > counts.events else 0
        row.careful_left = max(row.careful_left - counts.events, 0)
        row.suspect, row.suspect_deliveries, row.vanished = None, 0, 0
        row.is_paused = pauses
        row.lease_until = now + self._limits.lease_seconds
        left = row.careful_left > 0
        return replace(advanced, is_careful=left, is_paused=pauses, suspect_id=None), counts

    def _settle(self, batch: Batch) -> Counts:
        rows, letters = self.rows, self.letters
        entries = accepted = duplicates = conflicts = rejected = recovered = 0
        for entry in batch.entries:
            is_counted = entry.entry_id > batch.position
            entries += is_counted
            if batch.park:
                letter = (entry.key, entry.entry_id, -1)
                letters.setdefault(letter, POISON)
                self.parked.setdefault(letter, batch.park)
                rejected += is_counted
                continue
            for index, (event_id, content) in enumerate(entry.events):
                if content == BAD:
                    letters.setdefault((entry.key, entry.entry_id, index), "rejected")
                    rejected += is_counted
                elif (stored := rows.setdefault(event_id, BAD)) == BAD:
                    rows[event_id] = content
                    accepted += is_counted
                    recovered += not is_counted
                elif stored == content:
                    duplicates += is_counted
                else:
                    letters.setdefault((entry.key, entry.entry_id, index), "conflict")
                    conflicts += is_counted
        return Counts(
            entries=entries,
            events=accepted + duplicates + conflicts + rejected,
            accepted=accepted,
            duplicates=duplicates,
            conflicts=conflicts,
            rejected=rejected,
            recovered=recovered,
        )
