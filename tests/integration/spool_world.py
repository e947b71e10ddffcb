"""What the tests of the spool share: an emitter on a clock, and servers that answer badly or not at all."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import redis

from producers import Emitter, EmitterConfig
from producers._spool import state_of
from producers._stream import decode
from worker.dev import servers
from worker.dev._processes import wait_until

USAGE: dict[str, Any] = {
    "user_id": UUID("7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11"),
    "feature": "blog_writer",
    "input_tokens": 812,
    "output_tokens": 455,
}
KEY = "usage:events:{0}"
BUDGET_SECONDS = 0.05
# Other processes share the machine: what a call may take beyond its budget where it has to wait for a turn.
SLACK_SECONDS = 0.25


class Timed:
    """An emitter whose calls are timed; it remembers the ids that it returned."""

    def __init__(self, url: str, directory: Path, **options: Any) -> None:
        config = {name: options.pop(name) for name in ("shards", "durability", "cluster") if name in options}
        self.directory = directory
        self.emitter = Emitter(EmitterConfig(redis_url=url, spool_dir=str(directory), **config), **options)
        self.told: list[UUID] = []
        self.taken: list[float] = []

    def emit(self, count: int = 1, **changes: Any) -> None:
        """This function will emit so many events and note how long each took."""
        for _ in range(count):
            began = time.perf_counter()
            self.told.append(self.emitter.emit(**{**USAGE, **changes}))
            self.taken.append(time.perf_counter() - began)

    def emit_by_threads(self, threads: int, each: int) -> None:
        """This function will do so from several threads at a time."""
        running = [threading.Thread(target=self.emit, args=(each,)) for _ in range(threads)]
        for one in running:
            one.start()
        for one in running:
            one.join()

    def assert_in_budget(self) -> None:
        """No call took more than its budget, but for what the machine adds."""
        assert max(self.taken) < BUDGET_SECONDS + SLACK_SECONDS, sorted(self.taken)[-5:]

    def waiting(self) -> int:
        """This function will count the events that wait in the directory."""
        return sum(segment.events for segment in state_of(self.directory).segments)

    def assert_emptied(self, timeout: float = 15) -> None:
        """All that was kept is sent, and its files are gone."""
        assert wait_until(lambda: not files(self.directory), timeout=timeout), files(self.directory)


def files(directory: Path) -> list[str]:
    """This function will name what is in the directory."""
    return sorted(path.name for path in directory.iterdir())


def ids_in(client: redis.Redis, key: str = KEY) -> list[UUID]:
    """This function will return the ids on the stream, in order, as often as they stand there."""
    found: list[tuple[bytes, dict[bytes, bytes]]] = client.xrange(key)  # type: ignore[assignment]  # bytes mode
    decoded = [one for _, fields in found for one in decode(fields[b"data"], correction="corrections" in key)]
    assert [one.detail for one in decoded if one.event is None] == []
    return [one.event_id for one in decoded if one.event_id is not None]


def in_order(ids: list[UUID]) -> list[UUID]:
    """This function will leave out repeats."""
    return list(dict.fromkeys(ids))


def url_at(server: servers.ValkeyServer, port: int) -> str:
    """This function will write the server's URL for another port on this machine."""
    return f"redis://:{server.password}@127.0.0.1:{port}/0"


class Gate:
    """Stands between client and server; while `answer` is set it answers every XADD with it, unasked."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.answer: bytes | None = None
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [near, far]
                threading.Thread(target=self._forward, args=(near, far), daemon=True).start()
                threading.Thread(target=self._back, args=(far, near), daemon=True).start()

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(65536):
                if self.answer is not None and b"XADD" in data:
                    near.sendall(self.answer * data.count(b"$4\r\nXADD"))
                else:
                    far.sendall(data)
            far.close()

    def _back(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(65536):
                near.sendall(data)
            near.close()

    def close(self) -> None:
        """This function will close it, and every connection through it."""
        self._listener.close()
        for one in self._sockets:
            one.close()


@contextlib.contextmanager
def mute_server() -> Iterator[int]:
    """A port that accepts, and never says a word."""
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    accepted.append(listener.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    for one in accepted:
        one.close()


@contextlib.contextmanager
def full_server() -> Iterator[int]:
    """A port whose queue of connections is full: the next one hangs in connect."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        waiting = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
            waiting.append(one)
        time.sleep(0.05)
        yield port
        for one in waiting:
            one.close()
