"""The emitter when the server is away, full, read-only, frozen or mute: nothing silent, nothing anew."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
import redis

from producers import Emitter, EmitterConfig, StreamUnavailable
from producers._stream import decode, shard_of
from worker.dev import servers

USAGE: dict[str, Any] = {
    "user_id": UUID("7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11"),
    "feature": "blog_writer",
    "input_tokens": 812,
    "output_tokens": 455,
}
KEY = "usage:events:{0}"
NAMES = [f"user_{number}" for number in range(20)]


@pytest.fixture
def server() -> Iterator[servers.ValkeyServer]:
    """A server of the test's own, to be stopped and spoilt."""
    with servers.ValkeyServer() as own:
        yield own


@pytest.fixture
def client(server: servers.ValkeyServer) -> "Iterator[redis.Redis]":
    with redis.Redis.from_url(server.url()) as one:
        yield one


@pytest.fixture
def emitter(server: servers.ValkeyServer) -> Iterator[Emitter]:
    with Emitter(EmitterConfig(redis_url=server.url())) as one:
        yield one


def emit_together(emitter: Emitter, *usages: dict[str, Any]) -> None:
    with emitter.batch() as batch:
        for usage in usages:
            batch.emit(**usage)


def ids_in(client: redis.Redis) -> list[UUID]:
    found: list[tuple[bytes, dict[bytes, bytes]]] = client.xrange(KEY)  # type: ignore[assignment]  # bytes mode
    decoded = [one for _, fields in found for one in decode(fields[b"data"])]
    return [one.event_id for one in decoded if one.event_id is not None]


