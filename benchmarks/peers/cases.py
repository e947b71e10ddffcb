"""How the compared systems are measured: the same servers, the same table, the same events.

A worker is started and paused while the events are put into its queue; the clock runs from the moment it may
go on to the commit of the last row. Counts are small where a system is slow: they need a second each.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import figures
from benchmarks.child import ROOT, Child, environment
from benchmarks.data import FRAME, Dataset
from benchmarks.measure import Case, Sample
from benchmarks.peers import venv
from benchmarks.peers.direct import GO
from benchmarks.world import World
from worker.dev import _processes

Command = Sequence[str | Path]
READY_SECONDS = 60.0
STOP_SECONDS = 3.0


def cases(
    world: World, data: Dataset, producer: Child, stack: contextlib.ExitStack
) -> list[tuple[str, int, Case]]:
    """This function will return the compared systems as (name, events, case)."""
    peers = Peers(world, data, venv.python())
    queue = Queue(world, producer, stack.enter_context(Child("benchmarks.sqlqueue", world.environ)))
    batches, tasks, messages, jobs, lists, queued, inserts = (
        min(most, len(data.events)) for most in (3000, 800, 1500, 250, 6000, 10_000, 3000)
    )
    return [
        (figures.CELERY_BATCHES, batches, lambda: peers.celery("store_batch", batches)),
        (figures.CELERY, tasks, lambda: peers.celery("store", tasks)),
        (figures.LPOP_ONE, lists, lambda: peers.redis_list(1, lists)),
        (figures.LPOP_MANY, lists, lambda: peers.redis_list(1000, lists)),
        (figures.DRAMATIQ, messages, lambda: peers.dramatiq(messages)),
        (figures.PROCRASTINATE, jobs, lambda: peers.procrastinate(jobs)),
        (figures.INSERT, inserts, lambda: peers.insert(inserts)),
        (figures.QUEUE, queued, lambda: queue.run(queued, size=1)),
        (figures.QUEUE_FRAMES, queued, lambda: queue.run(queued, size=FRAME)),
    ]


class Queue:
    """The queue in PostgreSQL; its CPU time is that of putting in and of draining."""

    def __init__(self, world: World, producer: Child, drainer: Child) -> None:
        self._world, self._producer, self._drainer = world, producer, drainer

    def run(self, count: int, *, size: int) -> Sample:
        """This function will put `count` events in, `size` per INSERT and commit, and then drain them."""
        world = self._world
        world.empty()
        with world.measure(worker=self._drainer.pid, producer=self._producer.pid) as meter:
            self._producer.ask("enqueue", url=world.url, count=count, size=size)
            began = time.time()
            self._drainer.send("drain", url=world.url)
            world.wait(world.rows, count)
        self._drainer.send("stop")
        self._drainer.answer()
        return meter.span.sample(world.committed_at("platform_usage_logs") - began, count)


class Peers:
    """Starts, feeds and times the other programs."""

    def __init__(self, world: World, data: Dataset, python: Path) -> None:
        self._world, self._data, self._python = world, data, python
        self._numbers = itertools.count()
        self._environ = environment(
            {
                "BENCH_DATABASE": world.url,
                "BENCH_BROKER": world.embedded.valkey.url(),
                "HOME": str(world.logs),
            }
        )
        self._has_schema = False

    def celery(self, task: str, count: int) -> Sample:
        """This function will run Celery with two children, prefetching what its batches need."""
        prefetch = ["--prefetch-multiplier=1000"] if task == "store_batch" else []
        worker: Command = [
            *("-m", "celery", "-A", "benchmarks.peers.celery_app", "worker", "-Q", task),
            *("--concurrency=2", "--without-gossip", "--without-mingle", "--loglevel=INFO", *prefetch),
        ]
        return self._run(worker, ["-m", "benchmarks.peers.celery_app", task, self._file(count)], count)

    def dramatiq(self, count: int) -> Sample:
        """This function will run dramatiq with two processes of four threads."""
        worker: Command = [
            *("-m", "dramatiq", "benchmarks.peers.dramatiq_app", "--processes", "2", "--threads", "4")
        ]
        return self._run(worker, ["-m", "benchmarks.peers.dramatiq_app", self._file(count)], count)

    def procrastinate(self, count: int) -> Sample:
        """This function will run procrastinate with a concurrency of four; its jobs lie in PostgreSQL."""
        program = "benchmarks.peers.procrastinate_app"
        if not self._has_schema:
            self._finish(["-m", program, "schema"])
            self._has_schema = True
        self._world.admin.execute("TRUNCATE procrastinate_jobs CASCADE")
        return self._run(["-m", program, "work"], ["-m", program, "emit", self._file(count)], count)

    def redis_list(self, at_once: int, count: int) -> Sample:
        """This function will run the list and its flusher."""
        program = "benchmarks.peers.redis_list"
        return self._run(
            ["-m", program, "flush", str(at_once)], ["-m", program, "emit", self._file(count)], count
        )

    def insert(self, count: int) -> Sample:
        """This function will run the INSERT per event."""
        return self._run(["-m", "benchmarks.peers.direct", self._file(count)], None, count)

    def _run(self, worker: Command, emit: Command | None, count: int) -> Sample:
        world = self._world
        world.empty()
        log = world.logs / f"peer-{next(self._numbers)}.log"
        process = _processes.OwnedProcess(
            [self._python, *worker], log=log, guard=world.embedded.guard, env=self._environ, cwd=ROOT
        )
        try:
            if (
                not _processes.wait_until(
                    lambda: "ready" in log.read_text(errors="replace") or not process.running,
                    timeout=READY_SECONDS,
                )
                or not process.running
            ):
                raise SystemExit(f"{' '.join(map(str, worker))} is not ready:\n{process.log_tail()}")
            begin: Callable[[], object] = process.resume
            if emit is None:
                begin = lambda: world.client.rpush(GO, 1)  # noqa: E731  one of two ways to begin
            else:
                process.pause()
                self._finish(emit)
            with world.measure(worker=process.pid) as meter:
                began = time.time()
                begin()
                world.wait(world.rows, count)
        finally:
            process.stop(STOP_SECONDS)
        return meter.span.sample(world.committed_at("platform_usage_logs") - began, count)

    def _finish(self, command: Command) -> None:
        done = subprocess.run(  # noqa: S603  our own modules
            [str(part) for part in (self._python, *command)],
            env=self._environ,
            cwd=ROOT,
            stdout=sys.stderr,
            timeout=READY_SECONDS,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}")

    def _file(self, count: int) -> Path:
        path = self._world.logs / f"events-{count}.jsonl"
        if not path.exists():
            path.write_bytes(b"\n".join(self._data.payloads[:count]) + b"\n")
        return path
