"""The short way of an emit against a real server: late, broken and refused replies stay with their event."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis

from producers import Emitter, EmitterConfig, StreamUnavailable
from producers._stream import decode
from worker.dev import servers

USAGE: dict[str, Any] = {
    "user_id": UUID("7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11"),
    "feature": "blog_writer",
    "input_tokens": 812,
    "output_tokens": 455,
}
KEY = "usage:events:{0}"


@pytest.fixture
def server() -> Iterator[servers.ValkeyServer]:
    with servers.ValkeyServer() as own:
        yield own


@pytest.fixture
def client(server: servers.ValkeyServer) -> "Iterator[redis.Redis]":
    with redis.Redis.from_url(server.url()) as one:
        yield one


def ids_in(client: redis.Redis) -> list[UUID | None]:
    found: list[tuple[bytes, dict[bytes, bytes]]] = client.xrange(KEY)  # type: ignore[assignment]  # bytes mode
    return [one.event_id for _, fields in found for one in decode(fields[b"data"])]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Dribble:
    """Stands between client and server and hands replies over byte by byte, with pauses."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.slow = threading.Event()
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                far = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [near, far]
                threading.Thread(target=self._pump, args=(near, far), daemon=True).start()
                threading.Thread(target=self._pump_back, args=(far, near), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)

    def _pump_back(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                step = 1 if self.slow.is_set() else len(data)
                for start in range(0, len(data), step):
                    target.sendall(data[start : start + step])
                    if self.slow.is_set():
                        time.sleep(0.001)

    def close(self) -> None:
        self._listener.close()
        for one in self._sockets:
            one.close()


class TestReplies:
    def test_may_come_in_pieces(self, server: servers.ValkeyServer, client: redis.Redis) -> None:
        dribble = Dribble(server.port)
        try:
            url = f"redis://:{server.password}@127.0.0.1:{dribble.port}/0"
            with Emitter(EmitterConfig(redis_url=url)) as emitter:
                told = [emitter.emit(**USAGE) for _ in range(3)]
                dribble.slow.set()
                told += [emitter.emit(**USAGE) for _ in range(5)]
                dribble.slow.clear()
                told += [emitter.emit(**USAGE) for _ in range(3)]
        finally:
            dribble.close()
        assert ids_in(client) == told

    def test_a_refusal_is_that_of_its_own_event(
        self, server: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        told: list[UUID] = []
        refused: list[UUID] = []
        with Emitter(EmitterConfig(redis_url=server.url())) as emitter:
            emitter.emit(**USAGE)
            before = client.info("stats")["total_connections_received"]
            for number in range(12):
                if number % 3 == 0:
                    client.rename(KEY, "aside")
                    client.set(KEY, "in the way")
                    with pytest.raises(StreamUnavailable, match=r"WRONGTYPE|wrong kind") as caught:
                        emitter.emit(**USAGE)
                    refused += [event.event_id for event in caught.value.events]
                    client.rename("aside", KEY)
                told.append(emitter.emit(**USAGE))
            # An error is an answer: the connection is as good as before.
            assert client.info("stats")["total_connections_received"] == before
        assert len(refused) == 4
        assert ids_in(client)[1:] == told

    def test_one_that_nobody_reads_is_not_taken_for_the_next_ones(
        self, server: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        with Emitter(EmitterConfig(redis_url=server.url())) as emitter:
            first = emitter.emit(**USAGE)
            server.pause()
            with pytest.raises(StreamUnavailable, match=r"(?i)time"):
                emitter.emit(**USAGE)
            server.resume()
            client.ping()
            # The late reply belongs to a connection that is closed: this refusal is seen.
            client.rename(KEY, "aside")
            client.set(KEY, "in the way")
            with pytest.raises(StreamUnavailable, match=r"WRONGTYPE|wrong kind"):
                emitter.emit(**USAGE)
            client.rename("aside", KEY)
            last = emitter.emit(**USAGE)
        assert (ids_in(client)[0], ids_in(client)[-1]) == (first, last)

    def test_a_frame_larger_than_the_buffers_goes_out_whole(
        self, server: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        with Emitter(EmitterConfig(redis_url=server.url())) as emitter:
            emitter.emit(**USAGE)
            with emitter.batch() as batch:
                for _ in range(150):
                    batch.emit(**USAGE, metadata={f"k{number}": "x" * 250 for number in range(26)})
            assert ids_in(client)[1:] == batch.event_ids


class TestConnections:
    def test_leave_no_descriptor_behind(self, server: servers.ValkeyServer) -> None:
        before = descriptors()
        for _ in range(3):
            with Emitter(EmitterConfig(redis_url=server.url())) as emitter:
                emitter.emit(**USAGE)
                server.restart()
                emitter.emit(**USAGE)
        assert descriptors() == before

    def test_of_a_parent_are_not_used_by_its_child(
        self, server: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        with Emitter(EmitterConfig(redis_url=server.url())) as emitter:
            told = [emitter.emit(**USAGE)]
            before = client.info("stats")["total_connections_received"]
            pid = os.fork()
            if pid == 0:
                code = 1
                with contextlib.suppress(Exception):
                    emitter.emit(**USAGE)
                    code = 0
                os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            told.append(emitter.emit(**USAGE))
            assert client.info("stats")["total_connections_received"] == before + 1
        found = ids_in(client)
        assert len(found) == 3
        assert [found[0], found[-1]] == told
