"""The small messages that make things run: each is sent again soon, so none of them may hurt."""

from __future__ import annotations

from celery import Celery
from kombu.exceptions import OperationalError

from worker import log
from worker.entrypoints import schedule

_log = log.get_logger(__name__)

# Of two periods: older ones would only queue up behind a worker that is away.
RING_EXPIRES_SECONDS = 2 * schedule.RING_PERIOD.total_seconds()


def send(app: Celery, task: str, *, expires_seconds: float, **arguments: object) -> None:
    """This function will send a task; a broker in trouble is logged, never raised into what the caller did.

    Its result is not kept: nobody waits for it, Flower has it from the events, and a process that is no pool
    child would subscribe to it. Kombu does not retry, which would hold up an event loop; redis-py opens a
    connection that has become stale again by itself.
    """
    try:
        app.send_task(task, kwargs=arguments, expires=expires_seconds, ignore_result=True, retry=False)
    except (OperationalError, OSError) as error:
        _log.warning("not sent, the next ring follows", task=task, error=type(error).__name__)


def ring_shard(app: Celery, shard: int) -> None:
    """This function will have somebody drain the shard; a second ring finds it busy and costs nothing."""
    send(app, "ingest.drain", expires_seconds=RING_EXPIRES_SECONDS, shard=shard)
