"""The spool across processes: killed ones lose nothing, and what they left is sent by one of the others."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
import redis

from producers import EmitterConfig
from producers._spool import state_of
from producers._spool_flush import Flushed, flush
from tests.integration.spool_world import USAGE, Timed, files, ids_in, in_order
from worker.dev import servers

# Each id is told in one write once `emit` has returned it: whoever reads it may hold the emitter to it.
EMITTING = """
import os, sys, threading
from producers import Emitter

emitter = Emitter.from_env()

def emit(count):
    for _ in range(count):
        identity = emitter.emit(user_id="7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11", feature="x", tokens_used=1)
        os.write(1, f"{identity}\\n".encode())

running = [threading.Thread(target=emit, args=(int(sys.argv[2]),)) for _ in range(int(sys.argv[1]))]
for one in running:
    one.start()
for one in running:
    one.join()
if sys.argv[3] == "exit":
    os._exit(0)
"""


@pytest.fixture
def server() -> Iterator[servers.ValkeyServer]:
    with servers.ValkeyServer() as own:
        yield own


@pytest.fixture
def client(server: servers.ValkeyServer) -> "Iterator[redis.Redis]":
    with redis.Redis.from_url(server.url()) as one:
        yield one


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def start(server: servers.ValkeyServer, directory: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    environ = {"REDIS_URL": server.url(), "USAGE_SPOOL_DIR": str(directory), "PATH": os.defpath}
    return subprocess.Popen(
        [sys.executable, "-c", EMITTING, *arguments],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def told_by(process: "subprocess.Popen[bytes]") -> list[UUID]:
    output, _ = process.communicate(timeout=60)
    # The last line of a killed process may be cut off.
    return [UUID(line.decode()) for line in output.splitlines() if len(line) == 36]


class TestKill:
    def test_right_after_emit_returned_loses_nothing(
        self, server: servers.ValkeyServer, client: redis.Redis, directory: Path
    ) -> None:
        server.halt()
        told: list[UUID] = []
        for after in (1, 7, 40):
            process = start(server, directory, "2", "100000", "go on")
            assert process.stdout is not None
            for _ in range(after):
                told.append(UUID(process.stdout.readline().decode().strip()))
            process.send_signal(signal.SIGKILL)
            told += told_by(process)
        assert sum(segment.events for segment in state_of(directory).segments) >= len(told)
        assert not any(segment.held for segment in state_of(directory).segments)
        server.restart()
        done = flush(EmitterConfig(redis_url=server.url()), directory)
        assert done.segments == 3
        assert done.events >= len(told)
        assert set(told) <= set(ids_in(client))
        assert [name for name in files(directory) if not name.endswith(".bad")] == []

    def test_while_it_replays_loses_nothing(
        self, server: servers.ValkeyServer, client: redis.Redis, directory: Path
    ) -> None:
        server.halt()
        timed = Timed(server.url(), directory)
        for _ in range(8):
            with timed.emitter.batch() as batch:
                for _ in range(1000):
                    batch.emit(**USAGE)
            timed.told += batch.event_ids
        timed.emitter.close()
        server.restart()
        for _ in range(3):
            # Adopts with its first event, and is killed in the middle.
            process = start(server, directory, "1", "1000000", "go on")
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            told_by(process)
        flush(EmitterConfig(redis_url=server.url()), directory)
        mine = set(timed.told)
        found = [one for one in in_order(ids_in(client)) if one in mine]
        assert found == timed.told
        assert files(directory) == []

    def test_an_exit_without_a_close_loses_nothing(
        self, server: servers.ValkeyServer, client: redis.Redis, directory: Path
    ) -> None:
        server.halt()
        told = [one for how in ("exit", "end") for one in told_by(start(server, directory, "4", "25", how))]
        assert len(told) == 200
        server.restart()
        assert flush(EmitterConfig(redis_url=server.url()), directory).events == 200
        assert sorted(in_order(ids_in(client))) == sorted(told)


class TestAdoption:
    def test_is_by_exactly_one(
        self, server: servers.ValkeyServer, client: redis.Redis, directory: Path
    ) -> None:
        server.halt()
        told: list[UUID] = []
        for _ in range(12):
            timed = Timed(server.url(), directory)
            timed.emit(40)
            timed.emitter.close()
            told += timed.told
        left = set(told)
        server.restart()
        done: list[Flushed] = []
        together = threading.Barrier(3)

        def adopt() -> None:
            together.wait()
            done.append(flush(EmitterConfig(redis_url=server.url()), directory))

        threads = [threading.Thread(target=adopt) for _ in range(3)]
        for thread in threads:
            thread.start()
        processes = [start(server, directory, "1", "50", "end") for _ in range(2)]
        told += [one for process in processes for one in told_by(process)]
        for thread in threads:
            thread.join()
        flush(EmitterConfig(redis_url=server.url()), directory)
        found = ids_in(client)
        assert set(found) == set(told)
        # Nobody died, so that none of these was sent twice; a first event may have been.
        assert sorted(one for one in found if one in left) == sorted(left)
        assert files(directory) == []
