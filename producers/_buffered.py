"""The emitter that costs its caller microseconds: events wait in memory, a thread delivers them in frames."""

import os
import signal
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, Literal, Self, Unpack
from uuid import UUID

from producers._config import EmitterConfig, InvalidConfiguration
from producers._delivery import Delivery, StreamUnavailable
from producers._emitter import Batch
from producers._events import UsageEvent
from producers._fast import Encoded, encoded
from producers._flusher import EXIT_SECONDS, Flusher
from producers._making import Maker, Usage, void_of
from producers._reports import BufferFull, Report, Stats, buffer_full

Overflow = Literal["block", "raise", "spill"]
"""What `emit` does with an event where the buffer is full: see BufferedEmitter."""

_MOST_CAPACITY: Final = 10_000_000


class BufferedEmitter:
    """Takes usage events in microseconds and delivers them from a thread of its own, in frames.

    What it has taken is lost only with the process: a kill -9 loses what came since the last flush. Where
    that is too much, take `Emitter`. One per process is enough: it may be shared by threads, and after a
    fork the child starts with an empty buffer and a thread of its own, while the parent sends what was in it.
    """

    def __init__(
        self,
        config: EmitterConfig,
        *,
        flush_at: int = 500,
        flush_interval_ms: float = 200,
        capacity: int = 100_000,
        overflow: Overflow | None = None,
        budget_ms: int = 50,
        spool_max_mb: float = 1024,
        exit_timeout: float = EXIT_SECONDS,
        on_error: Callable[[StreamUnavailable], object] | None = None,
    ) -> None:
        """This function will prepare an emitter; its thread starts with the first event, and connects.

        Events go out once `flush_at` of them wait, or the oldest has waited `flush_interval_ms`. Where
        `capacity` events wait, `overflow` says what `emit` does with another one: "block" waits for room, for
        `budget_ms` at most, and then raises BufferFull; "raise" does so at once; "spill" delivers this event
        in the calling thread, within the budget, to the stream or to the spool. The default is "spill" with
        USAGE_SPOOL_DIR and else "block": no event is ever left out silently. `spool_max_mb` bounds the
        spool's directory, as for `Emitter`.

        `on_error` is called in the thread, with a StreamUnavailable: once in each outage that lasts for some
        attempts (the events stay and are tried again), and at the end of the process for those that were
        given up after `exit_timeout` seconds. Raises InvalidConfiguration for settings that cannot be kept.
        """
        _check(config, flush_at, flush_interval_ms, capacity, overflow)
        self._overflow: Overflow = overflow or ("block" if config.spool_dir is None else "spill")
        self._budget = budget_ms / 1000
        self._delivery = Delivery(config, budget_ms=budget_ms, spool_max_mb=spool_max_mb)
        self._maker = Maker()
        self._make = self._maker.make
        self._flusher = flusher = Flusher(
            self._delivery,
            flush_at=min(flush_at, capacity),
            interval=flush_interval_ms / 1000,
            capacity=capacity,
            exit_timeout=exit_timeout,
            on_error=on_error,
        )
        # Not at exit: the flushers themselves are closed then.
        weakref.finalize(self, flusher.abandon).atexit = False

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **options: Any) -> Self:
        """This function will make an emitter from REDIS_URL and its companions in the environment.

        `options` are the keyword arguments of the class.
        """
        return cls(EmitterConfig.from_env(environ), **options)

    def emit(self, **usage: Unpack[Usage]) -> UUID:
        """This function will take one event and return its id, which is settled now, as is its time.

        Raises InvalidEvent before anything is taken; BufferFull (a StreamUnavailable) with the event where it
        could not be taken.
        """
        made = self._make(**usage)
        if self._flusher.is_full:
            self._take((made,))
        else:
            self._flusher.put(made)
        return made.event_id

    def send(self, event: UsageEvent) -> UUID:
        """This function will take an event that was made before."""
        made = encoded(event)
        self._take((made,))
        return made.event_id

    @contextmanager
    def batch(self) -> Iterator[Batch]:
        """This function will collect events and take them when the block ends; none where it raises.

        A BufferFull has those that could not be taken, after one budget for all of them.
        """
        batch = Batch(self._maker)
        yield batch
        self._take(batch.collected)

    def void(
        self, event_id: UUID | str, *, user_id: UUID | str | None = None, clerk_id: str | None = None
    ) -> UUID:
        """This function will take the reversal of this user's event; sent again, it is the same reversal."""
        return self.send(void_of(event_id, user_id=user_id, clerk_id=clerk_id))

    def flush(self, timeout: float = EXIT_SECONDS) -> bool:
        """This function will deliver what was taken so far, and tell whether that took at most `timeout`."""
        return self._flusher.flush(timeout)

    def close(self, timeout: float = 30.0) -> Report:
        """This function will deliver what waits, for `timeout` seconds at most, and report.

        A later `emit` raises StreamUnavailable. The events under `failed` may be sent again.
        """
        return self._flusher.close(timeout)

    @property
    def stats(self) -> Stats:
        """How it does now, in this process."""
        return self._flusher.stats()

    def flush_on_signals(self, *signals: int, timeout: float = EXIT_SECONDS) -> None:
        """This function will flush when a signal comes (default: SIGTERM), and then do what was done before.

        A handler that was installed before is called afterwards; where there was none, the signal ends the
        process as it would have. Call it in the main thread, after the framework has installed its own.
        """
        for number in signals or (signal.SIGTERM,):
            _chain(number, weakref.ref(self), timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _take(self, events: Sequence[Encoded]) -> None:
        flusher = self._flusher
        until = time.monotonic() + self._budget if self._overflow == "block" else 0.0
        for position, made in enumerate(events):
            if flusher.is_full and not flusher.is_closed:
                left = until - time.monotonic()
                if left <= 0 or not flusher.wait_for_room(left):
                    self._take_beyond(events[position:])
                    return
            try:
                flusher.put(made)
            except StreamUnavailable as closed:
                raise StreamUnavailable(str(closed), [one.event for one in events[position:]]) from None

    def _take_beyond(self, events: Sequence[Encoded]) -> None:
        """There is no room for these."""
        if self._overflow != "spill":
            raise BufferFull(buffer_full(self._flusher.capacity), [made.event for made in events])
        try:
            self._delivery.deliver(events)
        except StreamUnavailable as error:
            self._flusher.count_direct(len(events) - len(error.events))
            raise
        self._flusher.count_direct(len(events))


def _chain(number: int, emitter: "weakref.ref[BufferedEmitter]", timeout: float) -> None:
    before = signal.getsignal(number)

    def handler(received: int, frame: FrameType | None) -> None:
        alive = emitter()
        if alive is not None:
            alive.flush(timeout)
        if callable(before):
            before(received, frame)
        elif before == signal.SIG_DFL:
            signal.signal(received, signal.SIG_DFL)
            os.kill(os.getpid(), received)

    signal.signal(number, handler)


def _check(
    config: EmitterConfig, flush_at: int, interval_ms: float, capacity: int, overflow: str | None
) -> None:
    problems = []
    if flush_at < 1:
        problems.append(f"flush_at is {flush_at}; it must be at least 1")
    if not 0 <= interval_ms <= 60_000:
        problems.append(f"flush_interval_ms is {interval_ms}; it must be from 0 to 60000")
    if not 1 <= capacity <= _MOST_CAPACITY:
        problems.append(f"capacity is {capacity}; it must be from 1 to {_MOST_CAPACITY}")
    if overflow not in (None, "block", "raise", "spill"):
        problems.append(f"overflow is {overflow!r}; write block, raise or spill")
    if overflow == "spill" and config.spool_dir is None:
        problems.append(
            "overflow is 'spill' and USAGE_SPOOL_DIR is not set; name a directory, or write block"
        )
    if problems:
        raise InvalidConfiguration(problems)
