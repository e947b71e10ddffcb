"""The names of the cases, and the figures with their goals: what each benchmark is there to show."""

from __future__ import annotations

from typing import Final

from benchmarks.measure import Figure

COPY: Final = "COPY of prebuilt rows"
FRAMES: Final = "drain, frames of 100"
SINGLES: Final = "drain, one event per entry"
DUPLICATES: Final = "drain, frames, 10 % duplicates"
AT_ONCE: Final = "emit and drain at once, frames"
EMIT_THEN_DRAIN: Final = "emit one by one, then drain"
EMIT: Final = "Emitter.emit, single calls"
CELERY: Final = "Celery, a task per event"
CELERY_BATCHES: Final = "celery-batches (1000, 1 s)"
DRAMATIQ: Final = "dramatiq, a message per event"
PROCRASTINATE: Final = "procrastinate, a job per event"
LPOP_ONE: Final = "Redis list, LPOP one (LiteLLM's way)"
LPOP_MANY: Final = "Redis list, LPOP 1000"
QUEUE: Final = "PostgreSQL queue, one SQL statement"
QUEUE_FRAMES: Final = "the same, put in by 100"
INSERT: Final = "synchronous INSERT per event"


def _times(other: str, least: float | None, aim: float | None) -> Figure:
    return Figure(name=f"drain / {other}", case=FRAMES, reference=other, least=least, aim=aim, unit=" x")


INGEST: Final = (
    Figure(name="drain, frames / COPY", case=FRAMES, reference=COPY, least=0.50, aim=0.70),
    Figure(name="drain, one event per entry / COPY", case=SINGLES, reference=COPY, least=0.38, aim=0.50),
    Figure(name="emit and drain at once / COPY", case=AT_ONCE, reference=COPY, least=0.40, aim=0.55),
    Figure(name="10 % duplicates / none", case=DUPLICATES, reference=FRAMES, least=0.80, aim=0.95),
    _times(CELERY_BATCHES, 40, 60),
    _times(CELERY, 70, 100),
    _times(LPOP_ONE, 8, 12),
    _times(LPOP_MANY, 3, 4),
    _times(QUEUE, 1.0, 1.2),
    _times(DRAMATIQ, None, None),
    _times(PROCRASTINATE, None, None),
    _times(INSERT, None, None),
    Figure(
        name="CPU, one by one / that queue, one by one",
        case=EMIT_THEN_DRAIN,
        reference=QUEUE,
        metric="cpu_us",
        least=0.40,
        aim=0.25,
        higher=False,
    ),
    Figure(
        name="CPU, frames / that queue, one by one",
        case=AT_ONCE,
        reference=QUEUE,
        metric="cpu_us",
        least=0.40,
        aim=0.25,
        higher=False,
    ),
    Figure(
        name="CPU, frames / that queue, put in by 100",
        case=AT_ONCE,
        reference=QUEUE_FRAMES,
        metric="cpu_us",
        higher=False,
    ),
    Figure(
        name="WAL bytes, drain / COPY",
        case=FRAMES,
        reference=COPY,
        metric="wal_bytes",
        least=1.45,
        aim=1.30,
        higher=False,
    ),
    Figure(
        name="emit p50 / bare XADD p50",
        case=EMIT,
        metric="p50_ratio",
        least=0.60,
        aim=0.45,
        higher=False,
    ),
    Figure(
        name="emit p99 / bare XADD p99",
        case=EMIT,
        metric="p99_ratio",
        least=1.0,
        aim=0.6,
        higher=False,
    ),
)

STEADY: Final = "2,000 events/s"
LONE: Final = "lone events"
REST: Final = "a worker with beat, at rest"
LATENCY: Final = (
    Figure(
        name="emit to commit at 2,000/s, p50",
        case=STEADY,
        metric="latency_p50_ms",
        least=60,
        aim=30,
        higher=False,
        unit=" ms",
    ),
    Figure(
        name="emit to commit at 2,000/s, p99",
        case=STEADY,
        metric="latency_p99_ms",
        least=200,
        aim=100,
        higher=False,
        unit=" ms",
    ),
    Figure(
        name="lone event, emit to commit, p99",
        case=LONE,
        metric="latency_p99_ms",
        least=150,
        aim=60,
        higher=False,
        unit=" ms",
    ),
)
IDLE: Final = (
    Figure(
        name="CPU of an idle worker with beat",
        case=REST,
        metric="core_percent",
        least=1.5,
        aim=0.5,
        higher=False,
        unit=" %",
    ),
)

SMALL: Final = "0.5 million rows"
LARGE: Final = "10 million rows"
GROWTH: Final = (
    Figure(name="rate at 10 / at 0.5 million rows", case=LARGE, reference=SMALL, least=0.80, aim=0.95),
    Figure(
        name="CPU at 10 / at 0.5 million rows",
        case=LARGE,
        reference=SMALL,
        metric="cpu_us",
        higher=False,
    ),
    Figure(
        name="WAL bytes at 10 / at 0.5 million rows",
        case=LARGE,
        reference=SMALL,
        metric="wal_bytes",
        higher=False,
    ),
)
LONG_DRAIN: Final = "one long drain"
MEMORY: Final = (
    Figure(
        name="highest memory of the drain's process",
        case=LONG_DRAIN,
        metric="rss_highest_mb",
        least=250,
        aim=150,
        higher=False,
        unit=" MB",
    ),
    Figure(
        name="memory, last quarter / second quarter",
        case=LONG_DRAIN,
        metric="rss_growth",
        least=1.05,
        aim=1.01,
        higher=False,
    ),
)
