"""The thread that delivers what waits: one per emitter and process, started with the first event.

Whoever emits appends to a deque, which is atomic, and takes no lock that the thread holds while it works.
What signal handlers may interrupt is made of C-level operations that can be entered again (deque,
SimpleQueue, a lock that only one side takes), so that a handler which flushes cannot block itself.
"""

import itertools
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final

from producers._delivery import StreamUnavailable
from producers._events import UsageEvent
from producers._fast import Encoded
from producers._lifecycle import promise_end, watch
from producers._reports import Report, Stats
from producers._settling import Delivers, Item, Settle, keep_failed, out_of_time, split, unexpected

log = logging.getLogger("producers")

EXIT_SECONDS: Final = 5.0
# A few full frames in one round trip: little enough that the app's threads get their turn soon.
_MOST_AT_ONCE: Final = 2000
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0
# So many attempts in a row fail before somebody is called: each has repeated itself within its own budget.
_ATTEMPTS_BEFORE_ALARM: Final = 3

# What the thread does while it does not deliver; a change of it wakes the thread at most once.
_AWAKE, _RESTING, _LINGERING, _PAUSING = range(4)
_NONE: Final[list[Item]] = []


class _Mark:
    """Stands in the queue behind what was there; its lock opens once all of that was delivered."""

    __slots__ = ("reached",)

    def __init__(self) -> None:
        self.reached = threading.Lock()
        self.reached.acquire()


