"""A producer's own book: which steps it tried, and which were acknowledged. Append-only, a line per fact."""

from __future__ import annotations

import os
from pathlib import Path


class Ledger:
    """Written by one producer; each line is one write, so that a `kill -9` leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def tried(self, step: int) -> None:
        """This function will note that a step is about to be sent."""
        os.write(self._file, b"T %d\n" % step)

    def acknowledged(self, step: int, *, attempts: int) -> None:
        """This function will note that the server acknowledged all of a step."""
        os.write(self._file, b"A %d %d\n" % (step, attempts))

    def close(self) -> None:
        """This function will close the file."""
        os.close(self._file)


class Read:
    """What a ledger says: the steps tried, and the attempts of those that were acknowledged."""

    def __init__(self, path: Path) -> None:
        self.tried: set[int] = set()
        self.acknowledged: dict[int, int] = {}
        if not path.exists():
            return
        for line in path.read_bytes().split(b"\n")[:-1]:
            word, *numbers = line.split()
            if word == b"T":
                self.tried.add(int(numbers[0]))
            else:
                self.acknowledged[int(numbers[0])] = int(numbers[1])
