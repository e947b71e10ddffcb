"""What a worker does around its tasks: a check before it starts, a ring, a quick stop."""

from __future__ import annotations

import logging
import os
import signal
from typing import Any

from celery import Celery, bootsteps, current_app, signals
from celery.worker import state

from worker import db, log
from worker.entrypoints import _exits, _process, preflight, rings, schedule
from worker.errors import UsageWorkerError

logger = logging.getLogger(__name__)

# A stop is over within five seconds: drains see the flag within one, anything else that still runs by then is
# cancelled, which takes Celery another second. A late-acknowledged task goes back to its queue, a transaction
# that was open is rolled back.
GRACE_SECONDS = 3.0


class Ringer(bootsteps.StartStopStep):  # type: ignore[misc]  # celery is published without types
    """Rings for the shards at each connection to the broker and every ten seconds, with or without beat."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: object) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        """This function will ring now and set the timer; Celery calls it after every reconnection too."""
        self._ring(consumer.app)
        self._timer = consumer.timer.call_repeatedly(
            schedule.RING_PERIOD.total_seconds(), self._ring, (consumer.app,)
        )

    def stop(self, _consumer: Any) -> None:
        """This function will cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @staticmethod
    def _ring(app: Celery) -> None:
        rings.send(app, "ingest.ring", expires_seconds=schedule.RING_PERIOD.total_seconds())


def install(app: Celery) -> None:
    """This function will attach the app to the signals of Celery's processes, each of them once."""
    app.steps["consumer"].add(Ringer)
    for celery_signal, handler in (
        (signals.setup_logging, _set_up_logging),
        (signals.celeryd_init, _check_before_start),
        (signals.worker_init, _leave_out_gossip),
        (signals.worker_process_init, _open_child),
        (signals.worker_process_shutdown, _close_child),
        (signals.worker_ready, _run_periodic_tasks_once),
        (signals.worker_shutting_down, _stop_soon),
        (signals.worker_shutdown, _disarm),
    ):
        celery_signal.connect(handler, weak=False, dispatch_uid=f"usage-worker.{handler.__name__}")


def _set_up_logging(loglevel: int, **_signal: object) -> None:
    log.configure_logging(environment=_process.settings().environment, level=logging.getLevelName(loglevel))
    # --loglevel is for Celery, whose INFO is a line per message; ours says what an operator should know.
    logging.getLogger("worker").setLevel(logging.INFO)
    # SQLAlchemy names its pool's logger after the class, and tells of every connection.
    logging.getLogger("worker.db").setLevel(logging.WARNING)


def _check_before_start(**_signal: object) -> None:
    """Refuse at the door, in the parent and before any fork, with connections that are closed again."""
    try:
        preflight.check(_process.settings())
    except UsageWorkerError as error:
        _exits.complain(error)
        raise SystemExit(_exits.exit_code_of(error)) from None


def _leave_out_gossip(sender: Any, **_signal: object) -> None:
    # What --without-gossip --without-mingle do: workers here have nothing to tell each other, and each of
    # them would read the events of all the others.
    sender.options.update(without_gossip=True, without_mingle=True)


def _open_child(**_signal: object) -> None:
    """Prepare a pool process: connections are opened lazily, here and never before the fork."""
    _process.STOP.watch_parent()
    db.configure(_process.settings())
    db.use_worker_pool()
    # What pg_stat_activity shows: usage-worker:worker.audits-ingest-pricing-subscriptions:4711.
    db.set_application_role("worker." + "-".join(sorted(current_app.amqp.queues.consume_from)))


def _close_child(**_signal: object) -> None:
    db.close_databases()


def _run_periodic_tasks_once(sender: Any, **_signal: object) -> None:
    """A new deployment shows its findings now, not a period later; the window's row keeps it to one run."""
    queues = ", ".join(sorted(sender.app.amqp.queues.consume_from))
    logger.info("ready: %s consumes %s", sender.hostname, queues)
    for job in schedule.periodic_tasks(_process.settings()):
        if job.claimed:
            rings.send(sender.app, job.task, expires_seconds=job.expires_seconds)


def _stop_soon(how: str = "Warm", **_signal: object) -> None:
    """Tell the children and set the deadline; this is inside a signal handler, so it takes no lock."""
    _process.STOP.set()
    if how == "Warm":
        signal.signal(signal.SIGALRM, _cancel_what_still_runs)
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)


def _cancel_what_still_runs(*_signal: object) -> None:
    # Celery waits for running tasks without end; SIGQUIT is its way to cancel them and give them back.
    if state.active_requests:
        os.kill(os.getpid(), signal.SIGQUIT)


def _disarm(**_signal: object) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
