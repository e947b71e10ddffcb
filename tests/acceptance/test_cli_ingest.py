"""`usage-worker ingest` and `recover`, and the task `ingest.trim`, as people and beat start them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from typing import Any

import psycopg
import redis

from tests.fixtures.databases import Databases
from tests.fixtures.processes import Cli, StartWorker
from worker.dev._processes import wait_until

USER = "0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11"
EVENTS = "usage:events:{0}"


def _rows(databases: Databases, statement: str, login: str = "worker") -> list[tuple[Any, ...]]:
    with psycopg.connect(databases.platform.url(login), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return [] if cursor.description is None else cursor.fetchall()


def _count(databases: Databases, table: str = "platform_usage_logs") -> int:
    return int(_rows(databases, f"SELECT count(*) FROM {table}")[0][0])  # noqa: S608  a name of this file


def _add(valkey: redis.Redis, count: int, **fields: Any) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for _ in range(count):
        event = {
            "event_id": str(uuid.uuid4()),
            "user_id": USER,
            "feature": "chat",
            "tokens_used": 7,
            "occurred_at": now,
            **fields,
        }
        valkey.xadd(EVENTS, {"data": json.dumps(event)})


class TestPauseAndResume:
    def test_of_a_worker_at_work(
        self, cli: Cli, celery_worker: StartWorker, databases: Databases, valkey: redis.Redis
    ) -> None:
        worker = celery_worker()
        _add(valkey, 3)
        assert wait_until(lambda: _count(databases) == 3, timeout=30), worker.log()

        paused = cli("ingest", "pause", "--reason", "bad deploy", "--json")
        assert (paused.code, paused.json()) == (0, {"paused": [0], "unchanged": []}), paused.stderr
        assert cli("ingest", "pause", "--shard", "0").stdout == "shard 0: as it was\n"
        _add(valkey, 2)
        # Longer than a ring's period and a lease's third: nobody takes it.
        time.sleep(11)
        assert _count(databases) == 3
        status = cli("status", "--json", "--seconds", "0").json()
        shard = status["shards"][0]
        assert (shard["paused_reason"], shard["holder"]) == ("bad deploy", None)
        assert "@" in shard["paused_by"]
        assert status["streams"][0]["depth"] == 2
        shown = cli("status", "--seconds", "0")
        assert "shard 0 is paused since" in shown.stderr
        assert "bad deploy" in shown.stdout

        resumed = cli("ingest", "resume", "--json")
        assert (resumed.code, resumed.json()) == (0, {"resumed": [0], "unchanged": []})
        assert wait_until(lambda: _count(databases) == 5, timeout=30), worker.log()
        shard = cli("status", "--json", "--seconds", "0").json()["shards"][0]
        assert (shard["paused_at"], shard["paused_by"], shard["paused_reason"]) == (None, None, None)
        assert (shard["crashes"], shard["suspect_id"]) == (0, None)

    def test_by_a_flood_of_refused_events(
        self, cli: Cli, celery_worker: StartWorker, databases: Databases, valkey: redis.Redis
    ) -> None:
        worker = celery_worker(env={"USAGE_FLOOD_EVENTS": "20"})
        _add(valkey, 30, tokens_used=-1)
        query = "SELECT FROM ingest_positions WHERE paused_reason = 'flood'"
        assert wait_until(lambda: bool(_rows(databases, query)), timeout=30), worker.log()
        assert wait_until(
            lambda: "too many events were refused: the shard is paused" in worker.log(), timeout=10
        )
        shard = cli("status", "--json", "--seconds", "0").json()["shards"][0]
        assert shard["paused_by"] == "usage-worker"
        assert shard["flood_refused"] > 10
        assert _count(databases, "usage_dead_letters") == shard["flood_refused"]


class TestRecover:
    def test_brings_rows_back_once(
        self, cli: Cli, celery_worker: StartWorker, databases: Databases, valkey: redis.Redis
    ) -> None:
        worker = celery_worker()
        _add(valkey, 8)
        _add(valkey, 1, tokens_used=-1)
        assert wait_until(
            lambda: (_count(databases), _count(databases, "usage_dead_letters")) == (8, 1), timeout=30
        ), worker.log()
        _rows(databases, "DELETE FROM platform_usage_logs", login="superuser")

        # The worker is at work all the time.
        tried = cli("recover", "--since", "2026-01-01", "--dry-run", "--json")
        assert (tried.code, tried.json()["shards"][0]["recovered"]) == (0, 8), tried.stderr
        assert _count(databases) == 0
        done = cli("recover", "--since", "2026-01-01", "--json")
        assert done.code == 0, done.stderr
        [shard] = done.json()["shards"]
        counts = {name: shard[name] for name in ("entries", "events", "recovered", "duplicates", "refused")}
        assert counts == {"entries": 9, "events": 9, "recovered": 8, "duplicates": 0, "refused": 1}
        assert _count(databases) == 8
        assert sum(row[0] for row in _rows(databases, "SELECT events FROM usage_hourly")) == 8

        again = cli("recover", "--since", "2026-01-01")
        assert again.code == 0
        assert "Recovered" in again.stdout
        _add(valkey, 1)
        assert wait_until(lambda: _count(databases) == 9, timeout=30), worker.log()

    def test_exit_codes_and_messages(
        self, cli: Cli, environ: dict[str, str], databases: Databases, valkey: redis.Redis
    ) -> None:
        assert cli("recover").code == 2
        outside = cli("recover", "--since", "2026-01-01", "--shard", "4")
        assert outside.code == 2
        assert "there is no shard 4: USAGE_STREAM_SHARDS is 1" in outside.stderr
        # Nothing was ever drained: nothing lies behind the position.
        assert cli("recover", "--since", "2026-01-01").code == 0
        assert cli("ingest", "pause").code == 0
        paused = cli("recover", "--since", "2026-01-01")
        assert paused.code == 1
        assert "the shard is paused: usage-worker ingest resume" in paused.stderr
        assert cli("ingest", "resume").code == 0
        _rows(
            databases,
            "UPDATE ingest_positions SET holder = 'recover:another',"
            " lease_until = clock_timestamp() + interval '1 minute'",
        )
        busy = cli("recover", "--since", "2026-01-01", "--wait", "0.5")
        assert (busy.code, "another recovery has the shard" in busy.stderr) == (1, True), busy.stderr
        _rows(databases, "UPDATE ingest_positions SET holder = NULL, lease_until = NULL")
        _add(valkey, 2)
        valkey.xtrim(EVENTS, maxlen=0)
        gap = cli("recover", "--since", "2026-01-01")
        assert (gap.code, "older entries are gone from the stream" in gap.stderr) == (1, True)
        for name in ("REDIS_URL", "PLATFORM_DATABASE_URL"):
            broken = {**environ, "REDIS_URL": "redis://127.0.0.1:1/0"}
            if name != "REDIS_URL":
                broken = {
                    key: value.replace(f":{databases.platform.postgres.port}/", ":1/")
                    for key, value in environ.items()
                }
            away = cli("recover", "--since", "2026-01-01", env=broken)
            assert (away.code, away.stdout, "Traceback" in away.stderr) == (3, "", False), away.stderr
            assert name in away.stderr


class TestTrim:
    def test_by_hand(
        self, cli: Cli, celery_worker: StartWorker, databases: Databases, valkey: redis.Redis
    ) -> None:
        old = int(time.time() * 1000) - 25 * 3600 * 1000
        for number in range(3):
            valkey.xadd(EVENTS, {"data": b"{"}, id=f"{old}-{number + 1}")
        worker = celery_worker()
        assert wait_until(lambda: _count(databases, "usage_dead_letters") == 3, timeout=30), worker.log()
        assert worker.stop() == 0
        _rows(databases, "UPDATE ingest_positions SET audited_entry_id = '0-0', audited_at = NULL")
        kept = cli("ingest", "trim", "--json")
        assert (kept.code, kept.json()["trimmed"], valkey.xlen(EVENTS)) == (0, 0, 3)
        assert kept.json()["streams"][0]["held_by"] == "the books audit"
        assert cli("audit", "books").code == 0
        looked = cli("ingest", "trim", "--dry-run")
        assert (looked.code, "May be trimmed" in looked.stdout, valkey.xlen(EVENTS)) == (0, True, 3)
        done = cli("ingest", "trim")
        assert (done.code, valkey.xlen(EVENTS)) == (0, 0), done.stderr
        assert cli("audit", "books").code == 0

    def test_as_a_task_has_the_books_audited_when_memory_is_short(
        self, celery_worker: StartWorker, databases: Databases, valkey: redis.Redis, environ: dict[str, str]
    ) -> None:
        worker = celery_worker(env={"USAGE_STREAM_MAX_MB": "1"})
        books = "SELECT FROM job_runs WHERE job = 'audits.books' AND outcome = 'done'"
        assert wait_until(lambda: bool(_rows(databases, books)), timeout=30), worker.log()
        _add(valkey, 60, metadata={"words": "x" * 30_000})
        assert wait_until(lambda: _count(databases) == 60, timeout=30), worker.log()
        assert _memory(valkey) > 1024 * 1024

        # This hour's audit has been: only the one that the trimming asks for can help.
        at_once = "SELECT FROM job_runs WHERE job = 'audits.books_at_once' AND outcome = 'done'"
        _trim_now(databases, environ)
        assert wait_until(lambda: bool(_rows(databases, at_once)), timeout=60), worker.log()
        assert "streams take too much memory and nothing more may be trimmed" in worker.log()
        assert valkey.xlen(EVENTS) == 60
        _trim_now(databases, environ)
        assert wait_until(lambda: _memory(valkey) <= 1024 * 1024, timeout=30), worker.log()
        assert valkey.xlen(EVENTS) > 20
        query = "SELECT counts FROM job_runs WHERE job = 'ingest.trim' AND outcome = 'done'"
        assert wait_until(lambda: bool(_rows(databases, query)), timeout=10)
        [(counts,)] = _rows(databases, query)
        assert (counts["trimmed"], counts["short"]) == (60 - valkey.xlen(EVENTS), False)


def _memory(valkey: redis.Redis) -> int:
    return int(valkey.memory_usage(EVENTS, samples=0) or 0)


def _trim_now(databases: Databases, environ: dict[str, str]) -> None:
    """Send the task as beat does; a minute has passed, says the record of runs."""
    _rows(databases, "DELETE FROM job_runs WHERE job = 'ingest.trim'")
    subprocess.run(
        [sys.executable, "-m", "celery", "-A", "worker.app", "call", "ingest.trim"],
        env=environ,
        check=True,
        capture_output=True,
        timeout=60,
    )
