"""What one emit costs its caller, against a bare redis-py XADD of the same bytes."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import redis

from benchmarks.measure import Report, compare, timed
from producers import Emitter
from producers._config import EmitterConfig
from producers._emitter import Usage, event_of
from producers._stream import encode
from worker.dev import servers

USER = uuid.UUID("0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11")
FRAME = 100


def run(rounds: int, events: int) -> Report:
    """This function will compare one emit at a time, and frames, with a bare XADD; seconds per event."""
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

        def bare() -> None:
            for _ in range(events):
                client.xadd("bench:{0}", {"data": payload})

        def one_by_one() -> None:
            for _ in range(events):
                emitter.emit(**usage)

        def frames() -> None:
            for _ in range(0, events, FRAME):
                with emitter.batch() as batch:
                    for _ in range(FRAME):
                        batch.emit(**usage)

        def fresh(work: Callable[[], None]) -> float:
            client.flushall()
            return timed(work, events=events)

        return compare(
            {
                "redis-py XADD of the same bytes": lambda: fresh(bare),
                "Emitter.emit": lambda: fresh(one_by_one),
                f"Emitter.batch, {FRAME} events": lambda: fresh(frames),
            },
            reference="redis-py XADD of the same bytes",
            rounds=rounds,
        )
