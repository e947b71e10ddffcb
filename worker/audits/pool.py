"""The audit of connections: this process, the server, the fleet, and what may stand between.

Nothing is written and no row is read. A login without pg_monitor sees too little of the others' sessions, so
the checks on them are inconclusive then, never a pass.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.rows import dict_row
from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from worker.audits import findings, pool_checks, rls
from worker.audits.findings import AuditReport, CheckResult, Finding
from worker.audits.pool_checks import DEFAULT_THRESHOLDS, Fleet, ProcessPool, Thresholds
from worker.models.vocabulary import Severity

__all__ = ["CHECK_IDS", "DEFAULT_THRESHOLDS", "Fleet", "FreshSession", "ProcessPool", "Thresholds", "audit"]

FreshSession = Callable[[], AbstractContextManager[Session]]
"""Gives a context manager with another session of the same login, through the same pool."""

CHECK_IDS: Final = (
    "pool.saturation",
    "pool.checkout_wait",
    "pool.timeouts",
    "pool.reset_hygiene",
    "pool.latency",
    "pool.pooler_detected",
    "pool.session_leak_nonce",
    "pool.read_only",
    "pool.ceiling",
    "pool.live_use",
    "pool.idle_in_transaction",
    "pool.long_active_query",
    "pool.long_transaction",
    "pool.lock_waits",
)
"""Every check that a run answers."""

_PINGS: Final = 5
_FRESH_SESSIONS: Final = 4

# Counts come from pg_stat_database, which everybody may read in full.
_SERVER = """
    SELECT current_setting('max_connections')::int AS max_connections,
           current_setting('superuser_reserved_connections')::int
             + coalesce(current_setting('reserved_connections', true)::int, 0) AS reserved_connections,
           (SELECT datconnlimit FROM pg_database WHERE datname = current_database()) AS database_limit,
           (SELECT sum(numbackends)::int FROM pg_stat_database) AS client_count,
           pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_all,
           current_setting('default_transaction_read_only')::bool AS read_only,
           pg_is_in_recovery() AS in_recovery
"""

_SESSIONS = """
    SELECT pid, application_name AS application, state, wait_event_type = 'Lock' AS waits_for_lock,
           greatest(extract(epoch FROM clock_timestamp() - state_change), 0)::float8 AS in_state,
           greatest(extract(epoch FROM clock_timestamp() - query_start), 0)::float8 AS in_query,
           greatest(extract(epoch FROM clock_timestamp() - xact_start), 0)::float8 AS in_transaction
      FROM pg_stat_activity
     WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


def audit(
    session: Session | Connection | psycopg.Connection[Any],
    *,
    database: str,
    declared_pool_mode: str = "session",
    process_pool: ProcessPool | None = None,
    fleet: Fleet | None = None,
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
    setting: str = "app.current_user_id",
    fresh_session: FreshSession | None = None,
    run_id: UUID | None = None,
) -> AuditReport:
    """This function will judge the connections to the session's database.

    `declared_pool_mode` is `session` or `transaction`; `process_pool` and `fleet` are what the caller knows
    of its own process and of everything configured; `fresh_session` lets it look for settings that travel
    from one use of a connection to the next, and for a pooler's mode. Give it a session that has done nothing
    yet. Its transaction is READ ONLY from here on and stays the caller's to end. Raises ConfigurationError on
    an AUTOCOMMIT connection.
    """
    identity = run_id or uuid.uuid4()
    connection = rls.driver_connection(session)
    rls.begin_read_only(connection)
    started_at = rls.clock(connection)
    leftover = _leftover(connection, setting)
    server = _server(connection)
    leaked, moved = (None, None) if fresh_session is None else _travellers(fresh_session, identity)
    pooler = pool_checks.Pooler(
        told_pid=connection.info.backend_pid,
        answering_pid=_row(connection, "SELECT pg_backend_pid() AS pid")["pid"],
        moved=moved,
    )
    milliseconds = _fastest_round_trip(connection)
    checks = [
        pool_checks.saturation(database, process_pool, thresholds),
        pool_checks.checkout_wait(database, process_pool, thresholds),
        pool_checks.timeouts(database, process_pool),
        findings.answer("pool.reset_hygiene", _reset_hygiene(database, setting, *leftover)),
        pool_checks.latency(database, milliseconds, thresholds),
        pool_checks.pooler_detected(database, pooler, declared_pool_mode),
        _session_leak_nonce(database, leaked),
        pool_checks.read_only(database, server),
        pool_checks.ceiling(database, fleet, server, thresholds),
        pool_checks.live_use(database, server, thresholds),
        pool_checks.idle_in_transaction(database, server, thresholds),
        pool_checks.long_active_query(database, server, thresholds),
        pool_checks.long_transaction(database, server, thresholds),
        pool_checks.lock_waits(database, server, thresholds),
    ]
    return AuditReport(
        run_id=identity,
        kind="pool",
        database=database,
        started_at=started_at,
        finished_at=rls.clock(connection),
        checks=checks,
        measurements={
            "connections": server.client_count,
            "available": server.available,
            "ceiling": fleet.ceiling if fleet else None,
            "latency_ms": round(milliseconds, 2),
            "checked_out": process_pool.checked_out if process_pool else None,
        },
    )


