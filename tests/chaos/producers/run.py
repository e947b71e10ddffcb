"""One run: servers, a worker, eight producers, the faults of the plan, and what is left of it all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
import redis

from tests.chaos.fleet import Fleet
from tests.chaos.monitor import DIFFERENCES
from tests.chaos.producers import emitting
from tests.chaos.producers.plan import CHILDREN, LANES, PRODUCERS, Hurt, Plan, Planned
from tests.chaos.world import World, entry, keys
from worker.dev import _processes

_SETTLE_SECONDS: Final = 90.0
_BOOKS_SECONDS: Final = 300
_MEMORY: Final = Path("/dev/shm")  # noqa: S108  a folder of its own is made there
_ROWS: Final = """
    SELECT id::text, user_id::text, feature, coalesce(provider, ''), coalesce(model, ''), input_tokens,
           output_tokens, tokens_used, cost_usd::text, cost_source,
           floor(extract(epoch FROM occurred_at) * 1000)::bigint,
           (metadata ->> 'producer')::int, (metadata ->> 'number')::int
      FROM platform_usage_logs
"""
_SUMS: Final = """
    SELECT user_id::text, feature, count(*), sum(input_tokens), sum(output_tokens), sum(cost_usd)::text
      FROM platform_usage_logs GROUP BY 1, 2
