"""dramatiq with one message per event: `dramatiq benchmarks.peers.dramatiq_app`.

`python -m benchmarks.peers.dramatiq_app FILE` sends one message per event of the file.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import dramatiq  # type: ignore[import-not-found]  # in the compared systems' environment
from dramatiq.brokers.redis import RedisBroker  # type: ignore[import-not-found]  # the same

from benchmarks.peers.sink import Sink, read_events

dramatiq.set_broker(RedisBroker(url=os.environ["BENCH_BROKER"]))  # noqa: TID251  a compared program
_URL = os.environ["BENCH_DATABASE"]  # noqa: TID251  the same
_threads = threading.local()


def _store(event: dict[str, Any]) -> None:
    sink = getattr(_threads, "sink", None)
    if sink is None:
        sink = _threads.sink = Sink(_URL)
    sink.store(event)


store = dramatiq.actor(_store, actor_name="store", max_retries=3)

if __name__ == "__main__":
    for one in read_events(sys.argv[1]):
        store.send(one)
