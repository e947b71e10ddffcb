"""The servers of a benchmark with their settings, and what is read from them: counts, CPU time, WAL."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import psutil
import psycopg
import redis

from benchmarks import sqlqueue
from benchmarks.child import Child
from benchmarks.measure import WALL, Sample
from worker import settings
from worker.db import _provision
from worker.dev import _logins, servers

KEY: Final = "usage:events:{0}"
# Durable, as the product asks for; memory for a small machine. No checkpoint falls into a measurement by
# itself: each case begins with one.
POSTGRES: Final = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "track_commit_timestamp": "on",
}
_SHOWN: Final = (
    "server_version",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "shared_buffers",
    "max_wal_size",
    "track_commit_timestamp",
)
_TABLES: Final = (
    "platform_usage_logs, usage_hourly, usage_dead_letters, ingest_positions, bench_queue RESTART IDENTITY"
)
_POLL_SECONDS: Final = 0.02
DEADLINE_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True)
class Span:
    """What happened between two moments: CPU seconds by part, WAL bytes with and without page images."""

    cpu: Mapping[str, float]
    wal: int
    wal_images: int

    def sample(self, seconds: float, count: int) -> Sample:
        """This function will say what one of `count` events took, in `seconds` of wall time altogether."""
        return {
            WALL: seconds / count * 1e6,
            "cpu_us": sum(self.cpu.values()) / count * 1e6,
            **{f"cpu_{part}_us": used / count * 1e6 for part, used in self.cpu.items()},
            "wal_bytes": (self.wal - self.wal_images) / count,
            "wal_image_bytes": self.wal_images / count,
        }


@dataclass(slots=True)
class Meter:
    """Filled when its block ends."""

    span: Span = field(default_factory=lambda: Span({}, 0, 0))


class World:
    """Embedded servers with the product's schema; a context manager."""

    def __init__(self, tuning: Mapping[str, str] | None = None) -> None:
        """`tuning`: settings of PostgreSQL beside those of every benchmark."""
        self._tuning = {**POSTGRES, **(tuning or {})}
        self._stack = contextlib.ExitStack()
        self.embedded = servers.EmbeddedServers()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.embedded)
            self.embedded.postgres.settings.update(self._tuning)
            self.embedded.postgres.restart()
            self.environ = self.embedded.environ()
            _provision.provision(settings.load_settings(self.environ))
            self.url = self.embedded.postgres.url(servers.PLATFORM_DATABASE)
            self.admin = stack.enter_context(psycopg.connect(self.url, autocommit=True))
            self.admin.execute("CREATE EXTENSION pg_walinspect")
            self.admin.execute(sqlqueue.CREATE)
            self.client = redis.Redis.from_url(self.embedded.valkey.url())
            stack.callback(self.client.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def child(self, module: str, **more: str) -> Child:
        """This function will start one of the benchmark's processes; it ends with the world."""
        return self._stack.enter_context(Child(module, {**self.environ, **more}))

    def beside(self, database: str, *, valkey: int) -> Self:
        """This function will return this world with another platform database and Valkey database."""
        embedded, other = self.embedded, copy.copy(self)
        _logins.create_database(embedded.postgres.url(), database)
        other.environ = servers.settings_for(
            embedded.postgres, embedded.valkey.url(valkey), embedded.passwords, platform=database
        )
        _provision.provision(settings.load_settings(other.environ))
        other.url = embedded.postgres.url(database)
        other.admin = self._stack.enter_context(psycopg.connect(other.url, autocommit=True))
        other.admin.execute("CREATE EXTENSION pg_walinspect")
        other.client = redis.Redis.from_url(embedded.valkey.url(valkey))
        self._stack.callback(other.client.close)
        return other

    @property
    def logs(self) -> Path:
        """A folder for the logs of other programs; it goes with the world."""
        return self.embedded.valkey.folder

    def empty(self) -> None:
        """This function will empty stream and tables, and write out what is left to write."""
        self.client.flushall()
        self.admin.execute(f"TRUNCATE {_TABLES}")
        self.admin.execute("CHECKPOINT")

    def load(self, entries: Sequence[bytes], *, key: str = KEY) -> None:
        """This function will put prebuilt entries onto the stream."""
        for start in range(0, len(entries), 2000):
            with self.client.pipeline(transaction=False) as pipe:
                for data in entries[start : start + 2000]:
                    pipe.xadd(key, {"data": data})
                pipe.execute()

    def counted(self) -> int:
        """This function will return how many events the drain has committed."""
        return self._number("SELECT coalesce(sum(events), 0) FROM ingest_positions")

    def rows(self) -> int:
        """This function will count the stored events."""
        return self._number("SELECT count(*) FROM platform_usage_logs")

    def wait(self, count: Callable[[], int], expected: int) -> None:
        """This function will wait until so many are there; raises SystemExit when they do not come."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (found := count()) < expected:
            if time.monotonic() > deadline:
                raise SystemExit(f"{found} of {expected} events after {DEADLINE_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)
        if found != expected:
            raise SystemExit(f"{found} events were counted, {expected} were sent")

    def committed_at(self, table: str) -> float:
        """This function will return when the newest row of a table was committed, in seconds since 1970."""
        row = self.admin.execute(
            f"SELECT extract(epoch FROM max(pg_xact_commit_timestamp(xmin)))::float8 FROM {table}"  # noqa: S608  our own tables
        ).fetchone()
        if row is None or row[0] is None:
            raise SystemExit(f"{table} is empty")
        return float(row[0])

    @contextlib.contextmanager
    def measure(self, **processes: int) -> Iterator[Meter]:
        """This function will measure a block: CPU of both servers and these processes, and WAL."""
        meter = Meter()
        parts = {
            "valkey": self.embedded.valkey.pid,
            "postgres": self.embedded.postgres.pid,
            **processes,
        }
        before = {name: cpu_seconds(pid) for name, pid in parts.items()}
        began = self._lsn()
        yield meter
        cpu = {name: cpu_seconds(pid) - before[name] for name, pid in parts.items()}
        ended = self._lsn()
        if ended == began:
            meter.span = Span(cpu, 0, 0)
            return
        row = self.admin.execute(
            "SELECT pg_wal_lsn_diff(%s, %s)::bigint, (SELECT coalesce(sum(fpi_size), 0)::bigint "
            "FROM pg_get_wal_stats(%s, %s))",
            [ended, began, began, ended],
        ).fetchone()
        if row is not None:
            meter.span = Span(cpu, row[0], row[1])

    def notes(self) -> list[str]:
        """This function will name the settings under which everything was measured."""
        names = ", ".join(f"'{name}'" for name in _SHOWN)
        rows = self.admin.execute(
            f"SELECT name, current_setting(name) FROM pg_settings WHERE name IN ({names}) ORDER BY name"  # noqa: S608  our own names
        ).fetchall()
        info = self.client.info("server")
        return [
            "PostgreSQL: " + ", ".join(f"{name} = {value}" for name, value in rows),
            f"Valkey {info.get('valkey_version', info.get('redis_version'))}: appendonly yes, "
            "appendfsync everysec",
        ]

    def _lsn(self) -> str:
        row = self.admin.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        return "0/0" if row is None else str(row[0])

    def _number(self, query: str) -> int:
        row = self.admin.execute(query.encode()).fetchone()
        return 0 if row is None else int(row[0])


def cpu_seconds(pid: int) -> float:
    """This function will return the CPU time of a process and of all that it started, living or ended."""
    try:
        root = psutil.Process(pid)
        own = root.cpu_times()
        total = own.user + own.system + own.children_user + own.children_system
        for process in root.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    except psutil.NoSuchProcess:
        raise SystemExit(f"process {pid} has ended") from None
    return float(total)
