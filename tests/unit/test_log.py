"""Logs: one JSON object per line on stderr, labelled, without secrets."""

import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from worker import log

ROW = """null value in column "id" violates not-null constraint
DETAIL:  Failing row contains (null, S3cretWord
and a second line of it).
[SQL: INSERT INTO users]"""

SECRETS = {
    "database URL": ("postgresql://app:S3cretWord@db:5432/usage", "postgresql://***@db:5432/usage"),
    "driver in the URL": ("postgresql+psycopg://a:S3cretWord@db/x", "postgresql+psycopg://***@db/x"),
    "redis URL": ("at rediss://:S3cretWord@cache:6379/0 now", "at rediss://***@cache:6379/0 now"),
    "unescaped @": ("redis://u:S3cret@Word@cache/0", "redis://***@cache/0"),
    "API key": ("key sk-proj-S3cretWord_12345678", "key ***"),
    "bearer": ("Authorization: Bearer S3cretWord.abc-def_123=", "Authorization: Bearer ***"),
    "basic": ("Authorization: Basic UzNjcmV0V29yZA==", "Authorization: Basic ***"),
    "AWS": ("id AKIAIOSFODNN7EXAMPLE", "id ***"),
    "password=": ("host=db password=S3cretWord port=1", "host=db password=*** port=1"),
    "quoted password": ("password='S3cret Word' port=1", "password=*** port=1"),
    "JSON": ('{"password": "S3cretWord", "a": 1}', '{"password": ***, "a": 1}'),
    "the row in an error": (
        ROW,
        'null value in column "id" violates not-null constraint\nDETAIL: ***\n[SQL: INSERT INTO users]',
    ),
    "the line of a COPY": ('bad\nCONTEXT:  COPY x, line 3: "S3cretWord"', "bad\nCONTEXT: ***"),
    "PEM": ("-----BEGIN PRIVATE KEY-----\nS3cretWord\n-----END PRIVATE KEY-----", "***"),
}

HARMLESS = [
    "http://localhost:5555/tasks",
    "input_tokens=812",
    "token: 12",
    "sk-short",
    "the password was refused",
    "a@b.example",
]

PROGRAM = """
import logging, sys
from worker import log
log.configure_logging(environment="test", level="info")
logger = log.get_logger("worker.ingest")
log.bind(task="ingest.drain", task_id="t-1")
with log.bound(batch_id="b-1"):
    logger.info("batch.committed", events=3, url="redis://u:S3cretWord@h/0", nested={"api_key": "S3cretWord"})
log.unbind("task", "task_id")
logger.debug("not shown")
logging.getLogger("sqlalchemy.engine").warning("lost %s", "postgresql://u:S3cretWord@h/x")
try:
    raise ValueError("postgresql://u:S3cretWord@h/x")
except ValueError:
    logger.exception("failed")
"""


class TestRedacted:
    @pytest.mark.parametrize("case", SECRETS)
    def test_hides(self, case: str) -> None:
        text, expected = SECRETS[case]
        assert log.redacted(text) == expected

    @pytest.mark.parametrize("text", HARMLESS)
    def test_leaves_alone(self, text: str) -> None:
        assert log.redacted(text) == text

    def test_cuts_what_is_far_too_long(self) -> None:
        assert log.redacted("x" * 50_000).endswith("… (50000 characters)")


class TestRedact:
    @pytest.mark.parametrize(
        "key",
        ["password", "DB_PASSWORD", "client_secret", "api_key", "x-api-key", "Authorization", "access_token"],
    )
    def test_hides_a_value_by_its_key(self, key: str) -> None:
        for value in ("S3cretWord", b"S3cretWord", 12345678, ["S3cretWord"], {"a": "S3cretWord"}):
            assert log.redact(None, "", {key: value}) == {key: "***"}
            assert log.redact(None, "", {"outer": [{key: value}]}) == {"outer": [{key: "***"}]}

    def test_keeps_numbers_of_tokens(self) -> None:
        event: dict[str, Any] = {
            "input_tokens": 3,
            "total_tokens": 5,
            "tokens_used": 8,
            "cached": True,
            "none": None,
        }
        assert log.redact(None, "", dict(event)) == event

    def test_ends_with_what_refers_to_itself(self) -> None:
        loop: dict[str, Any] = {}
        loop["loop"] = loop
        assert "***" in json.dumps(log.redact(None, "", {"a": loop}))


class TestConfigureLogging:
    def test_writes_json_to_stderr_with_task_and_batch(self) -> None:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout == ""
        assert "S3cretWord" not in done.stderr
        lines = [json.loads(line) for line in done.stderr.splitlines()]
        assert [line["event"] for line in lines] == ["batch.committed", "lost postgresql://***@h/x", "failed"]
        assert all(line["environment"] == "test" for line in lines)
        assert all(line["timestamp"].endswith("Z") for line in lines)
        first, second, third = lines
        assert (first["task"], first["task_id"], first["batch_id"]) == ("ingest.drain", "t-1", "b-1")
        assert (first["level"], first["logger"], first["events"]) == ("info", "worker.ingest", 3)
        assert first["url"] == "redis://***@h/0"
        assert first["nested"] == {"api_key": "***"}
        assert (second["logger"], second["level"]) == ("sqlalchemy.engine", "warning")
        assert "task" not in second
        assert "ValueError: postgresql://***@h/x" in third["exception"]

    def test_leaves_no_second_handler(self) -> None:
        root = logging.getLogger()
        before, level = root.handlers[:], root.level
        try:
            for _ in range(2):
                log.configure_logging(environment="test")
            assert len(root.handlers) == 1
        finally:
            root.handlers[:] = before
            root.setLevel(level)
