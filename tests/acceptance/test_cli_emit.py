"""`usage-worker emit` as people run it: exports, dry runs, and files that are sent on after a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import redis

from producers._stream import decode
from tests.fixtures.processes import Cli

USER = "0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11"
NOTHING = {"PATH": "/usr/bin:/bin"}
# A year ago: closed, and older than what a worker usually takes.
START = 1_763_510_400
PAGE = {
    "object": "page",
    "data": [
        {
            "object": "bucket",
            "start_time": START,
            "end_time": START + 86_400,
            "results": [
                {
                    "object": "organization.usage.completions.result",
                    "input_tokens": 1000,
                    "output_tokens": 500,
                    "input_cached_tokens": 800,
                    "num_model_requests": 5,
                    "project_id": project,
                    "model": "gpt-4o-mini",
                }
                for project in ("proj_a", "proj_b", "proj_nobody")
            ],
        }
    ],
}


def sent(client: redis.Redis) -> list[dict[str, Any]]:
    """The events on the stream, as often as they stand there."""
    found: list[dict[str, Any]] = []
    entries: Any = client.xrange("usage:events:{0}")
    for _, fields in entries:
        assert [one.detail for one in decode(fields[b"data"]) if one.event is None] == []
        data = json.loads(fields[b"data"])
        found += data if isinstance(data, list) else [data]
    return found


def ids(client: redis.Redis) -> Counter[str]:
    return Counter(event["event_id"] for event in sent(client))


@pytest.fixture
def env(valkey_url: str) -> dict[str, str]:
    """All that the command needs."""
    return {**NOTHING, "REDIS_URL": valkey_url}


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """A file of 3,000 equal lines without ids: nothing but their place tells them apart."""
    path = tmp_path / "events.jsonl"
    line = json.dumps({"user_id": USER, "feature": "chat", "tokens_used": 5})
    path.write_text(f"{line}\n" * 3000, encoding="utf-8")
    return path


class TestExports:
    def test_a_usage_page_is_sent_once_however_often_it_is_imported(
        self, cli: Cli, env: dict[str, str], valkey: redis.Redis, tmp_path: Path
    ) -> None:
        page, users = tmp_path / "usage.json", tmp_path / "users.json"
        page.write_text(json.dumps(PAGE, indent=2), encoding="utf-8")
        users.write_text(json.dumps({"proj_a": USER, "proj_b": "user_2abc"}), encoding="utf-8")
        call = ("emit", "--file", str(page), "--format", "openai", "--feature", "llm", "--json")
        for _ in range(2):
            done = cli(*call, "--user-map", str(users), env=env)
            assert done.code == 1, done.stderr
            answer = done.json()
            assert (answer["emitted"], answer["reasons"]) == (2, {"unmapped_user": 1})
            assert answer["tokens_used"] == 3000
            assert answer["outside_window"] == {"too_old": 2}
            assert "proj_nobody" in done.stderr
        assert sorted(ids(valkey).values()) == [2, 2]
        found = {event.get("user_id") or event["clerk_id"]: event for event in sent(valkey)}
        assert set(found) == {USER, "user_2abc"}
        assert found[USER]["cache_read_tokens"] == 800
        one_for_all = cli(*call, "--user", USER, env=env)
        assert (one_for_all.code, one_for_all.json()["emitted"]) == (0, 3)

    def test_a_dry_run_needs_no_server_and_says_what_would_be(
        self, cli: Cli, tmp_path: Path, lines: Path
    ) -> None:
        with lines.open("a", encoding="utf-8") as file:
            file.write('{"user_id": 5}\n{\n')
            file.write(json.dumps({"user_id": USER, "feature": "a", "tokens_used": 1, "cost_usd": "0.5"}))
        done = cli("emit", "--file", str(lines), "--dry-run", env=NOTHING)
        assert done.code == 1
        assert done.stdout.splitlines() == [
            "would emit 3,001, refused 2",
            "tokens 15,001, cost 0.500000000000 USD, unknown for 3,000",
            "refused: invalid_user_id 1, not_json 1",
        ]
        answer = cli("emit", "--file", str(lines), "--dry-run", "--json", env=NOTHING).json()
        assert (answer["emitted"], answer["would_emit"], answer["refused"]) == (0, 3001, 2)
        assert (answer["cost_usd"], answer["without_cost"]) == ("0.500000000000", 3000)

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--format", "openai", "--feature", "x", "--user", USER],
            ["--file", "-", "--format", "openai", "--user", USER],
            ["--file", "-", "--format", "openai", "--feature", "x", "--tokens", "5"],
            ["--file", "-", "--format", "openai", "--feature", "x", "--state", "s"],
            ["--file", "-", "--user-map", "/dev/null"],
            ["--file", "-", "--format", "openai", "--feature", "x", "--user-map", "/dev/null"],
            ["--file", "-", "--format", "openai", "--feature", "x", "--user", USER, "--clerk", "c"],
            ["--file", "-", "--source-name", "x"],
            ["--state", "s", "--user", USER, "--feature", "x", "--tokens", "1"],
            ["--file", "-", "--state", "s", "--dry-run"],
        ],
    )
    def test_wrong_usage_is_2(self, cli: Cli, env: dict[str, str], arguments: list[str]) -> None:
        done = cli("emit", *arguments, env=env, stdin="")
        assert (done.code, done.stdout) == (2, ""), done.stderr
        assert "Traceback" not in done.stderr


class TestState:
    def test_a_second_run_sends_only_what_was_added(
        self, cli: Cli, env: dict[str, str], valkey: redis.Redis, tmp_path: Path, lines: Path
    ) -> None:
        call = ("emit", "--file", str(lines), "--state", str(tmp_path / "state"))
        assert cli(*call, env=env).stdout == "emitted 3,000, refused 0\n"
        with lines.open("a", encoding="utf-8") as file:
            file.write(lines.read_text(encoding="utf-8").splitlines()[0][:-1])
        half = cli(*call, env=env)
        assert (half.code, half.stdout.splitlines()[0]) == (1, "emitted 0, refused 1")
        with lines.open("a", encoding="utf-8") as file:
            file.write("}\n")
        again = cli(*call, "--json", env=env)
        assert (again.code, again.json()["emitted"], again.json()["resumed_at_line"]) == (0, 1, 3001)
        assert "goes on after line 3,000" in again.stderr
        assert cli(*call, env=env).stdout == "emitted 0, refused 0\n"
        assert set(ids(valkey).values()) == {1}
        assert len(ids(valkey)) == 3001

    def test_another_file_is_refused(
        self, cli: Cli, env: dict[str, str], valkey: redis.Redis, tmp_path: Path, lines: Path
    ) -> None:
        state = str(tmp_path / "state")
        assert cli("emit", "--file", str(lines), "--state", state, env=env).code == 0
        before = valkey.xlen("usage:events:{0}")
        done = cli("emit", "--file", "-", "--state", state, env=env, stdin="{}\n" * 5000)
        assert (done.code, done.stdout) == (2, "")
        assert "another file" in done.stderr
        assert valkey.xlen("usage:events:{0}") == before

    def test_killed_at_any_moment_each_line_is_one_event(
        self, env: dict[str, str], valkey: redis.Redis, tmp_path: Path, lines: Path
    ) -> None:
        """3,000 lines in batches of 50, killed again and again; what is sent twice has the same id."""
        chance = random.Random(7)  # noqa: S311 - a test's own
        state = tmp_path / "state"
        command = [sys.executable, "-m", "worker", "emit", "--file", str(lines), "--state", str(state)]
        kills = 0
        for _ in range(40):
            process = subprocess.Popen(
                [*command, "--batch-size", "50"],
                env=env,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            length = valkey.xlen("usage:events:{0}")
            while process.poll() is None and valkey.xlen("usage:events:{0}") < length + chance.randint(3, 14):
                time.sleep(0.0005)
            process.kill()
            if process.wait() == 0:
                break
            kills += 1
        assert process.returncode == 0
        assert kills > 3
        found = ids(valkey)
        assert len(found) == 3000
        assert sum(found.values()) >= 3000

    def test_ctrl_c_says_how_to_go_on(
        self, cli: Cli, env: dict[str, str], valkey: redis.Redis, tmp_path: Path
    ) -> None:
        line = json.dumps({"user_id": USER, "feature": "chat", "tokens_used": 5}).encode() + b"\n"
        call = ["emit", "--file", "-", "--batch-size", "10"]
        for more, words in (([], b"--state FILE"), (["--state", str(tmp_path / "s")], b"same command again")):
            valkey.flushall()
            process = subprocess.Popen(
                [sys.executable, "-m", "worker", *call, *more],
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            assert process.stdin is not None
            process.stdin.write(line * 25)
            process.stdin.flush()
            while not valkey.xlen("usage:events:{0}"):
                time.sleep(0.01)
                assert process.poll() is None
            time.sleep(0.1)
            os.kill(process.pid, signal.SIGINT)
            answer, said = process.communicate(timeout=10)
            assert (process.returncode, answer) == (130, b"")
            assert b"20 events were acknowledged" in said
            assert words in said
            assert b"Traceback" not in said
        again = cli(*call, "--state", str(tmp_path / "s"), env=env, stdin=(line * 25).decode())
        assert (again.code, again.stdout) == (0, "emitted 5, refused 0\n")
        assert ids(valkey).total() == len(ids(valkey)) == 25

    def test_lines_keep_ids_of_their_own(
        self, cli: Cli, env: dict[str, str], valkey: redis.Redis, tmp_path: Path
    ) -> None:
        own = str(uuid.uuid4())
        line = {"user_id": USER, "feature": "chat", "tokens_used": 5}
        text = "\n".join(
            json.dumps({**line, **more}) for more in ({"event_id": own}, {"idempotency_key": "k"})
        )
        for number in range(2):
            state = str(tmp_path / f"state-{number}")
            assert cli("emit", "--file", "-", "--state", state, env=env, stdin=text).code == 0
        assert sorted(ids(valkey).values()) == [2, 2]
        assert own in ids(valkey)
