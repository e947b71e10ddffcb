"""How much of a call's time the machine took: the scheduler in each producer, the disk beside them.

Both write what they saw as pairs of times in ns, each in one write: a process may be killed at any moment.
"""

from __future__ import annotations

import argparse
import bisect
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

_PAIR: Final = struct.Struct("<qq")
_SLEEP_NS: Final = 1_000_000
# A timer of Linux is late by 50 µs anyway.
_WORTH_NS: Final = 500_000
_PROBE_PAUSE: Final = 0.005
_PROBE_BYTES: Final = 512
_SLOW_NS: Final = 10_000_000


class Interval(NamedTuple):
    """Some time, in ns of the monotonic clock."""

    began: int
    ended: int


def start_scheduler_clock(path: Path) -> None:
    """This function will start a thread that sleeps 1 ms in a loop, and notes when it was woken too late.

    It wants what a caller of emit wants, a processor and the interpreter, at the same moments.
    """

    def tick() -> None:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        while True:
            due = time.monotonic_ns() + _SLEEP_NS
            time.sleep(_SLEEP_NS / 1e9)
            woken = time.monotonic_ns()
            if woken - due > _WORTH_NS:
                os.write(file, _PAIR.pack(due, woken))

    threading.Thread(target=tick, name="calibration", daemon=True).start()


def note_fsyncs(path: Path) -> None:
    """This function will have each fsync of this process noted, so that a slow call can be explained.

    It has to be called before the emitter is made. Nothing is excused by what it notes.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def noting(fsync: Callable[[int], None]) -> Callable[[int], None]:
        def noted(descriptor: int) -> None:
            began = time.monotonic_ns()
            try:
                fsync(descriptor)
            finally:
                os.write(file, _PAIR.pack(began, time.monotonic_ns()))

        return noted

    for name in ("fsync", "fdatasync"):
        setattr(os, name, noting(getattr(os, name)))


def probe_disk(folder: Path, path: Path) -> None:
    """This function will make and fsync a small file in `folder` until it is killed, and note what was slow.

    A disk that is busy holds up whoever makes a file or writes to one as well, not only who fsyncs it.
    """
    path_of_probe = folder / "disk-probe"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    while True:
        began = time.monotonic_ns()
        probe = os.open(path_of_probe, os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(probe, bytes(_PROBE_BYTES))
        os.fdatasync(probe)
        os.close(probe)
        ended = time.monotonic_ns()
        path_of_probe.unlink()
        if ended - began > _SLOW_NS:
            os.write(file, _PAIR.pack(began, ended))
        time.sleep(_PROBE_PAUSE)


class Clock:
    """What was noted, for questions about a call."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._intervals = sorted(
            Interval(*pair) for path in paths if path.exists() for pair in _pairs(path.read_bytes())
        )
        self._began = [one.began for one in self._intervals]
        self._longest = max((one.ended - one.began for one in self._intervals), default=0)

    def taken(self, began: int, ended: int) -> int:
        """This function will return how many ns of this time the machine gave to somebody else."""
        return sum(min(one.ended, ended) - max(one.began, began) for one in self._around(began, ended))

    def within(self, began: int, ended: int) -> list[Interval]:
        """This function will return every interval that has a part in this time."""
        return self._around(began, ended)

    def all_lengths(self) -> list[int]:
        """This function will return the length of every interval in ns."""
        return [one.ended - one.began for one in self._intervals]

    def _around(self, began: int, ended: int) -> list[Interval]:
        first = bisect.bisect_left(self._began, began - self._longest)
        last = bisect.bisect_right(self._began, ended)
        return [one for one in self._intervals[first:last] if one.ended > began and one.began < ended]


def covered(intervals: Iterable[Interval], began: int, ended: int) -> int:
    """This function will return how many ns of this time lie in at least one of the intervals."""
    total, until = 0, began
    for one in sorted(intervals):
        total += max(0, min(one.ended, ended) - max(one.began, until))
        until = max(until, one.ended)
    return total


def _pairs(data: bytes) -> list[tuple[int, int]]:
    whole = len(data) - len(data) % _PAIR.size
    return [(began, ended) for began, ended in _PAIR.iter_unpack(data[:whole])]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("path", type=Path)
    given = parser.parse_args()
    probe_disk(given.folder, given.path)
    sys.exit(0)
