"""One producer process: emits its events at a steady rate and writes down what was promised to it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID

from producers import AsyncEmitter, BufferedEmitter, Emitter, StreamUnavailable
from tests.chaos.producers.book import Book, read
from tests.chaos.producers.calibration import note_fsyncs, start_scheduler_clock
from tests.chaos.producers.plan import CHILDREN, LANES, LAST, PARENT, PRODUCERS, Kind, Plan, use

_FLUSH_EVERY: Final = 150
_FLUSH_SECONDS: Final = 20.0
_IN_USE_SECONDS: Final = 0.5
_POLL_SECONDS: Final = 0.05


def book_path(folder: Path, producer: int, lane: int) -> Path:
    """This function will name a lane's book."""
    return folder / f"book-{producer}-{lane}"


def clock_path(folder: Path, producer: int) -> Path:
    """This function will name what the calibration of a producer's processes saw."""
    return folder / f"clock-{producer}"


def loop_path(folder: Path, producer: int) -> Path:
    """This function will name what a producer's event loop saw: the times at which it was held up."""
    return folder / f"loop-{producer}"


def fsync_path(folder: Path, producer: int) -> Path:
    """This function will name what is known of the fsyncs of a producer's processes."""
    return folder / f"fsync-{producer}"


def pid_path(folder: Path, producer: int) -> Path:
    """This function will name the file with the id of a producer's process."""
    return folder / f"pid-{producer}"


def let_begin(folder: Path, began: float) -> None:
    """This function will let all producers emit, from this time of the monotonic clock on."""
    written = folder / ".began"
    written.write_text(repr(began))
    written.rename(folder / "began")


