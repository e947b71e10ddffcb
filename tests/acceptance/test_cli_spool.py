"""`usage-worker spool`, as people run it: without any database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from tests.integration.spool_world import Timed, ids_in
from worker.dev import servers

AWAY = "redis://:S3cret@127.0.0.1:1/0"


def spool(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker", "spool", *arguments],
        env={"PATH": os.defpath, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def left(directory: Path) -> Timed:
    """What an emitter has left that could not reach the stream."""
    timed = Timed(AWAY, directory)
    timed.emit(7)
    timed.emitter.close()
    return timed


class TestStatus:
    def test_of_what_is_left_and_what_is_held(self, left: Timed, directory: Path) -> None:
        living = Timed(AWAY, directory)
        living.emit(2)
        done = spool("status", "--json", USAGE_SPOOL_DIR=str(directory))
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        # The living one may have taken over what the other one left.
        assert document["events"] == 9
        assert True in [segment["held"] for segment in document["segments"]]
        assert document["oldest_seconds"] > 0
        assert document["bytes"] > 9 * 100
        assert document["quarantined"] == {"files": 0, "bytes": 0}
        living.emitter.close()
        shown = spool("status", "--dir", str(directory))
        assert shown.returncode == 0
        assert "9 events wait" in shown.stdout

    def test_of_an_empty_directory(self, directory: Path) -> None:
        directory.mkdir()
        done = spool("status", "--dir", str(directory))
        assert (done.returncode, done.stdout) == (0, "segments: none\n0 events wait, 0 bytes\n")

    def test_tells_what_was_set_aside(self, left: Timed, directory: Path) -> None:
        (path,) = directory.glob("*.spool")
        path.write_bytes(path.read_bytes()[:-5])
        assert json.loads(spool("status", "--json", "--dir", str(directory)).stdout)["events"] == 6
        (directory / "1.16.bad").write_bytes(b"xyz")
        done = spool("status", "--dir", str(directory))
        assert "1 files hold 3 bytes that were no whole event" in done.stderr


class TestFlush:
    def test_sends_and_reports(
        self, left: Timed, directory: Path, valkey: redis.Redis, valkey_url: str
    ) -> None:
        done = spool("flush", "--json", USAGE_SPOOL_DIR=str(directory), REDIS_URL=valkey_url)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {"segments": 1, "events": 7, "damaged_bytes": 0, "held": 0}
        assert ids_in(valkey) == left.told
        assert list(directory.iterdir()) == []
        again = spool("flush", "--dir", str(directory), REDIS_URL=valkey_url)
        assert (again.returncode, again.stdout) == (0, "0 events of 0 segments sent\n")

    def test_tells_what_was_no_event(
        self, left: Timed, directory: Path, valkey: redis.Redis, valkey_url: str
    ) -> None:
        (path,) = directory.glob("*.spool")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        done = spool("flush", "--dir", str(directory), REDIS_URL=valkey_url)
        assert (done.returncode, done.stdout) == (0, "6 events of 1 segments sent\n")
        assert "were no whole event" in done.stderr
        assert "blog_writer" not in done.stderr
        assert len(ids_in(valkey)) == 6
        assert [name.suffix for name in directory.iterdir()] == [".bad"]

    def test_says_that_the_stream_is_away(self, left: Timed, directory: Path) -> None:
        done = spool("flush", "--dir", str(directory), REDIS_URL=AWAY)
        assert done.returncode == 3
        assert "REDIS_URL" in done.stderr
        assert "S3cret" not in done.stderr
        assert len(list(directory.glob("*.spool"))) == 1

    def test_of_a_full_server(self, left: Timed, directory: Path) -> None:
        with servers.ValkeyServer(settings={"maxmemory": "1"}) as full:
            done = spool("flush", "--dir", str(directory), REDIS_URL=full.url())
        assert done.returncode == 3
        assert "maxmemory" in done.stderr
        assert len(list(directory.glob("*.spool"))) == 1


@pytest.mark.parametrize("command", ["status", "flush"])
class TestConfiguration:
    def test_needs_a_directory(self, command: str, tmp_path: Path) -> None:
        for arguments in ((), ("--dir", str(tmp_path / "nothing"))):
            done = spool(command, *arguments, REDIS_URL=AWAY)
            assert done.returncode == 2
            assert "USAGE_SPOOL_DIR" in done.stderr

    def test_only_flush_needs_the_stream(self, command: str, tmp_path: Path) -> None:
        done = spool(command, "--dir", str(tmp_path))
        assert done.returncode == (0 if command == "status" else 2)
        assert ("REDIS_URL" in done.stderr) == (command == "flush")
