"""How far a file has been sent, so that `emit --state` goes on there, killed at whatever moment.

A file of events without ids cannot be sent twice without being counted twice, unless each line keeps the id
that it had the first time. So the first run draws one id for itself and stores it before anything is sent;
each line's id follows from that id and the line's place. What is sent again after a kill is then the same
event, and the position that is stored after each batch only saves time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID, uuid4

from worker.entrypoints.cli._events_file import Source
from worker.errors import ConfigurationError

_VERSION = 1
_PIECE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class State:
    """What one state file says."""

    run_id: UUID
    offset: int = 0
    """Bytes that are done with: sent and acknowledged, or refused."""
    lines: int = 0
    sha256: str = hashlib.sha256().hexdigest()
    """Of these bytes: it tells this file from another one."""


class HashingSource:
    """Hands lines on, and knows how many bytes have passed and what their hash is."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._hash = self._hash_before = hashlib.sha256()
        self._offset_before = 0
        self._line_ended = True
        self.offset = 0

    def readline(self, limit: int = -1, /) -> bytes:
        """This function will read on like the file itself."""
        data = self._source.readline(limit)
        if data:
            if self._line_ended:
                self._hash_before, self._offset_before = self._hash.copy(), self.offset
            self._line_ended = data.endswith(b"\n")
            self._hash.update(data)
            self.offset += len(data)
        return data

    @property
    def sha256(self) -> str:
        """The hash of all bytes up to here."""
        return self._hash.hexdigest()

    def step_back(self) -> None:
        """This function will count the last line as unread: its writer has not come to its end yet."""
        self._hash, self.offset = self._hash_before.copy(), self._offset_before

    def skip(self, state: State, name: str) -> None:
        """This function will pass over what is done with; raises ConfigurationError for another file."""
        while self.offset < state.offset:
            if not self.readline(min(_PIECE, state.offset - self.offset)):
                break
        # Whatever follows is a line of its own, even if the last one that was sent had no end.
        self._line_ended = True
        if (self.offset, self.sha256) != (state.offset, state.sha256):
            raise ConfigurationError(
                f"--state {name}: belongs to another file: its first {state.offset:,} bytes were sent, and "
                "this one begins differently.\nNext step: name the file that the state was made for, or a "
                "new state file for this one."
            )


class StateFile:
    """One state file; a change is on disk before the call returns, and a kill leaves the old or the new."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.state = _read(path) if path.exists() else self._create()

    def advance(self, source: HashingSource, *, lines: int) -> None:
        """This function will store that everything is done with that `source` has handed out."""
        state = replace(self.state, offset=source.offset, sha256=source.sha256, lines=lines)
        if state != self.state:
            self._write(state, os.replace)
            self.state = state

    def _create(self) -> State:
        state = State(run_id=uuid4())
        try:
            # A link fails where a file is: of two that start at once, both go on with one id.
            self._write(state, os.link)
        except FileExistsError:
            return _read(self._path)
        return state

    def _write(self, state: State, place: Callable[[Path, Path], None]) -> None:
        words = {"version": _VERSION, "run_id": str(state.run_id)}
        numbers = {name: getattr(state, name) for name in ("offset", "lines", "sha256")}
        temporary = self._path.with_name(f".{self._path.name}.{uuid4().hex}")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump({**words, **numbers}, file)
                file.flush()
                os.fsync(file.fileno())
            try:
                place(temporary, self._path)
            finally:
                temporary.unlink(missing_ok=True)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except FileExistsError:
            raise
        except OSError as error:
            raise ConfigurationError(
                f"--state {self._path}: cannot be written ({error.strerror}).\n"
                "Next step: name a file in a directory that this user may write to."
            ) from error


def _read(path: Path) -> State:
    try:
        found = json.loads(path.read_bytes())
        if found["version"] != _VERSION:
            raise ValueError("of another version")
        state = State(
            run_id=UUID(found["run_id"]),
            offset=int(found["offset"]),
            lines=int(found["lines"]),
            sha256=str(found["sha256"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"--state {path}: is no state of usage-worker emit ({type(error).__name__}).\n"
            "Next step: name another file; it is made where there is none."
        ) from error
    return state
