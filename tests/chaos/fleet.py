"""The run's own programs: workers, beat, producers. Whoever dies is started again, as a supervisor does."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from tests.chaos.failpoints import Action
from tests.chaos.world import World
from worker.dev import _processes

CHILDREN = 4


@dataclass
class Member:
    """One place in the fleet and the process that fills it now."""

    name: str
    start: Callable[[], _processes.OwnedProcess]
    process: _processes.OwnedProcess
    may_end: bool = False
    """A producer that has sent everything ends with 0 and stays away."""
    killed: bool = False
    done: bool = False
    exits: list[int] = field(default_factory=list)

    def pids(self) -> list[int]:
        """This function will list the pool processes below."""
        return _processes.descendants(self.process.pid) if self.process.running else []


class Fleet:
    """Starts the programs, keeps them alive, and hurts them when told to."""

    def __init__(self, world: World, *, books_seconds: int, note: Callable[[str], None]) -> None:
        # Often enough that periodic jobs run, collide and are killed in the middle.
        self._periods = {
            "USAGE_AUDIT_INTERVAL_SECONDS": "30",
            "USAGE_RECONCILE_INTERVAL_SECONDS": "15",
            "USAGE_BOOKS_INTERVAL_SECONDS": str(books_seconds),
        }
        self._world = world
        self._note = note
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._members: list[Member] = []
        self._watch = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self.logs = world.folder / "logs"
        self.logs.mkdir()
        self.failpoints = world.folder / "failpoints"
        (self.failpoints / "fired").mkdir(parents=True)
        self._watch.start()

    def add_worker(self, name: str) -> None:
        """This function will start a Celery worker with failpoints."""
        world = self._world
        environ = {
            **world.worker_environ(),
            "CHAOS_FAILPOINTS": str(self.failpoints),
            "CHAOS_PORTS": f"{world.worker_stream.port},{world.worker_tables.port}",
            **self._periods,
        }
        command = ["-m", "celery", "-A", "tests.chaos.app", "worker", "-n", f"{name}@%h"]
        self._add(name, [*command, "--concurrency", str(CHILDREN), "--loglevel", "INFO"], environ)

    def add_beat(self, name: str) -> None:
        """This function will start a beat."""
        environ = {**self._world.worker_environ(), **self._periods}
        self._add(name, ["-m", "celery", "-A", "worker.app", "beat"], environ)

    def add_producer(self, name: str, arguments: list[str]) -> None:
        """This function will start a producer; it ends when it has sent everything."""
        command = ["-m", "tests.chaos.producer", *arguments]
        self._add(name, command, self._world.producer_environ(), may_end=True)

    def _add(self, name: str, command: list[str], environ: dict[str, str], *, may_end: bool = False) -> None:
        log = self.logs / f"{name}.log"

        def start() -> _processes.OwnedProcess:
            return _processes.OwnedProcess(
                [sys.executable, *command],
                log=log,
                guard=self._world.guard,
                env=environ,
                cwd=self._world.folder,
            )

        with self._lock:
            self._members.append(Member(name, start, start(), may_end))

    def remove(self, name: str) -> None:
        """This function will stop one member for good."""
        with self._lock:
            member = self._named(name)
            self._members.remove(member)
        member.process.stop(5)

    def kill(self, name: str) -> str:
        """This function will kill -9 a member with all its children; the supervisor starts another."""
        with self._lock:
            member = self._named(name)
            member.killed = True
            for pid in (member.process.pid, *member.pids()):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        return f"{name} {member.process.pid}"

    def kill_child(self, pid: int) -> None:
        """This function will kill -9 one pool process."""
        os.kill(pid, signal.SIGKILL)

    def choose_child(self, chance: random.Random) -> int | None:
        """This function will choose a pool process, half of the time one that is draining."""
        with self._lock:
            children = [pid for one in self._members if one.name.startswith("worker") for pid in one.pids()]
        if not children:
            return None
        with contextlib.suppress(psycopg.Error):
            draining = sorted(set(self._world.holders().values()) & set(children))
            if draining and chance.random() < 0.5:
                return chance.choice(draining)
        return chance.choice(sorted(children))

    def pause_child(self, pid: int, seconds: float) -> None:
        """This function will stop one process with all its threads for so long."""
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)

    def arm(self, boundary: str, action: Action) -> Path:
        """This function will arm a failpoint and return the file that goes away when it happens."""
        armed = self.failpoints / f"{boundary}.{action}"
        armed.touch()
        return armed

    def names(self, prefix: str) -> list[str]:
        """This function will list the members whose names begin so."""
        with self._lock:
            return [member.name for member in self._members if member.name.startswith(prefix)]

    def is_ready(self) -> bool:
        """This function will say whether every worker has said that it is ready."""
        logs = [self.logs / f"{name}.log" for name in self.names("worker")]
        return all(re.search(r"\bready\b", log.read_text(errors="replace")) for log in logs)

    def emitting(self) -> bool:
        """This function will say whether a producer still has something to send."""
        with self._lock:
            return any(member.may_end and not member.done for member in self._members)

    def exits(self) -> dict[str, list[int]]:
        """This function will return how members ended that nobody had killed."""
        with self._lock:
            return {member.name: list(member.exits) for member in self._members if member.exits}

    def stop(self) -> None:
        """This function will stop everything: workers in order, so that they give their shards back."""
        self._stop.set()
        self._watch.join(10)
        with self._lock:
            members, self._members = self._members, []
        for member in members:
            member.process.ask()
        for member in members:
            member.process.stop(8)

    def _named(self, name: str) -> Member:
        return next(member for member in self._members if member.name == name)

    def _supervise(self) -> None:
        while not self._stop.wait(0.2):
            with self._lock:
                for member in self._members:
                    self._look_after(member)

    def _look_after(self, member: Member) -> None:
        code = member.process.returncode
        if code is None or member.done:
            return
        if member.may_end and code == 0:
            member.done = True
            return
        if not member.killed:
            member.exits.append(code)
            self._note(f"{member.name} ended by itself with {code}; started again")
        member.killed = False
        # Whatever it forked goes with it, as it would with a container.
        member.process.stop(1)
        member.process = member.start()
