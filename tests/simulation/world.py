"""Servers, processes and a clock, and what must hold after each step."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any, Final

from tests.simulation.database import POISON, Database, Lease, Transaction
from tests.simulation.process import DATABASE, STREAM, Broken, Died, Process
from tests.simulation.stream import BAD, Entry, Event, Server
from worker.entries import EntryId, GroupState
from worker.ingest.core import CAREFUL_AFTER
from worker.ingest.effects import Advance, DrainLimits, LeaseLost, ShardPaused

KEYS: Final = ("usage:events:{0}", "usage:corrections:{0}")
LIMITS: Final = DrainLimits(
    batch_size=6, work_seconds=2.0, idle_seconds=12.0, lease_seconds=2.9, longest_wait=1.0
)
TICK: Final = 0.0005


class Violation(AssertionError):
    """A guarantee does not hold."""


class World:
    """One shard. Everything random comes from `rng`."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.keys = KEYS
        self.limits = LIMITS
        self.now = 1000.0
        # How far the clock of the stream's server is behind.
        self.behind = 0.0
        self.server = Server(KEYS)
        self.database = Database(KEYS[1], LIMITS)
        self.entries: list[Entry] = []
        self.seq = 0
        self.waiting = 0
        self.processes: list[Process] = []
        self.started = 0
        self.faults: Counter[str] = Counter()
        self.warnings: Counter[str] = Counter()
        self.trace: deque[tuple[Any, ...]] = deque(maxlen=60)
        self.flood_rate = 0.0
        self.down_until = {STREAM: 0.0, DATABASE: 0.0}
        # Whether anything happened that makes entries count less or more than once, or moves the group.
        self.is_disturbed = False
        self._late_commits = False
        self._last_event = 0
        self._emitted: dict[int, set[int]] = {}

    def expect(self, holds: object, guarantee: str) -> None:
        if not holds:
            raise Violation(guarantee)

    def note(self, what: str, *values: object) -> None:
        self.faults[what] += 1
        self.trace.append((self.now, "world", what, values, ""))

    # What producers do.

    def add(self, key: str, events: Sequence[Event], *, is_poison: bool = False) -> Entry:
        """This function will add an entry, and wake who waits for one."""
        stream = self.server.streams[key]
        self.seq += 1
        entry_id = stream.next_id(int((self.now - self.behind) * 1000), self.server.generation)
        entry = Entry(key, entry_id, tuple(events), is_poison=is_poison, seq=self.seq)
        stream.add(entry)
        self.entries.append(entry)
        for event_id, content in events:
            self._emitted.setdefault(event_id, set()).add(content)
        self.trace.append((self.now, "world", f"adds {key} {entry_id}", entry.events, is_poison))
        if self.waiting:
            for process in self.processes:
                if process.is_blocked:
                    process.wake()
        return entry

    def produce(self, *, is_poison: bool = False) -> Entry:
        """This function will add one to three events: new ones, known ones, conflicting and broken ones."""
        rng, emitted = self.rng, self._emitted
        events = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            self._last_event += 1
            event_id, content, chance = self._last_event, rng.randrange(3), rng.random()
            if chance < 0.15 and emitted:
                event_id = rng.randrange(max(1, event_id - 50), event_id + 1)
                known = emitted.get(event_id)
                content = min(known) if known else content
                self.faults["sent twice"] += 1
                if chance < 0.03:
                    content += 7
                    self.faults["conflict"] += 1
            elif chance < 0.19:
                content = BAD
                self.faults["refused event"] += 1
            events.append(Event(event_id, content))
        return self.add(KEYS[rng.random() < 0.3], events, is_poison=is_poison)

    # What the drains' servers do for them.

    def take(self, process: Process) -> Lease | None:
        self.settle_late()
        return self.database.take(process.name, self.now)

    def renew(self, process: Process) -> Lease:
        self.settle_late()
        return self.database.renew(self._held(process), self.now)

    def release(self, process: Process) -> None:
        self.settle_late()
        held, process.held = process.held, None
        if held is not None:
            self.database.release(held)

    def note_suspect(self, process: Process, key: str, entry_id: str) -> int:
        self.settle_late()
        return self.database.note_suspect(self._held(process), f"{key} {entry_id}")

    def _held(self, process: Process) -> Lease:
        if process.held is None:
            raise LeaseLost
        return process.held

    def run(self, transaction: Transaction, fault: str) -> None:
        """This function will run a transaction to its end, or to where nobody hears of it any more."""
        self.settle_late()
        transaction.is_done = True
        if fault in ("before", "crash") or self.down_until[DATABASE] > self.now:
            transaction.answer = Broken()
            return
        transaction.generation = self.database.generation
        try:
            self.database.lock(transaction)
        except (LeaseLost, ShardPaused) as error:
            transaction.answer = error
            return
        if fault == "late":
            self.database.late, self._late_commits = (transaction, self.rng.random() < 0.6)
            transaction.answer = Broken()
            return
        answer = self._commit(transaction)
        transaction.answer = Broken() if fault == "lost" else answer

    def settle_late(self) -> None:
        """Whoever wants the row waits for the transaction that holds it."""
        late, self.database.late = self.database.late, None
        if late is not None:
            self.note("late commit" if self._late_commits else "late rollback")
            if self._late_commits:
                self._commit(late)

    def _commit(self, transaction: Transaction) -> Any:
        database, batch = self.database, transaction.batch
        row = database.row
        self.expect(row.epoch == transaction.lease.epoch, "a commit under an old epoch")
        before = {key: database.position(key) for key in KEYS}
        if batch.park:
            self._check_parked(batch.park, batch.entries[0])
        pauses = self.rng.random() < self.flood_rate
        answer = database.commit(transaction, self.now, pauses=pauses)
        if pauses:
            self.note("flood")
        for entry in batch.entries:
            self.expect(database.has_outcome(entry), "an entry of a committed batch has no outcome")
        for key, position in before.items():
            moved = database.position(key)
            self.expect(moved >= position, "the position went back")
            self.expect(key == batch.key or moved == position, "a batch moved the other stream's position")
            for entry in self.server.streams[key].between(position, moved):
                if entry.seq <= batch.read_at and not database.has_outcome(entry):
                    raise Violation(f"the position passed {key} {entry.entry_id}, which nobody processed")
        return answer

    def _check_parked(self, deliveries: int, entry: Entry) -> None:
        self.note("parked", entry.key, entry.entry_id, deliveries)
        self.expect(deliveries >= self.limits.poison_deliveries, "an entry was put aside too early")
        if not self.database.generation:
            # A restored database gives its epochs again: who noted the suspect is not certain any more.
            vanished = self.database.row.vanished
            self.expect(vanished >= deliveries - CAREFUL_AFTER, "an entry was put aside that killed nobody")

    def advance(self, effect: Advance, finished: Transaction | None) -> GroupState | None:
        key, to = effect.key, EntryId.parse(effect.entry_id)
        if self._is_this_database(finished):
            self.expect(to <= self.database.position(key), "acknowledged before it was committed")
        return self.server.advance(key, to, effect.entries_read, effect.expected)

    def acknowledge(self, key: str, entry_ids: Sequence[str], finished: Transaction | None) -> int:
        if self._is_this_database(finished):
            position = self.database.position(key)
            for one in entry_ids:
                self.expect(EntryId.parse(one) <= position, "a pending entry was acknowledged too early")
        return self.server.acknowledge(key, entry_ids)

    def _is_this_database(self, finished: Transaction | None) -> bool:
        return finished is None or finished.generation == self.database.generation

    # What becomes of processes.

    def start(self) -> Process:
        self.started += 1
        process = Process(self, f"drain-{self.started}")
        self.processes.append(process)
        return process

    def step(self, process: Process, fault: str = "") -> None:
        """This function will perform one effect of a process, or bury it."""
        self.now += TICK
        if fault:
            self.faults[fault] += 1
        try:
            process.step(fault)
        except Died:
            self.crash(process)
        if process.report is not None:
            self._forget(process)

    def store(self, process: Process, fault: str = "") -> None:
        """This function will let the thread of a process run its transaction while it does other things."""
        transaction = process.transaction
        if transaction is not None and not transaction.is_done:
            self.now += TICK
            self.note("stored meanwhile", fault)
            self.run(transaction, fault)

    def crash(self, process: Process) -> None:
        """Nothing is given back. What was sent to the database may be done now, later or never."""
        self.note("process gone", process.name)
        self._forget(process)
        transaction = process.transaction
        if transaction is not None and not transaction.is_done:
            self.run(transaction, self.rng.choice(("before", "lost", "late")))

    def _forget(self, process: Process) -> None:
        self.waiting -= process.is_blocked
        self.processes.remove(process)

    def delivered(self, process: Process, entry: Entry) -> None:
        """One entry, judged in a process that it may take along."""
        row = self.database.row
        if row.suspect == f"{entry.key} {entry.entry_id}" and process.held is not None:
            if row.epoch == process.held.epoch:
                deliveries = row.suspect_deliveries + CAREFUL_AFTER
                self.expect(deliveries <= self.limits.poison_deliveries, "an entry was delivered too often")

    def poisoned(self, entry: Entry) -> None:
        entry.deaths += 1
        self.note("poison", entry.key, entry.entry_id)

    # What becomes of entries.

    def removed(self, entries: Iterable[Entry], why: str) -> None:
        """This function will excuse the events that nobody had processed when the environment took them."""
        for entry in entries:
            if not self.database.has_outcome(entry):
                entry.excused = why
                self.faults["entry destroyed"] += 1

    def in_streams(self) -> set[Entry]:
        return {entry for stream in self.server.streams.values() for entry in stream.entries}

    # At rest.

    def check_rest(self) -> None:
        """What holds when nothing is left to do."""
        database = self.database
        standing = self.in_streams()
        for entry in self.entries:
            if (entry in standing or not entry.excused) and not database.has_outcome(entry):
                raise Violation(f"lost: {entry.key} {entry.entry_id} {entry.events}")
            if entry.is_poison and entry in standing:
                reason = database.letters.get((entry.key, entry.entry_id, -1))
                self.expect(reason == POISON, "a poisoned entry is not put aside")
        for event_id, content in database.rows.items():
            self.expect(content in self._emitted.get(event_id, ()), "a row that nobody sent")
        for key, stream in self.server.streams.items():
            group = self.server.group(key)
            self.expect(not stream.above(group.last_delivered, 1), "the group is not at the end")
            self.expect(not group.pending, "entries are left pending")
            if not self.is_disturbed:
                self.expect(group.entries_read == stream.added, "the group's count of entries is wrong")
        counts = database.row.counts
        answered = counts.accepted + counts.duplicates + counts.conflicts + counts.rejected
        self.expect(counts.events == answered, "the counters do not add up")
        self.expect(len(database.rows) == counts.accepted + counts.recovered, "rows and counters differ")
        if not self.is_disturbed:
            added = sum(stream.added for stream in self.server.streams.values())
            self.expect(counts.entries == added, f"{counts.entries} entries were counted of {added}")
            # An entry that was put aside whole is stored when it is read again before the group has moved.
            self.expect(counts.recovered == 0 or database.parked, "recovered without any trouble")
