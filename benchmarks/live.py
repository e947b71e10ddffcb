"""A real worker with beat: how long an event takes from `emit` to its commit, and what rest costs."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from benchmarks import figures
from benchmarks.child import ROOT, Child, environment
from benchmarks.measure import Report, Sample, compare
from benchmarks.world import World, cpu_seconds
from worker.dev import _processes

RATE = 2000
STEADY_SECONDS = 8.0
LONE_COUNT = 40
LONE_EVERY_SECONDS = 0.3
REST_SECONDS = 30.0
# The tasks that run at every start, and the first rings, are over by then.
SETTLE_SECONDS = 12.0
READY_SECONDS = 60.0
STOP_SECONDS = 8.0


def latency(rounds: int, events: int) -> Report:
    """This function will emit at a steady rate, and then single events; `events`: how many of the latter."""
    with World() as world, worker(world):
        return replies(world, world.child("benchmarks.producer"), rounds=rounds, lone=events)


def idle(rounds: int, events: int) -> Report:
    """This function will measure the CPU time of worker, beat and servers with nothing to do.

    A short traffic of `events` events comes first: a worker that has worked is what rests in production.
    """
    with World() as world, worker(world) as pid:
        world.child("benchmarks.producer").ask("one_by_one", count=events)
        world.wait(world.counted, events)
        return rest(world, pid, rounds=rounds)


def replies(world: World, producer: Child, *, rounds: int, lone: int) -> Report:
    """This function will measure latencies with the worker that runs."""
    time.sleep(SETTLE_SECONDS / 2)
    producer.ask("lone", count=3, every=0.1)
    return compare(
        {
            figures.STEADY: lambda: _steady(world, producer),
            figures.LONE: lambda: _lone(world, producer, lone),
        },
        reference=figures.STEADY,
        rounds=rounds,
        figures=figures.LATENCY,
        events={figures.STEADY: int(RATE * STEADY_SECONDS), figures.LONE: lone},
        notes=[*world.notes(), "one worker with beat, as `celery -A worker.app worker -B` starts it"],
        progress=lambda line: sys.stderr.write(f"{line}\n"),
    )


def rest(world: World, pid: int, *, rounds: int) -> Report:
    """This function will measure what the running worker uses once it has nothing to do."""
    time.sleep(SETTLE_SECONDS)
    return compare(
        {figures.REST: lambda: _rest(world, pid)},
        reference=figures.REST,
        rounds=rounds,
        figures=figures.IDLE,
        notes=[*world.notes(), f"{REST_SECONDS:.0f} s per round; a core is 100 %"],
        progress=lambda line: sys.stderr.write(f"{line}\n"),
    )


@contextlib.contextmanager
def worker(world: World) -> Iterator[int]:
    """This function will run the product's worker with beat, and yield the id of its main process."""
    log = world.logs / "worker.log"
    process = _processes.OwnedProcess(
        [sys.executable, "-m", "celery", "-A", "worker.app", "worker", "-B", "--loglevel=INFO"],
        log=log,
        guard=world.embedded.guard,
        env=environment({**world.environ, "HOME": str(world.logs), "PYTHONPATH": str(ROOT)}),
        cwd=world.logs,
    )
    try:
        if (
            not _processes.wait_until(
                lambda: bool(re.search(r"\bready\b", log.read_text(errors="replace"))) or not process.running,
                timeout=READY_SECONDS,
            )
            or not process.running
        ):
            raise SystemExit(f"the worker is not ready:\n{process.log_tail()}")
        yield process.pid
    finally:
        process.stop(STOP_SECONDS)


def _steady(world: World, producer: Child) -> Sample:
    before, began = world.counted(), time.time()
    sent = producer.ask("paced", rate=RATE, seconds=STEADY_SECONDS)
    world.wait(world.counted, before + sent["sent"])
    return {**_latencies(world, since=began), "sent_per_second": sent["sent"] / sent["seconds"]}


def _lone(world: World, producer: Child, count: int) -> Sample:
    time.sleep(1.0)
    before, began = world.counted(), time.time()
    producer.ask("lone", count=count, every=LONE_EVERY_SECONDS)
    world.wait(world.counted, before + count)
    return _latencies(world, since=began)


def _latencies(world: World, *, since: float) -> dict[str, float]:
    """Milliseconds from the event's own time, taken inside `emit`, to the commit of its row."""
    row = world.admin.execute(
        """
        SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY ms),
               percentile_disc(0.99) WITHIN GROUP (ORDER BY ms), max(ms)
          FROM (SELECT 1000 * extract(epoch FROM pg_xact_commit_timestamp(xmin) - occurred_at)::float8 AS ms
                  FROM platform_usage_logs
                 WHERE occurred_at >= %s) AS latency
        """,
        [datetime.fromtimestamp(since, tz=UTC)],
    ).fetchone()
    if row is None:
        raise SystemExit("no event was stored")
    return {"latency_p50_ms": row[0], "latency_p99_ms": row[1], "latency_highest_ms": row[2]}


def _rest(world: World, worker: int) -> Sample:
    parts = {
        "core": worker,
        "valkey": world.embedded.valkey.pid,
        "postgres": world.embedded.postgres.pid,
    }
    before, began = {name: cpu_seconds(pid) for name, pid in parts.items()}, time.monotonic()
    time.sleep(REST_SECONDS)
    seconds = time.monotonic() - began
    return {
        f"{name}_percent": 100 * (cpu_seconds(pid) - before[name]) / seconds for name, pid in parts.items()
    }
