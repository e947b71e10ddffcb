"""A real worker: what is added to the stream is counted, and the worker leaves when it is told."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
import redis
from psycopg.rows import dict_row

from tests.fixtures.databases import Databases
from tests.fixtures.processes import StartWorker
from worker.dev.servers import EmbeddedServers

STREAM = "usage:events:{0}"
USER = "0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11"


def raw_event(**changes: object) -> bytes:
    """What any client in any language may add, byte by byte."""
    event: dict[str, object] = {
        "event_id": str(uuid.uuid4()),
        "user_id": USER,
        "feature": "blog_writer",
        "input_tokens": 812,
        "output_tokens": 455,
        "cost_usd": "0.000395",
        "occurred_at": datetime.now(UTC).isoformat(),  # noqa: TID251  an app's own clock
        **changes,
    }
    return json.dumps(event).encode()


def wait_for(found: Callable[[], Any], *, seconds: float, what: str) -> Any:
    """Asks until the answer is true; the answer."""
    deadline = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(0.05)
    return answer


@pytest.fixture
def platform(databases: Databases) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    with psycopg.connect(
        databases.platform.url("worker"), autocommit=True, row_factory=dict_row
    ) as connection:
        yield connection


def _rows(platform: psycopg.Connection[dict[str, Any]]) -> list[dict[str, Any]]:
    return platform.execute("SELECT * FROM platform_usage_logs ORDER BY stored_at").fetchall()


def _letters(platform: psycopg.Connection[dict[str, Any]]) -> list[dict[str, Any]]:
    return platform.execute("SELECT * FROM usage_dead_letters ORDER BY stored_at").fetchall()


def _counted(platform: psycopg.Connection[dict[str, Any]]) -> int:
    row = platform.execute(
        "SELECT coalesce(sum(entries), 0)::int AS entries FROM ingest_positions"
    ).fetchone()
    return int(row["entries"]) if row else 0


def _runs(platform: psycopg.Connection[dict[str, Any]], job: str) -> list[dict[str, Any]]:
    return platform.execute("SELECT * FROM job_runs WHERE job = %s ORDER BY window_start", [job]).fetchall()


def _drain_is_waiting(platform: psycopg.Connection[dict[str, Any]]) -> bool:
    return bool(
        platform.execute("SELECT FROM ingest_positions WHERE lease_until > clock_timestamp()").fetchall()
    )


class TestRow:
    def test_appears_within_two_seconds_without_beat_and_only_once(
        self, celery_worker: StartWorker, valkey: redis.Redis, platform: psycopg.Connection[dict[str, Any]]
    ) -> None:
        celery_worker()
        wait_for(lambda: _drain_is_waiting(platform), seconds=15, what="a drain that waits for events")
        first = raw_event()
        added_at = time.monotonic()
        valkey.xadd(STREAM, {"data": first})
        [row] = wait_for(lambda: _rows(platform), seconds=2, what="a row")
        names = platform.execute(
            "SELECT application_name AS name FROM pg_stat_activity WHERE datname = current_database()"
        ).fetchall()
        ours = "usage-worker:worker.audits-ingest-pricing-subscriptions:"
        assert any(name["name"].startswith(ours) for name in names), names
        assert time.monotonic() - added_at < 2
        assert (str(row["user_id"]), row["tokens_used"], str(row["cost_usd"])) == (
            USER,
            1267,
            "0.000395000000",
        )

        valkey.xadd(STREAM, {"data": first})
        wait_for(lambda: _counted(platform) == 2, seconds=5, what="the repeated entry counted")
        assert _rows(platform) == [row]
        assert _letters(platform) == []

        event_id = json.loads(first)["event_id"]
        valkey.xadd(STREAM, {"data": raw_event(event_id=event_id, cost_usd="1.5")})
        valkey.xadd(STREAM, {"data": b"{"})
        conflict, broken = wait_for(
            lambda: letters if len(letters := _letters(platform)) == 2 else None,
            seconds=5,
            what="two dead letters",
        )
        assert (conflict["reason"], str(conflict["event_id"])) == ("conflict", event_id)
        assert broken["reason"] == "not_json"
        assert bytes(broken["raw"]) == b"{"
        assert _rows(platform) == [row]

    def test_comes_from_what_was_added_before_any_worker_ran(
        self, celery_worker: StartWorker, valkey: redis.Redis, platform: psycopg.Connection[dict[str, Any]]
    ) -> None:
        for _ in range(3):
            valkey.xadd(STREAM, {"data": raw_event()})
        celery_worker()
        wait_for(lambda: len(_rows(platform)) == 3, seconds=15, what="three rows")


class TestStop:
    def test_takes_seconds_and_leaves_nothing_half_done(
        self, celery_worker: StartWorker, valkey: redis.Redis, platform: psycopg.Connection[dict[str, Any]]
    ) -> None:
        worker = celery_worker()
        wait_for(lambda: _drain_is_waiting(platform), seconds=15, what="a drain that waits for events")
        valkey.xadd(STREAM, {"data": raw_event()})
        children = worker.children()
        assert children
        began = time.monotonic()
        assert worker.stop(timeout=10) == 0, worker.log()
        # It takes some three seconds; the rest is for a machine whose cores other tests use too.
        assert time.monotonic() - began < 6
        assert not [pid for pid in children if _runs_still(pid)]
        # The lease was given back, and what was read is either committed and acknowledged, or neither.
        assert not _drain_is_waiting(platform)
        pending = valkey.xpending(STREAM, "usage-workers")["pending"]
        assert len(_rows(platform)) == _counted(platform)
        assert pending == 0

    def test_cancels_a_task_that_outlasts_the_grace_and_gives_it_back(
        self,
        celery_worker: StartWorker,
        valkey: redis.Redis,
        platform: psycopg.Connection[dict[str, Any]],
        databases: Databases,
    ) -> None:
        # A lock that nobody releases makes the reconciliation wait inside its transaction.
        with psycopg.connect(databases.platform.url("superuser")) as blocker:
            blocker.execute("LOCK TABLE user_subscriptions IN EXCLUSIVE MODE")
            worker = celery_worker()
            wait_for(
                lambda: _runs(platform, "subscriptions.reconcile"),
                seconds=15,
                what="a reconciliation that waits",
            )
            began = time.monotonic()
            worker.stop(timeout=12)
            assert time.monotonic() - began < 8, worker.log()
            blocker.rollback()
        assert valkey.llen("subscriptions") == 1
        celery_worker()
        [run] = wait_for(
            lambda: [run for run in _runs(platform, "subscriptions.reconcile")[:1] if run["finished_at"]],
            seconds=15,
            what="the same run, done by the next worker",
        )
        assert (run["attempts"], run["outcome"]) == (2, "done")


class TestBeat:
    def test_two_of_them_do_one_runs_work(
        self,
        celery_worker: StartWorker,
        valkey: redis.Redis,
        platform: psycopg.Connection[dict[str, Any]],
    ) -> None:
        every = {"USAGE_RECONCILE_INTERVAL_SECONDS": "2", "USAGE_AUDIT_INTERVAL_SECONDS": "600"}
        workers = [celery_worker("-B", "--loglevel", "INFO", env=every) for _ in range(2)]
        wait_for(
            lambda: len(_runs(platform, "subscriptions.reconcile")) >= 4,
            seconds=40,
            what="four windows reconciled",
        )
        for worker in workers:
            worker.stop()
        runs = _runs(platform, "subscriptions.reconcile")
        assert all(run["attempts"] == 1 for run in runs)
        assert all(run["window_start"].second % 2 == 0 for run in runs)
        # Both have sent: the messages of one window went to two runs of the task, one of which did nothing.
        assert sum(worker.log().count("not_mine") for worker in workers) >= 2
        assert len(_runs(platform, "audits.rls")) == len(_runs(platform, "audits.pool")) == 1


@pytest.mark.timeout(180)
class TestBroker:
    def test_that_goes_away_under_a_task_does_not_take_the_worker_with_it(
        self, private_servers: EmbeddedServers, celery_worker: StartWorker
    ) -> None:
        superuser = private_servers.postgres.url("alwrity_platform")
        with psycopg.connect(superuser, row_factory=dict_row) as blocker:
            blocker.execute("LOCK TABLE user_subscriptions IN EXCLUSIVE MODE")
            worker = celery_worker(env={**private_servers.environ(), "USAGE_LOCK_TIMEOUT_MS": "60000"})
            with psycopg.connect(superuser, autocommit=True, row_factory=dict_row) as platform:
                wait_for(
                    lambda: _runs(platform, "subscriptions.reconcile"),
                    seconds=15,
                    what="a reconciliation that waits",
                )
                # Which of the worker's connections notices first is chance, and decides how Celery goes on.
                for count in (1, 2, 3):
                    private_servers.valkey.kill()
                    private_servers.valkey.restart()
                    client = redis.Redis.from_url(private_servers.valkey.url())
                    client.xadd(STREAM, {"data": raw_event()})
                    client.close()
                    wait_for(
                        lambda count=count: len(_rows(platform)) == count,  # type: ignore[misc]  # its default
                        seconds=40,
                        what="a row, after the broker came back",
                    )
                    assert worker.running, worker.log()
                blocker.rollback()
                wait_for(
                    lambda: _runs(platform, "subscriptions.reconcile")[0]["outcome"] == "done",
                    seconds=15,
                    what="the reconciliation that went on",
                )
            assert worker.running, worker.log()
            assert worker.stop(timeout=12) == 0, worker.log()

    def test_that_was_away_is_found_again_without_beat(
        self, private_servers: EmbeddedServers, celery_worker: StartWorker
    ) -> None:
        worker = celery_worker(env=private_servers.environ())
        url = private_servers.environ()["PLATFORM_DATABASE_URL"]
        with psycopg.connect(url, autocommit=True, row_factory=dict_row) as platform:
            wait_for(lambda: _drain_is_waiting(platform), seconds=15, what="a drain that waits for events")
            private_servers.valkey.kill()
            private_servers.valkey.restart()
            client = redis.Redis.from_url(private_servers.valkey.url())
            client.xadd(STREAM, {"data": raw_event()})
            client.close()
            wait_for(lambda: _rows(platform), seconds=40, what="a row, after the broker came back")
        assert worker.running
        # And without it the worker leaves as quickly as with it.
        private_servers.valkey.kill()
        began = time.monotonic()
        assert worker.stop(timeout=12) == 0, worker.log()
        assert time.monotonic() - began < 8


def _runs_still(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"