class Proxy:
    """Stands between client and server; it can lose the replies of a connection, as a cut cable does."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.lose_replies = threading.Event()
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [near, far]
                threading.Thread(target=self._pump, args=(near, far), daemon=True).start()
                threading.Thread(target=self._pump_back, args=(far, near), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.close()

    def _pump_back(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.lose_replies.is_set():
                    # The server has done its work; nobody will hear of it.
                    self.lose_replies.clear()
                    break
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        for one in self._sockets:
            one.close()


class TestServerAway:
    def test_is_told_with_its_cause_and_without_the_password(
        self, emitter: Emitter, server: servers.ValkeyServer
    ) -> None:
        emitter.emit(**USAGE)
        server.halt()
        started = time.monotonic()
        with pytest.raises(StreamUnavailable, match="REDIS_URL") as caught:
            emitter.emit(**USAGE)
        assert time.monotonic() - started < 3
        assert isinstance(caught.value.__cause__, redis.RedisError)
        assert server.password not in str(caught.value) + str(caught.value.__cause__)
        assert f"redis://***@127.0.0.1:{server.port}" in str(caught.value)

    def test_what_was_not_acknowledged_can_be_sent_again(
        self, emitter: Emitter, server: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        server.halt()
        with pytest.raises(StreamUnavailable) as caught:
            emit_together(emitter, USAGE, USAGE)
        assert len(caught.value.events) == 2
        server.restart()
        assert [emitter.send(event) for event in caught.value.events] == ids_in(client)

    def test_a_restart_between_two_events_goes_unnoticed(
        self, emitter: Emitter, server: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        first = emitter.emit(**USAGE)
        server.restart()
        second = emitter.emit(**USAGE)
        assert ids_in(client) == [first, second]

    def test_a_frozen_server_costs_seconds_not_minutes(
        self, emitter: Emitter, server: servers.ValkeyServer
    ) -> None:
        emitter.emit(**USAGE)
        server.pause()
        try:
            started = time.monotonic()
            with pytest.raises(StreamUnavailable, match=r"(?i)time"):
                emitter.emit(**USAGE)
            assert 1 < time.monotonic() - started < 8
        finally:
            server.resume()
        emitter.emit(**USAGE)

    def test_nothing_at_all_listens(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        with Emitter(EmitterConfig(redis_url=f"redis://:S3cret@127.0.0.1:{port}/0")) as emitter:
            with pytest.raises(StreamUnavailable) as caught:
                emitter.emit(**USAGE)
        assert "S3cret" not in str(caught.value)


class TestServerRefuses:
    @pytest.mark.parametrize(
        ("spoil", "repair", "message"),
        [
            (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), "maxmemory"),
            (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), "read only"),
            (
                ("CONFIG", "SET", "min-replicas-to-write", "1"),
                ("CONFIG", "SET", "min-replicas-to-write", "0"),
                "(?i)replicas",
            ),
            (("SET", KEY, "x"), ("DEL", KEY), "WRONGTYPE|wrong kind"),
            (
                ("ACL", "SETUSER", "default", "-xadd"),
                ("ACL", "SETUSER", "default", "+xadd"),
                "no permissions|NOPERM",
            ),
        ],
        ids=["OOM", "READONLY", "NOREPLICAS", "WRONGTYPE", "NOPERM"],
    )
    def test_is_told_and_is_over_when_the_server_takes_it_again(
        self,
        emitter: Emitter,
        client: redis.Redis,
        spoil: tuple[str, ...],
        repair: tuple[str, ...],
        message: str,
    ) -> None:
        client.execute_command(*spoil)  # type: ignore[no-untyped-call]  # redis-py has no annotation here
        started = time.monotonic()
        with pytest.raises(StreamUnavailable, match=message) as caught:
            emitter.emit(**USAGE)
        assert time.monotonic() - started < 2
        client.execute_command(*repair)  # type: ignore[no-untyped-call]  # as above
        emitter.send(caught.value.events[0])
        assert ids_in(client) == [caught.value.events[0].event_id]

    def test_a_wrong_password_is_told_without_it(self, server: servers.ValkeyServer) -> None:
        url = f"redis://:S3cret@127.0.0.1:{server.port}/0"
        with Emitter(EmitterConfig(redis_url=url)) as emitter:
            with pytest.raises(StreamUnavailable, match=r"(?i)password") as caught:
                emitter.emit(**USAGE)
        assert "S3cret" not in str(caught.value)

    def test_a_batch_names_only_what_was_refused(
        self, server: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        client.set("usage:events:{1}", "in the way")
        with Emitter(EmitterConfig(redis_url=server.url(), shards=2)) as emitter:
            users = [next(name for name in NAMES if shard_of(name, 2) == shard) for shard in (0, 1)]
            with pytest.raises(StreamUnavailable, match="1 event") as caught:
                emit_together(emitter, *({**USAGE, "user_id": None, "clerk_id": name} for name in users))
        assert [event.clerk_id for event in caught.value.events] == users[1:]
        assert len(ids_in(client)) == 1


class TestLostReply:
    def test_the_same_event_may_be_there_twice_never_another_one(
        self, server: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        proxy = Proxy(server.port)
        try:
            url = f"redis://:{server.password}@127.0.0.1:{proxy.port}/0"
            with Emitter(EmitterConfig(redis_url=url)) as emitter:
                first = emitter.emit(**USAGE)
                proxy.lose_replies.set()
                second = emitter.emit(**USAGE)
        finally:
            proxy.close()
        found: list[tuple[bytes, dict[bytes, bytes]]] = client.xrange(KEY)  # type: ignore[assignment]  # bytes mode
        assert ids_in(client) == [first, second, second]
        # The bytes too: the time was frozen with the id.
        assert found[1][1] == found[2][1]

    def test_a_signal_in_between_does_not_leave_a_reply_for_the_next_event(
        self, emitter: Emitter, server: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        class Interrupted(BaseException):
            pass

        def interrupt(*_: object) -> None:
            raise Interrupted

        emitter.emit(**USAGE)
        before = client.info("stats")["total_connections_received"]
        previous = signal.signal(signal.SIGUSR1, interrupt)
        server.pause()
        # A thread may raise it; it is handled in the main thread, which is waiting for the reply.
        alarm = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGUSR1])
        try:
            alarm.start()
            with pytest.raises(Interrupted):
                emitter.emit(**USAGE)
        finally:
            alarm.join()
            signal.signal(signal.SIGUSR1, previous)
            server.resume()
        last = emitter.emit(**USAGE)
        assert ids_in(client)[-1] == last
        assert client.info("stats")["total_connections_received"] == before + 1


FORKING = """
import os, sys, threading
from producers import Emitter

USAGE = dict(user_id="7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11", feature="fork", input_tokens=1, output_tokens=1)
emitter = Emitter.from_env()
lock = threading.Lock()

def emit(count):
    for _ in range(count):
        identity = emitter.emit(**USAGE)
        os.write(1, f"{identity}\\n".encode())

def threads(count, each):
    running = [threading.Thread(target=emit, args=(each,)) for _ in range(count)]
    for one in running:
        one.start()
    return running

emit(5)
busy = threads(3, 60)
children = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        for one in threads(2, 20):
            one.join()
        emitter.close()
        os._exit(0)
    children.append(pid)
emit(20)
for one in busy:
    one.join()
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
emit(5)
sys.exit(max(codes))
"""


class TestFork:
    def test_children_and_parent_lose_and_mix_up_nothing(
        self, server: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        done = subprocess.run(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKING],
            env={"REDIS_URL": server.url(), "PATH": os.defpath},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        told = [UUID(line) for line in done.stdout.split()]
        assert len(told) == len(set(told)) == 5 + 3 * 60 + 4 * 2 * 20 + 20 + 5
        assert sorted(ids_in(client)) == sorted(told)
