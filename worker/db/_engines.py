"""Engines: one queue of connections per database, login and process, opened at first use."""

from __future__ import annotations

import enum
import os
import re
import threading
from typing import Any, Final

import psycopg
from sqlalchemy import Connection, Engine, create_engine, event  # noqa: TID251 - the one place that opens engines
from sqlalchemy import exc as sqlalchemy_errors
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection, QueuePool

from worker import settings as settings_module
from worker.database_url import Database, DatabaseURL, PoolMode
from worker.db._failures import PoolExhausted, connection_failure
from worker.settings import DatabaseSettings

# A peer that vanished without a word (a pulled cable, a NAT that forgot) is noticed within a minute.
_KEEPALIVE: Final = {
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
_SET: Final = (
    "SELECT set_config('statement_timeout', %(statement)s, %(local)s), "
    "set_config('lock_timeout', %(lock)s, %(local)s), "
    "set_config('idle_in_transaction_session_timeout', %(idle)s, %(local)s), "
    "set_config('TimeZone', 'UTC', %(local)s)"
)


class Login(enum.StrEnum):
    """Who connects: the program itself, the owner of the schema, or the audits."""

    RUNTIME = "runtime"
    OWNER = "owner"
    AUDIT = "audit"


class _Process:
    """What this process has opened; a forked child begins with an empty one."""

    def __init__(
        self, settings: DatabaseSettings | None = None, role: str = "app", worker_pool: bool = False
    ):
        self.settings = settings
        self.role = role
        self.worker_pool = worker_pool
        self.engines: dict[tuple[Database, Login], Engine] = {}
        self.lock = threading.Lock()


_process = _Process()


def _after_fork() -> None:
    """This function will forget the parent's connections in a forked child, without closing them.

    A child that used one would share its socket with the parent and read the answers of another tenant;
    one that closed it would end the parent's. `dispose(close=False)` does neither, and an Engine that
    somebody kept from before the fork opens connections of its own.
    """
    global _process
    parent = _process
    _process = _Process(parent.settings, parent.role, parent.worker_pool)
    for engine in parent.engines.values():
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_after_fork)


def configure(settings: DatabaseSettings) -> None:
    """This function will bind the settings of this process, closing what was opened under others.

    Pools have the size for threaded and web processes again; `use_worker_pool` comes after it.
    """
    close_databases()
    _process.settings = settings
    _process.worker_pool = False


def settings() -> DatabaseSettings:
    """This function will return the bound settings; an unbound process reads its environment once."""
    if _process.settings is None:
        _process.settings = settings_module.load_database_settings()
    return _process.settings


def set_application_role(role: str) -> None:
    """This function will set the middle of `usage-worker:<role>:<pid>` for connections opened from now on."""
    # With the longest process id it is as long as PostgreSQL keeps it, 63 bytes.
    _process.role = re.sub(r"[^A-Za-z0-9_.-]", "_", role)[:42] or "app"


def use_worker_pool() -> None:
    """This function will give engines opened from now on USAGE_WORKER_POOL_SIZE connections and no overflow.

    A Celery prefork child calls it at its start: it works on one task at a time, and the default pool
    times the number of children is more than a server has connections.
    """
    _process.worker_pool = True


def engine_for(database: Database, login: Login = Login.RUNTIME) -> Engine:
    """This function will return this process's engine for one database and login, opening it at first use."""
    bound = settings()
    process = _process
    with process.lock:
        engine = process.engines.get((database, login))
        if engine is None:
            engine = _open(bound, database, login)
            process.engines[database, login] = engine
        return engine


def close_databases() -> None:
    """This function will close every pooled connection of this process; the next use opens new ones."""
    process = _process
    with process.lock:
        engines = list(process.engines.values())
        process.engines.clear()
    for engine in engines:
        engine.dispose()


def opened_engines() -> dict[tuple[Database, Login], Engine]:
    """This function will return what this process has open at the moment, for the pool's audit."""
    with _process.lock:
        return dict(_process.engines)


