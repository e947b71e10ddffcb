"""When the periodic tasks run: one table, for beat, for a worker's start and for the windows of runs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from worker.settings import Settings

RING_PERIOD = timedelta(seconds=10)
REPLAY_PERIOD = timedelta(seconds=60)
TRIM_PERIOD = timedelta(seconds=60)
REPRICE_PERIOD = timedelta(hours=1)
# An idle shard holds a slot while it waits for events; these remain for the other rooms.
SPARE_SLOTS = 2


def default_concurrency(settings: Settings) -> int:
    """This function will return how many children a worker has unless --concurrency says otherwise."""
    return settings.usage_stream_shards + SPARE_SLOTS


@dataclass(frozen=True, slots=True)
class Periodic:
    """A task that runs once per `period`; `claimed` ones take a (job, window) row first."""

    task: str
    period: timedelta
    claimed: bool = True

    @property
    def expires_seconds(self) -> float:
        """How long a message of it is worth running: less than its period, so a backlog cannot pile up."""
        return self.period.total_seconds() * 0.9


def periodic_tasks(settings: Settings) -> tuple[Periodic, ...]:
    """This function will list every timed task with its period under these settings."""
    audit_period = timedelta(seconds=settings.usage_audit_interval_seconds)
    return (
        Periodic("ingest.ring", RING_PERIOD, claimed=False),
        Periodic("ingest.replay_waiting", REPLAY_PERIOD),
        Periodic("ingest.trim", TRIM_PERIOD),
        Periodic("pricing.reprice", REPRICE_PERIOD),
        Periodic("subscriptions.reconcile", timedelta(seconds=settings.usage_reconcile_interval_seconds)),
        Periodic("audits.rls", audit_period),
        Periodic("audits.pool", audit_period),
        Periodic("audits.books", timedelta(seconds=settings.usage_books_interval_seconds)),
    )


def beat_schedule(settings: Settings) -> dict[str, dict[str, object]]:
    """This function will return the table in the shape of Celery's `beat_schedule`."""
    return {
        job.task: {
            "task": job.task,
            "schedule": job.period,
            "options": {"expires": job.expires_seconds, "ignore_result": True},
        }
        for job in periodic_tasks(settings)
    }
