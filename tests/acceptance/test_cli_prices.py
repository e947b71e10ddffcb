"""`usage-worker prices` and the task `pricing.reprice`, as people and beat start them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from tests.fixtures.databases import Databases
from tests.fixtures.processes import Cli, StartWorker
from worker.dev._processes import wait_until

USER = "0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11"
FILE = """
prices:
  - provider: acme
    model: sage-1
    from: 2026-01-01T00:00:00Z
    input: 1
    output: 4.0
    source: contract 17
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prices.yaml"
    path.write_text(FILE, encoding="utf-8")
    return path


def _rows(databases: Databases, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(databases.platform.url("worker"), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return [] if cursor.description is None else cursor.fetchall()


def _unpriced(databases: Databases) -> int:
    return int(_rows(databases, "SELECT count(*) FROM platform_usage_logs WHERE cost_usd IS NULL")[0][0])


def _use(valkey: redis.Redis, count: int, **fields: Any) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    events = [
        {
            "event_id": str(uuid.uuid4()),
            "user_id": USER,
            "feature": "chat",
            "provider": "acme",
            "model": "sage-1",
            "input_tokens": 812,
            "output_tokens": 455,
            "occurred_at": now,
            **fields,
        }
        for _ in range(count)
    ]
    for at in range(0, count, 500):
        valkey.xadd("usage:events:{0}", {"data": json.dumps(events[at : at + 500])})


def _drain(start: StartWorker, databases: Databases, count: int) -> None:
    worker = start()
    stored = "SELECT count(*) FROM platform_usage_logs"
    assert wait_until(lambda: _rows(databases, stored) == [(count,)], timeout=60), worker.log()
    worker.stop()


class TestApplyAndReprice:
    def test_from_an_unknown_price_to_costs_that_agree(
        self,
        cli: Cli,
        celery_worker: StartWorker,
        databases: Databases,
        valkey: redis.Redis,
        file: Path,
    ) -> None:
        _use(valkey, 3)
        _drain(celery_worker, databases, 3)
        status = cli("usage", "show", USER, "--json").json()["total"]
        assert (status["unpriced_events"], Decimal(status["cost_usd"])) == (3, Decimal(0))
        (listed,) = cli("prices", "list", "--json").json()["prices"]
        assert (listed["provider"], listed["model"], listed["prices"]) == ("acme", "sage-1", None)

        shown = cli("prices", "apply", str(file), "--dry-run", "--json").json()
        assert (shown["added"], shown["changes"][0]["is_needed"]) == ([], True)
        assert _rows(databases, "SELECT count(*) FROM model_prices") == [(0,)]
        refused = cli("prices", "apply", str(file), stdin="n\n")
        assert refused.code != 0
        assert "sage-1" in refused.stdout
        assert _rows(databases, "SELECT count(*) FROM model_prices") == [(0,)]
        applied = cli("prices", "apply", str(file), stdin="y\n")
        assert applied.code == 0, applied.stderr
        again = cli("prices", "apply", str(file), "--yes", "--json").json()
        assert (again["added"], again["changes"][0]["is_needed"]) == ([], False)
        assert _rows(databases, "SELECT count(*) FROM model_prices") == [(1,)]

        foreseen = cli("prices", "reprice", "--dry-run", "--json").json()
        assert (foreseen["changed"], foreseen["cost_change"]) == (3, "0.007896000000")
        assert len(foreseen["models"][0]["first_ids"]) == 3
        assert _unpriced(databases) == 3
        assert cli("prices", "reprice").code == 2, "a reason is asked for"
        done = cli("prices", "reprice", "--reason", "acme's list", "--json").json()
        assert (done["changed"], done["cost_change"]) == (foreseen["changed"], foreseen["cost_change"])
        assert cli("prices", "reprice", "--reason", "again", "--json").json()["changed"] == 0

        total = cli("usage", "show", USER, "--json").json()["total"]
        ((log, hours),) = _rows(
            databases,
            "SELECT (SELECT sum(cost_usd) FROM platform_usage_logs),"
            " (SELECT sum(cost_usd) FROM usage_hourly)",
        )
        assert log == hours == Decimal(total["cost_usd"]) == Decimal("0.007896")
        assert total["unpriced_events"] == 0
        (why,) = cli("prices", "history", done["models"][0]["first_ids"][0], "--json").json()
        assert (why["reason"], why["cost_before"], why["cost_after"]) == (
            "acme's list",
            None,
            "0.002632000000",
        )
        assert cli("audit", "books", "--full").code == 0

    def test_the_task_prices_what_waits(
        self,
        cli: Cli,
        celery_worker: StartWorker,
        databases: Databases,
        valkey: redis.Redis,
        file: Path,
    ) -> None:
        _use(valkey, 2)
        _drain(celery_worker, databases, 2)
        assert cli("prices", "apply", str(file), "--yes").code == 0
        # The window of this hour may have been taken when the first worker's beat was there.
        with psycopg.connect(databases.platform.url("worker"), autocommit=True) as connection:
            connection.execute("DELETE FROM job_runs WHERE job = 'pricing.reprice'")
        worker = celery_worker("-B")
        assert wait_until(lambda: _unpriced(databases) == 0, timeout=60), worker.log()
        assert _rows(databases, "SELECT requested_by FROM usage_repricings") == [("pricing.reprice",)]

    def test_killed_between_batches_and_started_again(
        self,
        cli: Cli,
        celery_worker: StartWorker,
        databases: Databases,
        environ: dict[str, str],
        valkey: redis.Redis,
        file: Path,
    ) -> None:
        _use(valkey, 6000)
        _drain(celery_worker, databases, 6000)
        assert cli("prices", "apply", str(file), "--yes").code == 0
        command = [sys.executable, "-m", "worker", "prices", "reprice", "--reason", "x"]
        with subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL) as running:
            assert wait_until(lambda: 0 < _unpriced(databases) < 6000, timeout=60, interval=0.005)
            running.send_signal(signal.SIGKILL)
            running.wait()
        left = _unpriced(databases)
        assert 0 < left < 6000
        same = (
            "SELECT (SELECT sum(cost_usd) FROM platform_usage_logs)"
            " = (SELECT sum(cost_usd) FROM usage_hourly),"
            " (SELECT sum(unpriced_events) FROM usage_hourly),"
            " (SELECT count(*) FROM usage_repricings WHERE finished_at IS NULL)"
        )
        assert _rows(databases, same) == [(True, left, 1)]
        assert cli("audit", "books", "--full").code == 0
        assert cli("prices", "reprice", "--reason", "x", "--json").json()["changed"] == left
        assert _rows(databases, same) == [(True, 0, 1)]
        assert cli("audit", "books", "--full").code == 0


class TestWrongUse:
    @pytest.mark.parametrize(
        "text",
        [
            "prices: []",
            "nonsense",
            "prices: [{",
            "prices: [{model: x, from: 2026-01-01, input: 1}]",
            "prices: [{model: x, from: 2026-01-01T00:00:00Z, input: 1, input: 2}]",
            "prices: [{model: x, from: 2026-01-01T00:00:00Z, input: .nan}]",
            "prices: [!!python/object:os.system {}]",
        ],
    )
    def test_a_file_that_is_none_is_exit_code_two(self, cli: Cli, tmp_path: Path, text: str) -> None:
        path = tmp_path / "prices.yaml"
        path.write_text(text, encoding="utf-8")
        done = cli("prices", "apply", str(path), "--yes")
        assert done.code == 2, (done.stdout, done.stderr)

    def test_of_times_is_exit_code_two(self, cli: Cli) -> None:
        wrong = ("--from", "2026-02-01", "--to", "2026-01-01", "--dry-run")
        assert cli("prices", "reprice", *wrong).code == 2

    def test_without_a_database_is_exit_code_three(self, cli: Cli, environ: dict[str, str]) -> None:
        gone = {name: value for name, value in environ.items() if not name.startswith("PLATFORM_")}
        gone["PLATFORM_DATABASE_URL"] = "postgresql://u:p@127.0.0.1:1/x"
        assert cli("prices", "list", env=gone).code == 3
