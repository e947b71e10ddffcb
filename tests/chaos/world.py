"""The servers of a run: PostgreSQL and Valkey with durable settings, small disks, and proxies before them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
import redis
from psycopg import sql
from redis.backoff import NoBackoff
from redis.retry import Retry

from producers import _stream as wire
from tests.chaos import traffic
from tests.chaos.proxy import Proxy
from tests.fixtures import provisioning
from worker.dev import _logins, _processes, servers

STREAM: Final = "usage:events"
GROUP: Final = "usage-workers"
SHARDS: Final = 2
REPOSITORY: Final = Path(__file__).parents[2]
_EVENT_BYTES: Final = 2500


@dataclass(frozen=True, slots=True)
class Where:
    """How far one stream is: the highest entry in it, and the highest that the database has processed."""

    key: str
    tail: str
    position: str


class Disk:
    """A small file system of the run's own, which can be filled; or a plain folder where none can be made."""

    def __init__(self, folder: Path, *, megabytes: int, mounted: bool) -> None:
        self.folder = folder
        self.mounted = mounted
        folder.mkdir(parents=True)
        if mounted:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", "tmpfs", str(folder)]
            subprocess.run(mount, check=True)
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """This function will take all the space that is left, again and again until none is."""
        with self._ballast.open("ab") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(256 * 1024))
                file.flush()

    def free(self) -> None:
        """This function will give the space back."""
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        """This function will unmount it."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=False)


class World:
    """Everything that a run's programs talk to. Use it as a context manager."""

    def __init__(self, *, events: int, may_mount: bool) -> None:
        self._events = events
        self.may_mount = may_mount
        self.folder = Path()
        self.passwords = _logins.new_passwords()
        self.guard = _processes.Guard()
        # Whoever breaks or mends a server has its lock: no two faults meet in one server.
        self.valkey_lock = threading.Lock()
        self.postgres_lock = threading.Lock()
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> World:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """This function will stop everything and remove the folder."""
        self._closing.close()

    def _start(self) -> None:
        below = Path(tempfile.gettempdir())
        self.folder = Path(tempfile.mkdtemp(prefix="usage-chaos-", dir=below))
        # PostgreSQL runs as another user where we are root, and has to pass through.
        self.folder.chmod(0o711)
        self.guard.remove(self.folder)
        self._closing.callback(self.guard.leave)
        self._closing.callback(shutil.rmtree, self.folder, ignore_errors=True)
        megabytes = 256 + self._events * _EVENT_BYTES // 1_000_000
        self.stream_disk = self._disk("stream-disk", megabytes)
        self.table_disk = self._disk("table-disk", megabytes)
        self.postgres = servers.PostgresServer(
            durable=True,
            max_connections=200,
            settings={"max_wal_size": "2GB", "log_checkpoints": "off"},
            guard=self.guard,
        )
        # Each XADD is on the disk before it is acknowledged, so that even a SIGKILL may lose none.
        self.valkey = servers.ValkeyServer(
            data_dir=self.stream_disk.folder,
            settings={"appendfsync": "always", "save": '""'},
            guard=self.guard,
        )
        self._closing.callback(self.postgres.stop, timeout=5)
        self._closing.callback(self.valkey.stop, timeout=5)
        self.postgres.start()
        self.valkey.start()
        self._provision()
        self.worker_stream = self._proxy(self.valkey.port)
        self.worker_tables = self._proxy(self.postgres.port)
        self.producer_stream = self._proxy(self.valkey.port)

    def _disk(self, name: str, megabytes: int) -> Disk:
        disk = Disk(self.folder / name, megabytes=megabytes, mounted=self.may_mount)
        self._closing.callback(disk.close)
        return disk

    def _proxy(self, port: int) -> Proxy:
        proxy = Proxy(port)
        self._closing.callback(proxy.close)
        return proxy

    def _provision(self) -> None:
        _logins.create_logins(self.postgres.url(), self.passwords)
        for name in (servers.PLATFORM_DATABASE, servers.USER_DATA_DATABASE):
            _logins.create_database(self.postgres.url(), name)
        self._use_table_disk()
        provisioning.provision(self.environ())
        _logins.admit_app(self.postgres.url())
        with self.database() as database:
            for number in range(traffic.CLERKS):
                add_user(database, f"clerk-{number}")

    def _use_table_disk(self) -> None:
        """The platform's tables live on the disk that can be filled; the log of PostgreSQL does not."""
        place = self.table_disk.folder / "tables"
        place.mkdir()
        owner = self.postgres.data.stat()
        os.chown(place, owner.st_uid, owner.st_gid)
        with psycopg.connect(self.postgres.url(), autocommit=True) as database:
            database.execute(sql.SQL("CREATE TABLESPACE small LOCATION {}").format(sql.Literal(str(place))))
            database.execute(
                sql.SQL("ALTER DATABASE {} SET TABLESPACE small").format(
                    sql.Identifier(servers.PLATFORM_DATABASE)
                )
            )

    def environ(self) -> dict[str, str]:
        """This function will return settings that lead straight to the servers."""
        values = servers.settings_for(self.postgres, self.valkey.url(), self.passwords)
        return {
            **values,
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "LC_ALL": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": str(REPOSITORY),
            "ENVIRONMENT": "chaos",
            # What the producers report is made up: it differs from every price list.
            "USAGE_COST_DIVERGENCE_PERCENT": "1000",
            "USAGE_STREAM": STREAM,
            "USAGE_STREAM_SHARDS": str(SHARDS),
            "USAGE_CONSUMER_GROUP": GROUP,
        }

    def worker_environ(self) -> dict[str, str]:
        """This function will return settings that lead through the workers' proxies."""
        values = self.environ()
        ports = {self.postgres.port: self.worker_tables.port, self.valkey.port: self.worker_stream.port}
        for name, value in values.items():
            for port, proxied in ports.items():
                values[name] = values[name].replace(f":{port}/", f":{proxied}/") if "://" in value else value
        return values

    def producer_environ(self) -> dict[str, str]:
        """This function will return settings that lead through the producers' proxy."""
        values = self.environ()
        url = values["REDIS_URL"].replace(f":{self.valkey.port}/", f":{self.producer_stream.port}/")
        return {**values, "REDIS_URL": url}

    @contextlib.contextmanager
    def database(self) -> Iterator[psycopg.Connection[Any]]:
        """This function will open the platform database as the superuser, by no proxy."""
        url = self.postgres.url(servers.PLATFORM_DATABASE)
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
            yield connection

    def stream(self) -> redis.Redis:
        """This function will open a client that tries once, by no proxy."""
        return redis.Redis.from_url(
            self.valkey.url(), socket_timeout=3, socket_connect_timeout=3, retry=Retry(NoBackoff(), 0)
        )

    def crash(self, server: servers.ValkeyServer | servers.PostgresServer, number: signal.Signals) -> None:
        """This function will kill a server with a signal and see it gone."""
        server.kill(number)
        _processes.wait_until(lambda: not server.running, timeout=10)

    def where(self) -> list[Where]:
        """This function will say how far each stream is; raises what they raise while away."""
        found: list[Where] = []
        client = self.stream()
        try:
            tails = {key: _tail(client, key) for key, _ in keys()}
        finally:
            client.close()
        with self.database() as database:
            rows = database.execute(
                "SELECT shard, last_entry_id, last_correction_id FROM ingest_positions"
            ).fetchall()
        positions = {shard: (events, corrections) for shard, events, corrections in rows}
        for key, (shard, correction) in keys():
            position = positions.get(shard, ("0-0", "0-0"))[correction]
            found.append(Where(key, tails[key], position))
        return found

    def holders(self) -> dict[int, int]:
        """This function will return the process id that holds each shard's lease at the moment."""
        with self.database() as database:
            rows = database.execute(
                "SELECT shard, holder FROM ingest_positions WHERE lease_until > clock_timestamp()"
            ).fetchall()
        return {shard: int(holder.rpartition(":")[2]) for shard, holder in rows if holder}


