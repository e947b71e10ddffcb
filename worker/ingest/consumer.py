"""The drain: counts the events of one shard's two streams, each exactly once.

What it decides stands in `core.py`. Here it is done: the stream is read in the caller's thread, where events
are decoded as well, and the transaction of the batch before runs meanwhile in a thread of its own, so that
Python and PostgreSQL work at the same time.
"""

from __future__ import annotations

import contextlib
import contextvars
import random
from collections.abc import Callable, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar, cast

from sqlalchemy.orm import Session

from producers import _stream
from worker import log
from worker.entries import EntryId, GroupMissing, GroupState, RawEntry
from worker.ingest import core, effects, leases, operations, plain_rows, rules, turns
from worker.ingest.effects import DrainLimits, Effect, Report
from worker.ingest.leases import Lease
from worker.ingest.plain import Decoder
from worker.ingest.plain_rows import NotPlain, Staged
from worker.ingest.preparing import PlainPart, prepare
from worker.ingest.rules import AgeLimits, Batch, Counts
from worker.pricing import queries as pricing
from worker.pricing.book import Prices
from worker.pricing.rules import CostPolicy
from worker.sqlstate import FailureKind, kind_of, sqlstate_of
from worker.valkey import StreamReader

OpenSession = Callable[[], AbstractContextManager[Session]]
# One name for all: the lease tells drains apart, and names of processes would pile up in the group for ever.
CONSUMER: Final = "drain"
# So old may the prices be that events are counted with.
_PRICES_SECONDS: Final = 30.0
_Result = TypeVar("_Result")
_log = log.get_logger(__name__)


