"""What a drain decides, and nothing that touches a server: a generator of effects.

It yields what is to be done and is sent the result, or has the error thrown in. `consumer.py` does these
things with real servers; the simulation in the tests does them with servers that lie, lose and crash, some
million steps from one seed. What it holds to:

- Nothing is acknowledged before the transaction that stored its outcome is committed. A crash anywhere reads
  again, and what is read again changes nothing: the event's id decides.
- The ledger is the position in the database. The consumer group mirrors it, so that operators see lag, and
  so that a stream which went back in time (a failover to a lagging replica, FLUSHALL) is noticed: the group
  went back with it, and reading goes on from there.
- The position never passes an entry that is not processed: entries are read in order from a cursor, and one
  transaction follows the other. While one runs, the next batch is read and decoded; when it fails, that batch
  is forgotten.
- What a group of an older release, or a stranger in the group, left pending is read again and acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from worker.entries import Adopted, EntryId, GroupMissing, GroupState, RawEntry
from worker.ingest import pacing
from worker.ingest.effects import (
    Acknowledge,
    Adopt,
    Advance,
    DrainLimits,
    DrainOutcome,
    Effect,
    Finish,
    HeldLease,
    Inspect,
    LeaseLost,
    Prepare,
    Read,
    ReleaseLease,
    RenewLease,
    Report,
    ShardPaused,
    Sleep,
    Start,
    Step,
    Suspect,
    TakeLease,
)
from worker.ingest.pacing import Pace
from worker.ingest.rules import Counts

# Batches may take their process along that often before entries are taken one by one.
CAREFUL_AFTER: Final = 2


@dataclass(slots=True)
class _InFlight:
    key: str
    entries: Sequence[RawEntry]
    last_id: EntryId


@dataclass(slots=True)
class _Mirror:
    """What the group is known to say about one stream, and what was adopted from it."""

    last_delivered: EntryId
    entries_read: int | None
    adopted: list[str] = field(default_factory=list)


class DrainCore:
    """One shard's decisions for one budget: `steps()` yields effects and returns a Report.

    `is_transient` says of an error whether the same may succeed later; `warn(event, **values)` logs.
    """

    def __init__(
        self,
        *,
        keys: Sequence[str],
        corrections_key: str,
        limits: DrainLimits,
        should_stop: Callable[[], bool],
        monotonic: Callable[[], float],
        jitter: Callable[[], float],
        is_transient: Callable[[BaseException], bool],
        warn: Callable[..., object],
    ) -> None:
        self._keys = tuple(keys)
        self._corrections_key = corrections_key
        self._limits = limits
        self._should_stop = should_stop
        self._monotonic = monotonic
        self._jitter = jitter
        self._is_transient = is_transient
        self._warn = warn
        self._pace = Pace(batch_size=limits.batch_size, batch_bytes=limits.batch_bytes)
        self._lease: HeldLease | None = None
        self._renewed_at = 0.0
        self._in_flight: _InFlight | None = None
        # None: the streams have to be looked at before anything is read.
        self._mirrors: dict[str, _Mirror] | None = None
        self._cursors: dict[str, EntryId] = {}
        self._counts = Counts()
        self._batches = 0
        self._lost = 0
        self._failures = 0
        self._failing_since = 0.0
        self._first_batch_at: float | None = None

    def steps(self) -> Generator[Effect, Any, Report]:
        """This generator will drain the shard until its budget is used up.

        What is not transient is raised, with nothing acknowledged that is not committed.
        """
        started = self._monotonic()
        outcome: DrainOutcome | None = None
        in_trouble = False
        while outcome is None:
            try:
                if in_trouble:
                    in_trouble = False
                    yield from self._back_off()
                outcome = yield from self._turn(started)
            except LeaseLost:
                self._warn("lease lost")
                self._lease, self._in_flight = None, None
                outcome = DrainOutcome.BUSY
            except ShardPaused:
                self._in_flight = None
                outcome = DrainOutcome.PAUSED
            except GroupMissing:
                self._warn("consumer group is gone: created again at 0")
                in_trouble = True
            except Exception as error:
                if not self._is_transient(error):
                    raise
                self._warn("backing off", error=error)
                in_trouble = True
        if self._lease is not None:
            yield ReleaseLease(self._lease)
        return Report(outcome, self._counts, self._batches, self._lost)

    def _turn(self, started: float) -> Generator[Effect, Any, DrainOutcome | None]:
        """One step; an outcome ends the drain."""
        ending = self._ending(started)
        if ending is not None:
            yield from self._finish()
            return DrainOutcome.PAUSED if self._is_paused() else self._final(ending)
        yield from self._hold()
        if self._lease is None:
            return DrainOutcome.BUSY
        if self._mirrors is None:
            yield from self._look()
        if self._lease.is_careful:
            yield from self._finish()
            yield from self._carefully()
        else:
            yield from self._batch()
        return DrainOutcome.PAUSED if self._is_paused() else None

    def _ending(self, started: float) -> DrainOutcome | None:
        if self._should_stop():
            return DrainOutcome.STOPPED
        now = self._monotonic()
        if self._failures and now - self._failing_since >= self._limits.work_seconds:
            return DrainOutcome.BACKING_OFF
        # By the clock and not by the time spent working: what was counted shows in Flower when a drain ends.
        first = self._first_batch_at
        worked_enough = first is not None and now - first >= self._limits.work_seconds
        if worked_enough or now - started >= self._limits.idle_seconds:
            return DrainOutcome.DRAINED
        return None

    def _final(self, ending: DrainOutcome) -> DrainOutcome:
        if ending is not DrainOutcome.DRAINED:
            return ending
        if self._failures:
            return DrainOutcome.BACKING_OFF
        return DrainOutcome.DRAINED if self._batches else DrainOutcome.IDLE

    def _is_paused(self) -> bool:
        return self._lease is not None and self._lease.is_paused

    def _hold(self) -> Step:
        """Takes the shard, or keeps it. After trouble its position is read again: it may have moved."""
        if self._lease is None:
            self._lease = yield TakeLease()
        elif self._mirrors is None or (
            self._in_flight is None and self._monotonic() - self._renewed_at >= self._limits.lease_seconds / 3
        ):
            before = [self._position(key) for key in self._keys]
            self._lease = yield RenewLease(self._lease)
            if before != [self._position(key) for key in self._keys]:
                # The database went back in time (a restore, a lagging standby), or somebody moved it.
                self._mirrors = None
        else:
            return
        self._renewed_at = self._monotonic()

    def _look(self) -> Step:
        """Learns where to read on: behind the position, what the group says, and what it holds pending."""
        states: Mapping[str, GroupState] = yield Inspect(create=True)
        mirrors: dict[str, _Mirror] = {}
        for key in self._keys:
            state = states[key]
            mirror = mirrors[key] = _Mirror(state.last_delivered, state.entries_read)
            cursor = min(self._position(key), state.last_delivered)
            if state.pending:
                adopted: Adopted = yield Adopt(key)
                mirror.adopted = adopted.entry_ids
                if adopted.entry_ids:
                    cursor = min(cursor, EntryId.parse(adopted.entry_ids[0]).before())
                self._note_lost(key, adopted.deleted)
            self._cursors[key] = cursor
        self._mirrors = mirrors

    def _note_lost(self, key: str, deleted: Sequence[str]) -> None:
        if deleted:
            self._lost += len(deleted)
            self._warn(
                "pending entries were deleted from the stream: their events are lost",
                stream=key,
                entry_ids=list(deleted[:20]),
                lost=len(deleted),
            )

    def _position(self, key: str) -> EntryId:
        if self._lease is None:
            raise LeaseLost
        return self._lease.position(correction=key == self._corrections_key)

    def _read(self, count: int, block_ms: int | None) -> Generator[Effect, Any, dict[str, list[RawEntry]]]:
        cursors = {key: str(cursor) for key, cursor in self._cursors.items()}
        entries: dict[str, list[RawEntry]] = yield Read(cursors, count, block_ms)
        for key, some in entries.items():
            self._cursors[key] = EntryId.parse(some[-1][0])
        return entries

    def _batch(self) -> Step:
        """Reads one batch while the one before is stored, then has it stored."""
        asked = self._pace.wanted()
        entries = yield from self._read(asked, None if self._in_flight else self._limits.block_ms)
        if not entries:
            # What was stored is acknowledged at once; only then is there time to wait, or to look around.
            if not (yield from self._finish()):
                yield from self._check()
            return
        yield from self._fill(entries, asked)
        for key in self._keys:
            some = entries.get(key)
            if not some or self._mirrors is None:
                continue
            ahead = self._in_flight
            position = self._position(key)
            if ahead is not None and ahead.key == key:
                position = max(position, ahead.last_id)
            batch = yield Prepare(key, some, position)
            yield from self._finish()
            if self._is_overtaken():
                # Forgotten, not lost: reading begins again behind what is committed.
                self._mirrors = None
                return
            yield from self._start(key, some, batch)

    def _is_overtaken(self) -> bool:
        """Whether what was read ahead must not be stored, by what became of the batch before it."""
        return self._mirrors is None or self._should_stop() or self._is_paused()

    def _start(self, key: str, entries: Sequence[RawEntry], batch: Any) -> Step:
        if self._lease is None:
            raise LeaseLost
        yield Start(key, batch, self._lease)
        self._in_flight = _InFlight(key, entries, EntryId.parse(entries[-1][0]))
        if self._first_batch_at is None:
            self._first_batch_at = self._monotonic()

    def _fill(self, entries: dict[str, list[RawEntry]], asked: int) -> Step:
        """Reads on until the batch is full, or until nothing came for the length of the linger."""
        fresh, lingered = entries, False
        events = size = 0
        while True:
            read_events, read_size = pacing.extent(one for some in fresh.values() for one in some)
            events, size = events + read_events, size + read_size
            self._pace.learn(entries=sum(map(len, fresh.values())), events=read_events, size=read_size)
            if max(map(len, fresh.values()), default=0) < asked:
                # The stream is empty. What comes in the next moments shares the transaction.
                if lingered or not self._limits.linger_ms:
                    return
                lingered = True
                yield from self._finish()
                if self._mirrors is None:
                    return
                yield Sleep(self._limits.linger_ms / 1000)
            asked = self._pace.wanted(events=events, size=size)
            if not asked:
                return
            fresh = yield from self._read(asked, None)
            for key, more in fresh.items():
                entries.setdefault(key, []).extend(more)

    def _carefully(self) -> Step:
        """Processes may have vanished over one of the next entries: one by one, each noted before."""
        entries = yield from self._read(1, self._limits.block_ms)
        if not entries:
            yield from self._check()
        suspect = (self._lease.suspect_id if self._lease is not None else None) or ""
        # The suspect first: a batch of the other stream would clear the note about it.
        for key in sorted(self._keys, key=lambda one: not suspect.startswith(f"{one} ")):
            some = entries.get(key)
            if not some or self._mirrors is None or self._lease is None:
                continue
            deliveries = yield Suspect(self._lease, key, some[0][0].decode())
            parked = deliveries + CAREFUL_AFTER > self._limits.poison_deliveries
            batch = yield Prepare(
                key, some, self._position(key), park=deliveries + CAREFUL_AFTER - 1 if parked else 0
            )
            yield from self._start(key, some, batch)
            yield from self._finish()

    def _finish(self) -> Generator[Effect, Any, bool]:
        """Waits for the batch in flight and acknowledges it; False when there is none."""
        if self._in_flight is None:
            return False
        # Also when it failed: then nothing of it was stored, and nothing is in flight any more.
        done, self._in_flight = self._in_flight, None
        self._lease, counts = yield Finish()
        self._renewed_at = self._monotonic()
        self._counts += counts
        self._batches += 1
        self._failures = 0
        yield from self._acknowledge(done)
        return True

    def _acknowledge(self, done: _InFlight) -> Step:
        if self._mirrors is None:
            return
        mirror = self._mirrors[done.key]
        if done.last_id > mirror.last_delivered:
            read = None
            if mirror.entries_read is not None:
                read = mirror.entries_read + _count_above(done.entries, mirror.last_delivered)
            before: GroupState | None = yield Advance(
                done.key, str(done.last_id), read, mirror.last_delivered
            )
            if before is None:
                self._warn("the stream went back in time: reading again", stream=done.key)
                self._mirrors = None
                return
            if before.pending > len(mirror.adopted):
                self._mirrors = None
            mirror.last_delivered, mirror.entries_read = done.last_id, read
        passed = [one for one in mirror.adopted if EntryId.parse(one) <= done.last_id]
        if passed:
            yield Acknowledge(done.key, passed)
            mirror.adopted = mirror.adopted[len(passed) :]

    def _check(self) -> Step:
        """Nothing came: is the stream still the one that was read?"""
        if self._mirrors is None:
            return
        states: Mapping[str, GroupState] = yield Inspect(create=False)
        for key, mirror in self._mirrors.items():
            state = states[key]
            if state.last_delivered < mirror.last_delivered or state.pending > len(mirror.adopted):
                self._mirrors = None
                return
            mirror.last_delivered, mirror.entries_read = state.last_delivered, state.entries_read
        self._failures = 0

    def _back_off(self) -> Step:
        """Waits, longer each time and never twice the same, so that drains do not come back in step."""
        self._mirrors = None
        # When the trouble was elsewhere, what becomes of the batch decides where reading goes on.
        yield from self._finish()
        if not self._failures:
            self._failing_since = self._monotonic()
        self._failures += 1
        doubled = self._limits.shortest_wait * 2.0 ** min(self._failures - 1, 30)
        longest = min(self._limits.longest_wait, doubled)
        left = self._limits.work_seconds - (self._monotonic() - self._failing_since)
        wait = min(longest * (0.5 + self._jitter() / 2), left)
        while wait > 0 and not self._should_stop():
            yield Sleep(min(wait, 1.0))
            wait -= 1.0


def _count_above(entries: Sequence[RawEntry], floor: EntryId) -> int:
    if EntryId.parse(entries[0][0]) > floor:
        return len(entries)
    return sum(EntryId.parse(entry_id) > floor for entry_id, _ in entries)
