"""What `usage-worker db init` does: group roles, memberships, rights on the schema, then both histories.

Roles belong to the cluster and advisory locks to a database, so the lock is taken in one fixed database, the
maintenance database `postgres`. Every step first asks whether its aim is reached already, so a second run
changes nothing, and neither does a run after an administrator did a step by hand. What the owner's login may
not do is collected, and told as the exact statements that somebody else has to run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, LiteralString

import psycopg
from psycopg import errors, sql

from worker.database_url import Database, DatabaseURL, PoolMode
from worker.db import _admin, _migrations
from worker.errors import ConfigurationError, ServiceUnreachable, TransientError
from worker.models import policies
from worker.settings import DatabaseSettings, DatabaseTarget

MAINTENANCE_DATABASE: Final = "postgres"
ROLES_LOCK: Final = 0x7573_6167_6577_7231
"""Key of the advisory lock of whoever creates the group roles ("usagewr1")."""
TURN_TIMEOUT_SECONDS: Final = 120
MONITOR: Final = "pg_monitor"
RACE_ATTEMPTS: Final = 20

_RACED = (errors.DuplicateObject, errors.UniqueViolation, errors.InternalError_)
"""How PostgreSQL answers when two sessions without a common lock create or grant the same thing at once."""


_SCHEMA_MINE: Final = sql.SQL(
    "SELECT pg_has_role(nspowner, 'USAGE') FROM pg_namespace WHERE nspname = 'public'"
)
_DATABASE_MINE: Final = sql.SQL(
    "SELECT pg_has_role(datdba, 'USAGE') FROM pg_database WHERE datname = current_database()"
)


@dataclass(slots=True)
class ProvisionReport:
    """What `db init` did: `done` are the statements that changed something, `notes` is worth knowing."""

    done: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    revisions: dict[Database, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """One aim: a question that answers true once it is reached, and the statement that reaches it."""

    reached: sql.Composed
    statement: sql.Composed
    required: bool = True
    mine: sql.SQL | None = None
    """For a right inside one database: whether the login may give it, once the roles exist."""


def provision(settings: DatabaseSettings) -> ProvisionReport:
    """This function will prepare roles, rights and schema of both databases; run again, it changes nothing.

    Raises ConfigurationError that lists the statements an administrator has to run where the owner's login
    may not, ServiceUnreachable when a database does not answer, TransientError when another `db init` does
    not come to an end.
    """
    report = ProvisionReport()
    missing: dict[str, list[str]] = {}
    for database in Database:
        _prepare(settings.database(database), report, missing)
    if missing:
        raise _refusal(missing)
    for database in Database:
        target = settings.database(database)
        _migrations.migrate(target)
        report.revisions[database] = _migrations.head_of(database)
    return report


def _refusal(missing: Mapping[str, list[str]]) -> ConfigurationError:
    lines = ["The owner's login may not do everything. An administrator has to run:"]
    for where, statements in missing.items():
        lines.append(f"-- {where}")
        lines.extend(f"{statement};" for statement in statements)
    return ConfigurationError("\n".join([*lines, "Next step: then run `usage-worker db init` again."]))


def _prepare(target: DatabaseTarget, report: ProvisionReport, missing: dict[str, list[str]]) -> None:
    """This function will bring roles and rights of one database's cluster to what migrations need."""
    url = target.migration_url
    if target.mode_of(url) is PoolMode.TRANSACTION:
        raise ConfigurationError(
            f"{target.database.prefix}_DATABASE_DIRECT_URL: missing, and `db init` cannot go through a "
            "pooler in transaction mode.\n"
            f"  Example: {target.database.prefix}_DATABASE_DIRECT_URL={target.database.example}"
        )
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(_admin.connect(url, autocommit=True))
        owner = _login(connection)
        runtime, auditor = _login_of(target.url, url, owner), _login_of(target.audit_url, url, owner)
        stack.enter_context(_roles_lock(connection, url, report))
        for step in _steps(connection, owner=owner, runtime=runtime, auditor=auditor):
            _reach(connection, step, report, missing)


