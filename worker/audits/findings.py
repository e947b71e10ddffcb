"""What an audit answers: checks with an outcome, findings with a fingerprint, one report per run."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from worker.models.vocabulary import Severity


class Outcome(enum.StrEnum):
    """What a check answers. `inconclusive` means that it could not look, and never counts as `pass`."""

    PASS = "pass"  # noqa: S105  the word of the contract, not a secret
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    SKIPPED = "skipped"


# Of two answers to one check (two databases in one document) the first of these is told.
_TELLING = (Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.PASS, Outcome.SKIPPED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong with one object. Texts never hold row data, literals of policies or secrets."""

    check_id: str
    severity: Severity
    database: str
    object: str
    message: str
    remediation: str = ""

    @property
    def fingerprint(self) -> str:
        """This property will be the same for the same problem of the same object in every run.

        Numbers and ages in the message change from run to run, so the message has no part in it.
        """
        identity = "\x00".join((self.check_id, self.database, self.object))
        return hashlib.sha256(identity.encode()).hexdigest()[:32]

    def as_document(self) -> dict[str, str]:
        """This method will give the finding as a JSON object."""
        return {
            "check_id": self.check_id,
            "severity": self.severity.value,
            "database": self.database,
            "object": self.object,
            "message": self.message,
            "remediation": self.remediation,
            "fingerprint": self.fingerprint,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """The answer of one check, and its reason where it is not a plain `pass`.

    `complete` is false where it could not look everywhere, also when it found something in the rest.
    """

    check_id: str
    outcome: Outcome
    reason: str = ""
    findings: Sequence[Finding] = ()
    complete: bool = True

    def as_document(self) -> dict[str, str]:
        """This method will give the answer as a JSON object."""
        return {"check_id": self.check_id, "outcome": self.outcome.value, "reason": self.reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """One run of one audit (`kind`: rls, pool) against one database.

    `measurements` are plain values for the run's record: they are no findings.
    """

    run_id: UUID
    kind: str
    database: str
    started_at: datetime
    finished_at: datetime
    checks: Sequence[CheckResult]
    measurements: Mapping[str, Any] = field(default_factory=dict)

    @property
    def findings(self) -> list[Finding]:
        """This property will be every finding, the worst first."""
        found = [finding for check in self.checks for finding in check.findings]
        return sorted(found, key=lambda one: (-one.severity.rank, one.check_id, one.object))

    @property
    def outcome(self) -> Outcome:
        """This property will be `fail` with a finding, else `inconclusive` where a check could not look."""
        outcomes = {check.outcome for check in self.checks}
        return next((outcome for outcome in _TELLING if outcome in outcomes), Outcome.SKIPPED)

    @property
    def counts(self) -> dict[str, int]:
        """This property will be the checks by outcome and the findings by severity: a task's result."""
        by_outcome = {outcome.value: 0 for outcome in Outcome}
        for check in self.checks:
            by_outcome[check.outcome.value] += 1
        by_severity = {severity.value: 0 for severity in Severity}
        for finding in self.findings:
            by_severity[finding.severity.value] += 1
        return {**by_outcome, **by_severity}

    def as_document(self) -> dict[str, Any]:
        """This method will give the report as the JSON document of `usage-worker audit … --json`."""
        return as_document(self.run_id, [self])


def answer(check_id: str, findings: Iterable[Finding]) -> CheckResult:
    """This function will make the answer of a check that could look: `fail` with findings, `pass` without."""
    found = tuple(findings)
    if not found:
        return CheckResult(check_id=check_id, outcome=Outcome.PASS)
    objects = sorted({finding.object for finding in found})
    named = ", ".join(objects[:5]) + (f" and {len(objects) - 5} more" if len(objects) > 5 else "")
    return CheckResult(check_id=check_id, outcome=Outcome.FAIL, reason=named, findings=found)


def inconclusive(check_id: str, reason: str, findings: Iterable[Finding] = ()) -> CheckResult:
    """This function will make the answer of a check that could not look everywhere.

    What it did find is kept: then it answers `fail`, and says what it did not see.
    """
    found = tuple(findings)
    outcome = Outcome.FAIL if found else Outcome.INCONCLUSIVE
    return CheckResult(check_id=check_id, outcome=outcome, reason=reason, findings=found, complete=False)


def skipped(check_id: str, reason: str) -> CheckResult:
    """This function will make the answer of a check that was not asked for or has nothing to look at."""
    return CheckResult(check_id=check_id, outcome=Outcome.SKIPPED, reason=reason, complete=False)


def as_document(run_id: UUID, reports: Sequence[AuditReport]) -> dict[str, Any]:
    """This function will make one JSON document of the reports of one run.

    A check that was made on several databases has one entry there: the outcome that needs attention most,
    with a reason that names the database.
    """
    answers: dict[str, list[tuple[str, CheckResult]]] = {}
    for report in reports:
        for check in report.checks:
            answers.setdefault(check.check_id, []).append((report.database, check))
    findings = sorted(
        (finding for report in reports for finding in report.findings), key=lambda one: -one.severity.rank
    )
    return {
        "run_id": str(run_id),
        "checks": [_told(answered) for answered in answers.values()],
        "findings": [finding.as_document() for finding in findings],
    }


def exceeds(reports: Iterable[AuditReport], *, fail_on: Severity, strict: bool = False) -> bool:
    """This function will say whether a command that shows `reports` ends with exit code 1.

    It does for a finding at `fail_on` or above; with `strict` also for a check that could not look.
    """
    listed = list(reports)
    bad = any(finding.severity.rank >= fail_on.rank for report in listed for finding in report.findings)
    checks = [check for report in listed for check in report.checks]
    blind = any(not check.complete for check in checks if check.outcome is not Outcome.SKIPPED)
    return bad or (strict and blind)


def _told(answered: Sequence[tuple[str, CheckResult]]) -> dict[str, str]:
    if len(answered) == 1:
        return answered[0][1].as_document()
    outcome = next(word for word in _TELLING if any(check.outcome is word for _, check in answered))
    reason = "; ".join(
        f"{database}: {check.outcome}" + (f" ({check.reason})" if check.reason else "")
        for database, check in answered
        if check.outcome is not Outcome.PASS
    )
    return {"check_id": answered[0][1].check_id, "outcome": outcome.value, "reason": reason}
