"""What a lane of a producer writes down: each line is one write, done before anything else happens.

`T` an event is about to be emitted; `A` emit returned its id; `R` it raised; `F` a flush said that everything
before is safe; `C` what `close` reported. A `kill -9` leaves whole lines, since the kernel has them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from uuid import UUID


class Call(NamedTuple):
    """One call of emit that returned: when, in ns of the monotonic clock and in ms of the wall clock."""

    number: int
    event_id: str
    began: int
    ended: int
    wall_began: int
    wall_ended: int
    pid: int


class Book:
    """Written by one lane; a successor goes on in the same file."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._pid = os.getpid()

    def tried(self, number: int) -> None:
        """This function will note that an event is about to be emitted."""
        self._write(f"T {number}")

    def returned(self, number: int, event_id: UUID, times: tuple[int, int, int, int]) -> None:
        """This function will note the id that emit returned, and the times of the call."""
        self._write(f"A {number} {event_id} {' '.join(map(str, times))} {self._pid}")

    def raised(self, number: int, error: Exception) -> None:
        """This function will note that emit raised."""
        self._write(f"R {number} {type(error).__name__}: {' '.join(str(error).split())}")

    def flushed(self) -> None:
        """This function will note that everything that was taken before is safe."""
        self._write(f"F {self._pid}")

    def closed(self, accepted: int, delivered: int, failed: int) -> None:
        """This function will note what the emitter's report said."""
        self._write(f"C {accepted} {delivered} {failed} {self._pid}")

    def _write(self, line: str) -> None:
        os.write(self._file, line.encode() + b"\n")


@dataclass
class Read:
    """What a book says."""

    tried: list[int] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    raised: dict[int, str] = field(default_factory=dict)
    safe: set[int] = field(default_factory=set)
    """Those numbers that came before a flush of the same process which was confirmed."""
    reports: list[tuple[int, ...]] = field(default_factory=list)


def read(path: Path) -> Read:
    """This function will read a book, an empty one where there is none."""
    found = Read()
    since: list[Call] = []
    if not path.exists():
        return found
    for line in path.read_text().split("\n")[:-1]:
        mark, _, rest = line.partition(" ")
        if mark == "T":
            found.tried.append(int(rest))
        elif mark == "A":
            number, event_id, *times = rest.split()
            began, ended, wall_began, wall_ended, pid = map(int, times)
            found.calls.append(Call(int(number), event_id, began, ended, wall_began, wall_ended, pid))
            since.append(found.calls[-1])
        elif mark == "R":
            number, _, said = rest.partition(" ")
            found.raised[int(number)] = said
        elif mark == "F":
            found.safe.update(call.number for call in since if call.pid == int(rest))
            since.clear()
        else:
            found.reports.append(tuple(map(int, rest.split())))
    return found
