"""The drain of one shard: read, commit, acknowledge, for as long as the budget lasts.

What makes it count each event once, and lose none:

- Nothing is acknowledged before the transaction that stored its outcome is committed. A crash anywhere
  delivers again, and what is delivered again changes nothing: the event's id decides.
- One drain per shard, by a lease in the database. A holder that lost it cannot commit, so the next one may
  claim its entries at once, however short they have been idle: the lease's time is the idle time.
- The position never passes an entry that is not processed. On taking the shard, and after any trouble, what
  is pending is claimed first, in the order of ids, before anything new is read. And whenever new entries
  were read, the group may hold exactly these: if it holds more (a reply that was lost, a former holder that
  woke up and read once more), all of it is claimed and processed in order instead.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.orm import Session

from producers import _stream
from worker import log, valkey
from worker.ingest import operations, pacing, rules
from worker.ingest.operations import Lease, LeaseLost
from worker.ingest.pacing import Pace
from worker.ingest.rules import AgeLimits, Batch, Counts
from worker.sqlstate import FailureKind, kind_of, sqlstate_of
from worker.valkey import RawEntry, StreamReader

OpenSession = Callable[[], AbstractContextManager[Session]]
BATCH_BYTES: Final = 16 * 1024 * 1024
# One name for all: the lease tells drains apart, and names of processes would pile up in the group for ever.
CONSUMER: Final = "drain"
_log = log.get_logger(__name__)


class DrainOutcome(enum.StrEnum):
    """How a drain ended."""

    IDLE = "idle"
    """Nothing came for as long as it may wait."""
    DRAINED = "drained"
    """It processed entries, and its budget is used up or the stream is empty."""
    BUSY = "busy"
    """Somebody else has the shard."""
    STOPPED = "stopped"
    """It was told to stop."""
    BACKING_OFF = "backing_off"
    """A server was in trouble until the budget was used up; only what is committed was acknowledged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainLimits:
    """How much a drain does at once and how long it stays, in seconds unless the name says otherwise.

    It ends `work_seconds` after its first batch, or after `idle_seconds` altogether; trouble is waited out
    for `work_seconds`.
    """

    batch_size: int = 5000
    batch_bytes: int = BATCH_BYTES
    linger_ms: int = 20
    block_ms: int = 1000
    work_seconds: float = 5.0
    idle_seconds: float = 60.0
    lease_seconds: float = 15.0
    shortest_wait: float = 0.1
    longest_wait: float = 5.0


@dataclass(slots=True)
class _Run:
    """What one drain has come to."""

    lease: Lease | None = None
    renewed_at: float = 0.0
    counts: Counts = field(default_factory=Counts)
    batches: int = 0
    lost: int = 0
    pending_first: bool = True
    group_known: bool = False
    failures: int = 0
    failing_since: float = 0.0
    first_batch_at: float | None = None


