"""`usage-worker outbox` as operators run it: a process, its exit code, its words."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from producers import outbox
from tests.fixtures.databases import Databases
from tests.fixtures.processes import Cli
from tests.integration.outbox_world import USAGE, ids
from worker.dev._processes import wait_until


@pytest.fixture
def url(databases: Databases) -> str:
    """An app's own database with an outbox in it."""
    address = databases.platform.url("superuser")
    with psycopg.connect(address) as connection:
        outbox.create_table(connection)
    return address


@pytest.fixture
def connection(url: str) -> Iterator[psycopg.Connection[Any]]:
    """The app's connection."""
    with psycopg.connect(url, autocommit=True) as opened:
        yield opened


@pytest.fixture
def env(url: str, valkey_url: str) -> dict[str, str]:
    """All that the command needs."""
    return {"PATH": "/usr/bin:/bin", "REDIS_URL": valkey_url, "USAGE_OUTBOX_DATABASE_URL": url}


def write(connection: psycopg.Connection[Any], count: int) -> None:
    with connection.transaction():
        for _ in range(count):
            outbox.Outbox().add(connection, **USAGE)


class TestOutboxCommand:
    def test_relays_what_waits_and_says_how_much(
        self, cli: Cli, env: dict[str, str], connection: psycopg.Connection[Any], valkey: redis.Redis
    ) -> None:
        write(connection, 7)
        shown = cli("outbox", "status", "--json", env=env)
        assert (shown.code, shown.json()["waiting"], shown.json()["refused"]) == (0, 7, 0)
        assert shown.json()["oldest_seconds"] > 0
        done = cli("outbox", "relay", "--once", "--batch-size", "3", env=env)
        assert (done.code, done.stdout) == (0, "settled 7\n"), done.stderr
        assert len(ids(valkey)) == 7
        after = cli("outbox", "status", "--json", env=env).json()
        assert after == {"waiting": 0, "oldest_seconds": None, "refused": 0, "refusals": {}}

    def test_runs_until_sigterm(
        self, env: dict[str, str], connection: psycopg.Connection[Any], valkey: redis.Redis, tmp_path: Path
    ) -> None:
        with (tmp_path / "stderr").open("wb") as words:
            process = subprocess.Popen(
                [sys.executable, "-m", "worker", "outbox", "relay", "--json"],
                env=env,
                stdout=subprocess.PIPE,
                stderr=words,
            )
            try:
                write(connection, 3)
                assert wait_until(lambda: len(ids(valkey)) == 3, timeout=20)
                write(connection, 2)
                assert wait_until(lambda: len(ids(valkey)) == 5, timeout=5)
                process.send_signal(signal.SIGTERM)
                answer, _ = process.communicate(timeout=10)
            finally:
                process.kill()
                process.wait()
        assert (process.returncode, answer) == (0, b'{\n  "settled": 5\n}\n')
        assert (tmp_path / "stderr").read_bytes() == b""

    def test_refused_rows_are_findings(
        self, cli: Cli, env: dict[str, str], connection: psycopg.Connection[Any]
    ) -> None:
        connection.execute("INSERT INTO usage_outbox (event_id, data) VALUES (gen_random_uuid(), '{')")
        assert cli("outbox", "relay", "--once", env=env).code == 0
        shown = cli("outbox", "status", env=env)
        assert shown.code == 1
        assert "not_json 1" in shown.stdout

    @pytest.mark.parametrize(
        ("changes", "code", "said"),
        [
            ({"USAGE_OUTBOX_DATABASE_URL": ""}, 2, "USAGE_OUTBOX_DATABASE_URL: missing"),
            ({"USAGE_OUTBOX_DATABASE_URL": "sqlite:///x"}, 2, "USAGE_OUTBOX_DATABASE_URL"),
            ({"REDIS_URL": ""}, 2, "REDIS_URL"),
            ({"REDIS_URL": "redis://127.0.0.1:1/0"}, 3, "the events stay"),
            ({"port": "1"}, 3, "USAGE_OUTBOX_DATABASE_URL"),
            ({"password": "sesame-0pen"}, 2, "percent-encoded"),
            ({"database": "nowhere"}, 2, "nowhere"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_one_message_for_what_is_wrong(
        self,
        cli: Cli,
        env: dict[str, str],
        connection: psycopg.Connection[Any],
        changes: dict[str, str],
        code: int,
        said: str,
    ) -> None:
        write(connection, 1)
        address = env["USAGE_OUTBOX_DATABASE_URL"]
        info = psycopg.conninfo.conninfo_to_dict(address)
        for part in ("port", "password"):
            if part in changes:
                address = address.replace(f":{info[part]}", f":{changes[part]}")
        if "database" in changes:
            address = address.replace(f"/{info['dbname']}", f"/{changes['database']}")
        broken = {**env, "USAGE_OUTBOX_DATABASE_URL": address}
        broken |= {name: value for name, value in changes.items() if name.isupper()}
        done = cli("outbox", "relay", "--once", env=broken)
        assert done.code == code, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
        assert str(info["password"]) not in done.stderr
        assert done.stdout == ""
        assert outbox.status(connection).waiting == 1

    def test_a_missing_table_or_right_names_the_statement(
        self, cli: Cli, env: dict[str, str], databases: Databases
    ) -> None:
        missing = cli("outbox", "relay", "--once", "--table", "other_outbox", env=env)
        assert missing.code == 2
        assert "usage-worker outbox ddl" in missing.stderr
        foreign = {**env, "USAGE_OUTBOX_DATABASE_URL": databases.platform.url("worker")}
        refused = cli("outbox", "relay", env=foreign)
        assert refused.code == 2
        assert "GRANT SELECT, DELETE, UPDATE (refused) ON usage_outbox TO" in refused.stderr

    def test_prints_the_statement_that_makes_the_table(
        self, cli: Cli, connection: psycopg.Connection[Any]
    ) -> None:
        shown = cli("outbox", "ddl", "--table", "public.another_outbox", env={"PATH": "/usr/bin:/bin"})
        assert shown.code == 0
        connection.execute(shown.stdout)
        assert outbox.status(connection, "public.another_outbox").waiting == 0
        assert cli("outbox", "ddl", "--table", "Bad Name", env={"PATH": "/usr/bin:/bin"}).code == 2
