"""The audit of connections on real servers: as provisioned, and with each trouble made on purpose."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import text

from tests.fixtures.databases import Databases
from worker import db
from worker.audits import pool
from worker.audits.findings import AuditReport, Finding, Outcome
from worker.audits.pool_checks import Threshold
from worker.errors import ConfigurationError
from worker.models.vocabulary import Severity

pytestmark = pytest.mark.usefixtures("bound")

FLEET = pool.Fleet(processes=4, pool_size=2, max_overflow=0)
IDLE = pool.ProcessPool(size=2, max_overflow=0, checked_out=1, wait_ms=1.0)
# A busy test machine answers late now and then.
PATIENT = dataclasses.replace(pool.DEFAULT_THRESHOLDS, latency_ms=Threshold(5_000, 10_000))


def soon(**limits: float) -> pool.Thresholds:
    """Everything that lasts for `limits` seconds is too long."""
    return dataclasses.replace(PATIENT, **{name: Threshold(value, 1e9) for name, value in limits.items()})


def audit(**values: Any) -> AuditReport:
    values = {"database": "platform", "process_pool": IDLE, "fleet": FLEET, "thresholds": PATIENT, **values}
    with db.platform_session(login=db.Login.AUDIT) as session:
        report = pool.audit(session, **values)
        session.rollback()
    return report


def finding(report: AuditReport, check_id: str) -> Finding:
    return next(one for one in report.findings if one.check_id == check_id)


def outcomes(report: AuditReport) -> dict[str, Outcome]:
    return {check.check_id: check.outcome for check in report.checks}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in 10 seconds"
        time.sleep(0.05)


class TestAsProvisioned:
    def test_passes_every_check_on_the_platform(self) -> None:
        report = audit(fresh_session=lambda: db.platform_session(login=db.Login.AUDIT))
        assert report.findings == []
        assert outcomes(report) == dict.fromkeys(pool.CHECK_IDS, Outcome.PASS)
        assert report.measurements["ceiling"] == 13

    def test_passes_every_check_on_the_user_data(self) -> None:
        def fresh() -> contextlib.AbstractContextManager[Any]:
            return db.user_data_session(login=db.Login.AUDIT, system=True)

        with fresh() as session:
            report = pool.audit(
                session,
                database="user_data",
                process_pool=IDLE,
                fleet=FLEET,
                thresholds=PATIENT,
                fresh_session=fresh,
            )
            session.rollback()
        assert outcomes(report) == dict.fromkeys(pool.CHECK_IDS, Outcome.PASS)

    def test_says_what_it_was_not_told(self) -> None:
        found = outcomes(audit(process_pool=None, fleet=None))
        assert found["pool.ceiling"] is Outcome.INCONCLUSIVE
        assert found["pool.saturation"] is Outcome.SKIPPED
        assert found["pool.session_leak_nonce"] is Outcome.SKIPPED

    def test_writes_nothing(self) -> None:
        with db.platform_session(login=db.Login.AUDIT) as session:
            pool.audit(session, database="platform")
            with pytest.raises(Exception, match="read-only transaction"):
                session.execute(text("UPDATE audit_runs SET outcome = 'pass'"))
            session.rollback()

    def test_refuses_a_connection_without_transactions(self, databases: Databases) -> None:
        with (
            psycopg.connect(databases.platform.url("auditor"), autocommit=True) as connection,
            pytest.raises(ConfigurationError, match="AUTOCOMMIT"),
        ):
            pool.audit(connection, database="platform")


class TestSessions:
    def test_finds_who_idles_in_a_transaction(self, databases: Databases) -> None:
        url = databases.platform.url("worker")
        with psycopg.connect(url, application_name="usage-worker:drain:4711") as idler:
            idler.execute("SELECT 1")
            pid = idler.info.backend_pid
            report = audit(thresholds=soon(idle_in_transaction_seconds=0, transaction_seconds=0))
        for check_id in ("pool.idle_in_transaction", "pool.long_transaction"):
            one = finding(report, check_id)
            assert one.object == "usage-worker:drain"
            assert one.severity is Severity.MEDIUM
            assert str(pid) in one.remediation

    def test_finds_long_statements_and_waits_for_locks(self, databases: Databases) -> None:
        url = databases.platform.url("worker")
        with (
            psycopg.connect(url) as holder,
            psycopg.connect(url, application_name="waiter") as waiter,
        ):
            holder.execute("LOCK TABLE job_runs IN ROW EXCLUSIVE MODE")
            holder.execute("SELECT pg_advisory_xact_lock(4711)")
            waiting = threading.Thread(
                target=lambda: waiter.execute("SELECT pg_advisory_xact_lock(4711)"), daemon=True
            )
            waiting.start()
            found: list[AuditReport] = []

            def seen() -> bool:
                found[:] = [audit(thresholds=soon(active_query_seconds=0, lock_wait_seconds=0))]
                return {"pool.lock_waits", "pool.long_active_query"} <= {
                    one.check_id for one in found[0].findings
                }

            until(seen)
            holder.rollback()
            waiting.join(10)
        assert finding(found[0], "pool.lock_waits").object == "waiter"

    def test_is_inconclusive_without_pg_monitor(self, databases: Databases) -> None:
        with psycopg.connect(databases.platform.url("worker")) as blind:
            report = pool.audit(blind, database="platform", thresholds=PATIENT, fleet=FLEET)
        found = outcomes(report)
        assert found["pool.idle_in_transaction"] is Outcome.INCONCLUSIVE
        assert found["pool.lock_waits"] is Outcome.INCONCLUSIVE
        assert found["pool.live_use"] is Outcome.PASS


class TestServer:
    def test_finds_a_fleet_that_may_open_more_than_there_is(self) -> None:
        report = audit(fleet=pool.Fleet(processes=64, pool_size=20, max_overflow=30, pools=2))
        assert finding(report, "pool.ceiling").severity is Severity.CRITICAL

    def test_counts_the_limit_of_the_database(self, databases: Databases) -> None:
        self._alter(databases, "CONNECTION LIMIT 10")
        report = audit()
        assert report.measurements["available"] == 10
        assert finding(report, "pool.ceiling").severity is Severity.CRITICAL

    def test_finds_a_database_that_takes_no_writes(self, databases: Databases) -> None:
        self._alter(databases, "SET default_transaction_read_only = on")
        assert finding(audit(), "pool.read_only").severity is Severity.CRITICAL

    def _alter(self, databases: Databases, what: str) -> None:
        with psycopg.connect(databases.platform.url("superuser"), autocommit=True) as administrator:
            statement = sql.SQL("ALTER DATABASE {} ").format(sql.Identifier(databases.platform.name))
            administrator.execute(statement + sql.SQL(what))


class TestLeaks:
    def test_finds_a_context_that_outlived_its_transaction(self) -> None:
        with db.platform_session(login=db.Login.AUDIT) as session:
            session.execute(
                text("SELECT set_config('app.current_user_id', :id, false)"), {"id": str(uuid.uuid4())}
            )
        one = finding(audit(), "pool.reset_hygiene")
        assert one.severity is Severity.CRITICAL
        assert "app.current_user_id" in one.object

    def test_finds_a_setting_that_travels_to_a_later_session(self) -> None:
        # What a pool does that hands a connection on without ending its transaction.
        with db.platform_session(login=db.Login.AUDIT) as careless:
            report = audit(fresh_session=lambda: contextlib.nullcontext(careless))
        assert finding(report, "pool.session_leak_nonce").severity is Severity.CRITICAL
