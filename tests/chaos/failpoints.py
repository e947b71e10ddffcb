"""Failpoints of the drain: every boundary, and what can happen to a process there.

The product has none of this in it. `tests.chaos.app` wraps the functions named here in the workers that the
suite starts. A failpoint is armed by a file `<boundary>.<action>` in a folder that all processes share: who
renames it, and only one can, is the one it happens to.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import importlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

# Longer than the lease of a shard (15 s) and the time until somebody rings for it (10 s): only then has
# another taken the shard when the paused process goes on.
PAUSE_SECONDS: Final = 27.0


class Action(enum.StrEnum):
    """What happens at a boundary."""

    KILL = "kill9"
    RAISE = "exception"
    PAUSE = "pause"
    DROP = "drop"


class When(enum.StrEnum):
    """On which side of the function."""

    BEFORE = "before"
    AFTER = "after"
    SENT = "sent"
    """Only for a commit: the server has it, the answer is not read."""


@dataclass(frozen=True, slots=True)
class Boundary:
    """A place in the drain: `module:name` or `module:Class.name`, and the side of it."""

    name: str
    path: str
    when: When
    ours_only: bool = False
    """Only where this thread has just stored a batch: other transactions commit too."""


BOUNDARIES: Final = (
    Boundary("take-lease", "worker.ingest.leases:acquire_lease", When.AFTER),
    Boundary("adopt", "worker.valkey:StreamReader.adopt", When.AFTER),
    Boundary("read", "worker.valkey:StreamReader.read", When.AFTER),
    Boundary("decode", "worker.ingest.consumer:prepare", When.AFTER),
    Boundary("begin", "worker.ingest.operations:ingest_batch", When.BEFORE),
    Boundary("stage", "worker.ingest.plain_rows:stage", When.AFTER),
    Boundary("insert", "worker.ingest.plain_rows:store", When.AFTER),
    Boundary("dead-letter", "worker.ingest.operations:put_aside", When.AFTER),
    Boundary("before-commit", "worker.ingest.operations:ingest_batch", When.AFTER),
    Boundary("commit", "psycopg:Connection.commit", When.SENT, ours_only=True),
    Boundary("after-commit", "psycopg:Connection.commit", When.AFTER, ours_only=True),
    Boundary("mirror", "worker.valkey:StreamReader.advance", When.BEFORE),
    Boundary("after-mirror", "worker.valkey:StreamReader.advance", When.AFTER),
    Boundary("acknowledge", "worker.valkey:StreamReader.acknowledge", When.BEFORE),
    Boundary("release-lease", "worker.ingest.leases:release_lease", When.BEFORE),
)
_STORED: Final = threading.local()
_Function = Callable[..., Any]


class Injected(Exception):
    """An error that the suite raised."""


class UnknownBoundary(Exception):
    """A function that the table names does not exist: the product was renamed, and this table was not."""


class Failpoints:
    """The failpoints of one process; `ports` are those of the connections that an action may drop."""

    def __init__(self, folder: Path, ports: set[int]) -> None:
        self._folder = folder
        self._ports = ports

    def install(self) -> None:
        """This function will wrap every function of the table, or raise UnknownBoundary."""
        for boundary in BOUNDARIES:
            owner, name = _find(boundary.path)
            setattr(owner, name, self._wrapped(boundary, getattr(owner, name)))
        owner, name = _find("worker.ingest.operations:ingest_batch")
        setattr(owner, name, _noted(getattr(owner, name)))

    def _wrapped(self, boundary: Boundary, function: _Function) -> _Function:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            mine = not boundary.ours_only or getattr(_STORED, "batch", False)
            if mine and boundary.when is When.BEFORE:
                self._reach(boundary)
            elif mine and boundary.when is When.SENT and self._is_armed(boundary):
                return self._commit(boundary, args[0])
            answer = function(*args, **kwargs)
            if mine and boundary.when is When.AFTER:
                _STORED.batch = False if boundary.ours_only else getattr(_STORED, "batch", False)
                self._reach(boundary)
            return answer

        return wrapper

    def _is_armed(self, boundary: Boundary) -> bool:
        return any((self._folder / f"{boundary.name}.{action}").exists() for action in Action)

    def _reach(self, boundary: Boundary) -> None:
        action = self._claim(boundary)
        if action is not None:
            self._do(action)

    def _claim(self, boundary: Boundary) -> Action | None:
        for action in Action:
            armed = self._folder / f"{boundary.name}.{action}"
            with contextlib.suppress(FileNotFoundError):
                armed.rename(self._folder / "fired" / f"{armed.name}.{os.getpid()}")
                return action
        return None

    def _do(self, action: Action) -> None:
        match action:
            case Action.KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            case Action.RAISE:
                raise Injected("raised by the chaos suite")
            case Action.PAUSE:
                pause()
            case Action.DROP:
                self.drop_connections()

    def _commit(self, boundary: Boundary, connection: psycopg.Connection[Any]) -> None:
        """COMMIT is on its way and will take effect; what happens now happens before its answer is read."""
        _STORED.batch = False
        pgconn = connection.pgconn
        pgconn.send_query(b"COMMIT")
        while pgconn.flush():
            time.sleep(0.001)
        time.sleep(0.05)
        action = self._claim(boundary)
        if action is not None and action is not Action.RAISE:
            self._do(action)
        failed = False
        while (result := pgconn.get_result()) is not None:
            failed = failed or result.status != psycopg.pq.ExecStatus.COMMAND_OK
        if action is Action.RAISE:
            self._do(action)
        if failed or pgconn.status != psycopg.pq.ConnStatus.OK:
            raise psycopg.OperationalError("the connection was lost during COMMIT")

    def drop_connections(self) -> None:
        """This function will cut every connection of this process to the servers."""
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                # A copy of the descriptor: closing it leaves the owner's alone, the shutdown does not.
                with socket.socket(fileno=os.dup(int(name))) as sock:
                    if sock.family == socket.AF_INET and sock.getpeername()[1] in self._ports:
                        sock.shutdown(socket.SHUT_RDWR)


def check() -> None:
    """This function will raise UnknownBoundary where the table names a function that does not exist."""
    for boundary in BOUNDARIES:
        _find(boundary.path)


def pause() -> None:
    """This function will stop this process, threads and all, for longer than a lease lasts."""
    command = ["/bin/sh", "-c", f"sleep {PAUSE_SECONDS}; kill -CONT {os.getpid()}"]
    subprocess.Popen(command, stdin=subprocess.DEVNULL, close_fds=True)
    os.kill(os.getpid(), signal.SIGSTOP)


def _noted(function: _Function) -> _Function:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        _STORED.batch = False
        answer = function(*args, **kwargs)
        _STORED.batch = True
        return answer

    return wrapper


def _find(path: str) -> tuple[Any, str]:
    module_name, _, qualified = path.partition(":")
    *owners, name = qualified.split(".")
    try:
        owner: Any = importlib.import_module(module_name)
        for part in owners:
            owner = getattr(owner, part)
        getattr(owner, name)
    except (ImportError, AttributeError) as error:
        raise UnknownBoundary(f"{path}: {error}. Correct BOUNDARIES in tests/chaos/failpoints.py.") from error
    return owner, name
