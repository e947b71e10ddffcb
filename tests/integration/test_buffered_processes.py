"""BufferedEmitter in processes that fork, end and are told to end: each event arrives, once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.integration.emitted import finish, ids_in, numbers_in, spawn, until
from worker.dev import servers

HEAD = """
import multiprocessing, os, signal, sys, threading, time
from producers import BufferedEmitter
USAGE = dict(user_id="7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11", feature="fork", input_tokens=1, output_tokens=1)

def emit(emitter, count):
    for _ in range(count):
        identity = emitter.emit(**USAGE)
        os.write(1, f"{identity}\\n".encode())

def wait_for(*pids):
    for pid in pids:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

def child(work):
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return pid
"""
FULL = """
emitter = BufferedEmitter.from_env(flush_interval_ms=60_000, flush_at=100_000)
emit(emitter, 300)

def work():
    assert emitter.stats.accepted == 0, emitter.stats
    emit(emitter, 50)
    assert emitter.close().delivered == 50

wait_for(*[child(work) for _ in range(3)])
emit(emitter, 20)
assert emitter.close().delivered == 320
"""
BUSY = """
emitter = BufferedEmitter.from_env(flush_interval_ms=1, flush_at=3)
busy = [threading.Thread(target=emit, args=(emitter, 500)) for _ in range(3)]
for thread in busy:
    thread.start()

def work():
    emit(emitter, 100)
    assert emitter.flush(10)

children = []
for _ in range(8):
    time.sleep(0.005)
    children.append(child(work))
wait_for(*children)
for thread in busy:
    thread.join()
assert emitter.close().failed == ()
"""
PREFORK = """
emitter = BufferedEmitter.from_env(flush_interval_ms=60_000)
children = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        threads = [threading.Thread(target=emit, args=(emitter, 40)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sys.exit(0)
    children.append(pid)
wait_for(*children)
emit(emitter, 5)
"""
NO_CLOSE = """
emitter = BufferedEmitter.from_env(flush_interval_ms=60_000)
emit(emitter, 100)
"""
MODULES = """
emitter = BufferedEmitter.from_env()
before = set(sys.modules)
emit(emitter, 1)
assert emitter.close().delivered == 1
assert set(sys.modules) == before, set(sys.modules) - before
"""
MULTIPROCESSING = """
emitter = BufferedEmitter.from_env(flush_interval_ms=60_000)
context = multiprocessing.get_context("fork")
children = [context.Process(target=emit, args=(emitter, 30)) for _ in range(2)]
for one in children:
    one.start()
for one in children:
    one.join()
    assert one.exitcode == 0
"""
SIGTERM = """
emitter = BufferedEmitter.from_env(flush_interval_ms=60_000)
if sys.argv[1] == "handler":
    signal.signal(signal.SIGTERM, lambda *_: (emit(emitter, 1), sys.exit(7)))
emitter.flush_on_signals()
if sys.argv[1] == "early":
    # What a framework installs later takes the place of ours, if it does not chain.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(8))
emit(emitter, 100)
open(sys.argv[2], "w").close()
while True:
    emit(emitter, 1)
    time.sleep(0.001)
"""
AWAY = """
import logging
logging.basicConfig(format="%(message)s")
def lost(error):
    for event in error.events:
        os.write(1, f"{event.event_id}\\n".encode())
os.environ["REDIS_URL"] = "redis://127.0.0.1:1"
emitter = BufferedEmitter.from_env(exit_timeout=0.2, on_error=lost)
for _ in range(3):
    emitter.emit(**USAGE)
"""


@pytest.fixture(scope="module")
def shared_server() -> Iterator[servers.ValkeyServer]:
    with servers.ValkeyServer() as own:
        yield own


@pytest.fixture
def server(shared_server: servers.ValkeyServer, client: redis.Redis) -> servers.ValkeyServer:
    client.flushall()
    return shared_server


@pytest.fixture
def client(shared_server: servers.ValkeyServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(shared_server.url()) as one:
        yield one


class TestFork:
    @pytest.mark.parametrize(
        ("script", "count"),
        [(FULL, 300 + 3 * 50 + 20), (BUSY, 3 * 500 + 8 * 100), (PREFORK, 3 * 80 + 5)],
        ids=["full", "busy", "prefork"],
    )
    def test_parent_and_children_send_their_own(
        self, server: servers.ValkeyServer, client: redis.Redis, script: str, count: int
    ) -> None:
        told = finish(spawn(HEAD + script, server))
        assert len(told) == len(set(told)) == count
        assert sorted(ids_in(client)) == sorted(told)
        for series in numbers_in(client).values():
            assert series == list(range(1, len(series) + 1))

    def test_the_thread_loads_no_modules_while_others_may_fork(self, server: servers.ValkeyServer) -> None:
        assert len(finish(spawn(HEAD + MODULES, server))) == 1


class TestEnd:
    @pytest.mark.parametrize(
        ("script", "count"), [(NO_CLOSE, 100), (MULTIPROCESSING, 60)], ids=["exit", "multiprocessing"]
    )
    def test_a_process_that_ends_without_close_flushes(
        self, server: servers.ValkeyServer, client: redis.Redis, script: str, count: int
    ) -> None:
        told = finish(spawn(HEAD + script, server))
        assert len(told) == count
        assert sorted(ids_in(client)) == sorted(told)

    @pytest.mark.parametrize(
        ("before", "code"), [("none", -signal.SIGTERM), ("handler", 7), ("early", 8)], ids=str
    )
    def test_sigterm_with_the_recipe_flushes_and_does_what_was_done_before(
        self, server: servers.ValkeyServer, client: redis.Redis, before: str, code: int, tmp_path: Path
    ) -> None:
        ready = tmp_path / "ready"
        process = spawn(HEAD + SIGTERM, server, before, str(ready))
        until(ready.exists)
        os.kill(process.pid, signal.SIGTERM)
        told = finish(process, code=code)
        found = ids_in(client)
        assert len(found) == len(set(found))
        assert set(told) <= set(found)
        # The last one may have been taken and not been written any more when the signal came.
        assert len(found) <= len(told) + 1

    def test_what_cannot_be_delivered_at_the_end_is_told(self, server: servers.ValkeyServer) -> None:
        process = spawn(HEAD + AWAY, server)
        stdout, stderr = process.communicate(timeout=30)
        assert process.returncode == 0
        assert len(set(stdout.split())) == 3
        assert "3 usage events were not delivered before their emitter ended" in stderr
