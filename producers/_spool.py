"""The spool: a directory in which events are safe while the stream cannot take them.

Several processes may share the directory. Each writes segments of its own, and the segments of those that
have ended belong to whoever locks them first. Nothing is deleted before the server has acknowledged it.
"""

import errno
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from producers import _spool_format as layout
from producers._config import InvalidConfiguration
from producers._routes import Addressed
from producers._spool_segment import (
    BAD_SUFFIX,
    SUFFIX,
    Segment,
    UnknownVersion,
    age_of,
    is_held,
)

_SEGMENT_BYTES: Final = 8 * 1024 * 1024
# How long the sizes of the other processes' files are believed; near the bound they are looked at each time.
_BELIEVED_SECONDS: Final = 0.25
_NEAR: Final = 0.9
_log: Final = logging.getLogger("producers.spool")


class SpoolFailed(Exception):
    """The spool did not keep the events; the message says why, and names no event."""


class SegmentState(NamedTuple):
    """What `usage-worker spool status` shows of one segment."""

    name: str
    events: int
    bytes: int
    damaged_bytes: int
    """Of those bytes; they are told apart when the segment is replayed."""
    age_seconds: float
    held: bool
    """By a living process, which writes or replays it."""


class SpoolState(NamedTuple):
    """What is in a spool's directory; `quarantined` are files with bytes that were no event."""

    segments: tuple[SegmentState, ...]
    quarantined_files: int
    quarantined_bytes: int


class Spool:
    """This process's part of the directory. `keep` may be called by any thread, the rest by one."""

    def __init__(self, directory: str, *, max_mb: float) -> None:
        """This function will describe the spool; raises InvalidConfiguration for a bound that is none."""
        self.directory = Path(directory)
        if not 0 < max_mb < 2**40:
            raise InvalidConfiguration(
                [f"spool_max_mb is {max_mb!r}; it is a number of MiB above 0, as in 1024"]
            )
        self._most_bytes = int(max_mb * 1024 * 1024)
        self._lock = threading.Lock()
        self._active: Segment | None = None
        self._sealed: list[Segment] = []
        self._known_bytes = 0
        self._known_at = -_BELIEVED_SECONDS

    def prepare(self) -> None:
        """This function will check the directory, or make it with mode 0700.

        Raises InvalidConfiguration, naming USAGE_SPOOL_DIR, where this process could not keep events there.
        """
        _prepare(self.directory)

    def keep(self, events: Sequence[Addressed]) -> None:
        """This function will return once the events are on the disk; raises SpoolFailed, and they are not."""
        try:
            for data in _cut([layout.record(event) for event in events]):
                self._append(data)
        except OSError as error:
            reason = f"{errno.errorcode.get(error.errno or 0, 'error')}: {error.strerror or error}"
            raise SpoolFailed(f"{self.directory} (USAGE_SPOOL_DIR): {reason}") from error

    @property
    def holds_events(self) -> bool:
        """Whether this process has written something that was not acknowledged yet."""
        return self._active is not None or bool(self._sealed)

    def segments(self, *, own: bool = True) -> Iterator[Segment]:
        """This function will yield what waits, oldest first and locked; the caller ends each with `done`.

        First what this process wrote, then what nobody holds, of those that have ended.
        """
        if own:
            with self._lock:
                mine = [*self._sealed, *([self._active] if self._active is not None else [])]
            yield from mine
        for path in _paths(self.directory):
            try:
                segment = Segment.take(path)
            except UnknownVersion as problem:
                _log.warning("spool: %s", problem)
                continue
            except PermissionError as problem:
                _log.warning("spool segment %s: %s; its owner has to replay it", path.name, problem.strerror)
                continue
            if segment is not None:
                yield segment

    def done(self, segment: Segment) -> bool:
        """This function will delete a segment that was acknowledged to its end, and tell whether it was.

        Otherwise a segment of another process is let go, and one's own stays. Raises OSError.
        """
        with self._lock:
            mine = segment is self._active or segment in self._sealed
            if segment.position < segment.size:
                if not mine:
                    segment.release()
                return False
            if segment is self._active:
                self._active = None
            if segment in self._sealed:
                self._sealed.remove(segment)
            self._known_at = -_BELIEVED_SECONDS
        segment.remove()
        return True

    def close(self) -> None:
        """This function will let go of every segment; what they hold waits for another process."""
        with self._lock:
            for segment in (*self._sealed, *([self._active] if self._active is not None else [])):
                segment.release()
            self._sealed.clear()
            self._active = None

    def _append(self, data: bytes) -> None:
        with self._lock:
            self._check_room(len(data))
            segment = self._segment_for(len(data))
            try:
                end = segment.write(data)
            except OSError:
                if not segment.is_intact():
                    self._seal(segment, broken=True)
                raise
            self._known_bytes += len(data)
        try:
            segment.sync(end)
        except OSError:
            # What the disk has of it is unknown: it stays to be read, and nothing more goes there.
            with self._lock:
                self._seal(segment, broken=True)
            raise

    def _segment_for(self, size: int) -> Segment:
        if self._active is not None and self._active.size + size > _SEGMENT_BYTES:
            self._seal(self._active)
        if self._active is None:
            self._active = Segment.create(self.directory)
        return self._active

    def _seal(self, segment: Segment, *, broken: bool = False) -> None:
        if broken:
            segment.give_up()
        if segment is self._active:
            self._sealed.append(segment)
            self._active = None

    def _check_room(self, size: int) -> None:
        now = time.monotonic()
        near = self._known_bytes + size > _NEAR * self._most_bytes
        if near or now - self._known_at > _BELIEVED_SECONDS:
            self._known_bytes, self._known_at = _bytes_in(self.directory), now
        if self._known_bytes + size > self._most_bytes:
            raise OSError(
                errno.EDQUOT,
                f"the spool is full: {self._known_bytes:,} of {self._most_bytes:,} bytes (spool_max_mb)",
            )