def keys() -> list[tuple[str, tuple[int, bool]]]:
    """This function will list every stream's key with its shard and whether it is that of corrections."""
    events = [(wire.stream_key(STREAM, shard), (shard, False)) for shard in range(SHARDS)]
    return events + [(wire.correction_key(STREAM, shard), (shard, True)) for shard in range(SHARDS)]


def add_user(database: psycopg.Connection[Any], clerk_id: str) -> None:
    """This function will make the user of a clerk_id known."""
    database.execute(
        "INSERT INTO users (id, clerk_id) VALUES (%s, %s) ON CONFLICT DO NOTHING",
        [traffic.clerk_user(clerk_id), clerk_id],
    )


def entry(text: str) -> tuple[int, int]:
    """This function will read an entry's id so that ids can be compared."""
    milliseconds, _, sequence = text.partition("-")
    return int(milliseconds), int(sequence or 0)


def _tail(client: redis.Redis, key: str) -> str:
    try:
        info: Any = client.xinfo_stream(key)
    except redis.ResponseError as error:
        if "no such key" in str(error):
            return "0-0"
        raise
    last: bytes = info["last-generated-id"]
    return last.decode()


def now_ms() -> int:
    """This function will return the time by which the stream's server numbers its entries."""
    return int(time.time() * 1000)
