"""What the periodic jobs did last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.orm import Session

_LAST_RUNS = text("""
    SELECT DISTINCT ON (job) job, window_start, started_at, finished_at, outcome, counts, attempts
      FROM job_runs
     ORDER BY job, window_start DESC
""")


@dataclass(frozen=True, slots=True)
class LastRun:
    """The newest run of one job; `finished_at` is None while it runs (or after its worker was killed)."""

    job: str
    window_start: datetime
    started_at: datetime
    finished_at: datetime | None
    outcome: str | None
    counts: Mapping[str, object] | None
    attempts: int


def last_runs(session: Session) -> list[LastRun]:
    """This function will return the newest run of each job, by name."""
    return [LastRun(**row) for row in session.execute(_LAST_RUNS).mappings()]
