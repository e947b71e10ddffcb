"""Recovery: retained entries that were processed before go through the same path once more.

A drain reads on behind the position; what was lost behind it, rows that a restore or a mishap took from the
log, only this finds. The unique id makes it harmless: what is stored already is a duplicate, what is missing
becomes a row again and is counted as `recovered`, and the position stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from producers import _stream
from worker.entries import EntryId, RawEntry
from worker.errors import PermanentError, TransientError
from worker.ingest import leases, operations, rules
from worker.ingest.effects import DrainLimits, LeaseLost
from worker.ingest.leases import Lease
from worker.ingest.retained import RetainedStreams
from worker.ingest.rules import AgeLimits, Batch, Outcome
from worker.pricing.book import Prices
from worker.rollups import operations as rollups
from worker.rollups import queries as rollup_queries
from worker.rollups.rules import hour_of

# What stands in the lease of a recovery begins with this, so that no other one takes it away.
HOLDER_PREFIX: Final = "recover:"
LEASE: Final = timedelta(seconds=60)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_POLL_SECONDS: Final = 0.2

OpenSession = Callable[[], AbstractContextManager[Session]]


class ShardBusy(TransientError):
    """Another recovery has the shard."""


class ShardMoved(TransientError):
    """Somebody took the shard during the recovery: what is committed stands, recover again for the rest."""


class NothingDrained(PermanentError):
    """The shard was never drained, so there is nothing behind its position."""


@dataclass(slots=True)
class Recovered:
    """What the recovery of one shard read, and what became of it.

    `parked` entries were left alone, for they once killed their process. `first_entry_at` is when the oldest
    entry came that is still there; `is_complete` is false where older ones, perhaps since the asked time, are
    gone. `rebuilt_hours` of the roll-ups were not what the log says.
    """

    shard: int
    entries: int = 0
    events: int = 0
    recovered: int = 0
    duplicates: int = 0
    refused: int = 0
    parked: int = 0
    rebuilt_hours: int = 0
    is_complete: bool = True
    first_entry_at: datetime | None = None
    hours: set[datetime] = field(default_factory=set, repr=False)

    def add(self, batch: Batch) -> None:
        """This function will count a batch in which every event has its outcome."""
        for event in batch.events:
            self.events += 1
            self.recovered += rules.is_recovered(event)
            self.duplicates += event.outcome is Outcome.DUPLICATE
            self.refused += event.outcome in (Outcome.CONFLICT, Outcome.REJECTED)
            if event.event is not None and event.outcome in (Outcome.ACCEPTED, Outcome.DUPLICATE):
                self.hours.add(hour_of(event.event.occurred_at))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What a recovery needs; `recover` does one shard. It waits `wait_seconds` at most for another one."""

    stream: str
    streams: RetainedStreams
    open_session: OpenSession
    age_limits: AgeLimits
    prices: Prices
    limits: DrainLimits
    holder: str
    now: Callable[[], datetime]
    monotonic: Callable[[], float]
    sleep: Callable[[float], None]
    wait_seconds: float = 60.0

    def recover(self, shard: int, *, since: datetime, dry_run: bool = False) -> Recovered:
        """This function will process the shard's retained entries again that came at or after `since`.

        It takes the lease from a drain, which loses nothing by that: what it has in hand is committed before
        or read again. Doing it twice adds nothing. With `dry_run` everything is rolled back, so a new event
        that came in two entries counts twice. Raises NothingDrained, ShardPaused, ShardBusy or ShardMoved.
        """
        result = Recovered(shard)
        lease = self._take(shard)
        try:
            for correction in (False, True):
                lease = self._recover_stream(lease, result, since, correction=correction, dry_run=dry_run)
        except LeaseLost as lost:
            raise ShardMoved from lost
        finally:
            with self.open_session() as session:
                leases.release_lease(session, lease)
        if not dry_run:
            self._mend_rollups(result)
        return result

    def _take(self, shard: int) -> Lease:
        until = self.monotonic() + self.wait_seconds
        while True:
            with self.open_session() as session:
                if session.execute(_KNOWN, {"shard": shard}).scalar_one_or_none() is None:
                    raise NothingDrained
                session.execute(_TAKE_AWAY, {"shard": shard, "recoveries": f"{HOLDER_PREFIX}%"})
                lease = leases.acquire_lease(
                    session, shard=shard, holder=f"{HOLDER_PREFIX}{self.holder}", duration=LEASE
                )
            if lease is not None:
                return lease
            if self.monotonic() >= until:
                raise ShardBusy
            self.sleep(_POLL_SECONDS)

    def _recover_stream(
        self, lease: Lease, result: Recovered, since: datetime, *, correction: bool, dry_run: bool
    ) -> Lease:
        key = (_stream.correction_key if correction else _stream.stream_key)(self.stream, lease.shard)
        position = lease.position(correction=correction)
        start = EntryId(max(0, int((since - _EPOCH) / timedelta(milliseconds=1))), 0)
        self._look_for_gap(key, result, start)
        with self.open_session() as session:
            parked = set(session.execute(_PARKED, {"stream": key, "shard": lease.shard}).scalars())
        for page in self.streams.entries(key, since=start, up_to=position, batch_size=self.limits.batch_size):
            entries = [entry for entry in page if entry[0].decode() not in parked]
            result.entries += len(page)
            result.parked += len(page) - len(entries)
            lease = self._process(lease, result, key, entries, correction=correction, dry_run=dry_run)
        return lease

    def _process(
        self,
        lease: Lease,
        result: Recovered,
        key: str,
        entries: list[RawEntry],
        *,
        correction: bool,
        dry_run: bool,
    ) -> Lease:
        batch = rules.read_entries(
            entries,
            position=lease.position(correction=correction),
            limits=self.age_limits,
            now=self.now(),
            correction=correction,
        )
        with self.open_session() as session:
            held, _ = operations.ingest_batch(
                session,
                batch,
                lease=lease,
                stream=key,
                correction=correction,
                duration=LEASE,
                prices=self.prices,
                limits=self.limits,
            )
            if dry_run:
                session.rollback()
        result.add(batch)
        if dry_run:
            with self.open_session() as session:
                return leases.renew_lease(session, lease, duration=LEASE)
        return held

    def _look_for_gap(self, key: str, result: Recovered, start: EntryId) -> None:
        first = self.streams.first_id(key)
        if first is not None:
            came_at = first.received_at(now=self.now())
            result.first_entry_at = min(result.first_entry_at or came_at, came_at)
        if self.streams.may_lack(key, since=start):
            result.is_complete = False

    def _mend_rollups(self, result: Recovered) -> None:
        """Rows that were lost alone are in the roll-ups still, and were added to them again.

        Every hour that was read is compared, not only those of recovered rows: a recovery that was cut short
        is finished by the next one, which finds no new rows.
        """
        for hour in sorted(result.hours):
            end = hour + timedelta(hours=1)
            with self.open_session() as session:
                if rollup_queries.differences(session, start=hour, end=end, most=1):
                    rollups.rebuild(session, start=hour, end=end)
                    result.rebuilt_hours += 1


_KNOWN: Final = text("SELECT shard FROM ingest_positions WHERE shard = :shard")
# A drain that works renews its lease for ever, and another follows it at once. The row's lock makes true that
# its batch is committed before or not at all: the epoch is raised in this transaction. It has not vanished,
# so it is no crash.
_TAKE_AWAY: Final = text("""
    UPDATE ingest_positions SET holder = NULL, lease_until = NULL
     WHERE shard = :shard AND paused_at IS NULL AND lease_until > clock_timestamp()
       AND holder NOT LIKE :recoveries
""")
_PARKED: Final = text("""
    SELECT stream_id FROM usage_dead_letters WHERE stream = :stream AND shard = :shard AND reason = 'poison'
""")
