"""What one emit costs its caller, against a bare redis-py XADD of the same bytes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

import redis

from benchmarks.measure import Figure, Report, Sample, compare, percentile, timed
from producers import Emitter
from producers._config import EmitterConfig
from producers._emitter import Usage, event_of
from producers._stream import encode
from worker.dev import servers

USER = uuid.UUID("0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11")
FRAME = 100
BLOCK = 200
XADD = "redis-py XADD of the same bytes"
EMIT = "Emitter.emit"
BATCH = f"Emitter.batch, {FRAME} events"
FIGURES = (
    Figure(name="emit p50 / XADD p50", case=EMIT, metric="p50_ratio", least=0.60, aim=0.45, higher=False),
    Figure(name="emit p99 / XADD p99", case=EMIT, metric="p99_ratio", least=1.0, aim=0.60, higher=False),
    Figure(name="emit CPU / XADD CPU", case=EMIT, metric="cpu_ratio", higher=False),
    Figure(name=f"batch of {FRAME} / XADD, events per second", case=BATCH, reference=XADD, aim=15.0),
)


def run(rounds: int, events: int) -> Report:
    """This function will compare one emit at a time, and frames, with a bare XADD, per event.

    The percentiles of emit and of XADD come from the same seconds: blocks of 200 calls take turns.
    """
    with servers.ValkeyServer() as valkey:
        client = redis.Redis.from_url(valkey.url())
        emitter = Emitter(EmitterConfig.from_env({"REDIS_URL": valkey.url()}))
        usage: Usage = {
            "user_id": USER,
            "feature": "blog_writer",
            "provider": "openai",
            "model": "gpt-4o-mini",
            "input_tokens": 812,
            "output_tokens": 455,
            "cost_usd": "0.000394800000",
        }
        payload = encode(event_of(usage))

        def bare() -> object:
            return client.xadd("bench:{0}", {"data": payload})

        def emit() -> object:
            return emitter.emit(**usage)

        def alone() -> float:
            client.flushall()
            return timed(lambda: [bare() for _ in range(events)], events=events)

        def in_turns() -> Sample:
            client.flushall()
            return calls(emit, bare, count=events)

        def frames() -> float:
            client.flushall()

            def work() -> None:
                for _ in range(0, events, FRAME):
                    with emitter.batch() as batch:
                        for _ in range(FRAME):
                            batch.emit(**usage)

            return timed(work, events=events)

        return compare(
            {XADD: alone, EMIT: in_turns, BATCH: frames},
            reference=XADD,
            rounds=rounds,
            figures=FIGURES,
        )


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
