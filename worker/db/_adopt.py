"""`usage-worker db adopt`: takes over databases that exist already, if they are what the migrations build."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import errors, sql

from worker.database_url import Database
from worker.db import _admin, _catalog, _migrations
from worker.db._engines import Login, engine_for, settings
from worker.errors import ConfigurationError
from worker.models import policies
from worker.models.live_policies import Problem, policy_differences
from worker.settings import DatabaseTarget

SCRATCH_SCHEMA = "usage_worker_baseline"


@dataclass(frozen=True, slots=True)
class Adoption:
    """What came of one database: its differences from the baseline, and whether it was stamped."""

    database: Database
    differences: tuple[str, ...]
    stamped: str | None


def adopt(database: Database, *, dry_run: bool = False) -> Adoption:
    """This function will compare a database with the baseline, and stamp it where nothing differs.

    Tables, columns, constraints and indexes are compared with what the models build in a scratch schema that
    is rolled back, owners, policies and grants with the declared ones; tables that are not ours are left out.
    Raises ConfigurationError when the database is under migrations already, or the scratch schema is refused.
    """
    target = settings().database(database)
    with _admin.connect(target.migration_url) as connection:
        current = _migrations.current_revision(connection, target.database)
    if current is not None:
        raise ConfigurationError(
            f"{target.migration_url.variable}: {target.migration_url.redacted} is at revision {current} "
            "already. Next step: run `usage-worker db migrate`."
        )
    differences = (*_schema_differences(target), *_security_differences(database))
    if differences or dry_run:
        return Adoption(target.database, differences, None)
    _migrations.stamp(target)
    _let_read_version(target)
    return Adoption(target.database, (), _migrations.head_of(target.database))


def _schema_differences(target: DatabaseTarget) -> list[str]:
    url = target.migration_url
    with _admin.connect(url) as connection:
        try:
            with connection.transaction(force_rollback=True):
                _catalog.build(connection, SCRATCH_SCHEMA, target.database)
                wanted = _catalog.describe(connection, SCRATCH_SCHEMA)
                found = _catalog.describe(connection, "public")
        except errors.InsufficientPrivilege as error:
            grant = sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(
                sql.Identifier(connection.info.dbname), sql.Identifier(connection.info.user)
            )
            raise ConfigurationError(
                f"{url.variable}: this login may not make the scratch schema that the comparison needs. "
                f"Next step: an administrator runs  {grant.as_string(connection)};"
            ) from error
    return _catalog.compare(wanted, found, [table.table for table in policies.DECLARED[target.database]])


def _security_differences(database: Database) -> list[str]:
    with engine_for(database, Login.OWNER).connect() as connection:
        found = policy_differences(connection, database)
    # A missing table was named before, and stamping makes Alembic's own.
    return [
        "; ".join([f"{each.table}: {each.detail}", *each.remediation])
        for each in found
        if each.problem is not Problem.TABLE_MISSING and each.table != policies.VERSION_TABLES[database]
    ]


def _let_read_version(target: DatabaseTarget) -> None:
    """This function will grant on Alembic's table what a migration would have granted."""
    with _admin.connect(target.migration_url) as connection:
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(policies.OWNER)))
        connection.execute(
            sql.SQL("GRANT SELECT ON public.{} TO {}").format(
                sql.Identifier(policies.VERSION_TABLES[target.database]),
                sql.SQL(", ").join(sql.Identifier(role) for role in policies.VERSION_READERS),
            )
        )
