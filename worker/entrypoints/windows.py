"""A periodic task's run: claimed before, closed after, each in a transaction of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from worker import db
from worker.entrypoints._clock import utcnow
from worker.jobs import operations as jobs
from worker.jobs import rules

logger = logging.getLogger(__name__)

SOMEBODY_ELSE = {"outcome": "not_mine"}


def run_once(
    work: Callable[[datetime], Mapping[str, object]],
    *,
    job: str,
    period: timedelta,
    longest_run: timedelta,
    redelivered: bool,
) -> dict[str, object]:
    """This function will run `work(now)`, unless this window's run is somebody else's, and return its counts.

    `redelivered` says that the message came back because its process was killed: then the run is taken over,
    at most three times. An error of `work` closes the run as failed and is raised again.
    """
    now = utcnow()
    window_start = rules.window_start(now, period=period)
    with db.platform_session() as session:
        attempt = jobs.claim(
            session,
            job=job,
            window_start=window_start,
            now=now,
            redelivered=redelivered,
            longest_run=longest_run,
        )
    if attempt is None:
        return dict(SOMEBODY_ELSE)
    try:
        counts = dict(work(now))
    except Exception as error:
        _finish(job, window_start, "failed", {"error": type(error).__name__})
        raise
    _finish(job, window_start, "done", counts)
    return counts


def _finish(job: str, window_start: datetime, outcome: str, counts: Mapping[str, object]) -> None:
    with db.platform_session() as session:
        jobs.finish(session, job=job, window_start=window_start, now=utcnow(), outcome=outcome, counts=counts)
