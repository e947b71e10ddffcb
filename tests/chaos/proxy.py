"""A TCP proxy that can misbehave: connections that go silent but stay open, and replies that get lost."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from typing import Final

_CHUNK: Final = 256 * 1024
_MOST_WAITING: Final = 4 * 1024 * 1024


class _End:
    """One of the two sockets of a connection, and what waits to be written to it."""

    def __init__(self, sock: socket.socket, pair: _Pair) -> None:
        self.sock = sock
        self.pair = pair
        self.waiting = bytearray()

    @property
    def other(self) -> _End:
        return self.pair.server if self is self.pair.client else self.pair.client


class _Pair:
    """A connection: the program's end and the server's."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = _End(client, self)
        self.server = _End(server, self)
        self.silent = False
        self.deaf = False
        """Requests still pass, replies do not."""


class Proxy:
    """Forwards a loopback port to another one, in a thread of its own."""

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._pairs: set[_Pair] = set()
        self._lock = threading.Lock()
        self._lose_next = 0
        self._closed = False
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name=f"proxy-{target_port}", daemon=True)
        self._thread.start()

    def silence(self) -> int:
        """This function will blackhole all connections of now, for ever, and say how many; new ones work."""
        with self._lock:
            loud = [pair for pair in self._pairs if not pair.silent]
            for pair in loud:
                pair.silent = True
        return len(loud)

    def lose_reply(self) -> None:
        """This function will lose the next reply, and all later ones on the connection that it was for."""
        with self._lock:
            self._lose_next += 1

    @property
    def lost_all(self) -> bool:
        """Whether every reply that was to be lost is lost."""
        return self._lose_next == 0

    def close(self) -> None:
        """This function will close every connection and end the thread."""
        self._closed = True
        # Something to wake up for.
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        self._thread.join(5)
        for pair in list(self._pairs):
            self._drop(pair)
        self._listener.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._closed:
            for key, events in self._selector.select(1):
                end = key.data
                if end is None:
                    self._accept()
                elif end.pair in self._pairs:
                    self._serve(end, events)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        try:
            server = socket.create_connection(("127.0.0.1", self._target), 2)
        except OSError:
            client.close()
            return
        pair = _Pair(client, server)
        with self._lock:
            self._pairs.add(pair)
        for end in (pair.client, pair.server):
            end.sock.setblocking(False)
            end.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(end.sock, selectors.EVENT_READ, end)

    def _serve(self, end: _End, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._flush(end)
            if events & selectors.EVENT_READ:
                self._forward(end)
        except OSError:
            self._close_after(end.pair)

    def _forward(self, end: _End) -> None:
        data = end.sock.recv(_CHUNK)
        pair = end.pair
        if not data:
            self._close_after(pair, by=end)
            return
        if pair.silent or (end is pair.server and self._is_lost(pair)):
            return
        end.other.waiting += data
        self._flush(end.other)

    def _is_lost(self, pair: _Pair) -> bool:
        with self._lock:
            if self._lose_next and not pair.deaf:
                self._lose_next -= 1
                pair.deaf = True
        return pair.deaf

    def _flush(self, end: _End) -> None:
        if end.waiting:
            with contextlib.suppress(BlockingIOError):
                del end.waiting[: end.sock.send(end.waiting)]
        self._watch(end)
        self._watch(end.other)

    def _watch(self, end: _End) -> None:
        # A side that reads too slowly holds up the one that writes, as TCP would.
        wanted = selectors.EVENT_READ if len(end.other.waiting) < _MOST_WAITING else 0
        if end.waiting:
            wanted |= selectors.EVENT_WRITE
        if end.sock.fileno() < 0:
            return
        if not wanted:
            wanted = selectors.EVENT_WRITE
        self._selector.modify(end.sock, wanted, end)

    def _close_after(self, pair: _Pair, *, by: _End | None = None) -> None:
        """A closed end closes the other one, unless the connection is silent: then nobody may notice."""
        if (pair.silent or pair.deaf) and by is pair.server:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(pair.server.sock)
            pair.server.sock.close()
            return
        self._drop(pair)

    def _drop(self, pair: _Pair) -> None:
        with self._lock:
            self._pairs.discard(pair)
        for end in (pair.client, pair.server):
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(end.sock)
            end.sock.close()