def _login_of(url: DatabaseURL, owner_url: DatabaseURL, owner: str) -> str:
    """This function will ask the server for a login's name: behind a pooler the URL's is another one."""
    if url.same_server_as(owner_url) and url.username == owner_url.username:
        return owner
    with _admin.connect(url) as connection:
        return _login(connection)


def _login(connection: psycopg.Connection) -> str:
    return str(_one(connection, sql.SQL("SELECT session_user")))


@contextlib.contextmanager
def _roles_lock(connection: psycopg.Connection, url: DatabaseURL, report: ProvisionReport) -> Iterator[None]:
    """This function will hold the lock under which roles are made, so that one `db init` works at a time."""
    with contextlib.ExitStack() as stack:
        try:
            holder = stack.enter_context(
                _admin.connect(url.with_database(MAINTENANCE_DATABASE), autocommit=True)
            )
        except (ConfigurationError, ServiceUnreachable):
            # Not fatal: whoever creates the same role at the same moment is recognised and let pass.
            report.notes.append(
                f"The maintenance database {MAINTENANCE_DATABASE} cannot be reached as "
                f"{url.username}: the lock is held in {url.database}, so do not run `db init` of two "
                "databases of one cluster at the same moment."
            )
            holder = connection
        deadline = time.monotonic() + TURN_TIMEOUT_SECONDS
        lock = sql.SQL("SELECT pg_try_advisory_lock({})").format(ROLES_LOCK)
        while not _one(holder, lock):
            if time.monotonic() > deadline:
                raise TransientError(
                    f"Another `db init` has held its lock in {holder.info.dbname} for "
                    f"{TURN_TIMEOUT_SECONDS} s. Next step: see pg_locks (locktype = 'advisory') for who it "
                    "is, then run it again."
                )
            time.sleep(0.05)
        try:
            yield
        finally:
            holder.execute(sql.SQL("SELECT pg_advisory_unlock({})").format(ROLES_LOCK))


def _steps(connection: psycopg.Connection, *, owner: str, runtime: str, auditor: str) -> Iterator[Step]:
    """This function will name every aim, in the order in which they can be reached."""
    modern = connection.info.server_version >= 160000
    for role in policies.GROUP_ROLES:
        yield _step(
            "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = {0})", "CREATE ROLE {0} NOLOGIN", role
        )
    for role, login in ((policies.OWNER, owner), (policies.WORKER, runtime), (policies.AUDITOR, auditor)):
        yield from _membership(role, login, modern=modern)
    for role in policies.BECOME_TENANT:
        yield _may_become(policies.TENANTS, role, modern=modern)
    yield _step(
        "SELECT pg_has_role({1}, {0}, 'USAGE')", "GRANT {0} TO {1}", MONITOR, policies.AUDITOR, required=False
    )
    yield from _schema_steps(connection.info.dbname)


def _schema_steps(database: str) -> Iterator[Step]:
    for privilege in ("USAGE", "CREATE"):
        yield _step(
            f"SELECT has_schema_privilege({{0}}, 'public', '{privilege}')",
            f"GRANT {privilege} ON SCHEMA public TO {{0}}",
            policies.OWNER,
            mine=_SCHEMA_MINE,
        )
    for role in (policies.WORKER, policies.AUDITOR, policies.APP, policies.TENANTS):
        yield _step(
            "SELECT has_schema_privilege({0}, 'public', 'USAGE')",
            "GRANT USAGE ON SCHEMA public TO {0}",
            role,
            mine=_SCHEMA_MINE,
        )
    # Before PostgreSQL 15 everybody may create in public, in front of what a search path would find later.
    yield _step(
        "SELECT NOT EXISTS (SELECT FROM pg_namespace, aclexplode(nspacl) AS acl WHERE nspname = 'public' "
        "AND acl.grantee = 0 AND acl.privilege_type = 'CREATE')",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        required=False,
    )
    for role in (policies.OWNER, policies.WORKER, policies.AUDITOR, policies.APP):
        yield _step(
            "SELECT has_database_privilege({1}, {0}, 'CONNECT')",
            "GRANT CONNECT ON DATABASE {0} TO {1}",
            database,
            role,
            mine=_DATABASE_MINE,
        )
    # Bulk inserts go through a temporary table: COPY into a table under row-level security is refused.
    yield _step(
        "SELECT has_database_privilege({1}, {0}, 'TEMPORARY')",
        "GRANT TEMPORARY ON DATABASE {0} TO {1}",
        database,
        policies.WORKER,
        mine=_DATABASE_MINE,
    )