def _server(connection: psycopg.Connection[Any]) -> pool_checks.Server:
    with connection.cursor(row_factory=dict_row) as cursor:
        sessions = cursor.execute(_SESSIONS).fetchall()

    def those(column: str, keep: Callable[[dict[str, Any]], bool]) -> list[pool_checks.Session]:
        # The process number in our application names would make every finding a new one.
        return [
            pool_checks.Session(
                pid=row["pid"],
                application=re.sub(r":\d+$", "", row["application"] or ""),
                seconds=row[column] or 0.0,
            )
            for row in sessions
            if keep(row)
        ]

    return pool_checks.Server(
        **_row(connection, _SERVER),
        idle_in_transaction=those(
            "in_state", lambda row: str(row["state"]).startswith("idle in transaction")
        ),
        active=those("in_query", lambda row: row["state"] == "active"),
        transactions=those("in_transaction", lambda row: row["in_transaction"] is not None),
        lock_waits=those("in_state", lambda row: bool(row["waits_for_lock"])),
    )


def _leftover(connection: psycopg.Connection[Any], setting: str) -> tuple[str, bool]:
    row = connection.execute(
        "SELECT coalesce(current_setting(%s, true), ''), current_user <> session_user", [setting]
    ).fetchone()
    return (row[0], row[1]) if row else ("", False)


def _reset_hygiene(database: str, setting: str, context: str, role_left: bool) -> Iterator[Finding]:
    """C09, A14: a connection came out of the pool with the context or the role of whoever had it before."""
    for left, what in ((bool(context), f"a value of {setting}"), (role_left, "a role")):
        if left:
            yield Finding(
                check_id="pool.reset_hygiene",
                severity=Severity.CRITICAL,
                database=database,
                object=what,
                message=f"a fresh session already has {what}: somebody set it for longer than a transaction,"
                " or it has a default",
                remediation="set it with set_config(…, …, true) and SET LOCAL ROLE only",
            )


def _travellers(fresh_session: FreshSession, identity: UUID) -> tuple[bool, bool]:
    # A name that only this run knows: who reads a value under it reads what the first session left behind.
    nonce = f"app.audit_nonce_{identity.hex}"
    with fresh_session() as first:
        first.execute(text("SELECT set_config(:nonce, 'left behind', true)"), {"nonce": nonce})
    leaked, answering = False, dict[int, set[int]]()
    for _ in range(_FRESH_SESSIONS):
        with fresh_session() as other:
            row = other.execute(
                text("SELECT coalesce(current_setting(:nonce, true), '') AS value, pg_backend_pid() AS pid"),
                {"nonce": nonce},
            ).one()
            leaked = leaked or bool(row.value)
            answering.setdefault(rls.driver_connection(other).info.backend_pid, set()).add(row.pid)
    return leaked, any(len(pids) > 1 for pids in answering.values())


def _session_leak_nonce(database: str, leaked: bool | None) -> CheckResult:
    """X07, A14: a value that was set for one transaction is read in a later session."""
    check_id = "pool.session_leak_nonce"
    if leaked is None:
        return findings.skipped(check_id, "no way to a second session was given")
    found = Finding(
        check_id=check_id,
        severity=Severity.CRITICAL,
        database=database,
        object="pool",
        message="a setting of one transaction was read in a later session: tenants can see each other's rows",
        remediation="open no AUTOCOMMIT engine, and let no pooler keep session state",
    )
    return findings.answer(check_id, [found] if leaked else [])


def _fastest_round_trip(connection: psycopg.Connection[Any]) -> float:
    # The fastest of a few is the distance; the slower ones show what else this machine is doing.
    def once() -> float:
        begin = time.perf_counter()
        connection.execute("SELECT 1")
        return (time.perf_counter() - begin) * 1000

    return min(once() for _ in range(_PINGS))


def _row(connection: psycopg.Connection[Any], statement: str) -> dict[str, Any]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement.encode()).fetchone() or {}