class Drain:
    """One shard's consumer; `run()` drains it once, for one budget.

    With `stage_ahead` it uses two connections at a time, otherwise one.
    """

    def __init__(
        self,
        *,
        shard: int,
        stream: str,
        reader: StreamReader,
        open_session: OpenSession,
        age_limits: AgeLimits,
        cost_policy: CostPolicy,
        holder: str,
        should_stop: Callable[[], bool],
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        sleep: Callable[[float], None],
        limits: DrainLimits | None = None,
        jitter: Callable[[], float] = random.random,
        stage_ahead: bool = True,
    ) -> None:
        self._shard = shard
        self._corrections_key = _stream.correction_key(stream, shard)
        self._keys = (_stream.stream_key(stream, shard), self._corrections_key)
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
        self._stage_ahead = stage_ahead
        self._prices = Prices(policy=cost_policy)
        self._priced_at: float | None = None
        self._decoder = Decoder(age_limits, self._prices)
        self._lease_time = timedelta(seconds=self._limits.lease_seconds)
        self._held: Lease | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._storing: _Storing | None = None
        self._staged: _Staged | None = None

    def run(self) -> dict[str, object]:
        """This function will drain the shard until its budget is used up, and return what it counted.

        Keys: shard, entries, events, accepted, duplicates, conflicts, rejected, recovered, lost, batches,
        seconds, outcome. Trouble that passes is waited out inside the budget; what does not pass
        (configuration, a bug) is raised, with nothing acknowledged that is not committed.
        """
        started = self._monotonic()
        with ThreadPoolExecutor(2, "store") as self._threads, turns.at_work():
            try:
                report = self._perform()
            finally:
                # Also when the process is told to end in the middle: nobody has to wait for the lease's end.
                self._wait()
                self._release()
        return {
            "shard": self._shard,
            **{name: getattr(report.counts, name) for name in rules.COUNTERS},
            "lost": report.lost,
            "batches": report.batches,
            "seconds": round(self._monotonic() - started, 3),
            "outcome": report.outcome.value,
        }

    def _perform(self) -> Report:
        steps = core.DrainCore(
            keys=self._keys,
            corrections_key=self._corrections_key,
            limits=self._limits,
            should_stop=self._should_stop,
            monotonic=self._monotonic,
            jitter=self._jitter,
            is_transient=lambda error: kind_of(error) is FailureKind.TRANSIENT,
            warn=self._warn,
        ).steps()
        try:
            effect = next(steps)
            while True:
                try:
                    answer = self._do(effect)
                except Exception as error:  # noqa: BLE001  the core decides about each
                    effect = steps.throw(error)
                else:
                    effect = steps.send(answer)
        except StopIteration as end:
            report: Report = end.value
            return report

    def _do(self, effect: Effect) -> Any:
        match effect:
            case effects.Read(cursors, count, block_ms):
                return self._reader.read(cursors, count=count, block_ms=block_ms)
            case effects.Prepare(key, entries, position, park):
                return self._prepare(key, entries, position, park)
            case effects.Start(key, batch, lease):
                return self._start(key, batch, cast("Lease", lease))
            case effects.Finish():
                return self._finish()
            case effects.Advance(key, entry_id, entries_read, expected):
                return self._reader.advance(key, entry_id, entries_read=entries_read, expected=expected)
            case effects.Acknowledge(key, entry_ids):
                return self._reader.acknowledge(key, entry_ids)
            case effects.Sleep(seconds):
                return self._sleep(seconds)
            case effects.Inspect(create):
                return self._inspect(create)
            case effects.Adopt(key):
                return self._reader.adopt(key)
            case _:
                return self._do_with_lease(effect)

    def _do_with_lease(self, effect: Effect) -> Any:
        self._forget_staged()
        match effect:
            case effects.TakeLease():
                with self._open_session() as session:
                    taken = leases.acquire_lease(
                        session,
                        shard=self._shard,
                        holder=self._holder,
                        duration=self._lease_time,
                        careful_events=2 * self._limits.batch_size,
                        careful_after=core.CAREFUL_AFTER,
                    )
                self._held = taken
                if taken is not None and taken.is_careful:
                    self._warn("processes vanished over this shard: entries are taken one by one")
                return taken
            case effects.RenewLease():
                with self._open_session() as session:
                    renewed = leases.renew_lease(session, self._lease(), duration=self._lease_time)
                self._held = renewed
                return renewed
            case effects.Suspect(_, key, entry_id):
                with self._open_session() as session:
                    return leases.note_suspect(session, self._lease(), entry=f"{key} {entry_id}")
            case effects.ReleaseLease():
                return self._release()
            case _:
                raise UnknownEffect

    def _inspect(self, create: bool) -> dict[str, GroupState]:
        try:
            return self._reader.states(self._keys)
        except GroupMissing:
            if not create:
                raise
        self._reader.create_groups(self._keys)
        return self._reader.states(self._keys)

    def _lease(self) -> Lease:
        if self._held is None:
            raise effects.LeaseLost
        return self._held

    def _prepare(self, key: str, entries: Sequence[RawEntry], position: EntryId, park: int) -> Batch:
        correction = key == self._corrections_key
        if park:
            _log.error(
                "an entry's process vanished too often: put aside",
                shard=self._shard,
                stream=key,
                entry_id=entries[0][0].decode(),
                deliveries=park,
            )
            return rules.park_entry(entries[0], position=position, deliveries=park, now=self._now())
        self._look_at_prices()
        if not correction and EntryId.parse(entries[0][0]) > position:
            batch = prepare(
                self._decoder, entries, position=position, limits=self._age_limits, now=self._now()
            )
            if batch is not None:
                self._stage(batch)
                return batch
        return self._read_slowly(entries, position, correction=correction)

    def _look_at_prices(self) -> None:
        """Prices that were applied meanwhile hold from now on; what came before is priced anew by request."""
        now = self._monotonic()
        if self._priced_at is not None and now - self._priced_at < _PRICES_SECONDS:
            return
        with self._open_session() as session:
            book = pricing.load_book(session, known=self._prices.book)
        if book is not self._prices.book:
            self._prices = replace(self._prices, book=book)
            self._decoder.use_prices(self._prices)
        self._priced_at = now

    def _read_slowly(self, entries: Sequence[RawEntry], position: EntryId, *, correction: bool) -> Batch:
        return rules.read_entries(
            entries, position=position, limits=self._age_limits, now=self._now(), correction=correction
        )

    def _stage(self, batch: Batch) -> None:
        """While the batch before is being stored, a second connection can take this one's rows already."""
        self._forget_staged()
        if batch.plain is not None and self._storing is not None and self._stage_ahead:
            stack = ExitStack()
            copied = self._submit(self._copy, stack, batch.plain, rules.ids_of(self._storing.batch))
            self._staged = _Staged(batch, stack, copied)

    def _copy(self, stack: ExitStack, part: PlainPart, unseen: Set[str]) -> tuple[Session, Staged]:
        session = stack.enter_context(self._open_session())
        return session, plain_rows.stage(session, part, unseen=unseen)

    def _forget_staged(self) -> None:
        staged, self._staged = self._staged, None
        if staged is not None:
            staged.forget()

    def _start(self, key: str, batch: Batch, lease: Lease) -> None:
        staged, self._staged = self._staged, None
        if staged is not None and staged.batch is not batch:
            staged.forget()
            staged = None
        self._storing = _Storing(batch, self._submit(self._store, key, batch, lease, staged))

    def _submit(self, work: Callable[..., _Result], *arguments: object) -> Future[_Result]:
        if self._threads is None:
            raise NothingStarted
        # With what belongs to the task in hand, so that its lines in the log have it too.
        context = contextvars.copy_context()
        return self._threads.submit(lambda: context.run(work, *arguments))

    def _store(self, key: str, batch: Batch, lease: Lease, staged: _Staged | None) -> tuple[Lease, Counts]:
        """Commits the outcome of each event of a batch, in a thread of its own."""
        try:
            if staged is not None:
                with staged.stack:
                    session, rows = staged.copied.result()
                    stored, counts = self._ingest(session, key, batch, lease, staged=rows)
            else:
                with self._open_session() as session:
                    stored, counts = self._ingest(session, key, batch, lease)
        except NotPlain as unusual:
            _log.info("a batch is stored the slow way", shard=self._shard, why=str(unusual))
            batch = self._read_slowly(batch.entries, batch.position, correction=False)
            with self._open_session() as session:
                stored, counts = self._ingest(session, key, batch, lease)
        if counts.recovered:
            self._report_recovered(batch, counts)
        if stored.is_paused:
            _log.error(
                "too many events were refused: the shard is paused",
                shard=self._shard,
                reason=operations.FLOOD,
            )
        return stored, counts

    def _ingest(
        self, session: Session, key: str, batch: Batch, lease: Lease, *, staged: Staged | None = None
    ) -> tuple[Lease, Counts]:
        return operations.ingest_batch(
            session,
            batch,
            lease=lease,
            stream=key,
            correction=key == self._corrections_key,
            duration=self._lease_time,
            prices=self._prices,
            limits=self._limits,
            staged=staged,
        )

    def _finish(self) -> tuple[Lease, Counts]:
        storing, self._storing = self._storing, None
        if storing is None:
            raise NothingStarted
        lease, counts = storing.done.result()
        self._held = lease
        return lease, counts

    def _wait(self) -> None:
        self._forget_staged()
        if self._storing is not None:
            # Its error, if any, is of no interest any more: nothing is acknowledged.
            self._storing.done.exception()
            self._storing = None

    def _release(self) -> None:
        lease, self._held = self._held, None
        if lease is None:
            return
        try:
            with self._open_session() as session:
                leases.release_lease(session, lease)
        except Exception as exc:
            # The lease ends by itself; what brought us here says more than this would.
            if kind_of(exc) is not FailureKind.TRANSIENT:
                raise
            _log.warning("lease not released", shard=self._shard, error=type(exc).__name__)

    def _report_recovered(self, batch: Batch, counts: Counts) -> None:
        _log.error(
            "new events in entries at or below the position: the stream went back in time",
            shard=self._shard,
            recovered=counts.recovered,
            position=str(batch.position),
            event_ids=[str(event.event_id) for event in batch.events if rules.is_recovered(event)][:20],
        )

    def _warn(self, message: str, *, error: BaseException | None = None, **values: object) -> None:
        if error is not None:
            values.update(error=type(error).__name__, sqlstate=sqlstate_of(error))
        _log.warning(message, shard=self._shard, **values)


@dataclass(frozen=True, slots=True)
class _Storing:
    """A batch whose transaction runs."""

    batch: Batch
    done: Future[tuple[Lease, Counts]]


@dataclass(frozen=True, slots=True)
class _Staged:
    """A batch whose rows are on their way to a connection; leaving `stack` commits or rolls back there."""

    batch: Batch
    stack: ExitStack
    copied: Future[tuple[Session, Staged]]

    def forget(self) -> None:
        """Rolls back; what went wrong is of no interest any more."""
        with contextlib.suppress(_Forgotten), self.stack:
            self.copied.exception()
            raise _Forgotten


class _Forgotten(Exception):
    """Makes a session roll back."""


class UnknownEffect(AssertionError):
    """The core asked for something that this interpreter does not know."""


class NothingStarted(AssertionError):
    """The core waited for a transaction that it had not begun."""
