"""The emitter of asyncio programs: an await holds up no thread; what comes together shares frames."""

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Self, Unpack
from uuid import UUID

from producers._config import EmitterConfig
from producers._delivery import Delivery, StreamUnavailable
from producers._emitter import Batch
from producers._events import UsageEvent
from producers._fast import Encoded, encoded
from producers._flusher import EXIT_SECONDS, Flusher
from producers._making import Maker, Usage, void_of
from producers._reports import BufferFull, Report, Stats, buffer_full
from producers._settling import Item


class _Waiter:
    """One call that waits for its events: one, or those of a batch.

    An event that failed lies in `failed`. Whoever finds that the caller has gone takes it from there and
    brings it back to the queue: the thread if the caller went before, else the caller itself.
    """

    __slots__ = ("error", "failed", "future", "gone", "left", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()
        self.left = count
        self.failed: deque[Encoded] = deque()
        self.error: Exception | None = None
        self.gone = False

    def abandoned(self) -> list[Encoded]:
        """This function will say that nobody waits any more, and take out what failed."""
        self.gone = True
        taken: list[Encoded] = []
        with suppress(IndexError):
            while True:
                taken.append(self.failed.popleft())
        return taken


class AsyncEmitter:
    """Writes usage events to the stream; `await` returns once the server has acknowledged them.

    It may be used from several event loops and threads; after a fork the child starts with a thread of its
    own. An event is made, with its id and time, before the first await, and from then on belongs to the
    emitter: where the awaiting task is cancelled or its loop is closed, the event is delivered all the same,
    once, and tried again until `close` where it cannot be.
    """

    def __init__(
        self,
        config: EmitterConfig,
        *,
        capacity: int = 100_000,
        budget_ms: int = 50,
        spool_max_mb: float = 1024,
        exit_timeout: float = EXIT_SECONDS,
        on_error: Callable[[StreamUnavailable], object] | None = None,
    ) -> None:
        """This function will prepare an emitter; its thread starts with the first event, and connects.

        Where `capacity` events wait, `emit` raises BufferFull at once. `budget_ms` and `spool_max_mb` are
        those of `Emitter`. `on_error` is called in the thread about events that nobody awaits any more: once
        in each outage that lasts for some attempts, and when they are given up at the end of the process.
        Raises InvalidConfiguration for settings that cannot be kept.
        """
        self._maker = Maker()
        self._make = self._maker.make
        self._flusher = flusher = Flusher(
            Delivery(config, budget_ms=budget_ms, spool_max_mb=spool_max_mb),
            flush_at=1,
            interval=0.0,
            capacity=capacity,
            exit_timeout=exit_timeout,
            on_error=on_error,
            settle=_settle,
        )
        # Not at exit: the flushers themselves are closed then.
        weakref.finalize(self, flusher.abandon).atexit = False

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **options: Any) -> Self:
        """This function will make an emitter from REDIS_URL and its companions in the environment.

        `options` are the keyword arguments of the class.
        """
        return cls(EmitterConfig.from_env(environ), **options)

    async def emit(self, **usage: Unpack[Usage]) -> UUID:
        """This function will send one event and return its id once it is acknowledged, or in the spool.

        Raises InvalidEvent before anything is sent, BufferFull, or StreamUnavailable with the event, after
        some 4 seconds at most where the server is silent; then it is the caller's again.
        """
        made = self._make(**usage)
        await self._through((made,))
        return made.event_id

    async def send(self, event: UsageEvent) -> UUID:
        """This function will send an event that was made before, or whose acknowledgement is missing."""
        await self._through((encoded(event),))
        return event.event_id

    @asynccontextmanager
    async def batch(self) -> AsyncIterator[Batch]:
        """This function will collect events and send them together when the block ends; none where it raises.

        The batch's own `emit` and `add` are plain functions. A StreamUnavailable has the events that were not
        acknowledged.
        """
        batch = Batch(self._maker)
        yield batch
        await self._through(batch.collected)

    async def void(
        self, event_id: UUID | str, *, user_id: UUID | str | None = None, clerk_id: str | None = None
    ) -> UUID:
        """This function will send the reversal of this user's event; sent again, it is the same reversal."""
        return await self.send(void_of(event_id, user_id=user_id, clerk_id=clerk_id))

    async def close(self, timeout: float = 30.0) -> Report:
        """This function will deliver what is on its way, for `timeout` seconds at most, and report.

        A later `emit` raises StreamUnavailable. Under `failed` are the events that nobody awaited.
        """
        return await asyncio.to_thread(self._flusher.close, timeout)

    @property
    def stats(self) -> Stats:
        """How it does now, in this process."""
        return self._flusher.stats()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _through(self, events: Sequence[Encoded]) -> None:
        if not events:
            return
        flusher = self._flusher
        if flusher.is_full:
            raise BufferFull(buffer_full(flusher.capacity), [made.event for made in events])
        waiter = _Waiter(asyncio.get_running_loop(), len(events))
        try:
            for made in events:
                flusher.put(made, waiter)
            await waiter.future
        except StreamUnavailable as closed:
            # Some of a batch may have been taken just before; with the same ids they may be sent again.
            waiter.gone = True
            raise StreamUnavailable(str(closed), [made.event for made in events]) from None
        except BaseException:
            for made in waiter.abandoned():
                flusher.bring_back(made)
            raise
        if waiter.failed:
            raise StreamUnavailable(
                str(waiter.error), [made.event for made in waiter.failed]
            ) from waiter.error


def _settle(delivered: Sequence[Item], failed: Sequence[Item], error: Exception | None) -> list[Item]:
    """Tells those who wait, all of one loop at once, and returns what failed and nobody waits for."""
    kept: list[Item] = []
    done: dict[asyncio.AbstractEventLoop, list[_Waiter]] = {}
    for made, waiter in failed:
        if waiter is None:
            kept.append((made, None))
            continue
        waiter.error = error
        waiter.failed.append(made)
        if waiter.gone:
            kept += [(one, None) for one in waiter.abandoned()]
    for _, waiter in (*delivered, *failed):
        if waiter is not None:
            waiter.left -= 1
            if waiter.left == 0 and not waiter.gone:
                done.setdefault(waiter.loop, []).append(waiter)
    for loop, waiters in done.items():
        try:
            loop.call_soon_threadsafe(_finish, waiters)
        except RuntimeError:
            # It was closed meanwhile, with all who waited in it.
            kept += [(one, None) for waiter in waiters for one in waiter.abandoned()]
    return kept


def _finish(waiters: Sequence[_Waiter]) -> None:
    for waiter in waiters:
        if not waiter.future.done():
            waiter.future.set_result(None)
