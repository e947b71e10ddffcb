"""`usage-worker audit books` and the task `audits.books`, as people and beat start them."""

from __future__ import annotations

import psycopg
import pytest

from tests.fixtures.databases import Databases
from tests.fixtures.processes import Cli, StartWorker
from worker.dev._processes import wait_until

USER = "0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11"


def _rows(databases: Databases, statement: str, login: str = "worker") -> list[tuple[object, ...]]:
    with psycopg.connect(databases.platform.url(login), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return [] if cursor.description is None else cursor.fetchall()


@pytest.fixture
def drained(cli: Cli, celery_worker: StartWorker, databases: Databases) -> Databases:
    """Three events that a real worker has stored."""
    for feature in ("blog_writer", "summary", "search"):
        sent = cli(
            *("emit", "--user", USER, "--feature", feature, "--input-tokens", "8", "--output-tokens", "4")
        )
        assert sent.code == 0, sent.stderr
    worker = celery_worker()
    assert wait_until(lambda: len(_rows(databases, "SELECT id FROM platform_usage_logs")) == 3, timeout=30)
    assert worker.stop() == 0
    return databases


def test_answers_by_exit_code_and_document(drained: Databases, cli: Cli) -> None:
    good = cli("audit", "books", "--json")
    assert (good.code, good.stderr) == (0, ""), good.stderr
    document = good.json()
    assert document["findings"] == []
    assert {check["outcome"] for check in document["checks"]} == {"pass"}
    assert {check["check_id"].partition(".")[0] for check in document["checks"]} == {"books"}

    ((gone,),) = _rows(
        drained,
        "DELETE FROM platform_usage_logs WHERE feature = 'summary' RETURNING id",
        login="superuser",
    )
    found = cli("audit", "books", "--json")
    assert found.code == 1
    (finding,) = [one for one in found.json()["findings"] if one["check_id"] == "books.sealed"]
    assert set(finding) == {
        "check_id",
        "severity",
        "database",
        "object",
        "message",
        "remediation",
        "fingerprint",
    }
    assert f"gone: {gone}" in finding["message"]

    shown = cli("audit", "books", "--full")
    assert shown.code == 1
    assert "books of platform" in shown.stdout.replace("books_full", "books")
    assert cli("audit", "books", "--accept", " ").code == 2
    assert cli("audit", "books", "--accept", "restored elsewhere").code == 1
    runs = _rows(drained, "SELECT DISTINCT kind, outcome FROM audit_runs WHERE kind LIKE 'books%'")
    assert set(runs) == {("books", "pass"), ("books", "fail"), ("books_full", "fail")}


def test_says_which_service_is_unreachable(drained: Databases, cli: Cli, environ: dict[str, str]) -> None:
    gone = cli("audit", "books", env={**environ, "REDIS_URL": "redis://127.0.0.1:1/0"})
    assert (gone.code, gone.stdout) == (3, "")
    assert "REDIS_URL" in gone.stderr
    assert "Traceback" not in gone.stderr


def test_runs_as_a_task_and_is_recorded(drained: Databases, celery_worker: StartWorker) -> None:
    _rows(drained, "DELETE FROM usage_hourly", login="superuser")
    # A worker audits when it starts, once per window: the one before did, in the hour that it is now.
    celery_worker("-B", env={"USAGE_BOOKS_INTERVAL_SECONDS": "1"})
    query = "SELECT DISTINCT check_id FROM audit_findings WHERE check_id LIKE 'books.%'"
    assert wait_until(lambda: bool(_rows(drained, query)), timeout=60)
    assert _rows(drained, query) == [("books.rollups",)]
    runs = _rows(drained, "SELECT counts FROM job_runs WHERE job = 'audits.books' AND outcome = 'done'")
    assert runs
