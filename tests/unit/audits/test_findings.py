"""Values of an audit: order, fingerprints, documents, exit decisions."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from worker.audits import findings
from worker.audits.findings import AuditReport, CheckResult, Finding, Outcome
from worker.models.vocabulary import Severity

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def finding(severity: Severity = Severity.MEDIUM, **values: Any) -> Finding:
    defaults = {
        "check_id": "rls.not_forced",
        "database": "platform",
        "object": "public.users",
        "message": "m",
    }
    return Finding(severity=severity, **{**defaults, **values})


def report(*checks: CheckResult, database: str = "platform") -> AuditReport:
    return AuditReport(
        run_id=uuid.uuid4(), kind="rls", database=database, started_at=NOW, finished_at=NOW, checks=checks
    )


class TestSeverity:
    def test_orders_from_the_mildest_to_the_worst(self) -> None:
        assert sorted(Severity, key=lambda one: one.rank) == list(Severity)


class TestFingerprint:
    def test_stays_when_only_the_words_change(self) -> None:
        assert finding(message="3 rows").fingerprint == finding(message="4 rows").fingerprint
        assert finding(Severity.LOW).fingerprint == finding(Severity.HIGH).fingerprint

    @pytest.mark.parametrize("name", ["check_id", "database", "object"])
    def test_differs_for_another_problem_place_or_thing(self, name: str) -> None:
        another: dict[str, Any] = {name: "another"}
        assert finding().fingerprint != finding(**another).fingerprint


class TestAnswer:
    def test_passes_without_findings_only_when_it_could_look(self) -> None:
        assert findings.answer("rls.x", []).outcome is Outcome.PASS
        assert findings.inconclusive("rls.x", "no rights").outcome is Outcome.INCONCLUSIVE
        half = findings.inconclusive("rls.x", "no rights", [finding()])
        assert (half.outcome, half.complete) == (Outcome.FAIL, False)

    def test_names_a_few_objects(self) -> None:
        many = [finding(object=f"public.t{number}") for number in range(7)]
        assert findings.answer("rls.x", many).reason.endswith("and 2 more")


class TestReport:
    def test_shows_the_worst_first(self) -> None:
        found = [finding(Severity.LOW), finding(Severity.CRITICAL, object="b"), finding(Severity.HIGH)]
        shown = report(findings.answer("rls.x", found)).findings
        assert [one.severity for one in shown] == [Severity.CRITICAL, Severity.HIGH, Severity.LOW]

    def test_is_not_a_pass_when_a_check_could_not_look(self) -> None:
        seen = report(findings.answer("rls.x", []), findings.inconclusive("rls.y", "no rights"))
        assert seen.outcome is Outcome.INCONCLUSIVE
        assert report(findings.answer("rls.x", []), findings.skipped("rls.y", "why")).outcome is Outcome.PASS

    def test_counts_by_outcome_and_severity(self) -> None:
        counts = report(findings.answer("rls.x", [finding()]), findings.answer("rls.y", [])).counts
        assert (counts["pass"], counts["fail"], counts["medium"], counts["critical"]) == (1, 1, 1, 0)


class TestDocument:
    def test_tells_of_two_databases_the_outcome_that_needs_attention(self) -> None:
        run_id = uuid.uuid4()
        document = findings.as_document(
            run_id,
            [
                report(findings.answer("rls.x", []), findings.skipped("rls.y", "nothing declared")),
                report(
                    findings.inconclusive("rls.x", "no rights"),
                    findings.answer("rls.y", []),
                    database="user_data",
                ),
            ],
        )
        assert document == {
            "run_id": str(run_id),
            "checks": [
                {
                    "check_id": "rls.x",
                    "outcome": "inconclusive",
                    "reason": "user_data: inconclusive (no rights)",
                },
                {
                    "check_id": "rls.y",
                    "outcome": "pass",
                    "reason": "platform: skipped (nothing declared)",
                },
            ],
            "findings": [],
        }


class TestExceeds:
    @pytest.mark.parametrize("fail_on", list(Severity))
    @pytest.mark.parametrize("severity", list(Severity))
    def test_compares_with_the_asked_severity(self, severity: Severity, fail_on: Severity) -> None:
        reports = [report(findings.answer("rls.x", [finding(severity)]))]
        assert findings.exceeds(reports, fail_on=fail_on) is (severity.rank >= fail_on.rank)

    def test_counts_a_blind_check_only_when_it_is_strict(self) -> None:
        blind = [report(findings.inconclusive("rls.x", "no rights", [finding(Severity.INFO)]))]
        assert not findings.exceeds(blind, fail_on=Severity.LOW)
        assert findings.exceeds(blind, fail_on=Severity.LOW, strict=True)
        assert not findings.exceeds(
            [report(findings.skipped("rls.x", "why"))], fail_on=Severity.LOW, strict=True
        )
