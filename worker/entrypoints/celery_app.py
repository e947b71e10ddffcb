"""The Celery app and its configuration; what a worker process does around its tasks is in lifecycle.py."""

from __future__ import annotations

from celery import Celery

from worker.entrypoints import _process, lifecycle, schedule
from worker.settings import Settings

# A queue is a room; a task `room.verb` goes to the queue `room`.
QUEUES = ("ingest", "subscriptions", "audits", "pricing")

TASK_TIME_LIMIT_SECONDS = 120
TASK_SOFT_TIME_LIMIT_SECONDS = 100
# Longer than any task may run: a shorter one would hand a task that still runs to somebody else.
VISIBILITY_TIMEOUT_SECONDS = 300


def create_app(settings: Settings) -> Celery:
    """This function will build the app of this process and bind `settings` to its tasks.

    It opens no connection. The reasons for the values are measurements of Celery 5.7 on Redis and Valkey:
    what a killed child, a killed worker, a half-open connection and a broker that changes its role do to a
    task.
    """
    _process.bind(settings)
    app = Celery("usage-worker", include=["worker.entrypoints.tasks"])
    app.conf.update(
        broker_url=settings.celery_broker_url,
        result_backend=settings.celery_result_backend,
        # Anyone who can write to the broker could run code through pickled messages.
        accept_content=["json"],
        result_accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        event_serializer="json",
        enable_utc=True,
        timezone="UTC",
        # Without socket_timeout a worker whose connection died silently never resumes. A BRPOP asks for one
        # second at most, and several time-outs may follow each other: a loop's read, a ring, a health check.
        broker_transport_options={
            "socket_timeout": 5,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 5,
            "visibility_timeout": VISIBILITY_TIMEOUT_SECONDS,
            # The default sweep adds 100 s before the message of a killed worker comes back.
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
        },
        # A broker that turns replica or runs out of memory answers with a channel error; the default is to
        # exit.
        broker_channel_error_retry=True,
        worker_consumer="worker.entrypoints.reconnection:SurvivingConsumer",
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_pool_acquire_timeout=5,
        redis_socket_timeout=5,
        redis_socket_connect_timeout=3,
        redis_socket_keepalive=True,
        redis_backend_health_check_interval=5,
        result_backend_transport_options={"retry_policy": {"max_retries": 3, "interval_step": 0.2}},
        # Nothing reads a result but people; Flower has its own copy from the events.
        result_expires=600,
        task_queues={name: {"exchange": name, "routing_key": name} for name in QUEUES},
        task_default_queue=QUEUES[0],
        task_create_missing_queues=False,
        task_routes={f"{room}.*": {"queue": room} for room in QUEUES},
        # A task whose child is killed comes back; the attempts in job_runs bound how often. The drain and the
        # ring opt out: the stream is their retry queue.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_time_limit=TASK_TIME_LIMIT_SECONDS,
        task_soft_time_limit=TASK_SOFT_TIME_LIMIT_SECONDS,
        # `task-sent` would show every silent ring in Flower; received, started and succeeded say what people
        # need.
        task_send_sent_event=False,
        worker_send_task_events=True,
        worker_enable_remote_control=True,
        worker_concurrency=schedule.default_concurrency(settings),
        worker_prefetch_multiplier=1,
        worker_max_tasks_per_child=1000,
        worker_max_memory_per_child=300_000,
        # Cancelling would raise inside a COMMIT; the work is idempotent, so it may end.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # Celery's handlers would print what the redaction filter of worker.log holds back.
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        # In memory: the rows of job_runs decide whether a run is due, so a schedule file would only be one
        # more thing to lose, to lock and to find in the working folder.
        beat_scheduler="celery.beat:Scheduler",
        beat_schedule=schedule.beat_schedule(settings),
        beat_max_loop_interval=5,
    )
    lifecycle.install(app)
    return app
