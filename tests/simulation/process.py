"""One process with one drain: it does what the core asks for, one effect at a time, as badly as told."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from tests.simulation.database import Batch, Lease, Transaction
from tests.simulation.stream import entry_of
from worker.entries import EntryId
from worker.errors import TransientError
from worker.ingest import effects
from worker.ingest.core import DrainCore
from worker.ingest.effects import DrainOutcome, Effect, Report
from worker.ingest.rules import Counts

if TYPE_CHECKING:
    from tests.simulation.world import World

# What may go wrong with one effect. `before`: it fails, nothing is done. `lost`: it is done, the answer is
# lost. `late`: the transaction's connection breaks, and the server makes up its mind later. `crash` and
# `crash_after`: the process is gone before or after it, without giving anything back.
FAULTS: Final = ("before", "lost", "late", "crash", "crash_after")
# A core that does so many things without sleeping, waiting, reading or storing turns on the spot.
MOST_IN_A_ROW: Final = 40
# It waits longer each time and gives up after `work_seconds`: more errors on end do not fit in there.
MOST_ERRORS: Final = 12


STREAM, DATABASE = "stream", "database"


class Broken(TransientError):
    """A server did not answer."""


class Died(BaseException):
    """The process is gone, in the middle of whatever it did."""


class Process:
    """`step()` performs the effect that is next; `report` is set when the drain has ended."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.is_stopped = False
        self.report: Report | None = None
        self.ready_at = world.now
        self.held: Lease | None = None
        self.transaction: Transaction | None = None
        self.noted: tuple[str, str] | None = None
        self._counts = Counts()
        self._in_a_row = 0
        self._blocked_until: float | None = None
        self._paused_until = 0.0
        self._errors = 0
        self._is_connected = True
        self._troubled = self._was_troubled = self._has_failed = False
        self._reads: list[tuple[str, EntryId, int]] = []
        self._finished: Transaction | None = None
        self._steps = DrainCore(
            keys=world.keys,
            corrections_key=world.keys[1],
            limits=world.limits,
            should_stop=lambda: self.is_stopped,
            monotonic=lambda: world.now,
            jitter=world.rng.random,
            is_transient=lambda error: isinstance(error, TransientError),
            warn=self._warn,
        ).steps()
        self.effect: Effect = next(self._steps)

    def _warn(self, event: str, **values: object) -> None:
        self.world.warnings[event] += 1
        self.world.trace.append((self.world.now, self.name, "warns", event, values))

    def step(self, fault: str = "") -> None:
        """This function will perform the effect that is next; raises Died when the process goes with it."""
        effect = self.effect
        if fault == "crash":
            raise Died
        fault = fault if type(effect) not in _LOCAL else "crash_after" * (fault == "crash_after")
        self._count(effect)
        try:
            answer = _DO[type(effect)](self, effect, fault)
        except TransientError as error:
            self.world.trace.append((self.world.now, self.name, effect, fault, error))
            self._suffer()
            if fault == "crash_after":
                raise Died from error
            self._go_on(self._steps.throw, error)
            if isinstance(error, effects.LeaseLost):
                self.world.expect(self.report is not None, "a drain goes on without its lease")
        else:
            if answer is _WAITING:
                return
            self.world.trace.append((self.world.now, self.name, effect, fault, answer))
            if fault == "crash_after":
                raise Died
            self._has_failed = False
            self._go_on(self._steps.send, answer)

    def _suffer(self) -> None:
        self._errors = self._errors + 1 if self._troubled else 1
        self._troubled = self._has_failed = True
        self.world.expect(self._errors <= MOST_ERRORS, "a drain does not give up")

    def _go_on(self, into: Callable[[Any], Effect], value: object) -> None:
        try:
            self.effect = into(value)
        except StopIteration as end:
            self._end(end.value)

    def _end(self, report: Report) -> None:
        self.report = report
        world = self.world
        world.expect(report.counts == self._counts, "the report's counts are not the sum of its batches")
        if report.outcome is DrainOutcome.BACKING_OFF:
            troubled = self._troubled or self._was_troubled
            world.expect(troubled, "a drain gave up although nothing was wrong since its last success")
        world.expect(self.transaction is None, "a drain left a transaction behind")
        if self.held is not None:
            world.release(self)

    def _count(self, effect: Effect) -> None:
        self._in_a_row += 1
        self.world.expect(self._in_a_row <= MOST_IN_A_ROW, "a drain turns on the spot")

    def _fail(self, fault: str, server: str) -> None:
        if fault == "before" or self.world.down_until[server] > self.world.now:
            raise Broken

    def _lose(self, fault: str) -> None:
        if fault == "lost":
            raise Broken

    def _sleep(self, effect: effects.Sleep, _fault: str) -> None:
        self.world.expect(0 < effect.seconds <= self.world.limits.longest_wait, "a sleep without bounds")
        self.ready_at = self.world.now + effect.seconds
        self._in_a_row = 0

    def _take(self, _effect: effects.TakeLease, fault: str) -> Lease | None:
        self._fail(fault, DATABASE)
        lease = self.world.take(self)
        self._lose(fault)
        self.held = lease
        return lease

    def _renew(self, _effect: effects.RenewLease, fault: str) -> Lease:
        self._fail(fault, DATABASE)
        lease = self.world.renew(self)
        self._lose(fault)
        self.held = lease
        return lease

    def _release(self, _effect: effects.ReleaseLease, fault: str) -> None:
        if fault != "before":
            self.world.release(self)
        self.held = None

    def _inspect(self, effect: effects.Inspect, fault: str) -> Any:
        self._fail(fault, STREAM)
        server = self.world.server
        if effect.create:
            server.create_groups()
        states = server.states()
        self._lose(fault)
        if not effect.create:
            self._troubled = False
        return states

    def _adopt(self, effect: effects.Adopt, fault: str) -> Any:
        self._fail(fault, STREAM)
        adopted = self.world.server.adopt(effect.key)
        self._lose(fault)
        return adopted

    def _read(self, effect: effects.Read, fault: str) -> Any:
        try:
            if not self._is_connected:
                self._is_connected = True
                raise Broken
            self._fail(fault, STREAM)
        except Broken:
            self._unblock()
            raise
        world = self.world
        entries = world.server.read(effect.cursors, effect.count)
        if not entries and effect.block_ms is not None:
            if self._blocked_until is None:
                self._blocked_until = self.ready_at = world.now + effect.block_ms / 1000
                world.waiting += 1
                return _WAITING
            if world.now < self._blocked_until:
                return _WAITING
        self._unblock()
        self._lose(fault)
        if entries:
            self._in_a_row = 0
            for key, cursor in effect.cursors.items():
                self._reads.append((key, EntryId.parse(cursor), world.seq))
            del self._reads[:-40]
        return entries

    def lose_connection(self) -> None:
        """The server was exchanged. Clients may notice nothing, but never within one batch of reads.

        What was read before and after would be one batch: the limit that docs/simulation.md names.
        """
        effect = self.effect
        if isinstance(effect, effects.Sleep) or (
            isinstance(effect, effects.Read) and effect.block_ms is None
        ):
            self._is_connected = False

    def wake(self) -> None:
        """Something came: a blocked read answers."""
        self._blocked_until = self.world.now
        self.ready_at = max(self._paused_until, self.world.now)

    def pause(self, seconds: float) -> None:
        """The process stops for so long, wherever it is."""
        self._paused_until = max(self._paused_until, self.world.now + seconds)
        self.ready_at = max(self.ready_at, self._paused_until)

    @property
    def is_blocked(self) -> bool:
        return self._blocked_until is not None

    def _unblock(self) -> None:
        if self._blocked_until is not None:
            self._blocked_until = None
            self.world.waiting -= 1
            self._in_a_row = 0

    def _suspect(self, effect: effects.Suspect, fault: str) -> int:
        self._fail(fault, DATABASE)
        deliveries = self.world.note_suspect(self, effect.key, effect.entry_id)
        self._lose(fault)
        return deliveries

    def _prepare(self, effect: effects.Prepare, _fault: str) -> Batch:
        entries = [entry_of(raw) for raw in effect.entries]
        if not effect.park:
            if len(entries) == 1:
                self.world.delivered(self, entries[0])
            for entry in entries:
                if entry.is_poison:
                    self.world.poisoned(entry)
                    raise Died
        first = entries[0].entry_id
        # The read that brought the first of them: what came in later may lie between, unread.
        read_at = next(
            (seq for key, cursor, seq in reversed(self._reads) if key == effect.key and cursor < first), 0
        )
        last_id = max(effect.position, entries[-1].entry_id)
        return Batch(effect.key, entries, effect.position, last_id, effect.park, read_at)

    def _start(self, effect: effects.Start, _fault: str) -> None:
        self.world.expect(self.transaction is None, "two transactions at once")
        lease = effect.lease
        if not isinstance(lease, Lease):
            raise TypeError
        self.transaction = Transaction(effect.batch, lease)

    def _finish(self, _effect: effects.Finish, fault: str) -> tuple[Lease, Counts]:
        transaction, self.transaction = self.transaction, None
        if transaction is None:
            raise NothingStarted
        if not transaction.is_done:
            self.world.run(transaction, fault)
        answer = transaction.answer
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            raise NothingStarted
        self.held, counts = answer
        self._counts += counts
        # Trouble elsewhere before it is still there; a drain that ends with this very batch may say so.
        self._was_troubled, self._troubled = self._troubled, self._has_failed
        self._in_a_row = 0
        self._finished = transaction
        self.noted = None
        return answer

    def _advance(self, effect: effects.Advance, fault: str) -> Any:
        self._fail(fault, STREAM)
        state = self.world.advance(effect, self._finished)
        self._lose(fault)
        return state

    def _acknowledge(self, effect: effects.Acknowledge, fault: str) -> int:
        self._fail(fault, STREAM)
        answer = self.world.acknowledge(effect.key, effect.entry_ids, self._finished)
        self._lose(fault)
        return answer


class NothingStarted(AssertionError):
    """The core waited for a transaction that it had not begun."""


_WAITING: Final = object()
_LOCAL: Final = (effects.Prepare, effects.Start, effects.Sleep)
_DO: Final[dict[type[Any], Any]] = {
    effects.TakeLease: Process._take,
    effects.RenewLease: Process._renew,
    effects.ReleaseLease: Process._release,
    effects.Inspect: Process._inspect,
    effects.Adopt: Process._adopt,
    effects.Read: Process._read,
    effects.Suspect: Process._suspect,
    effects.Prepare: Process._prepare,
    effects.Start: Process._start,
    effects.Finish: Process._finish,
    effects.Advance: Process._advance,
    effects.Acknowledge: Process._acknowledge,
    effects.Sleep: Process._sleep,
}
