"""The command line as people and programs meet it: processes, exit codes, messages."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from tests.fixtures.databases import Databases
from tests.fixtures.processes import Cli, Finished, StartWorker
from worker.dev._processes import wait_until

USER = uuid.UUID("0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11")


def _unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _at_port(url: str, port: int) -> str:
    return re.sub(r":\d+/", f":{port}/", url)


def _said_once(done: Finished, *, code: int, variable: str) -> None:
    """One clear message: the code, the variable, a next step; no traceback, nothing on stdout."""
    assert done.code == code, done.stderr
    assert "Traceback" not in done.stderr
    assert variable in done.stderr
    assert re.search(r"Next step|Example", done.stderr), done.stderr
    assert done.stdout == ""


def _broken(environ: Mapping[str, str], what: str) -> tuple[dict[str, str], int, str]:
    """An environment with one thing wrong, the documented exit code, and the variable to be named."""
    broken = dict(environ)
    match what:
        case "no platform url":
            del broken["PLATFORM_DATABASE_URL"]
            del broken["PLATFORM_DATABASE_OWNER_URL"]
            del broken["PLATFORM_DATABASE_AUDIT_URL"]
            return broken, 2, "PLATFORM_DATABASE_URL"
        case "sqlite":
            broken["PLATFORM_DATABASE_URL"] = "sqlite:///usage.db"
            return broken, 2, "PLATFORM_DATABASE_URL"
        case "wrong password":
            broken["PLATFORM_DATABASE_URL"] = re.sub(
                r"//([^:]+):[^@]+@", r"//\1:sesame-0pen@", environ["PLATFORM_DATABASE_URL"]
            )
            return broken, 2, "PLATFORM_DATABASE_URL"
        case "postgres stopped":
            port = _unused_port()
            for name in broken:
                if name.startswith("PLATFORM_DATABASE"):
                    broken[name] = _at_port(broken[name], port)
            return broken, 3, "PLATFORM_DATABASE_URL"
        case "valkey stopped":
            broken["REDIS_URL"] = _at_port(environ["REDIS_URL"], _unused_port())
            return broken, 3, "REDIS_URL"
    raise AssertionError(what)


def _frames(valkey: redis.Redis) -> list[list[dict[str, Any]]]:
    """What was added to the stream, read back as any other client would."""
    entries: Any = valkey.xrange("usage:events:{0}")
    return [json.loads(fields[b"data"]) for _, fields in entries]


FAULTS = ("no platform url", "sqlite", "wrong password", "postgres stopped")


class TestFaults:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_db_check_names_the_variable_and_the_next_step(
        self, fault: str, cli: Cli, environ: dict[str, str]
    ) -> None:
        broken, code, variable = _broken(environ, fault)
        done = cli("db", "check", "--json", env=broken)
        assert done.code == code, done.stderr
        assert "Traceback" not in done.stderr
        assert variable in done.stderr
        assert re.search(r"Next step|Example", done.stderr), done.stderr
        assert "sesame-0pen" not in done.stdout + done.stderr

    @pytest.mark.parametrize("fault", [*FAULTS, "valkey stopped"])
    def test_status_stops_with_one_message(self, fault: str, cli: Cli, environ: dict[str, str]) -> None:
        broken, code, variable = _broken(environ, fault)
        _said_once(cli("status", "--json", env=broken), code=code, variable=variable)

    def test_emit_stops_when_valkey_is_away(self, cli: Cli, environ: dict[str, str]) -> None:
        broken, code, variable = _broken(environ, "valkey stopped")
        done = cli("emit", "--user", str(USER), "--feature", "chat", "--tokens", "7", env=broken)
        _said_once(done, code=code, variable=variable)

    def test_emit_without_redis_url_says_so(self, cli: Cli, environ: dict[str, str]) -> None:
        without = {name: value for name, value in environ.items() if name != "REDIS_URL"}
        done = cli("emit", "--user", str(USER), "--feature", "chat", "--tokens", "7", env=without)
        assert done.code == 2
        assert "REDIS_URL" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("fault", [*FAULTS, "valkey stopped"])
    def test_a_worker_does_not_start(
        self, fault: str, celery_worker: StartWorker, environ: dict[str, str]
    ) -> None:
        broken, code, variable = _broken(environ, fault)
        # The fixture adds to the test's environment; a variable is taken away by leaving it blank.
        gone = {name: "" for name in environ if name not in broken}
        worker = celery_worker(env={**broken, **gone}, ready=False)
        assert wait_until(lambda: not worker.running, timeout=30)
        assert worker.returncode == code, worker.log()
        assert variable in worker.log()
        assert re.search(r"Next step|Example", worker.log()), worker.log()
        assert "Traceback" not in worker.log()
        assert "sesame-0pen" not in worker.log()

    def test_a_worker_does_not_start_before_the_schema_is_there(
        self, celery_worker: StartWorker, cli: Cli
    ) -> None:
        done = cli("db", "downgrade", "base", "--database", "user-data", "--yes")
        assert done.code == 0, done.stderr
        worker = celery_worker(ready=False)
        assert wait_until(lambda: not worker.running, timeout=30)
        assert worker.returncode == 2, worker.log()
        assert "usage-worker db init" in worker.log()
        assert "Traceback" not in worker.log()
        checked = cli("db", "check", "--json")
        assert checked.code == 1, checked.stderr
        assert [one["at_head"] for one in checked.json().values()] == [True, False]

    def test_a_server_that_evicts_keys_is_refused(
        self, celery_worker: StartWorker, valkey: redis.Redis
    ) -> None:
        valkey.config_set("maxmemory-policy", "allkeys-lru")
        try:
            worker = celery_worker(ready=False)
            assert wait_until(lambda: not worker.running, timeout=30)
        finally:
            valkey.config_set("maxmemory-policy", "noeviction")
        assert worker.returncode == 2, worker.log()
        assert "maxmemory-policy noeviction" in worker.log()

    @pytest.mark.parametrize("program", ["worker", "beat", "flower"])
    def test_celery_programs_refuse_a_wrong_setting_without_a_traceback(
        self, program: str, environ: dict[str, str], tmp_path: Path
    ) -> None:
        broken, code, variable = _broken(environ, "sqlite")
        done = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "worker.app", program],
            env=broken,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        _said_once(Finished(done.returncode, done.stdout, done.stderr), code=code, variable=variable)


class TestUsage:
    def test_help_and_version_are_quick_and_need_no_setting(self, cli: Cli) -> None:
        shown = cli("--help", env={"PATH": "/usr/bin:/bin"})
        assert shown.code == 0
        assert {"audit", "db", "dead-letters", "dev", "emit", "status", "subscriptions", "usage"} <= set(
            re.findall(r"^  ([a-z-]+) ", shown.stdout, re.MULTILINE)
        )
        assert re.fullmatch(r"usage-worker, version \S+\n", cli("--version", env={}).stdout)

    @pytest.mark.parametrize(
        "arguments",
        [
            ["nonsense"],
            ["emit"],
            ["emit", "--user", str(USER), "--feature", "chat"],
            ["emit", "--user", "somebody", "--feature", "chat", "--tokens", "1"],
            ["usage", "show", "somebody"],
            ["usage", "show", str(USER), "--from", "2026-11-21T08:00:00"],
            ["dead-letters", "replay"],
            ["audit", "rls", "--role", "app"],
        ],
        ids=" ".join,
    )
    def test_a_wrong_call_is_exit_code_two(self, arguments: list[str], cli: Cli) -> None:
        done = cli(*arguments)
        assert done.code == 2, (done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        assert done.stderr
        assert done.stdout == ""

    def test_every_command_explains_itself(self, cli: Cli) -> None:
        for group, commands in {
            "db": ("init", "check", "info", "migrate", "downgrade", "backup", "restore", "adopt"),
            "dead-letters": ("list", "show", "replay", "discard"),
            "audit": ("rls", "pool", "books"),
            "usage": ("show",),
            "subscriptions": ("reconcile",),
        }.items():
            shown = cli(group, "--help", env={"PATH": "/usr/bin:/bin"})
            assert shown.code == 0, shown.stderr
            assert set(commands) <= set(re.findall(r"^  ([a-z-]+) ", shown.stdout, re.MULTILINE))


class TestEmit:
    def test_a_file_reports_bad_lines_and_sends_the_others(
        self, cli: Cli, environ: dict[str, str], valkey: redis.Redis, tmp_path: Path
    ) -> None:
        good = {"user_id": str(USER), "feature": "chat", "tokens_used": 5, "idempotency_key": "a"}
        lines = [json.dumps(good), "", "{", json.dumps({**good, "tokens_used": -1}), "[]", json.dumps(good)]
        file = tmp_path / "events.jsonl"
        file.write_text("\n".join(lines), encoding="utf-8")
        only_redis = {name: environ[name] for name in ("PATH", "REDIS_URL")}
        done = cli("emit", "--file", str(file), "--json", env=only_redis)
        assert done.code == 1
        answer = done.json()
        assert (answer["emitted"], answer["refused"]) == (2, 3)
        assert [(one["line"], one["reason"]) for one in answer["refusals"]] == [
            (3, "not_json"),
            (4, "invalid_tokens"),
            (5, "not_an_object"),
        ]
        assert "line 3: not_json" in done.stderr
        [frame] = _frames(valkey)
        assert len(frame) == 2
        assert len({event["event_id"] for event in frame}) == 1

    def test_stdin_becomes_frames(self, cli: Cli, valkey: redis.Redis) -> None:
        line = json.dumps({"user_id": str(USER), "feature": "chat", "tokens_used": 5})
        done = cli("emit", "--file", "-", "--batch-size", "100", stdin=f"{line}\n" * 1050)
        assert (done.code, done.stdout) == (0, "emitted 1,050, refused 0\n"), done.stderr
        assert [len(frame) for frame in _frames(valkey)] == [100] * 10 + [50]


class TestReading:
    def test_answers_are_json_on_stdout_and_tables_for_people(
        self, cli: Cli, celery_worker: StartWorker, databases: Databases, valkey: redis.Redis
    ) -> None:
        worker = celery_worker()
        at = "2026-11-01T12:30:00Z"
        for cost in ("0.25", "0.000000000001"):
            sent = cli(
                *("emit", "--user", str(USER), "--feature", "chat", "--model", "gpt-4o-mini", "--at", at),
                *("--input-tokens", "10", "--output-tokens", "5", "--cost", cost),
            )
            assert sent.code == 0, sent.stderr
        assert cli("emit", "--user", str(USER), "--feature", "chat", "--tokens", "7", "--at", at).code == 0
        hostile = b"{\x1b[31m"
        valkey.xadd("usage:events:{0}", {"data": hostile})
        with psycopg.connect(databases.platform.url("worker"), autocommit=True) as platform:
            query = "SELECT FROM ingest_positions WHERE entries = 4"
            assert wait_until(lambda: bool(platform.execute(query).fetchall()), timeout=20), worker.log()

        usage = cli("usage", "show", str(USER), "--from", "2026-11-01", "--to", "2026-11-02", "--json").json()
        assert usage["usage"] == [
            {
                "feature": "chat",
                "events": 3,
                "unpriced_events": 1,
                "input_tokens": 20,
                "output_tokens": 10,
                "tokens_used": 37,
                "cost_usd": "0.250000000001",
            }
        ]
        assert usage["from"] == "2026-11-01T00:00:00Z"

        status = cli("status", "--json", "--seconds", "0").json()
        assert [one["depth"] for one in status["streams"]] == [0, 0]
        assert (status["shards"][0]["events"], status["shards"][0]["rejected"]) == (4, 1)
        assert status["shards"][0]["epoch"] >= 1
        assert status["dead_letters"] == {"not_json": 1}
        assert status["unpriced_events"] == 1
        assert {"audits.rls", "subscriptions.reconcile"} <= {run["job"] for run in status["jobs"]}

        [letter] = cli("dead-letters", "list", "--json").json()
        shown = cli("dead-letters", "show", letter["id"])
        assert "\x1b" not in shown.stdout
        assert "\\x1b[31m" in shown.stdout
        as_json = cli("dead-letters", "show", letter["id"], "--json").json()
        assert bytes.fromhex(as_json["raw_hex"]) == hostile

    def test_a_dead_letter_is_replayed_with_corrected_bytes_once(
        self, cli: Cli, celery_worker: StartWorker, valkey: redis.Redis, databases: Databases, tmp_path: Path
    ) -> None:
        celery_worker()
        valkey.xadd("usage:events:{0}", {"data": b"{"})
        with psycopg.connect(databases.platform.url("worker"), autocommit=True) as platform:
            query = "SELECT FROM usage_dead_letters"
            assert wait_until(lambda: bool(platform.execute(query).fetchall()), timeout=20)
            [letter] = cli("dead-letters", "list", "--json").json()
            assert cli("dead-letters", "replay", letter["id"]).code == 1
            corrected = tmp_path / "corrected.json"
            event = {"event_id": str(uuid.uuid4()), "user_id": str(USER), "feature": "chat", "tokens_used": 9}
            event["occurred_at"] = letter["received_at"]
            corrected.write_text(json.dumps(event), encoding="utf-8")
            done = cli("dead-letters", "replay", letter["id"], "--with", str(corrected), "--json")
            assert (done.code, done.json()["accepted"]) == (0, 1), done.stderr
            again = cli("dead-letters", "replay", letter["id"], "--with", str(corrected), "--json")
            assert (again.code, again.json()["tried"]) == (0, 0)
            stored = platform.execute("SELECT tokens_used FROM platform_usage_logs").fetchall()
            assert stored == [(9,)]
        assert cli("dead-letters", "list", "--json").json() == []
        valkey.xadd("usage:events:{0}", {"data": b"]"})
        assert wait_until(lambda: len(cli("dead-letters", "list", "--json").json()) == 1, timeout=20)
        assert cli("dead-letters", "discard", "--reason", "not_json", "--yes", "--json").json() == {
            "discarded": 1
        }
        assert cli("dead-letters", "list", "--json").json() == []

    def test_audits_answer_in_the_shape_of_the_contract_and_fail_on_findings(
        self, cli: Cli, databases: Databases
    ) -> None:
        clean = cli("audit", "rls", "--json")
        assert clean.code == 0, clean.stderr
        document = clean.json()
        assert set(document) == {"run_id", "checks", "findings"}
        assert set(document["checks"][0]) == {"check_id", "outcome", "reason"}
        assert document["findings"] == []
        with psycopg.connect(databases.user_data.url("superuser")) as administrator:
            administrator.execute("ALTER TABLE user_projects NO FORCE ROW LEVEL SECURITY")
        found = cli("audit", "rls", "--database", "user-data", "--json")
        assert found.code == 1
        finding = next(one for one in found.json()["findings"] if "user_projects" in one["object"])
        assert set(finding) == {
            *("check_id", "severity", "database", "object", "message", "remediation", "fingerprint"),
        }
        assert finding["check_id"].startswith("rls.")
        assert cli("audit", "rls", "--database", "platform").code == 0
        assert cli("audit", "pool", "--json").code == 0
        foreign = cli(
            *("audit", "rls", "--url", databases.user_data.url("auditor"), "--role", "authenticated_users"),
            *("--tables", "user_projects", "--json"),
            env={"PATH": "/usr/bin:/bin"},
        )
        assert foreign.code == 1, foreign.stderr
        assert {one["database"] for one in foreign.json()["findings"]} == {"url"}

    def test_a_reconciliation_can_be_tried_before_it_is_done(self, cli: Cli) -> None:
        done = cli("subscriptions", "reconcile", "--dry-run", "--now", "2026-12-24T00:00:00Z", "--json")
        assert done.code == 0, done.stderr
        assert done.json()["dry_run"] is True
