"""What both databases answer: reachable, distinct, at migration head."""

from __future__ import annotations

import time
from typing import Any, Final, Literal, TypedDict

from sqlalchemy import Engine, text

from worker.database_url import Database, DatabaseURL
from worker.db import _admin, _migrations
from worker.db._engines import Login, engine_for, opened_engines, pool_limits, settings
from worker.errors import ConfigurationError, TransientError
from worker.settings import DatabaseTarget

MINIMUM_VERSION: Final = 140000

_IDENTITY: Final = (
    "SELECT pg_postmaster_start_time()::text || ' ' || d.oid, "
    "current_setting('server_version_num')::int, version() "
    "FROM pg_database AS d WHERE d.datname = current_database()"
)


class Way(TypedDict):
    """One way to a database: whether it leads there, how fast, and why not."""

    url: str
    status: Literal["connected", "unreachable", "misconfigured"]
    latency_ms: float | None
    error: str | None


class ConnectionReport(Way):
    """The runtime's way to a database and, where one is declared, the way around the pooler."""

    pool_mode: str
    direct: Way | None


class PoolInfo(TypedDict):
    """The pool of this process; `checked_out` and `idle` are 0 before its first use."""

    size: int
    max_overflow: int
    checked_out: int
    idle: int


class DatabaseInfo(TypedDict):
    """What one database says about itself, and how this process reaches it."""

    url: str
    host: str
    port: int
    database: str
    login: str
    pool_mode: str
    server_version: str
    size_bytes: int
    max_connections: int
    current_revision: str | None
    head_revision: str
    at_head: bool
    pool: PoolInfo


def test_connections() -> dict[str, ConnectionReport]:
    """This function will try both databases: `{"platform": {...}, "user_data": {...}}`, see ConnectionReport.

    A database that does not answer is part of the result (`status`, `error`), never an exception; only
    settings that cannot be read raise, as ConfigurationError. No password is part of it.
    """
    return {database.value: _report(settings().database(database)) for database in Database}


# A program's tests import this name, and pytest would take it for one of them.
test_connections.__test__ = False  # type: ignore[attr-defined]  # an attribute of the function, for pytest


def get_database_info() -> dict[str, DatabaseInfo]:
    """This function will describe both: `{"platform": {...}, "user_data": {...}}`, see DatabaseInfo.

    No password is part of it. Raises ServiceUnreachable or ConfigurationError when one does not answer.
    """
    return {database.value: _info(settings().database(database)) for database in Database}


def init_databases() -> None:
    """This function will prove that both are reachable PostgreSQL databases, distinct, and at migration head.

    It creates and changes nothing. Raises ServiceUnreachable, or ConfigurationError with the variable and
    the next step.
    """
    seen: dict[str, DatabaseURL] = {}
    for database in Database:
        target = settings().database(database)
        identity = _identity(target)
        if identity in seen:
            raise ConfigurationError(
                f"{target.url.variable} and {seen[identity].variable}: both reach the same database, under "
                f"two names.\n  Found:   {target.url.redacted} and {seen[identity].redacted}\n"
                f"  Example: {target.database.prefix}_DATABASE_URL={target.database.example}"
            )
        seen[identity] = target.url
    for database in Database:
        _check_head(settings().database(database))


def _identity(target: DatabaseTarget) -> str:
    """This function will prove that PostgreSQL is there, and return what tells it from any other database."""
    with engine_for(target.database).connect() as connection:
        identity, version, words = connection.execute(text(_IDENTITY)).one()
    if not str(words).startswith("PostgreSQL") or version < MINIMUM_VERSION:
        raise ConfigurationError(
            f"{target.url.variable}: PostgreSQL {MINIMUM_VERSION // 10000} or newer is needed.\n"
            f"  Found:   {str(words)[:80]} at {target.url.redacted}"
        )
    if target.direct_url is not None:
        with _admin.connect(target.direct_url) as direct:
            row = direct.execute(_IDENTITY).fetchone()
        if row is None or row[0] != identity:
            raise ConfigurationError(
                f"{target.direct_url.variable}: reaches another database than {target.url.variable}.\n"
                f"  Found:   {target.direct_url.redacted} and {target.url.redacted}"
            )
    return str(identity)


def _check_head(target: DatabaseTarget) -> None:
    state = _migrations.heads(target)
    if not state.at_head:
        step = "init" if state.current is None else "migrate"
        raise ConfigurationError(
            f"{target.url.variable}: the schema is at revision {state.current or '(none)'}, and this release "
            f"needs {state.head}.\n  Found:   {target.url.redacted}\nNext step: run `usage-worker db {step}`."
        )


def _report(target: DatabaseTarget) -> ConnectionReport:
    way = _try_pool(engine_for(target.database), target.url)
    direct = None if target.direct_url is None else _try_direct(target.direct_url)
    return {**way, "pool_mode": target.mode_of(target.url).value, "direct": direct}


def _try_pool(engine: Engine, url: DatabaseURL) -> Way:
    try:
        with engine.connect() as connection:
            start = time.perf_counter()
            connection.execute(text("SELECT 1"))
            return _connected(url, start)
    except (ConfigurationError, TransientError) as error:
        return _failed(url, error)


def _try_direct(url: DatabaseURL) -> Way:
    try:
        with _admin.connect(url) as connection:
            start = time.perf_counter()
            connection.execute("SELECT 1")
            return _connected(url, start)
    except (ConfigurationError, TransientError) as error:
        return _failed(url, error)


def _connected(url: DatabaseURL, start: float) -> Way:
    elapsed = round((time.perf_counter() - start) * 1000, 3)
    return {"url": url.redacted, "status": "connected", "latency_ms": elapsed, "error": None}


def _failed(url: DatabaseURL, error: Exception) -> Way:
    status: Literal["unreachable", "misconfigured"] = (
        "misconfigured" if isinstance(error, ConfigurationError) else "unreachable"
    )
    return {"url": url.redacted, "status": status, "latency_ms": None, "error": str(error)}


def _info(target: DatabaseTarget) -> DatabaseInfo:
    with engine_for(target.database).connect() as connection:
        row = connection.execute(
            text(
                "SELECT current_setting('server_version') AS server_version, session_user::text AS login, "
                "pg_database_size(current_database()) AS size_bytes, "
                "current_setting('max_connections')::int AS max_connections"
            )
        ).one()
    state = _migrations.heads(target)
    return DatabaseInfo(
        url=target.url.redacted,
        host=target.url.host,
        port=target.url.port,
        database=target.url.database,
        login=row.login,
        pool_mode=target.mode_of(target.url).value,
        server_version=row.server_version,
        size_bytes=row.size_bytes,
        max_connections=row.max_connections,
        current_revision=state.current,
        head_revision=state.head,
        at_head=state.at_head,
        pool=_pool_info(target.database),
    )


def _pool_info(database: Database) -> PoolInfo:
    size, overflow = pool_limits(settings())
    engine = opened_engines().get((database, Login.RUNTIME))
    pool: Any = None if engine is None else engine.pool
    return {
        "size": size,
        "max_overflow": overflow,
        "checked_out": 0 if pool is None else pool.checkedout(),
        "idle": 0 if pool is None else pool.checkedin(),
    }
