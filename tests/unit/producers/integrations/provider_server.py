"""A local server that answers like a provider: what it is told to, in order; it keeps what it was asked."""

import gzip
import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """One answer of the server: JSON, bytes, or pieces that are sent one after the other."""

    body: object
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    packed: bool = False
    cut_off: bool = False
    """Whether the connection breaks before the body is complete."""


@dataclass
class Provider:
    """The server's side of a test."""

    url: str
    answers: list[Answer] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)

    def will(self, body: object, **how: Any) -> "Provider":
        """Adds an answer."""
        self.answers.append(Answer(body, **how))
        return self

    def will_stream(self, pieces: Iterable[bytes], **how: Any) -> "Provider":
        """Adds an answer of server-sent events."""
        return self.will(list(pieces), content_type="text/event-stream", **how)

    @property
    def asked(self) -> dict[str, Any]:
        """The JSON of the last request."""
        found: dict[str, Any] = self.requests[-1]["json"]
        return found


def sse(*events: object, named: bool = False, done: bool = False) -> list[bytes]:
    """Returns the bytes of server-sent events, one piece for each."""
    pieces = []
    for event in events:
        head = f"event: {event['type']}\n" if named and isinstance(event, dict) else ""
        pieces.append(f"{head}data: {json.dumps(event)}\n\n".encode())
    return [*pieces, b"data: [DONE]\n\n"] if done else pieces


@contextmanager
def provider_server() -> Iterator[Provider]:
    """Serves on 127.0.0.1 until the block ends."""
    provider = Provider("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length") or 0))
            is_json = "json" in self.headers.get("content-type", "")
            provider.requests.append(
                {"path": self.path, "json": json.loads(raw) if is_json and raw else None, "raw": raw}
            )
            answer = provider.answers.pop(0)
            body = answer.body
            pieces: list[bytes]
            if isinstance(body, list) and body and isinstance(body[0], bytes):
                pieces = body
            elif isinstance(body, bytes):
                pieces = [body]
            else:
                pieces = [json.dumps(body).encode()]
            if answer.packed:
                pieces = [gzip.compress(b"".join(pieces))]
            self.send_response(answer.status)
            self.send_header("content-type", answer.content_type)
            self.send_header("transfer-encoding", "chunked")
            if answer.packed:
                self.send_header("content-encoding", "gzip")
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                for piece in pieces:
                    self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                    self.wfile.flush()
                    time.sleep(0.001)
                if answer.cut_off:
                    self.close_connection = True
                    return
                self.wfile.write(b"0\r\n\r\n")
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the test has left the stream early

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    provider.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
