"""One short command and its short reply over the bare socket of a redis-py connection.

A near server answers within some 20 µs, sooner than the kernel puts a waiting thread to sleep and wakes it.
So the reply is looked for a moment before it is waited for. It is only looked at until it is known to be what
was expected: everything else is left untouched in the socket, for the connection's own parser.
"""

import os
import socket
import time
from typing import Any, Final, Self

# For so long a reply is looked for; a server that needs longer is waited for, as every other client does.
_LOOK_SECONDS: Final = 40e-6
# Where it did not come at once, the next calls do not look for it: 3, 15, at most so many. A success halves
# that, so that looking goes on only where two of three succeed: it costs about what it saves.
_MAX_WAITS: Final = 63
_LONGEST_REPLY: Final = 64
_PEEK: Final = socket.MSG_PEEK


class FastSocket:
    """A second handle of a connected socket, which never waits; the first one keeps its timeouts."""

    __slots__ = ("_handle", "_misses", "_receive", "_send", "_waits", "origin", "peeked")

    def __init__(self, origin: socket.socket) -> None:
        self.origin = origin
        self._handle = origin.dup()
        self._handle.settimeout(0)
        self._send = self._handle.send
        self._receive = self._handle.recv
        self._misses = self._waits = 0
        self.peeked = b""
        """What `exchange` has seen, and not taken, when it returned None; b"" is the end of the stream."""

    @classmethod
    def of(cls, connection: Any) -> Self | None:
        """This function will return the second handle, or None where only redis-py can use the socket.

        That is so for TLS, and on a single processor, where looking would keep the server from answering.
        """
        origin = getattr(connection, "_sock", None)
        if type(origin) is not socket.socket or not _HAS_PROCESSORS:
            return None
        try:
            return cls(origin)
        except OSError:
            # No file descriptor is left: it goes without.
            return None

    def exchange(self, packed: bytes) -> bytes | None:
        """This function will send one command and return the bulk string that answers it.

        None means that the connection has to read the reply, of which nothing was taken: it is something else
        than one bulk string of some 50 bytes. Raises OSError, as TimeoutError after the connection's own
        timeout; then, as after every other exception, the connection must not be used again.
        """
        try:
            sent = self._send(packed)
        except BlockingIOError:
            sent = 0
        if sent < len(packed):
            self.origin.sendall(memoryview(packed)[sent:])
        if self._waits:
            self._waits -= 1
            found = self.origin.recv(_LONGEST_REPLY, _PEEK)
        else:
            found = self._look() or self.origin.recv(_LONGEST_REPLY, _PEEK)
        if not (found.startswith(_HEADS[len(found)]) and found.endswith(b"\r\n")):
            self.peeked = found
            return None
        self._receive(len(found))
        return found[found.index(b"\n") + 1 : -2]

    def _look(self) -> bytes:
        """The beginning of the reply, or b"" where it does not come soon."""
        give_up_at = time.perf_counter() + _LOOK_SECONDS
        while True:
            try:
                found = self._receive(_LONGEST_REPLY, _PEEK)
            except BlockingIOError:
                if time.perf_counter() < give_up_at:
                    continue
                self._misses = self._waits = min(4 * self._misses + 3, _MAX_WAITS)
                return b""
            self._misses //= 2
            return found

    def close(self) -> None:
        """This function will close this handle; the connection closes its own."""
        self._handle.close()

    def __del__(self) -> None:
        # An emitter that nobody closed, or one of the parent process: redis-py closes its handle likewise.
        if hasattr(self, "_handle"):
            self._handle.close()


def _heads() -> list[bytes]:
    """By the length of a whole reply in bytes: how it begins if it is one bulk string and nothing else."""
    heads = [b"no such reply"] * (_LONGEST_REPLY + 1)
    for length in range(_LONGEST_REPLY - 6):
        head = b"$%d\r\n" % length
        heads[len(head) + length + 2] = head
    return heads


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_HAS_PROCESSORS: Final = _processors() > 1
_HEADS: Final = _heads()