class Flusher:
    """A bounded queue and the thread that empties it."""

    def __init__(
        self,
        delivery: Delivers,
        *,
        flush_at: int,
        interval: float,
        capacity: int,
        exit_timeout: float = EXIT_SECONDS,
        on_error: Callable[[StreamUnavailable], object] | None = None,
        settle: Settle | None = None,
    ) -> None:
        self.capacity = capacity
        self.exit_timeout = exit_timeout
        self._delivery = delivery
        self._flush_at = flush_at
        self._interval = interval
        self._on_error = on_error
        self._settle = settle or keep_failed
        self._closed = self._abandoned = False
        self.begin_anew()
        watch(self)

    def begin_anew(self) -> None:
        """This function will forget everything: in a child it is the parent's, which delivers it."""
        self._queue: deque[Item | _Mark] = deque()
        self._flying: list[Item] = []
        self._turns: deque[threading.Lock] = deque()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._starting = threading.Lock()
        self._ending = threading.RLock()
        self._thread: threading.Thread | None = None
        self._sleep = _AWAKE
        self._hurry = False
        self._give_up_at = float("inf")
        self._delivered = self._direct = 0
        self._counting = threading.RLock()
        self._failed_attempts = 0
        self._given_up: list[Encoded] = []
        self._reported = False

    # The callers' side.

    @property
    def is_full(self) -> bool:
        """Whether as many events wait as may, those included that are on their way."""
        return len(self._queue) + len(self._flying) >= self.capacity

    @property
    def is_closed(self) -> bool:
        """Whether nothing is taken any more."""
        return self._closed

    def put(self, made: Encoded, waiter: Any = None) -> None:
        """This function will take one event; raises StreamUnavailable with it after `close`."""
        item = (made, waiter)
        queue = self._queue
        queue.append(item)
        # Looked at after the event was put in: either it is found here, or whoever closes finds the event.
        if self._closed and self._withdraw(item):
            raise StreamUnavailable("this emitter is closed", (made.event,))
        if self._thread is None:
            self._start()
        sleep = self._sleep
        if sleep != _AWAKE and (
            sleep == _RESTING
            or (sleep == _LINGERING and len(queue) >= self._flush_at)
            or (sleep == _PAUSING and waiter is not None)
        ):
            self._sleep = _AWAKE
            self._wake.put(None)

    def bring_back(self, made: Encoded) -> None:
        """This function will take an event again that was given out as failed, since nobody took it there."""
        try:
            self.put(made)
        except StreamUnavailable as closed:
            self.tell_lost(closed.events)

    def wait_for_room(self, seconds: float) -> bool:
        """This function will wait until there is room, and tell whether there is."""
        until = time.monotonic() + seconds
        while self.is_full:
            left = until - time.monotonic()
            if left <= 0:
                return False
            turn = threading.Lock()
            turn.acquire()
            self._turns.append(turn)
            if not self.is_full:
                break
            if not turn.acquire(timeout=left):
                with suppress(ValueError):
                    self._turns.remove(turn)
        return True

    def count_direct(self, count: int) -> None:
        """This function will count events that a caller has delivered past the queue."""
        with self._counting:
            self._direct += count

    def flush(self, timeout: float) -> bool:
        """This function will deliver what waits now, and tell whether that took at most `timeout`."""
        if self._closed:
            thread = self._thread
            if thread is not None and thread is not threading.current_thread():
                thread.join(max(0.0, timeout))
            return not self._waiting()
        if self._thread is None and not self._queue:
            return True
        mark = _Mark()
        self._queue.append(mark)
        self._hurry = True
        if self._thread is None:
            self._start()
        self._wake.put(None)
        return mark.reached.acquire(timeout=max(0.0, timeout))

    def stats(self) -> Stats:
        """This function will count; while events are on their way the counts may be off by those."""
        waiting = self._waiting()
        delivered = self._delivered + self._direct
        return Stats(delivered + waiting + len(self._given_up), delivered, waiting, self._failed_attempts)

    def retire(self, timeout: float) -> None:
        """This function will let nothing more in; the thread ends by itself, in `timeout` at most."""
        self._closed = True
        self._give_up_at = min(self._give_up_at, time.monotonic() + timeout)
        self._wake.put(None)

    def close(self, timeout: float) -> Report:
        """This function will deliver what waits, for `timeout` seconds at most, and end the thread."""
        self.retire(timeout)
        thread = self._thread
        if thread is threading.current_thread():
            # From its own callback: it goes on until the end by itself.
            return self._report(())
        if thread is not None:
            thread.join(max(0.0, self._give_up_at - time.monotonic()) + 0.05)
        with self._ending:
            if thread is None and self._queue:
                # It never started, which an interpreter that is about to end forbids.
                self._thread = threading.current_thread()
                self._run()
            self._end()
            flying = self._flying if thread is not None and thread.is_alive() else ()
            self._reported = True
            return self._report([made for made, _ in flying])

    def abandon(self) -> None:
        """This function will end the thread of an emitter that nobody holds any more, once all is delivered.

        What cannot be is told to `on_error` and logged.
        """
        self._abandoned = True
        self.retire(self.exit_timeout)

    def end(self) -> None:
        """This function will close it with the process, and tell what nobody reads in a report."""
        reported = self._reported
        report = self.close(self.exit_timeout)
        if not reported:
            self.tell_lost(report.failed)

    def tell_lost(self, lost: Sequence[UsageEvent]) -> None:
        """This function will log and tell that events were given up, where nobody reads the report."""
        if lost:
            log.warning("%d usage events were not delivered before their emitter ended", len(lost))
            self._tell(StreamUnavailable("the emitter ended before the stream acknowledged the events", lost))

    def _end(self) -> None:
        left = self._take_all()
        self._given_up += [made for made, _ in self._settle((), left, out_of_time())]
        self._delivery.close()

    def _report(self, flying: Sequence[Encoded]) -> Report:
        failed = tuple(made.event for made in itertools.chain(flying, self._given_up))
        delivered = self._delivered + self._direct
        return Report(delivered + len(failed), delivered, failed)

    def _waiting(self) -> int:
        marks = sum(1 for one in self._queue.copy() if type(one) is _Mark)
        return len(self._queue) + len(self._flying) - marks

    def _take_all(self) -> list[Item]:
        found: list[Item] = []
        with suppress(IndexError):
            while True:
                one = self._queue.popleft()
                if not isinstance(one, _Mark):
                    found.append(one)
        return found

    def _withdraw(self, item: Item) -> bool:
        while True:
            try:
                self._queue.remove(item)
            except ValueError:
                # Taken in the last moment: it is delivered, or stands in the report.
                return False
            except IndexError:
                # Somebody changed the queue while it was searched.
                continue
            return True

    def _start(self) -> None:
        # Not waited for: a signal handler may emit while its own thread is in here.
        if not self._starting.acquire(blocking=False):
            return
        try:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="usage-flusher", daemon=True)
                self._thread = thread
                try:
                    thread.start()
                except RuntimeError as error:
                    self._thread = None
                    log.warning("usage events wait: their thread cannot be started: %s", error)
                else:
                    promise_end()
        finally:
            self._starting.release()

    # The thread's side.

    def _run(self) -> None:
        mine = threading.current_thread()
        try:
            while self._thread is mine:
                if not self._queue:
                    if self._closed:
                        break
                    self._sleep_for(_RESTING, None)
                    continue
                self._linger()
                if not self._deliver_some() and not self._pause():
                    break
        finally:
            if self._thread is mine:
                if self._closed:
                    with self._ending:
                        self._end()
                        unread = self._given_up if self._abandoned and not self._reported else ()
                        self._reported = self._reported or self._abandoned
                    self.tell_lost([made.event for made in unread])
                self._thread = None

    def _sleep_for(self, how: int, seconds: float | None) -> bool:
        """Waits for a token; false when the time was over before one came."""
        self._sleep = how
        try:
            # Looked at again: who brought an event just now may not have seen yet that this one sleeps.
            if (how == _RESTING and self._queue) or (self._closed and how != _PAUSING):
                return True
            if how == _LINGERING and len(self._queue) >= self._flush_at:
                return True
            self._wake.get(timeout=seconds)
        except Empty:
            return False
        finally:
            self._sleep = _AWAKE
        return True

    def _linger(self) -> None:
        until = time.monotonic() + self._interval
        while len(self._queue) < self._flush_at and not self._hurry and not self._closed:
            left = until - time.monotonic()
            if left <= 0 or not self._sleep_for(_LINGERING, left):
                break

    def _pause(self) -> bool:
        """After a failure; false when it is time to give up."""
        left = self._give_up_at - time.monotonic()
        if left <= 0:
            return False
        longest = min(_FIRST_PAUSE * 2 ** min(self._failed_attempts, 10), _LONGEST_PAUSE)
        self._sleep_for(_PAUSING, min(left, longest * (0.5 + random.random() / 2)))  # noqa: S311 - jitter, no secret
        return True

    def _deliver_some(self) -> bool:
        """Delivers what waits, or the first part of it; false where the server did not take all of it."""
        marks: list[_Mark] = []
        items: list[Item] = []
        self._flying = items
        queue = self._queue
        with suppress(IndexError):
            while len(items) < _MOST_AT_ONCE:
                one = queue.popleft()
                if isinstance(one, _Mark):
                    marks.append(one)
                else:
                    items.append(one)
        if not queue:
            self._hurry = False
        delivered, failed = items, _NONE
        error: StreamUnavailable | None = None
        if items:
            try:
                self._delivery.deliver([made for made, _ in items])
            except StreamUnavailable as problem:
                error = problem
                delivered, failed = split(items, problem)
            except Exception as problem:  # noqa: BLE001  whatever it is, the events are kept and it is told
                error = unexpected(problem)
                delivered, failed = _NONE, items
        # Counted first: who is told now may look at the figures.
        self._delivered += len(delivered)
        kept = self._settle(delivered, failed, error)
        if error is not None:
            # In the order in which they came; the marks wait for them.
            queue.extendleft(marks)
            queue.extendleft(reversed(kept))
        self._flying = []
        if error is None:
            for mark in marks:
                mark.reached.release()
        self._note(error, kept)
        self._call_those_who_wait_for_room()
        return not kept

    def _call_those_who_wait_for_room(self) -> None:
        with suppress(IndexError):
            while self._turns and not self.is_full:
                self._turns.popleft().release()

    def _note(self, error: StreamUnavailable | None, kept: Sequence[Item]) -> None:
        if error is None or not kept:
            if self._failed_attempts >= _ATTEMPTS_BEFORE_ALARM:
                log.info("usage events are delivered again")
            self._failed_attempts = 0
            return
        self._failed_attempts += 1
        if self._failed_attempts == _ATTEMPTS_BEFORE_ALARM:
            log.warning("usage events wait, at least %d: %s", len(kept), error)
            self._tell(StreamUnavailable(str(error), [made.event for made, _ in kept]))

    def _tell(self, error: StreamUnavailable) -> None:
        if self._on_error is None:
            return
        try:
            self._on_error(error)
        except Exception:
            log.exception("on_error of a usage emitter failed")
