"""One file of a spool, which exactly one process holds: by its lock, which ends with the process.

A segment `NAME.spool` may have `NAME.pos` beside it, how much of it was acknowledged, and leaves behind
`NAME.OFFSET.bad` with bytes that were no event.
"""

import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, Self

from producers import _spool_format as layout
from producers._ids import now_ns

SUFFIX: Final = ".spool"
POSITION_SUFFIX: Final = ".pos"
BAD_SUFFIX: Final = ".bad"
_MODE: Final = 0o600
_CREATE: Final = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
_ATTEMPTS: Final = 10
# macOS has only the other one.
_fdatasync: Final = getattr(os, "fdatasync", os.fsync)
_log: Final = logging.getLogger("producers.spool")


class UnknownVersion(Exception):
    """A segment was written by a newer release: it is left alone."""


class Stretch(NamedTuple):
    """What comes next in a segment: events, and where they end."""

    events: list[layout.Kept]
    end: int


class Segment:
    """An open and locked segment. `write` needs a lock around it; `sync` brings its own."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._pid = os.getpid()
        self._syncing = threading.Lock()
        self.size = self.synced = os.fstat(descriptor).st_size
        self.position = 0
        self.quarantined = 0
        """Bytes that were set aside since it was opened."""

    @classmethod
    def create(cls, directory: Path) -> Self:
        """This function will make and lock an empty segment, whose name lasts; raises OSError."""
        for _ in range(_ATTEMPTS):
            name = f"{now_ns():020d}-{os.getpid()}-{os.urandom(4).hex()}{SUFFIX}"
            with FORKING:
                descriptor = os.open(directory / name, _CREATE, _MODE)
                _OPEN.add(descriptor)
            if not _lock(descriptor, directory / name):
                # Somebody looked at the empty file before it was locked.
                continue
            segment = cls(directory / name, descriptor)
            try:
                # Its bytes reach the disk with the first record.
                segment.write(layout.header())
                fsync_directory(directory)
            except BaseException:
                with suppress(OSError):
                    (directory / name).unlink()
                segment.release()
                raise
            segment.position = layout.HEADER_BYTES
            return segment
        raise OSError(f"no new file could be locked in {directory}")

    @classmethod
    def take(cls, path: Path) -> Self | None:
        """This function will open a segment that nobody holds; None where somebody does, or it is gone.

        Raises UnknownVersion, or OSError.
        """
        with FORKING:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            _OPEN.add(descriptor)
        if not _lock(descriptor, path):
            return None
        segment = cls(path, descriptor)
        try:
            head = os.pread(descriptor, layout.HEADER_BYTES, 0)
            segment.position = cls.start_of(path, head, segment.size)
        except BaseException:
            segment.release()
            raise
        return segment

    @staticmethod
    def start_of(path: Path, head: bytes, size: int) -> int:
        """This function will return where begins what was not acknowledged; raises UnknownVersion."""
        version = layout.version_of(head)
        if version not in (None, layout.VERSION):
            raise UnknownVersion(f"{path.name} has version {version}, this release knows {layout.VERSION}")
        # A spoilt header is set aside like every other damage.
        first = 0 if version is None else layout.HEADER_BYTES
        return max(first, min(_position_of(path), size))

    def write(self, data: bytes) -> int:
        """This function will append `data` and return where it ends; raises OSError where it did not."""
        before = self.size
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._descriptor, before)
            raise
        self.size = before + len(data)
        return self.size

    def is_intact(self) -> bool:
        """This function will tell whether it ends where the last whole write ended."""
        return os.fstat(self._descriptor).st_size == self.size

    def give_up(self) -> None:
        """This function will take the file as it is, after an error: nothing more may follow."""
        self.size = self.synced = os.fstat(self._descriptor).st_size

    def sync(self, end: int) -> None:
        """This function will return once everything before `end` is on the disk; raises OSError.

        Those who wait for one fsync share the next one.
        """
        if self.synced >= end:
            return
        with self._syncing:
            if self.synced >= end:
                return
            written = self.size
            _fdatasync(self._descriptor)
            self.synced = written

    def stretches(self, events: int, size: int) -> Iterator[Stretch]:
        """This function will read what was not acknowledged, in runs of `events` and some `size` bytes.

        Bytes that are no event go to a file beside the segment first. Raises OSError.
        """
        # Before the first sync nothing behind the header is on the disk for certain.
        start = self.position
        limit = max(self.synced, start)
        data = os.pread(self._descriptor, limit - start, start)
        run: list[layout.Kept] = []
        began = 0
        for begin, end, event in layout.pieces(data):
            if event is None:
                self._set_aside(start + begin, data[begin:end])
                continue
            run.append(event)
            if len(run) >= events or end - began >= size:
                yield Stretch(run, start + end)
                run, began = [], end
        if start + len(data) > self.position:
            yield Stretch(run, start + len(data))

    def advance(self, position: int) -> None:
        """This function will note that everything before `position` was acknowledged; raises OSError."""
        self.position = position
        _write_whole(self.path.with_suffix(POSITION_SUFFIX), layout.position_record(position), synced=False)

    def remove(self) -> None:
        """This function will delete the segment, all of which was acknowledged; raises OSError."""
        beside = self.path.with_suffix(POSITION_SUFFIX)
        # The position first: a segment that comes back after a power cut must not be sent from the start.
        _write_whole(beside, layout.position_record(self.position), synced=True)
        self.path.unlink(missing_ok=True)
        beside.unlink(missing_ok=True)
        fsync_directory(self.path.parent)
        self.release()

    def release(self) -> None:
        """This function will let go of the segment: another process may take it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0 and self._pid == os.getpid():
            _close(descriptor)

    def __del__(self) -> None:
        # Of an emitter that nobody closed.
        self.release()

    def _set_aside(self, offset: int, bad: bytes) -> None:
        beside = self.path.with_name(f"{self.path.stem}.{offset}{BAD_SUFFIX}")
        _write_whole(beside, bad, synced=True)
        fsync_directory(self.path.parent)
        self.quarantined += len(bad)
        _log.warning(
            "spool segment %s: %d bytes from %d are %s and were set aside in %s",
            self.path.name,
            len(bad),
            offset,
            "a write that was cut off" if layout.is_torn(bad) else "no event",
            beside.name,
        )


