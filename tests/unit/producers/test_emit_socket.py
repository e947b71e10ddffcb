"""The bare socket under an emit: it takes exactly one reply that it understands, or nothing at all."""

import gc
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from producers._fast_socket import FastSocket

COMMAND = b"*1\r\n$4\r\nPING\r\n"
REPLY = b"$15\r\n1732180000000-0\r\n"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    near.settimeout(0.3)
    far.settimeout(5)
    with near, far:
        yield near, far


@pytest.fixture
def near(pair: tuple[socket.socket, socket.socket]) -> socket.socket:
    return pair[0]


@pytest.fixture
def far(pair: tuple[socket.socket, socket.socket]) -> socket.socket:
    return pair[1]


@pytest.fixture
def fast(near: socket.socket) -> Iterator[FastSocket]:
    one = FastSocket(near)
    yield one
    one.close()


class TestExchange:
    def test_returns_the_reply_and_leaves_nothing(
        self, fast: FastSocket, near: socket.socket, far: socket.socket
    ) -> None:
        far.sendall(REPLY)
        assert fast.exchange(COMMAND) == b"1732180000000-0"
        assert far.recv(100) == COMMAND
        with pytest.raises(TimeoutError):
            near.recv(1)

    def test_waits_for_a_reply_that_is_late(self, fast: FastSocket, far: socket.socket) -> None:
        for _ in range(4):
            later = threading.Timer(0.05, far.sendall, [REPLY])
            later.start()
            assert fast.exchange(COMMAND) == b"1732180000000-0"
            later.join()

    @pytest.mark.parametrize("length", [0, 1, 9, 10, 22, 56, 57])
    def test_knows_a_bulk_string_by_its_length(
        self, fast: FastSocket, far: socket.socket, length: int
    ) -> None:
        far.sendall(b"$%d\r\n%b\r\n" % (length, b"x" * length))
        assert fast.exchange(COMMAND) == b"x" * length

    @pytest.mark.parametrize(
        "reply",
        [
            b"-OOM command not allowed\r\n",
            b"+OK\r\n",
            b":1\r\n",
            b"$-1\r\n",
            b"*1\r\n$1\r\nx\r\n",
            b"$15\r\n1732180000000-",
            b"$15\r",
            b"$",
            b"$200\r\n" + b"x" * 200 + b"\r\n",
            b"$58\r\n" + b"x" * 58 + b"\r\n",
            REPLY + REPLY,
            REPLY + b"-",
            REPLY[:-2] + b"xx",
            b"$014\r\n1732180000000-\r\n",
        ],
    )
    def test_takes_nothing_of_what_is_something_else(
        self, fast: FastSocket, near: socket.socket, far: socket.socket, reply: bytes
    ) -> None:
        far.sendall(reply)
        assert fast.exchange(COMMAND) is None
        assert near.recv(1000) == reply

    def test_sends_all_of_a_command_that_no_buffer_holds(self, fast: FastSocket, far: socket.socket) -> None:
        command = b"x" * 8_000_000
        received = bytearray()

        def read() -> None:
            while len(received) < len(command):
                received.extend(far.recv(65536))
            far.sendall(REPLY)

        reader = threading.Thread(target=read)
        reader.start()
        assert fast.exchange(command) == b"1732180000000-0"
        reader.join()
        assert received == command

    def test_does_not_wait_for_ever(self, fast: FastSocket) -> None:
        for command in (COMMAND, b"x" * 8_000_000):
            started = time.monotonic()
            with pytest.raises(TimeoutError):
                fast.exchange(command)
            assert 0.2 < time.monotonic() - started < 5

    def test_tells_that_the_other_side_is_gone(self, fast: FastSocket, far: socket.socket) -> None:
        far.close()
        with pytest.raises(OSError, match=r"(?i)pipe|reset"):
            fast.exchange(COMMAND)

    def test_leaves_it_to_the_connection_that_there_is_no_reply(
        self, fast: FastSocket, near: socket.socket, far: socket.socket
    ) -> None:
        far.shutdown(socket.SHUT_WR)
        assert fast.exchange(COMMAND) is None
        assert near.recv(1) == b""


class TestHandle:
    def test_is_closed_with_it(self, near: socket.socket, far: socket.socket) -> None:
        fast = FastSocket(near)
        near.close()
        fast.close()
        fast.close()
        assert far.recv(1) == b""

    def test_is_closed_with_an_emitter_that_nobody_closed(
        self, near: socket.socket, far: socket.socket
    ) -> None:
        fast = FastSocket(near)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            near.close()
            del fast
            gc.collect()
        assert far.recv(1) == b""

    def test_is_there_for_plain_sockets_only(self, near: socket.socket) -> None:
        class Wrapped(socket.socket):
            """As TLS has."""

        with Wrapped(fileno=near.dup().detach()) as wrapped:
            assert FastSocket.of(SimpleNamespace(_sock=wrapped)) is None
        assert FastSocket.of(SimpleNamespace(_sock=None)) is None
        assert FastSocket.of(object()) is None
        found = FastSocket.of(SimpleNamespace(_sock=near))
        assert found is not None
        found.close()
