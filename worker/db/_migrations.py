"""Finds the migrations wherever the package lives, runs them, and says how far a database has come."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from psycopg import errors, sql
from sqlalchemy.exc import DBAPIError

import worker
from worker import sqlstate
from worker.database_url import Database, DatabaseURL
from worker.db import _admin
from worker.errors import ConfigurationError, TransientError
from worker.models import policies
from worker.settings import DatabaseTarget

MIGRATION_LOCK: Final = 0x7573_6167_6577_6D31
"""Key of the advisory lock of whoever changes schema or security ("usagewm1")."""


@dataclass(frozen=True, slots=True)
class HeadState:
    """How far one database has come. `current` is None where no migration ever ran."""

    database: Database
    current: str | None
    head: str

    @property
    def at_head(self) -> bool:
        """True when nothing is left to migrate."""
        return self.current == self.head


def migrations_path() -> Path:
    """This function will find the folder of the migrations: inside an installed wheel, or in the repository.

    Raises ConfigurationError when the installation has lost them.
    """
    package = Path(worker.__file__).resolve().parent
    for path in (package / "migrations", package.parent / "migrations"):
        if (path / "env.py").is_file():
            return path
    raise ConfigurationError(
        f"The migrations are missing: neither {package / 'migrations'} nor {package.parent / 'migrations'} "
        "has an env.py. Next step: install usage-worker again."
    )


def versions_path(database: Database) -> Path:
    """This function will find the folder of one database's revisions."""
    return migrations_path() / database.value


def migrate(target: DatabaseTarget, revision: str = "head") -> None:
    """This function will bring one database up to a revision; nothing happens when it is there already.

    Raises ConfigurationError when `db init` has to run first, TransientError when another migrator does not
    come to an end, ServiceUnreachable when the database does not answer.
    """
    with _named_failures(target):
        command.upgrade(_config(target.database, target), revision)


def downgrade(target: DatabaseTarget, revision: str) -> None:
    """This function will take one database back to a revision; `base` drops every table of ours, no role."""
    with _named_failures(target):
        command.downgrade(_config(target.database, target), revision)


def stamp(target: DatabaseTarget, revision: str = "head") -> None:
    """This function will record a revision as reached without running anything."""
    with _named_failures(target):
        command.stamp(_config(target.database, target), revision)


def head_of(database: Database) -> str:
    """This function will give the last revision that this release ships for a database."""
    head = ScriptDirectory.from_config(_config(database)).get_current_head()
    if head is None:
        raise ConfigurationError(f"No migration of {database.value} is there: install usage-worker again.")
    return head


def heads(target: DatabaseTarget, *, url: DatabaseURL | None = None) -> HeadState:
    """This function will compare the revision of a database with the last one that is shipped.

    It connects with `url`, by default the runtime login's. Raises ServiceUnreachable or ConfigurationError
    when that is impossible.
    """
    with _admin.connect(url or target.url) as connection:
        current = current_revision(connection, target.database)
    return HeadState(target.database, current, head_of(target.database))


def current_revision(connection: psycopg.Connection, database: Database) -> str | None:
    """This function will read the revision of a database, None where no migration ever ran."""
    table = policies.VERSION_TABLES[database]
    found = connection.execute("SELECT to_regclass(%s)", [f"public.{table}"]).fetchone()
    if found is None or found[0] is None:
        return None
    query = sql.SQL("SELECT version_num FROM public.{}").format(sql.Identifier(table))
    try:
        row = connection.execute(query).fetchone()
    except errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"{connection.info.user} may not read {table}: the login belongs to none of the groups "
            f"{', '.join(policies.VERSION_READERS)}. Next step: run `usage-worker db init`, or GRANT one."
        ) from error
    return None if row is None else str(row[0])


@contextlib.contextmanager
def _named_failures(target: DatabaseTarget) -> Iterator[None]:
    """This function will turn what Alembic and the database say into one of our kinds, where there is one."""
    try:
        yield
    except CommandError as error:
        raise ConfigurationError(f"{target.database.value}: {error}") from error
    except DBAPIError as error:
        if sqlstate.kind_of(error) is not sqlstate.FailureKind.TRANSIENT:
            raise
        raise TransientError(
            f"{target.database.value}: the migration was given up and rolled back: {error.orig}\n"
            "Next step: run it again; if it waited for a lock, see pg_locks for who holds it."
        ) from error


def _config(database: Database, target: DatabaseTarget | None = None) -> Config:
    # Built here and not read from alembic.ini, which an installed wheel does not have. A % in a path would be
    # taken for a reference.
    config = Config()
    config.set_main_option("database", database.value)
    config.set_main_option("script_location", str(migrations_path()).replace("%", "%%"))
    config.set_main_option("version_locations", str(versions_path(database)).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    config.attributes["target"] = target
    return config
