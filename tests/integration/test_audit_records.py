"""The record of audits: new, standing, gone, and what could not be looked at."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from worker import db
from worker.audits import findings, operations, queries
from worker.audits.findings import AuditReport, CheckResult, Finding
from worker.models.vocabulary import Severity

pytestmark = pytest.mark.usefixtures("bound")

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def finding(name: str, check_id: str = "rls.not_forced") -> Finding:
    return Finding(
        check_id=check_id,
        severity=Severity.HIGH,
        database="platform",
        object=f"public.{name}",
        message="not forced",
        remediation="ALTER TABLE …",
    )


def found(*names: str, check_id: str = "rls.not_forced") -> CheckResult:
    return findings.answer(check_id, [finding(name, check_id) for name in names])


def record(*checks: CheckResult, hours: int, database: str = "platform") -> operations.RecordedRun:
    now = NOW + timedelta(hours=hours)
    report = AuditReport(
        run_id=uuid.uuid4(),
        kind="rls",
        database=database,
        started_at=now,
        finished_at=now,
        checks=checks,
        measurements={"connections": 3},
    )
    with db.platform_session() as session:
        return operations.record(session, report, now)


def objects(recorded: list[Finding]) -> list[str]:
    return [one.object.removeprefix("public.") for one in recorded]


class TestRecord:
    def test_tells_new_standing_and_gone_apart(self) -> None:
        first = record(found("a", "b"), hours=1)
        assert first.counts == {"new": 2, "standing": 0, "gone": 0, "unseen": 0}
        second = record(found("b", "c"), hours=2)
        assert objects(list(second.new)) == ["c"]
        assert objects(list(second.standing)) == ["b"]
        assert [one.object for one in second.gone] == ["public.a"]
        assert second.gone[0].first_seen_at == NOW + timedelta(hours=1)

    def test_keeps_when_a_finding_was_first_seen(self) -> None:
        record(found("a"), hours=1)
        second = record(found("a", "b"), hours=2)
        with db.platform_session() as session:
            rows = {one.object: one for one in queries.findings_of(session, run_id=second.run_id)}
        assert rows["public.a"].state == "standing"
        assert rows["public.a"].first_seen_at == NOW + timedelta(hours=1)
        assert rows["public.a"].last_seen_at == NOW + timedelta(hours=2)
        assert rows["public.b"].state == "new"

    def test_begins_anew_with_what_comes_back(self) -> None:
        record(found("a"), hours=1)
        assert record(found(), hours=2).counts["gone"] == 1
        assert record(found("a"), hours=3).counts["new"] == 1

    def test_does_not_take_what_could_not_be_looked_at_for_gone(self) -> None:
        record(found("a"), hours=1)
        blind = record(findings.inconclusive("rls.not_forced", "no rights"), hours=2)
        assert blind.counts == {"new": 0, "standing": 0, "gone": 0, "unseen": 1}
        again = record(found("a"), hours=3)
        assert again.counts["standing"] == 1
        assert record(found(), hours=4).counts["gone"] == 1

    def test_keeps_databases_apart(self) -> None:
        record(found("a"), hours=1)
        assert record(found(), hours=2, database="user_data").counts["gone"] == 0

    def test_is_read_back(self) -> None:
        record(found("a"), hours=1)
        last = record(found("a"), findings.inconclusive("rls.tautology", "no rights"), hours=2)
        with db.platform_session() as session:
            (run,) = queries.latest_runs(session)
        assert (run.id, run.kind, run.database, run.outcome) == (last.run_id, "rls", "platform", "fail")
        assert run.counts["not_passed"] == {"rls.not_forced": "fail", "rls.tautology": "inconclusive"}
        assert run.counts["measurements"] == {"connections": 3}
        assert run.counts["standing"] == 1

    def test_is_allowed_to_the_auditor_too(self) -> None:
        report = AuditReport(
            run_id=uuid.uuid4(), kind="rls", database="platform", started_at=NOW, finished_at=NOW, checks=()
        )
        with db.platform_session(login=db.Login.AUDIT) as session:
            operations.record(session, report, NOW)
            assert [run.id for run in queries.latest_runs(session)] == [report.run_id]
