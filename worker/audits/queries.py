"""What the audits have found, as it stands in the platform database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

_LATEST_RUNS = text("""
    SELECT DISTINCT ON (kind, database) id, kind, database, started_at, finished_at, outcome, counts
      FROM audit_runs
     ORDER BY kind, database, started_at DESC, finished_at DESC
""")

_FINDINGS = text("""
    SELECT check_id, severity, database, object, message, remediation, fingerprint, state, first_seen_at,
           last_seen_at
      FROM audit_findings
     WHERE run_id = :run_id
     ORDER BY array_position(ARRAY['critical', 'high', 'medium', 'low', 'info'], severity::text),
              check_id, object
""")


@dataclass(frozen=True, slots=True)
class RecordedAudit:
    """One row of `audit_runs`."""

    id: UUID
    kind: str
    database: str
    started_at: datetime
    finished_at: datetime | None
    outcome: str | None
    counts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RecordedFinding:
    """One row of `audit_findings`. A `last_seen_at` before its run means that the check could not look."""

    check_id: str
    severity: str
    database: str
    object: str
    message: str
    remediation: str | None
    fingerprint: str
    state: str
    first_seen_at: datetime
    last_seen_at: datetime


def latest_runs(session: Session) -> list[RecordedAudit]:
    """This function will return the newest run of each audit of each database."""
    return [RecordedAudit(**row) for row in session.execute(_LATEST_RUNS).mappings()]


def findings_of(session: Session, *, run_id: UUID) -> list[RecordedFinding]:
    """This function will return what one run found, the worst first."""
    return [RecordedFinding(**row) for row in session.execute(_FINDINGS, {"run_id": run_id}).mappings()]