def age_of(path: Path) -> float:
    """This function will return the seconds since the segment was made, by its name; 0 for another name."""
    digits = path.name.partition("-")[0]
    return max(0.0, (now_ns() - int(digits)) / 1e9) if digits.isdecimal() else 0.0


def is_held(path: Path) -> bool:
    """This function will tell whether a process holds the segment: the one that writes or that replays it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def fsync_directory(directory: Path) -> None:
    """This function will make the names of new and deleted files last; raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> bool:
    """Whether it is locked now; if not, it is closed."""
    locked = False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it may have deleted it meanwhile.
        locked = os.path.samestat(os.fstat(descriptor), path.stat())
    except (BlockingIOError, FileNotFoundError):
        pass
    finally:
        if not locked:
            _close(descriptor)
    return locked


def _position_of(path: Path) -> int:
    try:
        return layout.position_of(path.with_suffix(POSITION_SUFFIX).read_bytes())
    except FileNotFoundError:
        return 0


def _write_whole(path: Path, content: bytes, *, synced: bool) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, _MODE)
    try:
        os.pwrite(descriptor, content, 0)
        if synced:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _close(descriptor: int) -> None:
    with FORKING:
        _OPEN.discard(descriptor)
        os.close(descriptor)


# A child shares its parent's locks as long as it has their descriptors: it closes them first of all.
_OPEN: Final[set[int]] = set()
FORKING: Final = threading.RLock()


def _let_go() -> None:
    for descriptor in _OPEN:
        with suppress(OSError):
            os.close(descriptor)
    _OPEN.clear()
    FORKING.release()


os.register_at_fork(before=FORKING.acquire, after_in_parent=FORKING.release, after_in_child=_let_go)