def state_of(directory: Path) -> SpoolState:
    """This function will say what is in a spool's directory; it may be in use. Raises OSError."""
    states = []
    for path in _paths(directory):
        with suppress(FileNotFoundError):
            states.append(_state(path))
    bad = [path.stat().st_size for path in directory.iterdir() if path.suffix == BAD_SUFFIX]
    return SpoolState(tuple(states), len(bad), sum(bad))


def _state(path: Path) -> SegmentState:
    data = path.read_bytes()
    try:
        start = Segment.start_of(path, data[: layout.HEADER_BYTES], len(data))
    except UnknownVersion:
        return SegmentState(path.name, 0, len(data), 0, age_of(path), is_held(path))
    found = list(layout.pieces(data, start))
    return SegmentState(
        name=path.name,
        events=sum(piece.event is not None for piece in found),
        bytes=len(data) - start,
        damaged_bytes=sum(piece.end - piece.begin for piece in found if piece.event is None),
        age_seconds=age_of(path),
        held=is_held(path),
    )


def _cut(records: Sequence[bytes]) -> Iterator[bytes]:
    """Joins records to pieces that fit into a segment."""
    piece: list[bytes] = []
    size = 0
    for one in records:
        if piece and size + len(one) > _SEGMENT_BYTES - layout.HEADER_BYTES:
            yield b"".join(piece)
            piece, size = [], 0
        piece.append(one)
        size += len(one)
    if piece:
        yield b"".join(piece)


def _paths(directory: Path) -> list[Path]:
    """By their names, which begin with the time at which they were made."""
    return sorted(path for path in directory.iterdir() if path.suffix == SUFFIX)


def _bytes_in(directory: Path) -> int:
    total = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.endswith((SUFFIX, BAD_SUFFIX)):
                with suppress(FileNotFoundError):
                    total += entry.stat().st_size
    return total


def _prepare(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = directory.stat().st_uid
        if owner != os.geteuid():
            raise PermissionError(
                errno.EPERM, f"it belongs to user {owner}; name a directory in it, which is then made"
            )
        probe = directory / f".probe-{os.getpid()}-{os.urandom(4).hex()}"
        descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            probe.unlink()
        finally:
            os.close(descriptor)
    except OSError as error:
        raise InvalidConfiguration(
            [
                f"USAGE_SPOOL_DIR is {str(directory)!r}, where events cannot be kept: "
                f"{error.strerror or error}; name a directory that this process owns and may "
                "write to, as in /var/spool/usage-myapp"
            ]
        ) from error
