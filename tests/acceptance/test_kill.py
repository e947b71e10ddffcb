"""`kill -9` of pool processes and of whole workers while events flow: everything is counted once."""

from __future__ import annotations

import os
import random
import signal
import time
import uuid
from collections.abc import Callable
from decimal import Decimal

import psycopg
import pytest
import redis

from producers import Emitter
from producers._config import EmitterConfig
from tests.fixtures.databases import Databases
from tests.fixtures.processes import RunningWorker, StartWorker

EVENTS = 50_000
FRAME = 50
SEED = 7
# A worker that was killed leaves a lease of 15 s behind, and this happens three times here.
DEADLINE_SECONDS = 150


def _wait_for(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(0.05)


def _kill_a_child(worker: RunningWorker, generator: random.Random) -> None:
    children = worker.children()
    assert children, "the worker has no pool process"
    os.kill(generator.choice(children), signal.SIGKILL)


@pytest.mark.timeout(240)
class TestKillNine:
    def test_of_children_and_workers_neither_loses_nor_doubles_an_event(
        self,
        databases: Databases,
        environ: dict[str, str],
        valkey: redis.Redis,
        celery_worker: StartWorker,
    ) -> None:
        generator = random.Random(SEED)  # noqa: S311  a seeded choice, no secret
        users = [uuid.UUID(int=generator.getrandbits(128), version=4) for _ in range(40)]
        costs = [Decimal(generator.randrange(1, 10**9)).scaleb(-12) for _ in range(EVENTS)]
        small_batches = {**environ, "USAGE_BATCH_SIZE": "500"}

        sent: set[uuid.UUID] = set()
        with Emitter(EmitterConfig.from_env(environ)) as emitter:
            for start in range(0, EVENTS, FRAME):
                with emitter.batch() as batch:
                    for number in range(start, start + FRAME):
                        sent.add(
                            batch.emit(
                                user_id=users[number % len(users)],
                                feature=("blog_writer", "chat")[number % 2],
                                provider="openai",
                                model="gpt-4o-mini",
                                input_tokens=number,
                                output_tokens=1,
                                cost_usd=costs[number],
                            )
                        )
        assert len(sent) == EVENTS

        with psycopg.connect(databases.platform.url("worker"), autocommit=True) as database:

            def stored() -> int:
                row = database.execute("SELECT count(*) FROM platform_usage_logs").fetchone()
                assert row is not None
                return int(row[0])

            worker = celery_worker(env=small_batches)
            _wait_for(lambda: stored() > 0, seconds=30, what="the first rows")
            _kill_a_child(worker, generator)
            before = stored()
            _wait_for(lambda: stored() > before + 2_000, seconds=60, what="draining after a killed child")
            worker.kill()
            survived = stored()
            assert survived < EVENTS, "the kills came too late to prove anything"
            second = celery_worker(env=small_batches)
            _wait_for(lambda: stored() > survived + 2_000, seconds=60, what="draining after a killed worker")
            for child in second.children():
                os.kill(child, signal.SIGKILL)
            celery_worker()
            _wait_for(lambda: stored() == EVENTS, seconds=DEADLINE_SECONDS, what=f"{EVENTS} rows")

            assert {row[0] for row in database.execute("SELECT id FROM platform_usage_logs")} == sent
            assert database.execute(
                "SELECT sum(cost_usd), sum(tokens_used) FROM platform_usage_logs"
            ).fetchone() == (sum(costs), EVENTS * (EVENTS - 1) // 2 + EVENTS)
            assert database.execute(
                "SELECT sum(events), sum(cost_usd), sum(tokens_used), sum(unpriced_events) FROM usage_hourly"
            ).fetchone() == (EVENTS, sum(costs), EVENTS * (EVENTS - 1) // 2 + EVENTS, 0)
            assert database.execute(
                "SELECT entries, events, accepted, duplicates, conflicts, rejected, recovered"
                " FROM ingest_positions"
            ).fetchall() == [(EVENTS // FRAME, EVENTS, EVENTS, 0, 0, 0, 0)]
            assert database.execute("SELECT count(*) FROM usage_dead_letters").fetchone() == (0,)

        _wait_for(
            lambda: valkey.xpending("usage:events:{0}", "usage-workers")["pending"] == 0,
            seconds=20,
            what="every entry acknowledged",
        )
