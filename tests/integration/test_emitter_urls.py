"""The emitter over each kind of REDIS_URL: a socket file, and TLS whose certificate is really checked."""

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis
import trustme

from producers import Emitter, StreamUnavailable
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
EMIT = """
from producers import Emitter
with Emitter.from_env() as emitter:
    emitter.emit(user_id="7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11", feature="blog_writer", tokens_used=1267)
"""


class TestSocketFile:
    def test_emits_over_it(self) -> None:
        # The path of a socket may not be long, so it is not in the folder of the test.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "valkey.sock"
            with servers.ValkeyServer(settings={"unixsocket": str(path)}) as server:
                url = f"unix://default:{server.password}@{path}?db=0"
                # In a process of its own: this one may only connect to loopback.
                done = subprocess.run(
                    [sys.executable, "-W", "error", "-c", EMIT],
                    env={"REDIS_URL": url, "PATH": os.defpath},
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                )
                assert (done.returncode, done.stderr) == (0, "")
                with redis.Redis.from_url(server.url()) as client:
                    assert client.xlen(KEY) == 1


def parts_of(url: str) -> dict[str, Any]:
    parts: dict[str, Any] = redis.connection.parse_url(url)  # type: ignore[no-untyped-call]  # redis-py: untyped
    return parts


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_port(authority: trustme.CA, valkey_url: str) -> Iterator[int]:
    """A port that takes TLS off and passes the rest on, as the front of a hosted Redis does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    target = parts_of(valkey_url)
    listener = socket.create_server(("127.0.0.1", 0))
    ends: list[socket.socket] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            try:
                near = context.wrap_socket(plain, server_side=True)
            except OSError:
                plain.close()
                continue
            far = socket.create_connection((str(target["host"]), int(target["port"])))
            ends.extend((near, far))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    # A blocked accept is not woken by close alone.
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)
    for end in ends:
        end.close()


class TestTLS:
    def test_emits_to_a_server_that_the_authority_vouches_for(
        self, authority: trustme.CA, tls_port: int, valkey: redis.Redis, valkey_url: str, tmp_path: Path
    ) -> None:
        trusted = tmp_path / "authority.pem"
        authority.cert_pem.write_to_path(str(trusted))
        with Emitter.from_env({"REDIS_URL": self.url(valkey_url, tls_port, trusted)}) as emitter:
            emitter.emit(**USAGE)
        assert valkey.xlen(KEY) == 1

    def test_with_a_spool_nothing_is_lost_whoever_answers(
        self, authority: trustme.CA, tls_port: int, valkey: redis.Redis, valkey_url: str, tmp_path: Path
    ) -> None:
        spool, trusted = tmp_path / "spool", tmp_path / "authority.pem"
        trustme.CA().cert_pem.write_to_path(str(trusted))
        environ = {"REDIS_URL": self.url(valkey_url, tls_port, trusted), "USAGE_SPOOL_DIR": str(spool)}
        with Emitter.from_env(environ) as emitter:
            told = {emitter.emit(**USAGE) for _ in range(5)}
        assert valkey.dbsize() == 0
        authority.cert_pem.write_to_path(str(trusted))
        with Emitter.from_env(environ) as emitter:
            told |= {emitter.emit(**USAGE) for _ in range(5)}
            assert wait_until(lambda: not list(spool.iterdir()), timeout=15)
        entries: list[tuple[bytes, dict[bytes, bytes]]] = valkey.xrange(KEY)  # type: ignore[assignment]  # bytes mode
        found = [fields[b"data"] for _, fields in entries]
        assert {one.event_id for data in found for one in decode(data)} == told

    def test_refuses_a_server_that_nobody_vouches_for(
        self, tls_port: int, valkey: redis.Redis, valkey_url: str, tmp_path: Path
    ) -> None:
        foreign = tmp_path / "authority.pem"
        trustme.CA().cert_pem.write_to_path(str(foreign))
        with Emitter.from_env({"REDIS_URL": self.url(valkey_url, tls_port, foreign)}) as emitter:
            with pytest.raises(StreamUnavailable, match="certificate verify failed"):
                emitter.emit(**USAGE)
        assert valkey.dbsize() == 0

    @staticmethod
    def url(plain: str, port: int, authority: Path) -> str:
        password = parts_of(plain)["password"]
        return f"rediss://default:{password}@localhost:{port}/0?ssl_ca_certs={authority}"
