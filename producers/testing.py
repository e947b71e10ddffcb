"""Emitters for the tests of apps: they judge events like the real ones, and keep them."""

import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Self, Unpack
from uuid import UUID

from producers._delivery import StreamUnavailable
from producers._emitter import Batch
from producers._events import UsageEvent
from producers._fast import Encoded, encoded
from producers._making import Maker, Usage, void_of
from producers._reports import Report

__all__ = ["RecordingAsyncEmitter", "RecordingEmitter"]


class RecordingEmitter:
    """An emitter that keeps its events in `events`: give it to the code that is tested.

    It refuses what the real one refuses, with the same errors, and needs no server.
    """

    def __init__(self, *, clock: Callable[[], datetime] | None = None) -> None:
        """This function will prepare an emitter without events.

        `clock` returns the `occurred_at` (an aware datetime) of events that state none.
        """
        self._clock = clock
        self._lock = threading.Lock()
        self.clear()

    def emit(self, **usage: Unpack[Usage]) -> UUID:
        """This function will keep one event and return its id.

        Raises InvalidEvent, TypeError for an argument that does not exist, or what `fail_next` asked for.
        """
        made = self._maker.make(**usage)
        self._keep((made,))
        return made.event_id

    def send(self, event: UsageEvent) -> UUID:
        """This function will keep an event that was made before."""
        self._keep((encoded(event),))
        return event.event_id

    @contextmanager
    def batch(self) -> Iterator[Batch]:
        """This function will collect events and keep them when the block ends; none where it raises."""
        batch = Batch(self._maker)
        yield batch
        if batch.collected:
            self._keep(batch.collected)

    def void(
        self, event_id: UUID | str, *, user_id: UUID | str | None = None, clerk_id: str | None = None
    ) -> UUID:
        """This function will keep the reversal of this user's event."""
        event = void_of(event_id, user_id=user_id, clerk_id=clerk_id)
        if self._clock is not None:
            event = event.model_copy(update={"occurred_at": self._clock()})
        return self.send(event)

    def flush(self, timeout: float = 0.0) -> bool:
        """This function will say that everything is delivered, as BufferedEmitter does."""
        del timeout
        return True

    def close(self, timeout: float = 0.0) -> Report:
        """This function will let no more events in: a later `emit` raises StreamUnavailable."""
        del timeout
        with self._lock:
            self._closed = True
            return Report(len(self._events), len(self._events))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def events(self) -> list[UsageEvent]:
        """What was emitted, in order, repetitions included; the events of a failure are not among it."""
        with self._lock:
            return list(self._events)

    @property
    def repeated(self) -> list[UUID]:
        """The ids that came more than once: the worker stores each of them once."""
        counts = Counter(event.event_id for event in self.events)
        return [identity for identity, count in counts.items() if count > 1]

    def fail_next(self, error: Exception | type[Exception] = StreamUnavailable, *, times: int = 1) -> None:
        """This function will make the next `times` calls (emit, send, or the end of a batch) raise `error`.

        A StreamUnavailable has the events of the call, as a real one would.
        """
        with self._lock:
            self._failures += [error] * times

    def clear(self) -> None:
        """This function will forget everything: events, failures that were asked for, and that it was closed.

        Events are then numbered from 1 again, under a new producer_id.
        """
        with self._lock:
            self._events: list[UsageEvent] = []
            self._failures: list[Exception | type[Exception]] = []
            self._closed = False
            self._maker = _ClockedMaker(self._clock)

    def _keep(self, made: Sequence[Encoded]) -> None:
        # Read back from the bytes: what the worker would see, whatever was given.
        events = [one.event for one in made]
        with self._lock:
            if self._closed:
                raise StreamUnavailable("this emitter is closed", events)
            if self._failures:
                raise _with_events(self._failures.pop(0), events)
            self._events += events


class RecordingAsyncEmitter:
    """The same with the face of AsyncEmitter; `recording` has the events."""

    def __init__(self, *, clock: Callable[[], datetime] | None = None) -> None:
        """This function will prepare an emitter without events."""
        self.recording = RecordingEmitter(clock=clock)

    async def emit(self, **usage: Unpack[Usage]) -> UUID:
        """This function will keep one event and return its id."""
        return self.recording.emit(**usage)

    async def send(self, event: UsageEvent) -> UUID:
        """This function will keep an event that was made before."""
        return self.recording.send(event)

    @asynccontextmanager
    async def batch(self) -> AsyncIterator[Batch]:
        """This function will collect events and keep them when the block ends; none where it raises."""
        with self.recording.batch() as batch:
            yield batch

    async def void(
        self, event_id: UUID | str, *, user_id: UUID | str | None = None, clerk_id: str | None = None
    ) -> UUID:
        """This function will keep the reversal of this user's event."""
        return self.recording.void(event_id, user_id=user_id, clerk_id=clerk_id)

    async def close(self, timeout: float = 0.0) -> Report:
        """This function will let no more events in."""
        return self.recording.close(timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.recording.close()

    @property
    def events(self) -> list[UsageEvent]:
        """What was emitted, in order."""
        return self.recording.events


class _ClockedMaker(Maker):
    """A maker whose events happen when a clock says so."""

    __slots__ = ("_clock",)

    def __init__(self, clock: Callable[[], datetime] | None) -> None:
        super().__init__()
        self._clock = clock

    def make(self, **usage: Unpack[Usage]) -> Encoded:
        """This function will make the event of one call."""
        if self._clock is not None and usage.get("occurred_at") is None:
            usage["occurred_at"] = self._clock()
        return super().make(**usage)


def _with_events(failure: Exception | type[Exception], events: Sequence[UsageEvent]) -> Exception:
    if isinstance(failure, StreamUnavailable):
        return type(failure)(str(failure), events)
    if isinstance(failure, Exception):
        return failure
    if issubclass(failure, StreamUnavailable):
        return failure("a test asked for this failure", events)
    return failure("a test asked for this failure")
