"""Keeping the record of audits: what is new, what still stands, what is gone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from worker.audits.findings import AuditReport, Finding, Outcome

# Two runs of one audit are recorded one after the other: each finds the run before it complete.
_ONE_AT_A_TIME = text("SELECT pg_advisory_xact_lock(hashtextextended('usage-worker audit ' || :name, 0))")

_STANDING_UNTIL_NOW = text("""
    SELECT check_id, severity, database, object, message, remediation, fingerprint,
           first_seen_at, last_seen_at
      FROM audit_findings
     WHERE run_id = (SELECT id FROM audit_runs
                      WHERE kind = :kind AND database = :database
                      ORDER BY started_at DESC, finished_at DESC
                      LIMIT 1)
""")

_RECORD_RUN = text("""
    INSERT INTO audit_runs (id, kind, database, started_at, finished_at, outcome, counts)
    VALUES (:id, :kind, :database, :started_at, :finished_at, :outcome, CAST(:counts AS jsonb))
""")

_RECORD_FINDING = text("""
    INSERT INTO audit_findings (run_id, check_id, severity, database, object, message, remediation,
                                fingerprint, state, first_seen_at, last_seen_at)
    VALUES (:run_id, :check_id, :severity, :database, :object, :message, :remediation, :fingerprint,
            :state, :first_seen_at, :last_seen_at)
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """A finding of the run before that a check has looked for and not found again."""

    check_id: str
    database: str
    object: str
    fingerprint: str
    first_seen_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """What a run changed about what is known.

    `unseen` counts findings of the run before whose checks could not look now: they stay on record.
    """

    run_id: UUID
    new: Sequence[Finding]
    standing: Sequence[Finding]
    gone: Sequence[Gone]
    unseen_count: int

    @property
    def counts(self) -> dict[str, int]:
        """This property will be the counts for a task's result."""
        return {
            "new": len(self.new),
            "standing": len(self.standing),
            "gone": len(self.gone),
            "unseen": self.unseen_count,
        }


def record(session: Session, report: AuditReport, now: datetime) -> RecordedRun:
    """This function will store one audit in the platform database and compare it with the run before.

    The run before is the last one of the same kind and database. A finding is gone when its check could look
    everywhere and did not find it; a finding whose check was inconclusive is carried on unseen. `session` is
    the platform's and another one than the audit's own, which is READ ONLY.
    """
    session.execute(_ONE_AT_A_TIME, {"name": f"{report.kind} {report.database}"})
    before = {
        row["fingerprint"]: row
        for row in session.execute(
            _STANDING_UNTIL_NOW, {"kind": report.kind, "database": report.database}
        ).mappings()
    }
    found = {finding.fingerprint: finding for finding in report.findings}
    conclusive = {check.check_id for check in report.checks if check.complete}
    missed = [row for fingerprint, row in before.items() if fingerprint not in found]
    unseen = [row for row in missed if row["check_id"] not in conclusive]
    recorded = RecordedRun(
        run_id=report.run_id,
        new=[finding for fingerprint, finding in found.items() if fingerprint not in before],
        standing=[finding for fingerprint, finding in found.items() if fingerprint in before],
        gone=[
            Gone(
                check_id=row["check_id"],
                database=row["database"],
                object=row["object"],
                fingerprint=row["fingerprint"],
                first_seen_at=row["first_seen_at"],
            )
            for row in missed
            if row["check_id"] in conclusive
        ],
        unseen_count=len(unseen),
    )
    session.execute(
        _RECORD_RUN,
        {
            "id": report.run_id,
            "kind": report.kind,
            "database": report.database,
            "started_at": report.started_at,
            "finished_at": report.finished_at,
            "outcome": report.outcome.value,
            "counts": json.dumps(_counts(report, recorded), default=str),
        },
    )
    rows = [_row(report.run_id, finding, before.get(finding.fingerprint), now) for finding in found.values()]
    rows += [{**row, "run_id": report.run_id, "state": "standing"} for row in unseen]
    if rows:
        session.execute(_RECORD_FINDING, rows)
    return recorded


def _counts(report: AuditReport, recorded: RecordedRun) -> dict[str, Any]:
    not_passed = {
        check.check_id: check.outcome.value for check in report.checks if check.outcome is not Outcome.PASS
    }
    return {
        **report.counts,
        **recorded.counts,
        "not_passed": not_passed,
        "measurements": dict(report.measurements),
    }


def _row(run_id: UUID, finding: Finding, before: Mapping[Any, Any] | None, now: datetime) -> dict[str, Any]:
    return {
        **finding.as_document(),
        "run_id": run_id,
        "state": "new" if before is None else "standing",
        "first_seen_at": now if before is None else before["first_seen_at"],
        "last_seen_at": now,
    }
