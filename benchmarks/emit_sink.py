"""An HTTP server on this machine that takes what PostHog's and OpenMeter's clients send, and does nothing."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

_TAKEN = b'{"status":1}'


class Sink:
    """A context manager; each connection has a thread, so that no client waits for another."""

    def __init__(self) -> None:
        bodies: list[bytes] = []

        class Handler(BaseHTTPRequestHandler):
            # Connections stay open, as with the real services; a small answer must not wait for an ACK.
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                bodies.append(body)
                if self.path.endswith("/api/v1/events"):
                    self.send_response_only(204)
                    self.end_headers()
                    return
                self.send_response_only(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(_TAKEN)))
                self.end_headers()
                self.wfile.write(_TAKEN)

            def log_message(self, format: str, *args: object) -> None:
                del format, args

        self._bodies = bodies
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def take(self) -> int:
        """This function will return how many events have come since it was asked last."""
        count = 0
        while self._bodies:
            body = json.loads(self._bodies.pop())
            if isinstance(body, dict):
                body = body.get("batch", [body])
            count += len(body)
        return count

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
