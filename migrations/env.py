"""Runs one of the two migration histories: `alembic -n platform …` or `alembic -n user_data …`.

The connection is the owner's, by the way around the pooler, as role usage_owner. One migrator works at a
time; each migration is one transaction that would rather fail than wait long for a lock, since whoever waits
for an ACCESS EXCLUSIVE lock makes everybody behind wait too.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
from alembic import context
from alembic.operations.ops import MigrationScript
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, create_engine, text  # noqa: TID251  one short-lived connection, no pool
from sqlalchemy.exc import DBAPIError, OperationalError

from worker import sqlstate
from worker.database_url import Database, PoolMode
from worker.db import _admin, _migrations
from worker.errors import ConfigurationError, TransientError
from worker.models import policies
from worker.models.platform import PlatformBase
from worker.models.user_data import UserDataBase
from worker.settings import DatabaseTarget, load_database_settings

LOCK_TIMEOUT_MS = 5_000
STATEMENT_TIMEOUT_MS = 300_000
"""Long enough to build an index; a migration that needs more sets it for itself with SET LOCAL."""
TURN_TIMEOUT_SECONDS = 600

METADATA = {Database.PLATFORM: PlatformBase.metadata, Database.USER_DATA: UserDataBase.metadata}

config = context.config
database = Database(config.get_main_option("database", Database.PLATFORM))


def number_revision(_context: MigrationContext, _revision: object, directives: list[MigrationScript]) -> None:
    """This function will number a new revision after the last one: 0003 follows 0002."""
    numbers = [int(path.name[:4]) for path in Path(_migrations.versions_path(database)).glob("[0-9]*.py")]
    directives[0].rev_id = f"{max(numbers, default=0) + 1:04}"


def configure(connection: Connection | None) -> None:
    """This function will tell Alembic what to run on: a connection, or the dialect alone for `--sql`."""
    context.configure(
        connection=connection,
        dialect_name=None if connection is not None else "postgresql",
        target_metadata=METADATA[database],
        version_table=policies.VERSION_TABLES[database],
        transaction_per_migration=True,
        compare_type=True,
        compare_server_default=True,
        process_revision_directives=number_revision,
    )


def settings_sql() -> list[str]:
    """This function will give what a session sets before the first migration."""
    return [
        f"SET ROLE {policies.OWNER}",
        "SET search_path TO public",
        f"SET lock_timeout TO {LOCK_TIMEOUT_MS}",
        f"SET statement_timeout TO {STATEMENT_TIMEOUT_MS}",
    ]


@contextlib.contextmanager
def own_connection(target: DatabaseTarget) -> Iterator[Connection]:
    """This function will open the owner's connection, wait for its turn, and give both back at the end."""
    url = target.migration_url
    if target.mode_of(url) is PoolMode.TRANSACTION:
        raise ConfigurationError(
            f"{database.prefix}_DATABASE_DIRECT_URL: missing, and migrations cannot go through a pooler in "
            f"transaction mode, where neither a session's lock nor its role holds.\n"
            f"  Example: {database.prefix}_DATABASE_DIRECT_URL={database.example}"
        )
    engine = create_engine(
        url.sqlalchemy,
        pool_size=1,
        max_overflow=0,
        hide_parameters=True,
        connect_args={
            "connect_timeout": _admin.CONNECT_TIMEOUT_SECONDS,
            "application_name": f"usage-worker:migrate:{os.getpid()}",
        },
    )
    try:
        try:
            connection = engine.connect()
        except OperationalError as error:
            if not isinstance(error.orig, psycopg.Error):
                raise
            raise _admin.refused(error.orig, url) from error
        with connection:
            take_turn(connection)
            become_owner(connection)
            yield connection
    finally:
        engine.dispose()


def take_turn(connection: Connection) -> None:
    """This function will hold the one advisory lock that lets a single migrator work on this database.

    It asks again and again instead of waiting inside one statement: an open statement would block the
    CREATE INDEX CONCURRENTLY of the migrator whose turn it is.
    """
    deadline = time.monotonic() + TURN_TIMEOUT_SECONDS
    while True:
        with connection.begin():
            taken = connection.scalar(
                text("SELECT pg_try_advisory_lock(:key)"), {"key": _migrations.MIGRATION_LOCK}
            )
        if taken:
            return
        if time.monotonic() > deadline:
            raise TransientError(
                f"{database.value}: another migrator has held its lock for {TURN_TIMEOUT_SECONDS} s. "
                "Next step: see pg_locks (locktype = 'advisory') for who it is, then migrate again."
            )
        time.sleep(0.1)


def become_owner(connection: Connection) -> None:
    """This function will set role and timeouts for the session, or say that `db init` has to run first."""
    try:
        with connection.begin():
            for statement in settings_sql():
                connection.execute(text(statement))
    except DBAPIError as error:
        if sqlstate.kind_of(error) is not sqlstate.FailureKind.CONFIGURATION:
            raise
        raise ConfigurationError(
            f"{database.value}: the login of the migrations may not become {policies.OWNER}: {error.orig}. "
            "Next step: run `usage-worker db init`."
        ) from error


def run_offline() -> None:
    """This function will print the SQL of the migrations, for an administrator to read or run."""
    configure(None)
    with context.begin_transaction():
        for statement in settings_sql():
            context.execute(statement)
        context.run_migrations()


def run_online() -> None:
    """This function will run the migrations, on the connection that was passed in or on one of its own."""
    given: Connection | None = config.attributes.get("connection")
    if given is not None:
        configure(given)
        with context.begin_transaction():
            context.run_migrations()
        return
    target: DatabaseTarget = config.attributes.get("target") or load_database_settings().database(database)
    with own_connection(target) as connection:
        configure(connection)
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    run_online()
