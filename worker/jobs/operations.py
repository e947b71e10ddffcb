"""Claiming and closing one run of a periodic job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.orm import Session

from worker.jobs.rules import MOST_ATTEMPTS

# The primary key (job, window_start) decides: of two beats, or a beat and a worker that has just started, one
# inserts the row and the other finds it. A row whose run never ended is taken over only when its message came
# back (its process was killed) or when it started longer ago than any run may last, and not for ever.
_CLAIM = text("""
    INSERT INTO job_runs AS run (job, window_start, started_at, outcome, attempts)
    VALUES (:job, :window_start, :now, 'running', 1)
    ON CONFLICT (job, window_start) DO UPDATE
       SET attempts = run.attempts + 1, started_at = excluded.started_at
     WHERE run.finished_at IS NULL
       AND run.attempts < :most_attempts
       AND (:redelivered OR run.started_at < :dead_before)
    RETURNING attempts
""")

_FINISH = text("""
    UPDATE job_runs
       SET finished_at = :now, outcome = :outcome, counts = CAST(:counts AS jsonb)
     WHERE job = :job AND window_start = :window_start
""")

# A minutely job leaves 1,440 rows a day: each run also removes what its own job left long ago.
_FORGET = text("DELETE FROM job_runs WHERE job = :job AND window_start < :before")
KEPT = timedelta(days=30)


def claim(
    session: Session,
    *,
    job: str,
    window_start: datetime,
    now: datetime,
    redelivered: bool,
    longest_run: timedelta,
    most_attempts: int = MOST_ATTEMPTS,
) -> int | None:
    """This function will claim the run of `job` in the window and return which attempt it is, from 1.

    It returns None when the run belongs to somebody else, is done, or has been tried `most_attempts` times.
    The claim counts once the caller has committed.
    """
    attempt: int | None = session.execute(
        _CLAIM,
        {
            "job": job,
            "window_start": window_start,
            "now": now,
            "redelivered": redelivered,
            "dead_before": now - longest_run,
            "most_attempts": most_attempts,
        },
    ).scalar_one_or_none()
    return attempt


def finish(
    session: Session,
    *,
    job: str,
    window_start: datetime,
    now: datetime,
    outcome: str,
    counts: Mapping[str, object],
) -> None:
    """This function will note how the run ended, `done` or `failed`, and forget runs of 30 days ago."""
    session.execute(
        _FINISH,
        {
            "job": job,
            "window_start": window_start,
            "now": now,
            "outcome": outcome,
            "counts": json.dumps(counts, default=str),
        },
    )
    session.execute(_FORGET, {"job": job, "before": now - KEPT})