"""


class TimeLimit(Exception):
    """The run took longer than it may."""


@dataclass
class Record:
    """One fault as it happened: times in ns of the monotonic clock, as in the books."""

    planned: Planned
    began: int
    ended: int = 0
    said: list[str] = field(default_factory=list)


@dataclass
class Evidence:
    """What a run left behind."""

    plan: Plan
    began: int
    records: list[Record] = field(default_factory=list)
    notes: list[tuple[int, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    killed: set[int] = field(default_factory=set)
    """The processes that were killed with -9."""
    kills: int = 0
    flushes: list[tuple[int, str]] = field(default_factory=list)
    left_for_flush: int = 0
    """Events in the spool when every producer had ended."""
    spool_left: list[str] = field(default_factory=list)
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    sums: list[tuple[Any, ...]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    dead_letters: list[str] = field(default_factory=list)
    positions: list[dict[str, Any]] = field(default_factory=list)
    entries_added: int = 0
    logs: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    folder: Path = Path()
    """The books; they are read before the folder goes."""


class Run:
    """Carries out a plan; what is not done after `limit` seconds is given up."""

    def __init__(self, plan: Plan, *, limit: float, durability: str, keep: Path | None = None) -> None:
        self._plan = plan
        self._durability = durability
        self._keep = keep
        self._started = time.monotonic()
        self._deadline = self._started + limit
        self._producers: dict[int, _processes.OwnedProcess] = {}
        self._ended: set[int] = set()
        self._lock = threading.Lock()
        self.evidence = Evidence(plan, time.monotonic_ns())

    def carry_out(self, judge: Callable[[Evidence], None]) -> None:
        """This function will do the whole run and have the evidence judged."""
        evidence = self.evidence
        with World(events=self._plan.events, may_mount=False) as world, contextlib.ExitStack() as closing:
            fleet = Fleet(world, books_seconds=_BOOKS_SECONDS, note=self._note)
            self._books = evidence.folder = _folder_in_memory(world)
            closing.callback(shutil.rmtree, self._books, ignore_errors=True)
            self._spool = world.folder / "spool"
            probe = self._start_probe(world)
            try:
                self._live(world, fleet)
            except TimeLimit as error:
                evidence.errors.append(str(error))
            except Exception:  # noqa: BLE001  what the run left is looked at all the same
                evidence.errors.append(traceback.format_exc(limit=-5))
            finally:
                for process in (probe, *self._producers.values()):
                    process.stop(1)
                fleet.stop()
            self._read(world)
            judge(evidence)
            if self._keep is not None:
                shutil.copytree(self._books, self._keep, dirs_exist_ok=True)
                shutil.copytree(fleet.logs, self._keep / "workers", dirs_exist_ok=True)

    def _live(self, world: World, fleet: Fleet) -> None:
        fleet.add_worker("worker-0")
        fleet.add_beat("beat")
        self._wait(fleet.is_ready, seconds=90, what="the worker")
        parents = [producer for producer in range(len(PRODUCERS)) if producer not in CHILDREN]
        for producer in parents:
            self._start(world, producer)
        # A busy machine takes seconds to start them, and no fault may come before they emit.
        self._wait(
            lambda: all(emitting.pid_path(self._books, producer).exists() for producer in parents),
            seconds=60,
            what="the producers",
        )
        began = time.monotonic()
        emitting.let_begin(self._books, began)
        self._mark("start")
        flushing: list[threading.Thread] = []
        for planned in self._plan.faults[:-1]:
            self._sleep_until(began + planned.at)
            self._hurt(world, planned)
            if planned.kill is not None:
                flushing.append(threading.Thread(target=self._flush, args=(world,), daemon=True))
                flushing[-1].start()
        self._wait(self._all_wait, what="the producers to have emitted all but the last events")
        for thread in flushing:
            thread.join(30)
        self._mark("emitting")
        # The stream is away while they end: what they have then, `spool flush` has to send.
        self._last(world, self._plan.faults[-1])
        code, said = self._flush(world)
        if code:
            self.evidence.errors.append(f"the last `spool flush` ended with {code}: {said}")
        self.evidence.spool_left = sorted(path.name for path in self._spool.iterdir())
        self._mark("flush")
        self._wait(lambda: _is_settled(world), seconds=_SETTLE_SECONDS, what="everything drained")
        self._mark("settling")

    def _start_probe(self, world: World) -> _processes.OwnedProcess:
        words = ["-m", "tests.chaos.producers.calibration", str(world.folder), str(self._books / "disk")]
        return self._process(world, words, "disk")

    def _start(self, world: World, producer: int) -> None:
        plan = self._plan
        words = ["-m", "tests.chaos.producers.emitting"]
        for name, value in {
            "seed": plan.seed,
            "events": plan.events,
            "seconds": plan.seconds,
            "producer": producer,
            "folder": self._books,
        }.items():
            words += [f"--{name}", str(value)]
        with self._lock:
            self._producers[producer] = self._process(world, words, f"producer-{producer}")

    def _process(self, world: World, words: list[str], name: str) -> _processes.OwnedProcess:
        return _processes.OwnedProcess(
            [sys.executable, *words],
            log=self._books / f"{name}.log",
            guard=world.guard,
            env=self._environ(world),
            cwd=world.folder,
        )

    def _environ(self, world: World) -> dict[str, str]:
        # appendfsync is always: `server` means that a SIGKILL of Valkey loses nothing it has acknowledged.
        return {
            **world.environ(),
            "USAGE_SPOOL_DIR": str(self._spool),
            "USAGE_DURABILITY": self._durability,
        }

    def _hurt(self, world: World, planned: Planned) -> None:
        record = self._begin(planned)
        killer = threading.Thread(target=self._kill, args=(world, planned, record))
        killer.start()
        with world.valkey_lock:
            match planned.hurt:
                case Hurt.KILLED:
                    world.crash(world.valkey, signal.SIGKILL)
                    time.sleep(planned.seconds)
                    world.valkey.start()
                case Hurt.FROZEN:
                    world.valkey.kill(signal.SIGSTOP)
                    time.sleep(planned.seconds)
                    world.valkey.kill(signal.SIGCONT)
                case Hurt.FULL:
                    _command(world, "CONFIG", "SET", "maxmemory-policy", "noeviction")
                    _command(world, "CONFIG", "SET", "maxmemory", "1")
                    time.sleep(planned.seconds)
                    _command(world, "CONFIG", "SET", "maxmemory", "0")
                case Hurt.READ_ONLY:
                    _command(world, "REPLICAOF", "127.0.0.1", "1")
                    time.sleep(planned.seconds)
                    _command(world, "REPLICAOF", "NO", "ONE")
        record.ended = time.monotonic_ns()
        killer.join()
        record.said.insert(0, f"for {(record.ended - record.began) / 1e9:.1f} s")

    def _kill(self, world: World, planned: Planned, record: Record) -> None:
        producer = planned.kill
        if producer is None:
            return
        time.sleep(planned.kill_after)
        path = emitting.pid_path(self._books, producer)
        if not _processes.wait_until(path.exists, timeout=10):
            self.evidence.errors.append(f"producer {producer} had not begun when it was to be killed")
            return
        pid = int(path.read_text())
        os.kill(pid, signal.SIGKILL)
        held = [one for one in self._spool.iterdir() if f"-{pid}-" in one.name and one.suffix == ".spool"]
        self.evidence.killed.add(pid)
        self.evidence.kills += 1
        record.said.append(
            f"producer {producer} ({PRODUCERS[producer]}) killed, {len(held)} segments of its own"
        )
        if producer not in CHILDREN:
            self._producers[producer].wait(10)
            self._producers[producer].stop(1)
            self._start(world, producer)

    def _last(self, world: World, planned: Planned) -> None:
        record = self._begin(planned)
        with world.valkey_lock:
            world.crash(world.valkey, signal.SIGKILL)
            (self._books / "last").touch()
            # Their emitters wait for the stream when they close, and then leave the rest to the disk.
            self._wait(lambda: self._ends(), seconds=60, what="the producers' end")
            status = self._cli(world, "spool", "status", "--json")
            self.evidence.left_for_flush = (
                json.loads(status.stdout)["events"] if not status.returncode else -1
            )
            world.valkey.start()
        record.ended = time.monotonic_ns()
        record.said = [f"until all had ended; {self.evidence.left_for_flush} events left in the spool"]

    def _ends(self) -> bool:
        for producer, process in self._producers.items():
            code = process.returncode
            if code and producer not in self._ended:
                self.evidence.errors.append(f"producer {producer} ended with {code}: {process.log_tail(5)}")
            if code is not None:
                self._ended.add(producer)
        return len(self._ended) == len(self._producers)

    def _all_wait(self) -> bool:
        for producer, process in list(self._producers.items()):
            code = process.returncode
            if code is not None and process.pid not in self.evidence.killed:
                raise RuntimeError(f"producer {producer} ended with {code}: {process.log_tail(8)}")
        waiting = sum(1 for path in self._books.iterdir() if path.name.startswith("waiting-"))
        return waiting == sum(LANES[kind] for kind in PRODUCERS)

    def _flush(self, world: World) -> tuple[int, str]:
        done = self._cli(world, "spool", "flush")
        lines = (done.stdout if not done.returncode else done.stderr).strip().splitlines()
        said = done.returncode, " ".join(lines[:2])
        self._note(f"spool flush: exit {said[0]}, {said[1]}")
        self.evidence.flushes.append(said)
        return said

    def _cli(self, world: World, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.executable).with_name("usage-worker")), *words],
            env=self._environ(world),
            cwd=world.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def _read(self, world: World) -> None:
        evidence = self.evidence
        with world.database() as database:
            evidence.rows = database.execute(_ROWS).fetchall()
            evidence.sums = database.execute(_SUMS).fetchall()
            evidence.differences = [str(row) for row in database.execute(DIFFERENCES).fetchall()]
            evidence.dead_letters = [
                f"{event_id}: {reason}"
                for event_id, reason in database.execute("SELECT event_id, reason FROM usage_dead_letters")
            ]
            cursor = database.execute("SELECT * FROM ingest_positions ORDER BY shard")
            names = [column.name for column in cursor.description or ()]
            evidence.positions = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        client = world.stream()
        try:
            for key, _ in keys():
                if client.exists(key):
                    info: Any = client.xinfo_stream(key)
                    evidence.entries_added += int(info["entries-added"])
        finally:
            client.close()
        evidence.logs = {one.name: one.read_text(errors="replace") for one in self._books.glob("*.log")}
        self._mark("reading")

    def _begin(self, planned: Planned) -> Record:
        record = Record(planned, time.monotonic_ns())
        self.evidence.records.append(record)
        return record

    def _note(self, text: str) -> None:
        self.evidence.notes.append((time.monotonic_ns(), text))

    def _sleep_until(self, at: float) -> None:
        if at > self._deadline:
            raise TimeLimit("the plan does not fit into the time limit")
        time.sleep(max(0.0, at - time.monotonic()))

    def _wait(self, condition: Callable[[], bool], *, what: str, seconds: float | None = None) -> None:
        until = self._deadline if seconds is None else min(self._deadline, time.monotonic() + seconds)
        while not condition():
            if time.monotonic() > until:
                raise TimeLimit(f"waited too long for {what}")
            time.sleep(0.1)

    def _mark(self, name: str) -> None:
        self.evidence.seconds[name] = time.monotonic() - self._started


def _folder_in_memory(world: World) -> Path:
    """Where the books are kept: a busy disk must not hold up those who write down what it held up."""
    below = _MEMORY if os.access(_MEMORY, os.W_OK) else world.folder
    folder = Path(tempfile.mkdtemp(prefix="usage-chaos-books-", dir=below))
    world.guard.remove(folder)
    return folder


def _command(world: World, *words: str) -> None:
    """A server that is loading, or whose disk is busy, gets a second chance: it must be mended."""
    for attempt in range(10):
        client = world.stream()
        try:
            client.execute_command(*words)  # type: ignore[no-untyped-call]  # redis-py: untyped
        except redis.RedisError:
            if attempt == 9:
                raise
            time.sleep(0.2)
        else:
            return
        finally:
            client.close()


def _is_settled(world: World) -> bool:
    with contextlib.suppress(psycopg.Error, redis.RedisError, OSError):
        return all(entry(one.position) >= entry(one.tail) for one in world.where())
    return False
