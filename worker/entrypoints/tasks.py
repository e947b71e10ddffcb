"""The Celery tasks: each opens, calls one operation of a room and leaves.

Arguments are keywords, and unknown ones are ignored: during a deployment old and new versions send to each
other.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from celery import Task, shared_task

from worker import db
from worker.entrypoints import _process, auditing, draining, pricing, retaining, rings, schedule, windows
from worker.errors import TransientError
from worker.subscriptions import operations as subscriptions

# A server in trouble is no bug: the task fails without a traceback, and its next message tries again.
_PASSING = (TransientError,)
# The stream is the drain's retry queue: its message is acknowledged on arrival and never comes
# back.
_DOORBELL = {"acks_late": False, "reject_on_worker_lost": False, "max_retries": 0, "throws": _PASSING}
# What came within an hour is read twice, which takes longer than other tasks. Less than the time after which
# the broker gives a message out again.
_BOOKS_SECONDS = 270


@shared_task(name="ingest.drain", bind=True, **_DOORBELL)
def drain(task: Task, shard: int = 0, **_strangers: Any) -> dict[str, object]:
    """Drain one shard for its budget; the result says what was counted."""
    counts = draining.drain_shard(_process.settings(), shard=shard, should_stop=_process.STOP.is_set)
    if not draining.is_left_alone(counts) and not _process.STOP.is_set():
        rings.ring_shard(task.app, shard)
    return counts


@shared_task(name="ingest.ring", bind=True, send_events=False, ignore_result=True, **_DOORBELL)
def ring(task: Task, **_strangers: Any) -> None:
    """Ring for each shard that nobody drains; silent in Flower, or its history would hold little else."""
    for shard in draining.undrained_shards(_process.settings()):
        rings.ring_shard(task.app, shard)


@shared_task(name="ingest.replay_waiting", bind=True, send_events=False, throws=_PASSING)
def replay_waiting(task: Task, **_strangers: Any) -> dict[str, object]:
    """Replay dead letters whose user or target has appeared since."""
    settings = _process.settings()
    return _once(task, lambda now: draining.replay_waiting(settings, now=now))


@shared_task(name="ingest.trim", bind=True, send_events=False, throws=_PASSING)
def trim(task: Task, **_strangers: Any) -> dict[str, object]:
    """Trim what the streams need not keep any more; have the books audited where only that is in the way."""
    settings = _process.settings()

    def run(now: datetime) -> Mapping[str, object]:
        trimming = retaining.trim(settings, now=now)
        if trimming.waits_for_audit:
            expires_seconds = schedule.TRIM_PERIOD.total_seconds()
            rings.send(task.app, "audits.books", expires_seconds=expires_seconds, at_once=True)
        return retaining.counts_of(trimming)

    return _once(task, run)


@shared_task(name="pricing.reprice", bind=True, throws=_PASSING)
def reprice(task: Task, **_strangers: Any) -> dict[str, object]:
    """Price events whose price has come since; the result counts them."""
    settings = _process.settings()
    return _once(task, lambda now: pricing.reprice_unpriced(settings, should_stop=_process.STOP.is_set))


@shared_task(name="subscriptions.reconcile", bind=True, throws=_PASSING)
def reconcile(task: Task, **_strangers: Any) -> dict[str, object]:
    """Move every subscription that is due; the result counts the changes by kind."""
    share = _process.settings().usage_reconcile_max_change_share

    def run(now: datetime) -> Mapping[str, object]:
        with db.platform_session() as session:
            result = subscriptions.reconcile(session, now=now, run_id=uuid.uuid4(), max_change_share=share)
        return result.counts

    return _once(task, run)


@shared_task(name="audits.rls", bind=True, throws=_PASSING)
def audit_rls(task: Task, **_strangers: Any) -> dict[str, object]:
    """Audit row-level security of both databases; the result counts checks and findings."""
    return _once(task, lambda now: auditing.record(auditing.audit_rls(), now=now))


@shared_task(name="audits.pool", bind=True, throws=_PASSING)
def audit_pool(task: Task, **_strangers: Any) -> dict[str, object]:
    """Audit the connections of both databases; the result counts checks and findings."""
    settings = _process.settings()
    return _once(task, lambda now: auditing.record(auditing.audit_pool(settings), now=now))


@shared_task(
    name="audits.books",
    bind=True,
    throws=_PASSING,
    time_limit=_BOOKS_SECONDS,
    soft_time_limit=_BOOKS_SECONDS - 20,
)
def audit_books(task: Task, at_once: bool = False, **_strangers: Any) -> dict[str, object]:
    """Audit the books since their last seals; the result counts checks and findings.

    `at_once`: although this period's run has been. The memory of the streams waits for it.
    """
    settings = _process.settings()
    job = schedule.Periodic("audits.books_at_once", schedule.TRIM_PERIOD) if at_once else None
    return _once(task, lambda now: auditing.record(auditing.audit_books(settings), now=now), job=job)


def _once(
    task: Task, work: Callable[[datetime], Mapping[str, object]], *, job: schedule.Periodic | None = None
) -> dict[str, object]:
    """Run a periodic task's work unless its window is somebody else's."""
    if job is None:
        job = next(job for job in schedule.periodic_tasks(_process.settings()) if job.task == task.name)
    return windows.run_once(
        work,
        job=job.task,
        period=job.period,
        longest_run=timedelta(seconds=task.time_limit or task.app.conf.task_time_limit),
        redelivered=bool((task.request.delivery_info or {}).get("redelivered")),
    )
