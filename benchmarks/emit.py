"""What one emit costs its caller: each emitter, a bare XADD of the same bytes, and the clients of others."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

import redis

from benchmarks.child import ROOT, environment
from benchmarks.emit_sink import Sink
from benchmarks.measure import Case, Figure, Report, Sample, compare, percentile, timed
from benchmarks.peers import venv
from producers import AsyncEmitter, BufferedEmitter, Emitter, EmitterConfig
from producers._making import Maker, Usage
from worker.dev import servers

USER = uuid.UUID("0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11")
USAGE: Final[Usage] = {
    "user_id": USER,
    "feature": "blog_writer",
    "provider": "openai",
    "model": "gpt-4o-mini",
    "input_tokens": 812,
    "output_tokens": 455,
    "cost_usd": "0.000394800000",
}
FRAME = 100
BLOCK = 200
AT_ONCE = 100
PEER_SECONDS = 60
XADD = "redis-py XADD of the same bytes"
EMIT = "Emitter.emit"
SPOOL = "Emitter.emit, with a spool"
BATCH = f"Emitter.batch, {FRAME} events"
BUFFERED = "BufferedEmitter.emit"
ASYNC_ONE = "AsyncEmitter.emit, one at a time"
ASYNC_MANY = f"AsyncEmitter.emit, {AT_ONCE} at a time"
POSTHOG = "PostHog's client, capture"
OPENMETER = "OpenMeter's client, ingest_event"
FIGURES = (
    Figure(name="emit p50 / XADD p50", case=EMIT, metric="p50_ratio", least=0.60, aim=0.45, higher=False),
    Figure(name="emit p99 / XADD p99", case=EMIT, metric="p99_ratio", least=1.0, aim=0.60, higher=False),
    Figure(name="emit CPU / XADD CPU", case=EMIT, metric="cpu_ratio", higher=False),
    Figure(
        name="emit with a spool p50 / XADD p50",
        case=SPOOL,
        metric="p50_ratio",
        least=1.30,
        aim=0.80,
        higher=False,
    ),
    Figure(
        name="BufferedEmitter.emit p50",
        case=BUFFERED,
        metric="p50_us",
        least=10,
        aim=7,
        higher=False,
        unit=" us",
    ),
    Figure(
        name="BufferedEmitter.emit p99",
        case=BUFFERED,
        metric="p99_us",
        least=100,
        aim=40,
        higher=False,
        unit=" us",
    ),
    Figure(name=f"batch of {FRAME} / XADD, events per second", case=BATCH, reference=XADD, aim=15.0),
    Figure(
        name="CPU of PostHog's client / BufferedEmitter's",
        case=BUFFERED,
        reference=POSTHOG,
        metric="cpu_us",
        least=1,
        aim=5,
        unit=" x",
    ),
    Figure(
        name="CPU of OpenMeter's client / BufferedEmitter's",
        case=BUFFERED,
        reference=OPENMETER,
        metric="cpu_us",
        least=1,
        aim=20,
        unit=" x",
    ),
)


def run(rounds: int, events: int) -> Report:
    """This function will compare the emitters with a bare XADD and with other clients, per event.

    The percentiles of emit and of XADD come from the same seconds: blocks of 200 calls take turns. CPU is
    that of the whole process, its threads included, until the last event is acknowledged.
    """
    with (
        servers.ValkeyServer() as valkey,
        Sink() as sink,
        tempfile.TemporaryDirectory(prefix="usage-bench-") as folder,
    ):
        bench = _Bench(valkey.url(), Path(folder), events)
        cases: dict[str, Case] = {
            XADD: bench.alone,
            EMIT: lambda: bench.in_turns(bench.emitter),
            SPOOL: lambda: bench.in_turns(bench.spooling),
            BATCH: bench.frames,
            BUFFERED: bench.buffered,
            ASYNC_ONE: lambda: bench.awaited(events // 5, at_once=1),
            ASYNC_MANY: lambda: bench.awaited(events // 2, at_once=AT_ONCE),
        }
        notes = [
            "CPU us per event is CPU ms per 1,000 events",
            "us/event is until the last event of a queue is delivered, p50 and p99 are those of the call",
        ]
        try:
            python = venv.python()
        except (OSError, subprocess.CalledProcessError) as error:
            notes.append(f"The clients of others could not be installed: {type(error).__name__}")
        else:
            cases[POSTHOG] = lambda: _peer(python, sink, "posthog", events // 2)
            cases[OPENMETER] = lambda: _peer(python, sink, "openmeter", max(1, events // 20))
        try:
            return compare(cases, reference=XADD, rounds=rounds, figures=FIGURES, notes=notes)
        finally:
            bench.close()


class _Bench:
    def __init__(self, url: str, folder: Path, events: int) -> None:
        self._config = EmitterConfig(redis_url=url)
        self._client = redis.Redis.from_url(url)
        self._events = events
        # What the emitter sends, number included.
        self._payload = Maker().make(**USAGE).data
        self.emitter = Emitter(self._config)
        self.spooling = Emitter(EmitterConfig(redis_url=url, spool_dir=str(folder / "spool")))

    def close(self) -> None:
        """This function will close the emitters."""
        self.emitter.close()
        self.spooling.close()

    def bare(self) -> object:
        """This function will send the same bytes as everybody does."""
        return self._client.xadd("bench:{0}", {"data": self._payload})

    def alone(self) -> float:
        """This function will time bare XADDs."""
        self._client.flushall()
        return timed(lambda: [self.bare() for _ in range(self._events)], events=self._events)

    def in_turns(self, emitter: Emitter) -> Sample:
        """This function will time an emitter and bare XADDs in turns."""
        self._client.flushall()
        return calls(lambda: emitter.emit(**USAGE), self.bare, count=self._events)

    def frames(self) -> float:
        """This function will time batches."""
        self._client.flushall()

        def work() -> None:
            for _ in range(0, self._events, FRAME):
                with self.emitter.batch() as batch:
                    for _ in range(FRAME):
                        batch.emit(**USAGE)

        return timed(work, events=self._events)

    def buffered(self) -> Sample:
        """This function will time calls while the thread delivers, as fast as they go."""
        self._client.flushall()
        emitter = BufferedEmitter(self._config)
        for _ in range(BLOCK):
            emitter.emit(**USAGE)
        emitter.flush()
        taken: list[float] = []
        began, began_cpu = time.perf_counter(), time.process_time()
        for _ in range(self._events):
            before = time.perf_counter()
            emitter.emit(**USAGE)
            taken.append(time.perf_counter() - before)
        report = emitter.close()
        wall, spent = time.perf_counter() - began, time.process_time() - began_cpu
        if report.delivered != self._events + BLOCK:
            raise SystemExit(f"{report.delivered} of {self._events + BLOCK} events were delivered")
        return {
            "us": wall / self._events * 1e6,
            "p50_us": percentile(taken, 0.50) * 1e6,
            "p99_us": percentile(taken, 0.99) * 1e6,
            "cpu_us": spent / self._events * 1e6,
        }

    def awaited(self, count: int, *, at_once: int) -> Sample:
        """This function will time awaited calls, `at_once` of them at any time."""
        self._client.flushall()
        taken: list[float] = []

        async def emit(emitter: AsyncEmitter) -> None:
            for _ in range(count // at_once):
                before = time.perf_counter()
                await emitter.emit(**USAGE)
                taken.append(time.perf_counter() - before)

        async def main() -> tuple[float, float]:
            async with AsyncEmitter(self._config) as emitter:
                await emitter.emit(**USAGE)
                began, began_cpu = time.perf_counter(), time.process_time()
                await asyncio.gather(*(emit(emitter) for _ in range(at_once)))
                return time.perf_counter() - began, time.process_time() - began_cpu

        wall, spent = asyncio.run(main())
        return {
            "us": wall / len(taken) * 1e6,
            "p50_us": percentile(taken, 0.50) * 1e6,
            "p99_us": percentile(taken, 0.99) * 1e6,
            "cpu_us": spent / len(taken) * 1e6,
        }


def _peer(python: Path, sink: Sink, name: str, count: int) -> Sample:
    sink.take()
    done = subprocess.run(  # noqa: S603  our own module
        [str(python), "-m", "benchmarks.emit_peers", name, sink.url, str(count)],
        env=environment({}),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=sys.stderr,
        timeout=PEER_SECONDS,
        check=True,
    )
    if (came := sink.take()) < count:
        raise SystemExit(f"{name}: {came} of {count} events came")
    sample: Sample = json.loads(done.stdout)
    return sample


def calls(mine: Callable[[], object], other: Callable[[], object], *, count: int) -> Sample:
    """This function will call both `count` times in alternating blocks and return what a call of `mine` took.

    `us` is the mean and `p50_us` and `p99_us` are percentiles in microseconds, `cpu_us` the CPU time of this
    process; `p50_ratio`, `p99_ratio` and `cpu_ratio` are the same divided by those of `other`.
    """
    taken: tuple[list[float], list[float]] = ([], [])
    spent = [0.0, 0.0]
    for _ in range(0, count, BLOCK):
        for index, call in enumerate((mine, other)):
            began_cpu = time.process_time()
            for _ in range(BLOCK):
                began = time.perf_counter()
                call()
                taken[index].append(time.perf_counter() - began)
            spent[index] += time.process_time() - began_cpu
    p50, p99 = ([percentile(values, share) for values in taken] for share in (0.50, 0.99))
    return {
        "us": sum(taken[0]) / len(taken[0]) * 1e6,
        "p50_us": p50[0] * 1e6,
        "p99_us": p99[0] * 1e6,
        "cpu_us": spent[0] / len(taken[0]) * 1e6,
        "p50_ratio": p50[0] / p50[1],
        "p99_ratio": p99[0] / p99[1],
        "cpu_ratio": spent[0] / spent[1],
    }
