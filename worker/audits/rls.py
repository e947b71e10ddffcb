"""The audit of row level security, of our databases and of any other PostgreSQL.

Isolation is judged as the role that the application really uses. Nothing is written: the transaction is READ
ONLY, tables are not read at all, and a check that could not look says so instead of passing.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from typing import Any, Final, cast
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection
from sqlalchemy.orm import Session

from worker.audits import (
    findings,
    rls_catalog,
    rls_checks,
    rls_policies,
    rls_roles,
    rls_scope,
    rls_truth,
)
from worker.audits.findings import AuditReport, CheckResult, Finding
from worker.errors import ConfigurationError

CHECK_IDS: Final = (*rls_checks.CHECKS, *rls_roles.CHECKS, *rls_policies.CHECK_IDS)
"""Every check that a run answers."""

STATEMENT_TIMEOUT: Final = "5s"
LOCK_TIMEOUT: Final = "200ms"


def audit(
    session: Session | Connection | psycopg.Connection[Any],
    *,
    database: str,
    role: str | None = None,
    setting: str = "app.current_user_id",
    tenant_column: str = "user_id",
    tables: Iterable[str] = (),
    public_read: Iterable[str] = (),
    run_id: UUID | None = None,
) -> AuditReport:
    """This function will judge the row level security of the session's database for `role`.

    `role` is the role of the application (None: the session's own user), `setting` the one that names the
    tenant, `tables` (`name` or `schema.name`) narrows the view, `public_read` names policies
    (`schema.table.policy`) that show rows to everybody on purpose. For `database` "platform" and "user_data"
    our declared policies and grants are compared too. The transaction is READ ONLY from here on, has an empty
    search_path, and stays the caller's to end. Raises ConfigurationError on an AUTOCOMMIT connection.
    """
    connection = driver_connection(session)
    begin_read_only(connection)
    connection.execute("SET LOCAL search_path = ''")
    started_at = clock(connection)
    name = role if role is not None else str(_value(connection, "SELECT current_user"))
    judged = rls_catalog.read_role(connection, name)
    if judged is None:
        reason = f"there is no role {name} on this server"
        checks = [findings.inconclusive(check_id, reason) for check_id in CHECK_IDS]
    else:
        scope = rls_scope.scope_of(
            rls_catalog.read(connection, judged),
            database=database,
            setting=setting,
            tenant_column=tenant_column,
            tables=tables,
            public_read=public_read,
        )
        checks = [*_by_catalog(scope), *_by_evaluation(connection, scope)]
    return AuditReport(
        run_id=run_id or uuid.uuid4(),
        kind="rls",
        database=database,
        started_at=started_at,
        finished_at=clock(connection),
        checks=checks,
    )


def driver_connection(session: Session | Connection | psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """This function will give the psycopg connection below a session: it takes identifiers apart from values.

    Raises ConfigurationError where the connection commits every statement by itself.
    """
    connection = session.connection() if isinstance(session, Session) else session
    if isinstance(connection, Connection):
        connection = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    if connection.autocommit:
        raise ConfigurationError("An audit needs a transaction: give it a connection that is not AUTOCOMMIT.")
    return connection


def begin_read_only(connection: psycopg.Connection[Any]) -> None:
    """This function will make the transaction READ ONLY and bound how long a statement or lock may take."""
    if connection.info.transaction_status is TransactionStatus.IDLE:
        # One snapshot for all of the catalog; possible only as the first statement.
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    connection.execute("SET TRANSACTION READ ONLY")
    connection.execute(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'")
    connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")


def clock(connection: psycopg.Connection[Any]) -> Any:
    """This function will read the server's clock."""
    return _value(connection, "SELECT clock_timestamp()")


def _value(connection: psycopg.Connection[Any], statement: str) -> Any:
    row = connection.execute(statement.encode()).fetchone()
    return row[0] if row else None


def _by_catalog(scope: rls_scope.Scope) -> Iterator[CheckResult]:
    for check_id, check in {**rls_checks.CHECKS, **rls_roles.CHECKS}.items():
        if check is rls_roles.drift and not scope.declared:
            yield findings.skipped(check_id, "nothing is declared for this database")
        else:
            yield findings.answer(check_id, check(scope))


def _by_evaluation(connection: psycopg.Connection[Any], scope: rls_scope.Scope) -> Iterator[CheckResult]:
    found: dict[str, list[Finding]] = {check_id: [] for check_id in rls_policies.CHECK_IDS}
    unseen: dict[str, str] = {}
    for table in scope.tenant_tables:
        if not table.rls or not table.reachable:
            continue
        column = scope.tenant_columns[table.oid]
        try:
            truth = rls_truth.evaluate(
                connection, table, role=scope.catalog.role.name, setting=scope.setting, tenant_column=column
            )
        except rls_truth.CannotEvaluate as error:
            unseen[table.label] = str(error)
            continue
        judged = rls_policies.Judged(
            database=scope.database,
            table=table,
            truth=truth,
            setting=scope.setting,
            public_read=scope.public_read,
            has_tenant_column=column is not None,
        )
        for finding in rls_policies.findings(judged):
            found[finding.check_id].append(finding)
    for check_id, listed in found.items():
        if unseen:
            reasons = "; ".join(sorted({f"{why}" for why in unseen.values()}))
            yield findings.inconclusive(check_id, f"{', '.join(sorted(unseen))}: {reasons}", listed)
        else:
            yield findings.answer(check_id, listed)
