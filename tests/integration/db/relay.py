"""A relay in front of PostgreSQL: another port of the same server, and TLS if it is given a certificate."""

import contextlib
import select
import socket
import ssl
import struct
import threading
from types import TracebackType
from typing import Self

SSL_REQUEST = struct.pack("!ii", 8, 80877103)
_CHUNK = 65536


class Relay:
    """Forwards every connection to a port of this machine; `tls` makes it answer SSLRequest with S."""

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self._target = port
        self._tls = tls
        self._stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self.port: int = self._listener.getsockname()[1]
        self.encrypted = 0

    def _accept(self) -> None:
        while not self._stop.is_set():
            if select.select([self._listener], [], [], 0.1)[0]:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        """One thread for one connection, both ways: an SSL socket must not be used by two at once."""
        # A client that goes away, or refuses the certificate, ends its connection and nothing else.
        with contextlib.ExitStack() as opened, contextlib.suppress(OSError):
            opened.enter_context(client)
            client.settimeout(10)
            first = client.recv(8, socket.MSG_WAITALL)
            if first == SSL_REQUEST and self._tls is not None:
                client.sendall(b"S")
                client = opened.enter_context(self._tls.wrap_socket(client, server_side=True))
                self.encrypted += 1
                first = b""
            server = opened.enter_context(socket.create_connection(("127.0.0.1", self._target)))
            server.sendall(first)
            self._forward(client, server)

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        while not self._stop.is_set():
            # What TLS has decrypted already is in no socket's buffer any more.
            waiting = isinstance(client, ssl.SSLSocket) and client.pending() > 0
            ready = [client] if waiting else select.select([client, server], [], [], 0.1)[0]
            for source in ready:
                data = source.recv(_CHUNK)
                if not data:
                    return
                (server if source is client else client).sendall(data)

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in list(self._threads):
            thread.join(20)
        self._listener.close()
