"""Celery with one task per event, and celery-batches: `celery -A benchmarks.peers.celery_app worker`.

`python -m benchmarks.peers.celery_app TASK FILE` sends one message per event of the file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from celery import Celery
from celery_batches import Batches  # type: ignore[import-not-found]  # in the compared systems' environment

from benchmarks.peers.sink import Sink, read_events

_SINK = Sink(os.environ["BENCH_DATABASE"])  # noqa: TID251  a compared program, it has no settings of ours
app = Celery("peer", broker=os.environ["BENCH_BROKER"])  # noqa: TID251  the same
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)


def _store(event: dict[str, Any]) -> None:
    _SINK.store(event)


def _store_batch(requests: Sequence[Any]) -> None:
    _SINK.store_many([request.args[0] for request in requests])


store = app.task(name="store", queue="store")(_store)
store_batch = app.task(
    name="store_batch", queue="store_batch", base=Batches, flush_every=1000, flush_interval=1
)(_store_batch)

if __name__ == "__main__":
    task = {"store": store, "store_batch": store_batch}[sys.argv[1]]
    for one in read_events(sys.argv[2]):
        task.apply_async((one,), queue=task.name)
