"""Embedded PostgreSQL and Valkey: one implementation for `make run`, the tests and the benchmarks."""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Self

from worker.dev import _logins, _processes
from worker.dev._errors import DataFolderRefused, EmbeddedServersMissing, ServerDidNotStart
from worker.dev._logins import Part
from worker.dev._postgres import PostgresServer
from worker.dev._valkey import ValkeyServer

__all__ = [
    "PLATFORM_DATABASE",
    "USER_DATA_DATABASE",
    "DataFolderRefused",
    "EmbeddedServers",
    "EmbeddedServersMissing",
    "Part",
    "PostgresServer",
    "ServerDidNotStart",
    "ValkeyServer",
    "connections_needed",
    "settings_for",
]

PLATFORM_DATABASE = "alwrity_platform"
USER_DATA_DATABASE = "alwrity_user_data"

_RESERVED = 10  # PostgreSQL's own three, and an operator with psql or two
STOP_SECONDS = 3.0
BUSY_SECONDS = 12.0  # a watchman needs up to this long to stop the servers of a run that was killed


def connections_needed(
    *, worker_children: int, worker_pool: int = 2, processes: int = 2, pool: int = 50
) -> int:
    """This function will compute `max_connections` of one server that holds both databases.

    A prefork child opens up to `worker_pool` connections per database, as the runtime and as the audit
    login; each of the other `processes` (the run itself, a command line beside it) up to `pool` (pool and
    overflow) per database.
    """
    return worker_children * worker_pool * 2 * 2 + processes * pool * 2 + _RESERVED


def settings_for(
    postgres: PostgresServer,
    valkey_url: str,
    passwords: Mapping[str, str],
    *,
    platform: str = PLATFORM_DATABASE,
    user_data: str = USER_DATA_DATABASE,
) -> dict[str, str]:
    """This function will write the settings that point a process at these servers, with three logins."""
    values = {"REDIS_URL": valkey_url, "ENVIRONMENT": "development"}
    for prefix, database in (("PLATFORM", platform), ("USER_DATA", user_data)):
        for kind, part in (("", Part.WORKER), ("_OWNER", Part.OWNER), ("_AUDIT", Part.AUDITOR)):
            values[f"{prefix}_DATABASE{kind}_URL"] = postgres.url(
                database, username=part.login, password=passwords[part.value]
            )
    return values


class EmbeddedServers:
    """A PostgreSQL with both databases and all logins, and a Valkey; nothing is left of them after `stop`."""

    def __init__(
        self, *, data_dir: Path | None = None, durable: bool = True, max_connections: int = 300
    ) -> None:
        """Describes the servers; nothing is started. `data_dir`: kept and reused, passwords included."""
        self.data_dir = data_dir.absolute() if data_dir else None
        self.durable = durable
        self.max_connections = max_connections
        self.passwords = _logins.new_passwords()
        self._postgres: PostgresServer | None = None
        self._valkey: ValkeyServer | None = None
        self._lock: IO[bytes] | None = None
        self._guard: _processes.Guard | None = None

    @property
    def postgres(self) -> PostgresServer:
        """The PostgreSQL server; raises ServerDidNotStart before `start`."""
        if self._postgres is None:
            raise ServerDidNotStart("The embedded servers were not started yet: call start() first.")
        return self._postgres

    @property
    def valkey(self) -> ValkeyServer:
        """The Valkey server; raises ServerDidNotStart before `start`."""
        if self._valkey is None:
            raise ServerDidNotStart("The embedded servers were not started yet: call start() first.")
        return self._valkey

    @property
    def guard(self) -> _processes.Guard:
        """The watchman of both servers; raises ServerDidNotStart before `start`."""
        if self._guard is None:
            raise ServerDidNotStart("The embedded servers were not started yet: call start() first.")
        return self._guard

    def start(self) -> Self:
        """This function will start both servers and make databases and logins that are not there yet.

        Raises EmbeddedServersMissing, DataFolderRefused or ServerDidNotStart.
        """
        try:
            superuser = self._open_data_dir()
            self._guard = _processes.Guard(hold=self._lock)
            self._postgres = PostgresServer(
                data_dir=self.data_dir,
                durable=self.durable,
                max_connections=self.max_connections,
                password=superuser,
                guard=self.guard,
            )
            self._valkey = ValkeyServer(data_dir=self.data_dir, guard=self.guard)
            self._postgres.start()
            self._valkey.start()
            _logins.create_logins(self._postgres.url(), self.passwords)
            for name in (PLATFORM_DATABASE, USER_DATA_DATABASE):
                _logins.create_database(self._postgres.url(), name)
        except BaseException:
            self.stop()
            raise
        return self

    def environ(self) -> dict[str, str]:
        """This function will write the settings that point a process at these servers."""
        return settings_for(self.postgres, self.valkey.url(), self.passwords)

    def admit_app(self) -> None:
        """This function will make the apps' login a member of usage_app; `db init` has to come first."""
        _logins.admit_app(self.postgres.url())

    def stop(self) -> None:
        """This function will stop both servers; without `data_dir` it leaves nothing behind.

        A server that takes longer than some seconds is cut short: what it has acknowledged is on its disk.
        """
        for server in (self._valkey, self._postgres):
            if server is not None:
                server.stop(timeout=STOP_SECONDS)
        if self._guard is not None:
            self._guard.leave()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _open_data_dir(self) -> str | None:
        """Locks the kept folder against a second run and reads or writes its passwords; the superuser's."""
        folder = self.data_dir
        if folder is None:
            return None
        try:
            if not folder.exists():
                # Others may pass through (the user that runs PostgreSQL must), not look around.
                folder.mkdir(parents=True)
                folder.chmod(0o711)
            self._lock = (folder / "lock").open("ab")
            self._take(self._lock, folder)
            self.passwords = _kept_passwords(folder)
        except OSError as error:
            raise DataFolderRefused(f"{folder}: {error.strerror}. Name another --data-dir.") from error
        return self.passwords["superuser"]

    @staticmethod
    def _take(lock: IO[bytes], folder: Path) -> None:
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DataFolderRefused(
                        f"{folder} is in use by another run: stop that one, or name another --data-dir."
                    ) from None
                time.sleep(0.1)
            else:
                return


def _kept_passwords(folder: Path) -> dict[str, str]:
    """The passwords of a kept folder, made at its first use; only its owner can read them."""
    path = folder / "passwords.json"
    if path.exists():
        kept: dict[str, str] = json.loads(path.read_text())
        return kept
    if (folder / "postgres").exists():
        raise DataFolderRefused(
            f"{folder} holds a PostgreSQL but not its passwords.json: put the file back, "
            "or name another --data-dir."
        )
    made = _logins.new_passwords() | {"superuser": secrets.token_urlsafe(24)}
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(made, file)
    return made
