"""Thresholds and arithmetic of connections, as tables."""

from __future__ import annotations

import dataclasses

import pytest

from worker.audits import pool_checks
from worker.audits.findings import CheckResult, Outcome
from worker.audits.pool_checks import DEFAULT_THRESHOLDS, Fleet, Pooler, ProcessPool, Server, Session
from worker.models.vocabulary import Severity

SERVER = Server(
    max_connections=100,
    reserved_connections=3,
    database_limit=-1,
    client_count=10,
    sees_all=True,
    idle_in_transaction=(),
    active=(),
    transactions=(),
    lock_waits=(),
    read_only=False,
    in_recovery=False,
)


def worst(check: CheckResult) -> str:
    return check.findings[0].severity.value if check.findings else check.outcome.value


class TestCeiling:
    @pytest.mark.parametrize(
        ("fleet", "expected"),
        [
            # Two workers with eight children, both databases on a server of 97 connections.
            (Fleet(processes=16, pool_size=5, max_overflow=10, pools=2, other=0), "critical"),
            (Fleet(processes=16, pool_size=1, max_overflow=1, pools=2, other=0), "pass"),
            (Fleet(processes=40, pool_size=2, max_overflow=0, other=0), "medium"),
            (Fleet(processes=97, pool_size=1, max_overflow=0, other=0), "medium"),
            (Fleet(processes=98, pool_size=1, max_overflow=0, other=0), "critical"),
        ],
    )
    def test_is_what_everything_may_open_against_what_there_is(self, fleet: Fleet, expected: str) -> None:
        assert worst(pool_checks.ceiling("platform", fleet, SERVER, DEFAULT_THRESHOLDS)) == expected

    def test_is_inconclusive_with_its_formula_when_nobody_says(self) -> None:
        check = pool_checks.ceiling("platform", None, SERVER, DEFAULT_THRESHOLDS)
        assert check.outcome is Outcome.INCONCLUSIVE
        assert "pool size + overflow" in check.reason


class TestThisProcess:
    @pytest.mark.parametrize(("checked_out", "expected"), [(3, "pass"), (4, "medium"), (5, "high")])
    def test_saturates(self, checked_out: int, expected: str) -> None:
        pool = ProcessPool(size=3, max_overflow=2, checked_out=checked_out)
        assert worst(pool_checks.saturation("platform", pool, DEFAULT_THRESHOLDS)) == expected

    @pytest.mark.parametrize(
        ("wait_ms", "expected"), [(None, "skipped"), (99, "pass"), (100, "medium"), (1000, "high")]
    )
    def test_waits(self, wait_ms: float | None, expected: str) -> None:
        pool = ProcessPool(size=3, max_overflow=2, checked_out=0, wait_ms=wait_ms)
        assert worst(pool_checks.checkout_wait("platform", pool, DEFAULT_THRESHOLDS)) == expected

    @pytest.mark.parametrize(("count", "expected"), [(0, "pass"), (1, "high")])
    def test_gives_up(self, count: int, expected: str) -> None:
        pool = ProcessPool(size=3, max_overflow=2, checked_out=0, timeout_count=count)
        assert worst(pool_checks.timeouts("platform", pool)) == expected


class TestServer:
    @pytest.mark.parametrize(("count", "expected"), [(72, "pass"), (73, "medium"), (88, "critical")])
    def test_is_full(self, count: int, expected: str) -> None:
        server = dataclasses.replace(SERVER, client_count=count)
        assert worst(pool_checks.live_use("platform", server, DEFAULT_THRESHOLDS)) == expected

    @pytest.mark.parametrize(
        ("read_only", "in_recovery", "expected"),
        [(False, False, "pass"), (True, False, "critical"), (False, True, "critical")],
    )
    def test_takes_no_writes(self, read_only: bool, in_recovery: bool, expected: str) -> None:
        server = dataclasses.replace(SERVER, read_only=read_only, in_recovery=in_recovery)
        assert worst(pool_checks.read_only("platform", server)) == expected

    @pytest.mark.parametrize(("ms", "expected"), [(1, "pass"), (50, "medium"), (500, "high")])
    def test_is_far_away(self, ms: float, expected: str) -> None:
        assert worst(pool_checks.latency("platform", ms, DEFAULT_THRESHOLDS)) == expected


class TestSessions:
    def test_of_one_application_are_one_finding_with_the_longest(self) -> None:
        idle = [Session(pid=pid, application="web", seconds=seconds) for pid, seconds in ((1, 70), (2, 400))]
        server = dataclasses.replace(SERVER, idle_in_transaction=idle)
        check = pool_checks.idle_in_transaction("platform", server, DEFAULT_THRESHOLDS)
        (found,) = check.findings
        assert (found.severity, found.object) == (Severity.HIGH, "web")
        assert "2 sessions" in found.message
        assert found.remediation == "SELECT pg_terminate_backend(2);"

    def test_are_judged_as_far_as_they_are_seen(self) -> None:
        blind = dataclasses.replace(SERVER, sees_all=False)
        check = pool_checks.lock_waits("platform", blind, DEFAULT_THRESHOLDS)
        assert check.outcome is Outcome.INCONCLUSIVE


class TestPooler:
    @pytest.mark.parametrize(
        ("pooler", "declared", "expected"),
        [
            (Pooler(told_pid=7, answering_pid=7, moved=False), "session", "pass"),
            (Pooler(told_pid=7, answering_pid=7, moved=None), "transaction", "pass"),
            (Pooler(told_pid=7, answering_pid=8, moved=True), "session", "high"),
            (Pooler(told_pid=7, answering_pid=8, moved=False), "session", "info"),
            (Pooler(told_pid=7, answering_pid=8, moved=True), "transaction", "info"),
        ],
    )
    def test_is_compared_with_the_declared_mode(self, pooler: Pooler, declared: str, expected: str) -> None:
        assert worst(pool_checks.pooler_detected("platform", pooler, declared)) == expected

    def test_of_an_untried_mode_is_not_taken_for_good(self) -> None:
        pooler = Pooler(told_pid=7, answering_pid=8, moved=None)
        assert not pool_checks.pooler_detected("platform", pooler, "session").complete
