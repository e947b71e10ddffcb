"""The product's own processes beside the run: a worker with beat, and Flower."""

from __future__ import annotations

import contextlib
import http.client
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from worker.dev import _processes
from worker.errors import UsageWorkerError

READY_SECONDS = 60.0
STOP_SECONDS = 6.0
FLOWER_USER = "dev"


class ChildDied(UsageWorkerError):
    """A process of the run ended by itself."""


class Children:
    """Starts, watches and stops the processes; `failed` says which one ended without being asked."""

    def __init__(self, environ: Mapping[str, str], *, logs: Path, guard: _processes.Guard) -> None:
        """`environ`: the settings for every process; `logs`: the folder of their log files."""
        self._environ = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(logs),
            "LC_ALL": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            **environ,
        }
        self._logs = logs
        self._guard = guard
        self._running: dict[str, _processes.OwnedProcess] = {}
        self.flower_port = 0
        self.flower_password = secrets.token_urlsafe(12)

    @property
    def processes(self) -> tuple[_processes.OwnedProcess, ...]:
        """Every process that was started, for whoever has to end them at once."""
        return tuple(self._running.values())

    @property
    def flower_url(self) -> str:
        """Where Flower listens."""
        return f"http://127.0.0.1:{self.flower_port}"

    def start(self) -> None:
        """This function will start both processes and not wait for them."""
        self._celery("worker", "worker", "--beat", "--loglevel=INFO", "--hostname=dev@%h")
        self.flower_port = _processes.free_port()
        # By the environment: other users of the machine can read a command line.
        login = {"FLOWER_BASIC_AUTH": f"{FLOWER_USER}:{self.flower_password}"}
        self._celery("flower", "flower", "--address=127.0.0.1", f"--port={self.flower_port}", **login)

    def _celery(self, name: str, *arguments: str, **more: str) -> None:
        log = self._logs / f"{name}.log"
        log.write_bytes(b"")
        self._running[name] = _processes.OwnedProcess(
            [sys.executable, "-m", "celery", "-A", "worker.app", *arguments],
            log=log,
            guard=self._guard,
            env={**self._environ, **more},
            cwd=self._logs,
        )

    def wait_until_ready(self, *, stopping: Callable[[], bool]) -> None:
        """This function will wait until the worker takes tasks and Flower answers, or until `stopping`.

        Raises ChildDied when one of them ends, or is not there after a minute.
        """

        def settled() -> bool:
            self.check()
            return stopping() or (self._worker_is_ready() and self._flower_answers())

        if not _processes.wait_until(settled, timeout=READY_SECONDS, interval=0.1):
            tails = "\n".join(f"{name}:\n{one.log_tail()}" for name, one in self._running.items())
            raise ChildDied(
                f"The processes were not ready after {READY_SECONDS:.0f} s. Their logs end with\n{tails}"
            )

    def check(self) -> None:
        """This function will raise ChildDied, with the end of its log, when a process has ended by itself."""
        for name, process in self._running.items():
            code = process.returncode
            if code is not None:
                ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                raise ChildDied(f"The {name} process {ended}. Its log ends with\n{process.log_tail()}")

    def stop(self) -> None:
        """This function will ask all processes to stop, wait some seconds, and then not ask any more."""
        for process in self._running.values():
            process.ask()
        for process in self._running.values():
            if not process.wait(STOP_SECONDS):
                process.kill()
            process.stop()
        self._running.clear()

    def _worker_is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return b" ready" in self._running["worker"].log.read_bytes()
        return False

    def _flower_answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.flower_port, timeout=2)
        try:
            connection.request("GET", "/healthcheck")
            return connection.getresponse().status < 500
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