class Lane:
    """One thread or task that emits: which events, when, and its book."""

    def __init__(self, plan: Plan, folder: Path, producer: int, lane: int, began: float) -> None:
        self._plan = plan
        self._folder = folder
        self._producer = producer
        self._lane = lane
        self._began = began
        path = book_path(folder, producer, lane)
        before = read(path)
        self._numbers = [n for n in plan.numbers(producer, lane) if n > max(before.tried, default=-1)]
        self._all = len(plan.numbers(producer, lane))
        self.book = Book(path)

    def steps(self) -> Iterator[tuple[int, float]]:
        """This function will yield each number that is left, and how many seconds to wait before it.

        The last ones come when the run says so: a number of -1 asks to wait and to look again.
        """
        done = self._all - len(self._numbers)
        for position, number in enumerate(self._numbers, done):
            if position >= self._all - LAST:
                (self._folder / f"waiting-{self._producer}-{self._lane}").touch()
                while not (self._folder / "last").exists():
                    yield -1, _POLL_SECONDS
                yield number, 0.0
            else:
                due = self._began + self._plan.seconds * position / max(1, self._all - LAST)
                yield number, max(0.0, due - time.monotonic())

    def run(self, emit: Callable[..., UUID]) -> None:
        """This function will emit what is left, in this thread."""
        for count, (number, wait) in enumerate(self.steps(), 1):
            if wait:
                time.sleep(wait)
            if number < 0:
                continue
            arguments = self.arguments(number)
            self.book.tried(number)
            wall, began = time.time_ns(), time.monotonic_ns()
            try:
                event_id = emit(**arguments)
            except StreamUnavailable as error:
                self.book.raised(number, error)
                continue
            self.returned(number, event_id, wall, began)
            self.between(count)

    def between(self, count: int) -> None:
        """This function will do what comes after a call: nothing, but for a buffer."""

    async def run_task(self, emitter: AsyncEmitter) -> None:
        """This function will emit what is left, in this task."""
        for number, wait in self.steps():
            if wait:
                await asyncio.sleep(wait)
            if number < 0:
                continue
            arguments = self.arguments(number)
            self.book.tried(number)
            wall, began = time.time_ns(), time.monotonic_ns()
            try:
                event_id = await emitter.emit(**arguments)
            except StreamUnavailable as error:
                self.book.raised(number, error)
                continue
            self.returned(number, event_id, wall, began)

    def arguments(self, number: int) -> dict[str, Any]:
        """This function will return what emit is called with."""
        return use(self._plan.seed, self._producer, number).arguments(self._producer, number)

    def returned(self, number: int, event_id: UUID, wall: int, began: int) -> None:
        """This function will write down what was returned, before anything else is emitted."""
        ended, wall_ended = time.monotonic_ns(), time.time_ns()
        self.book.returned(number, event_id, (began, ended, wall // 10**6, wall_ended // 10**6))


class BufferedLane(Lane):
    """A thread with a buffer: now and then it has everything flushed, and writes down that it was."""

    emitter: BufferedEmitter

    def between(self, count: int) -> None:
        """This function will flush after some events."""
        if count % _FLUSH_EVERY == 0 and self.emitter.flush(_FLUSH_SECONDS):
            self.book.flushed()


ALane = TypeVar("ALane", bound=Lane)


class Process:
    """One producer's process."""

    def __init__(self, plan: Plan, folder: Path, producer: int) -> None:
        self._plan = plan
        self._folder = folder
        self._producer = producer
        self._introduce(producer)
        while not (folder / "began").exists():
            time.sleep(_POLL_SECONDS)
        self._began = float((folder / "began").read_text())

    def run(self) -> None:
        """This function will emit everything that is left."""
        kind = PRODUCERS[self._producer]
        if kind is Kind.ASYNC:
            asyncio.run(self._async())
        elif kind is Kind.BUFFERED:
            self._buffered()
        else:
            emitter = Emitter.from_env()
            self._threads(emitter, self._producer, forks=self._producer == PARENT)
            emitter.close()

    def _threads(self, emitter: Emitter, producer: int, *, forks: bool = False) -> None:
        lanes = self._lanes(producer, Lane)
        threads = [threading.Thread(target=lane.run, args=(emitter.emit,)) for lane in lanes]
        for thread in threads:
            thread.start()
        if forks:
            # By then threads are in the middle of emit, with its connections, locks and files.
            time.sleep(_IN_USE_SECONDS)
            self._look_after_children(emitter)
        for thread in threads:
            thread.join()

    def _look_after_children(self, emitter: Emitter) -> None:
        """Forks them, and again whoever is killed, as a server with workers does."""
        living = {self._fork(emitter, child): child for child in CHILDREN}
        while living:
            pid, status = os.waitpid(-1, 0)
            child = living.pop(pid)
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                living[self._fork(emitter, child)] = child
            elif status:
                raise RuntimeError(f"child {child} ended with {status}")

    def _fork(self, emitter: Emitter, child: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            self._introduce(child)
            self._threads(emitter, child)
            code = 0
        except BaseException:
            logging.getLogger("chaos").exception("child %d failed", child)
        finally:
            # Without close and atexit: what emit returned for is on the stream or on the disk.
            os._exit(code)

    def _buffered(self) -> None:
        emitter = BufferedEmitter.from_env()
        lanes = self._lanes(self._producer, BufferedLane)
        for lane in lanes:
            lane.emitter = emitter
        threads = [threading.Thread(target=lane.run, args=(emitter.emit,)) for lane in lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        report = emitter.close()
        lanes[0].book.closed(report.accepted, report.delivered, len(report.failed))
        if not report.failed:
            for lane in lanes:
                lane.book.flushed()

    async def _async(self) -> None:
        # What holds up the loop holds up the whole app: it is watched by a task of its own.
        watch = asyncio.create_task(_watch_loop(loop_path(self._folder, self._producer)))
        lanes = self._lanes(self._producer, Lane)
        async with AsyncEmitter.from_env() as emitter:
            await asyncio.gather(*(lane.run_task(emitter) for lane in lanes))
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch

    def _lanes(self, producer: int, kind: type[ALane]) -> list[ALane]:
        count = LANES[PRODUCERS[producer]]
        return [kind(self._plan, self._folder, producer, lane, self._began) for lane in range(count)]

    def _introduce(self, producer: int) -> None:
        start_scheduler_clock(clock_path(self._folder, producer))
        if producer not in CHILDREN:
            # A child writes to its parent's file.
            note_fsyncs(fsync_path(self._folder, producer))
        written = self._folder / f".pid-{producer}"
        written.write_text(str(os.getpid()))
        written.rename(pid_path(self._folder, producer))


async def _watch_loop(path: Path) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    while True:
        due = time.monotonic_ns() + 1_000_000
        await asyncio.sleep(0.001)
        woken = time.monotonic_ns()
        if woken - due > 5_000_000:
            os.write(file, b"%d %d\n" % (due, woken))


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("seed", "events", "producer"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(process)d %(name)s %(levelname)s %(message)s",
    )
    plan = Plan(given.seed, given.events, given.seconds, ())
    Process(plan, given.folder, given.producer).run()


if __name__ == "__main__":
    _main()