def _membership(role: str, login: str, *, modern: bool) -> Iterator[Step]:
    """This function will aim at a login that has a group's rights and may become it."""
    if modern:
        yield _step(
            "SELECT pg_has_role({1}, {0}, 'USAGE') AND pg_has_role({1}, {0}, 'SET')",
            "GRANT {0} TO {1} WITH INHERIT TRUE, SET TRUE",
            role,
            login,
        )
        return
    # Before PostgreSQL 16 it is the member that decides whether it inherits, not the membership.
    yield _step("SELECT pg_has_role({1}, {0}, 'MEMBER')", "GRANT {0} TO {1}", role, login)
    yield _step("SELECT pg_has_role({0}, {1}, 'USAGE')", "ALTER ROLE {0} INHERIT", login, role)


def _may_become(role: str, member: str, *, modern: bool) -> Step:
    """This function will aim at a group that may become another without having its rights before."""
    if modern:
        return _step(
            "SELECT pg_has_role({1}, {0}, 'SET') AND NOT pg_has_role({1}, {0}, 'USAGE')",
            "GRANT {0} TO {1} WITH INHERIT FALSE, SET TRUE",
            role,
            member,
        )
    return _step("SELECT pg_has_role({1}, {0}, 'MEMBER')", "GRANT {0} TO {1}", role, member)


def _step(
    reached: LiteralString,
    statement: LiteralString,
    *names: str,
    required: bool = True,
    mine: sql.SQL | None = None,
) -> Step:
    return Step(
        sql.SQL(reached).format(*(sql.Literal(name) for name in names)),
        sql.SQL(statement).format(*(sql.Identifier(name) for name in names)),
        required,
        mine,
    )


def _reach(
    connection: psycopg.Connection, step: Step, report: ProvisionReport, missing: dict[str, list[str]]
) -> None:
    """This function will run one step's statement where its aim is not reached yet."""
    statement = step.statement.as_string(connection)
    if _is_reached(connection, step):
        return
    for attempt in range(RACE_ATTEMPTS):
        try:
            connection.execute(step.statement)
            break
        except _RACED:
            if attempt == RACE_ATTEMPTS - 1 and not _is_reached(connection, step):
                raise
            time.sleep(0.05)
        except errors.UndefinedObject:
            # The role could not be created before, which is on the list: this waits for the next run.
            if step.mine is not None and _one(connection, step.mine):
                return
            break
        except errors.InsufficientPrivilege:
            break
    info = connection.info
    if _is_reached(connection, step):
        report.done.append(f"{info.dbname}: {statement}")
    elif step.required:
        where = "any database" if step.mine is None else f"the database {info.dbname}"
        listed = missing.setdefault(f"in {where} of the server {info.host}:{info.port}", [])
        if statement not in listed:
            listed.append(statement)
    else:
        report.notes.append(f"Not done, because {connection.info.user} may not: {statement}")


def _is_reached(connection: psycopg.Connection, step: Step) -> bool:
    try:
        return bool(_one(connection, step.reached))
    except errors.UndefinedObject:
        return False


def _one(connection: psycopg.Connection, query: sql.SQL | sql.Composed) -> object:
    row = connection.execute(query).fetchone()
    return None if row is None else row[0]