class Drain:
    """One shard's consumer; `run()` drains it once, for one budget."""

    def __init__(
        self,
        *,
        shard: int,
        stream: str,
        reader: StreamReader,
        open_session: OpenSession,
        age_limits: AgeLimits,
        holder: str,
        should_stop: Callable[[], bool],
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        sleep: Callable[[float], None],
        limits: DrainLimits | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._shard = shard
        self._events_key = _stream.stream_key(stream, shard)
        self._corrections_key = _stream.correction_key(stream, shard)
        self._keys = (self._events_key, self._corrections_key)
        self._reader = reader
        self._open_session = open_session
        self._age_limits = age_limits
        self._holder = holder
        self._should_stop = should_stop
        self._now = now
        self._monotonic = monotonic
        self._sleep = sleep
        self._limits = limits or DrainLimits()
        self._jitter = jitter
        self._pace = Pace(batch_size=self._limits.batch_size, batch_bytes=self._limits.batch_bytes)

    def run(self) -> dict[str, object]:
        """This function will drain the shard until its budget is used up, and return what it counted.

        Keys: shard, entries, events, accepted, duplicates, conflicts, rejected, recovered, lost, batches,
        seconds, outcome. Trouble that passes is waited out inside the budget; what does not pass
        (configuration, a bug) is raised, with nothing acknowledged that is not committed.
        """
        run, started = _Run(), self._monotonic()
        try:
            outcome = self._until_done(run, started)
        finally:
            self._release(run)
        return {
            "shard": self._shard,
            **{name: getattr(run.counts, name) for name in rules.COUNTERS},
            "lost": run.lost,
            "batches": run.batches,
            "seconds": round(self._monotonic() - started, 3),
            "outcome": outcome.value,
        }

    def _until_done(self, run: _Run, started: float) -> DrainOutcome:
        while True:
            if self._should_stop():
                return DrainOutcome.STOPPED
            now = self._monotonic()
            if run.failures and now - run.failing_since >= self._limits.work_seconds:
                return DrainOutcome.BACKING_OFF
            if self._worked_enough(run) or now - started >= self._limits.idle_seconds:
                return DrainOutcome.DRAINED if run.batches else DrainOutcome.IDLE
            try:
                self._hold(run)
                if run.lease is None:
                    return DrainOutcome.BUSY
                if self._turn(run):
                    run.failures = 0
            except LeaseLost:
                _log.warning("lease lost", shard=self._shard)
                run.lease = None
                return DrainOutcome.BUSY
            except valkey.GroupMissing:
                _log.error("consumer group is gone: created again at 0", shard=self._shard)
                run.group_known = False
                self._back_off(run)
            except Exception as exc:
                if kind_of(exc) is not FailureKind.TRANSIENT:
                    raise
                _log.warning(
                    "backing off", shard=self._shard, error=type(exc).__name__, sqlstate=sqlstate_of(exc)
                )
                self._back_off(run)

    def _worked_enough(self, run: _Run) -> bool:
        # By the clock and not by the time spent working: what was counted shows in Flower when a drain ends.
        first = run.first_batch_at
        return first is not None and self._monotonic() - first >= self._limits.work_seconds

    def _turn(self, run: _Run) -> bool:
        """One step: what is pending, or one batch of what is new; True when new entries can be read again."""
        if not run.group_known:
            self._reader.create_groups(self._keys)
            run.group_known = True
        if run.pending_first:
            run.pending_first = not self._process_pending(run)
            return False
        # Blocking for a second at most, so that the flag to stop and the lease are looked at.
        asked = self._pace.wanted()
        entries = self._reader.read(self._keys, count=asked, block_ms=self._limits.block_ms)
        if not entries:
            return True
        self._fill(entries, asked)
        if self._only_these_are_pending(entries):
            for key in self._keys:
                if key in entries:
                    self._process(run, key, entries[key])
        else:
            run.pending_first = True
        return True

    def _hold(self, run: _Run) -> None:
        """Takes the shard, or keeps it. After trouble its position is read again: it may have moved."""
        duration = timedelta(seconds=self._limits.lease_seconds)
        if run.lease is None:
            with self._open_session() as session:
                taken = operations.acquire_lease(
                    session, shard=self._shard, holder=self._holder, duration=duration
                )
            run.lease = taken
        elif run.failures or self._monotonic() - run.renewed_at >= self._limits.lease_seconds / 3:
            with self._open_session() as session:
                renewed = operations.renew_lease(session, run.lease, duration=duration)
            run.lease = renewed
        else:
            return
        run.renewed_at = self._monotonic()

    def _fill(self, entries: dict[str, list[RawEntry]], asked: int) -> None:
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
                self._sleep(self._limits.linger_ms / 1000)
            asked = self._pace.wanted(events=events, size=size)
            if not asked:
                return
            fresh = self._reader.read(self._keys, count=asked, block_ms=None)
            for key, more in fresh.items():
                entries.setdefault(key, []).extend(more)

    def _only_these_are_pending(self, entries: Mapping[str, Sequence[RawEntry]]) -> bool:
        for key, read in entries.items():
            pending = self._reader.pending(key)
            if pending.entries != len(read):
                _log.warning(
                    "the group holds other entries than were read: claiming all",
                    shard=self._shard,
                    stream=key,
                    pending=pending.entries,
                    read=len(read),
                )
                return False
        return True

    def _process_pending(self, run: _Run) -> bool:
        """Claims what the group holds, of any consumer, and processes it in the order of ids; True: all."""
        for key in self._keys:
            cursor: str | None = valkey.FIRST_ID
            while cursor is not None:
                if self._should_stop() or self._worked_enough(run):
                    return False
                entries, cursor = self._claim_batch(run, key, cursor)
                if entries:
                    self._process(run, key, entries)
        return True

    def _claim_batch(self, run: _Run, key: str, cursor: str | None) -> tuple[list[RawEntry], str | None]:
        entries: list[RawEntry] = []
        events = size = 0
        while cursor is not None and (wanted := self._pace.wanted(events=events, size=size)):
            claimed = self._reader.claim(key, cursor=cursor, count=wanted)
            cursor = claimed.cursor
            if claimed.deleted:
                run.lost += len(claimed.deleted)
                _log.error(
                    "pending entries were deleted from the stream: their events are lost",
                    shard=self._shard,
                    stream=key,
                    entry_ids=claimed.deleted[:20],
                    lost=len(claimed.deleted),
                )
            if claimed.entries:
                entries += claimed.entries
                claimed_events, claimed_size = pacing.extent(claimed.entries)
                events, size = events + claimed_events, size + claimed_size
                self._pace.learn(entries=len(claimed.entries), events=claimed_events, size=claimed_size)
        return entries, cursor

    def _process(self, run: _Run, key: str, entries: Sequence[RawEntry]) -> None:
        """Commits the outcome of each event, and acknowledges the entries after that."""
        if run.lease is None:
            raise LeaseLost
        correction = key == self._corrections_key
        batch = rules.read_entries(
            entries,
            position=run.lease.position(correction=correction),
            limits=self._age_limits,
            now=self._now(),
            correction=correction,
        )
        with self._open_session() as session:
            lease, counts = operations.ingest_batch(
                session,
                batch,
                lease=run.lease,
                stream=key,
                correction=correction,
                duration=timedelta(seconds=self._limits.lease_seconds),
            )
        run.lease, run.renewed_at = lease, self._monotonic()
        run.counts += counts
        run.batches += 1
        if run.first_batch_at is None:
            run.first_batch_at = self._monotonic()
        if counts.recovered:
            self._report_recovered(batch, counts)
        self._reader.acknowledge(key, [entry_id.decode() for entry_id, _ in entries])

    def _report_recovered(self, batch: Batch, counts: Counts) -> None:
        _log.error(
            "new events in entries at or below the position: the stream went back in time",
            shard=self._shard,
            recovered=counts.recovered,
            position=str(batch.position),
            event_ids=[str(event.event_id) for event in batch.events if rules.is_recovered(event)][:20],
        )

    def _back_off(self, run: _Run) -> None:
        """Waits, longer each time and never twice the same, so that drains do not come back in step."""
        run.pending_first = True
        if not run.failures:
            run.failing_since = self._monotonic()
        run.failures += 1
        longest = min(self._limits.longest_wait, self._limits.shortest_wait * 2.0 ** (run.failures - 1))
        left = self._limits.work_seconds - (self._monotonic() - run.failing_since)
        wait = min(longest * (0.5 + self._jitter() / 2), left)
        while wait > 0 and not self._should_stop():
            self._sleep(min(wait, 1.0))
            wait -= 1.0

    def _release(self, run: _Run) -> None:
        if run.lease is None:
            return
        try:
            with self._open_session() as session:
                operations.release_lease(session, run.lease)
        except Exception as exc:
            # The lease ends by itself; what brought us here says more than this would.
            if kind_of(exc) is not FailureKind.TRANSIENT:
                raise
            _log.warning("lease not released", shard=self._shard, error=type(exc).__name__)
