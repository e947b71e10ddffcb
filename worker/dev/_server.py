"""What every embedded server has in common: a private folder, a loopback port, a process, and its life."""

from __future__ import annotations

import abc
import secrets
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Self

from worker.dev import _processes
from worker.dev._errors import ServerDidNotStart


class OwnedServer(abc.ABC):
    """A server that this process owns; see `start`, `stop`, `halt`, `restart`, `kill`, `pause`."""

    name: ClassVar[str]
    """As people write it."""
    label: ClassVar[str]
    """Names the data folder and the log."""
    stop_timeout: ClassVar[float]
    """How long it may take to stop, in seconds, before it is killed."""

    def __init__(
        self,
        *,
        data_dir: Path | None,
        settings: Mapping[str, str] | None,
        port: int | None,
        ports: Callable[[], int],
        password: str | None,
        guard: _processes.Guard | None,
    ) -> None:
        """Describes the server; nothing is started.

        `data_dir`: kept and reused; without it the data live in a temp folder that `stop` removes.
        `settings`: further lines of the configuration, these win. `port`: a fixed one; otherwise a free one
        from `ports`, another if somebody takes it first. `password`: a random one where there is none.
        """
        self.data_dir = data_dir
        self.settings = dict(settings or {})
        self.host = "127.0.0.1"
        self.password = password or secrets.token_urlsafe(24)
        self._port = port
        self._ports = ports
        self._workplace: _processes.Workplace | None = None
        self._outer_guard = guard
        self._process: _processes.OwnedProcess | None = None

    @property
    def port(self) -> int:
        """The loopback port; the same for the whole life of this object once it was started."""
        if self._port is None:
            raise self._not_started()
        return self._port

    @property
    def pid(self) -> int:
        """The process id of the server's first process."""
        return self._running_process().pid

    @property
    def running(self) -> bool:
        """Whether the server runs."""
        return self._process is not None and self._process.running

    @property
    def folder(self) -> Path:
        """The private temp folder: log and configuration; also the data, unless `data_dir` was given."""
        return self._place().folder

    @property
    def data(self) -> Path:
        """The folder of the data."""
        return (self.data_dir or self.folder) / self.label

    @property
    def log_path(self) -> Path:
        """The server's log."""
        return self.folder / f"{self.label}.log"

    def start(self) -> Self:
        """This function will start the server and wait until it answers.

        Raises EmbeddedServersMissing, DataFolderRefused or ServerDidNotStart (with the end of the log).
        """
        if self.running:
            return self
        try:
            self._place()
            self._prepare()
            self._start_listening()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self, *, timeout: float | None = None) -> None:
        """This function will stop the server and remove all that is not to be kept.

        Data that are removed in the next moment need no orderly end: without `data_dir` it is immediate.
        After `timeout` seconds (`stop_timeout`) it is killed.
        """
        self.halt(immediate=self.data_dir is None, timeout=timeout)
        if self._workplace is not None:
            workplace, self._workplace = self._workplace, None
            workplace.close()

    def halt(self, *, immediate: bool = False, timeout: float | None = None) -> None:
        """This function will stop the server and keep its data; `immediate` is a crash with a receipt."""
        if self._process is not None:
            seconds = self.stop_timeout if timeout is None else timeout
            if immediate:
                self._ask_to_crash(self._process, seconds)
            self._process.stop(seconds)

    def restart(self, *, immediate: bool = False) -> None:
        """This function will stop the server and start it again on the same port and data."""
        self.halt(immediate=immediate)
        self._start_listening()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """This function will send the server a signal."""
        self._running_process().kill(number)

    def pause(self) -> None:
        """This function will freeze the server and its connections, like a disk that hangs."""
        self._running_process().pause()

    def resume(self) -> None:
        """This function will let a frozen server go on."""
        self._running_process().resume()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abc.abstractmethod
    def _prepare(self) -> None:
        """Makes what the server needs before it starts."""

    @abc.abstractmethod
    def _start_listening(self) -> None:
        """Starts the process on its port and waits until it answers."""

    def _ask_to_crash(self, process: _processes.OwnedProcess, timeout: float) -> None:
        """Ends the process without ceremony; a server with children of its own has its way to do that."""
        process.kill(signal.SIGKILL)
        process.wait(timeout)

    def _make_workplace(self) -> _processes.Workplace:
        return _processes.Workplace(guard=self._outer_guard)

    def _place(self) -> _processes.Workplace:
        if self._workplace is None:
            self._workplace = self._make_workplace()
        return self._workplace

    def _running_process(self) -> _processes.OwnedProcess:
        if self._process is None:
            raise self._not_started()
        return self._process

    def _not_started(self) -> ServerDidNotStart:
        return ServerDidNotStart(f"This {self.name} was not started yet: call start() first.")