def url_for(database: Database, login: Login) -> DatabaseURL:
    """This function will return the URL that a login uses; the owner goes around the pooler where it can."""
    target = settings().database(database)
    return {Login.RUNTIME: target.url, Login.OWNER: target.migration_url, Login.AUDIT: target.audit_url}[
        login
    ]


def pool_limits(bound: DatabaseSettings) -> tuple[int, int]:
    """This function will return size and overflow of one pool in this process."""
    if _process.worker_pool:
        return bound.usage_worker_pool_size, 0
    return bound.db_pool_size, bound.db_max_overflow


def _arguments(bound: DatabaseSettings, database: Database, url: DatabaseURL) -> dict[str, Any]:
    """This function will return the engine's arguments: one pooling strategy, whatever the pool mode."""
    size, overflow = pool_limits(bound)
    mode = bound.database(database).mode_of(url)
    arguments = {**_KEEPALIVE, "connect_timeout": str(bound.db_connect_timeout)}
    if url.host.startswith("/"):
        del arguments["tcp_user_timeout"]
    connect: dict[str, Any] = {name: value for name, value in arguments.items() if url.query(name) is None}
    if mode is PoolMode.TRANSACTION:
        # Behind such a pooler the next transaction runs on another server connection, without the statement.
        connect["prepare_threshold"] = None
    return {
        "connect_args": connect,
        "pool_size": size,
        "max_overflow": overflow,
        "pool_timeout": bound.db_pool_timeout,
        "pool_recycle": bound.db_pool_recycle,
        "pool_pre_ping": True,
        "hide_parameters": True,
        "echo": bound.database_echo,
    }


def _install(engine: Engine, bound: DatabaseSettings, database: Database, url: DatabaseURL) -> None:
    """This function will attach to an engine what every connection and transaction of ours needs."""
    values = {
        "statement": str(bound.db_statement_timeout_ms),
        "lock": str(bound.usage_lock_timeout_ms),
        "idle": str(bound.usage_idle_in_transaction_timeout_ms),
    }

    @event.listens_for(engine, "do_connect")
    def open_connection(
        dialect: Any, _record: ConnectionPoolEntry, arguments: Any, parameters: dict[str, Any]
    ) -> DBAPIConnection:
        parameters["application_name"] = f"usage-worker:{_process.role}:{os.getpid()}"
        try:
            connection: DBAPIConnection = dialect.connect(*arguments, **parameters)
        except psycopg.Error as error:
            raise connection_failure(error, url) from error
        return connection

    if bound.database(database).mode_of(url) is PoolMode.SESSION:

        @event.listens_for(engine, "connect")
        def set_for_session(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
            # Not by `options` at the start of the connection: PgBouncer refuses those in every mode.
            cursor = connection.cursor()
            cursor.execute(_SET, {**values, "local": False})
            cursor.close()
            connection.commit()

    else:

        @event.listens_for(engine, "begin")
        def set_for_transaction(connection: Connection) -> None:
            connection.exec_driver_sql(_SET, {**values, "local": True})


class _Pool(QueuePool):
    """A QueuePool that names the settings when it runs dry."""

    variable: str
    limits: tuple[int, int, float, bool]

    def connect(self) -> PoolProxiedConnection:
        """This function will take a connection, or raise PoolExhausted."""
        try:
            return super().connect()
        except sqlalchemy_errors.TimeoutError:
            raise PoolExhausted(self.variable, *self.limits) from None


def _open(bound: DatabaseSettings, database: Database, login: Login) -> Engine:
    url = url_for(database, login)
    size, overflow = pool_limits(bound)
    # A class of its own, since a pool that is disposed of makes its successor from nothing but its class.
    pool = type(
        "Pool",
        (_Pool,),
        {"variable": url.variable, "limits": (size, overflow, bound.db_pool_timeout, _process.worker_pool)},
    )
    engine = create_engine(url.sqlalchemy, poolclass=pool, **_arguments(bound, database, url))
    _install(engine, bound, database, url)
    return engine
