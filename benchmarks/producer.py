"""An app that emits, in a process of its own: `python -m benchmarks.producer`."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import redis

from benchmarks import child, data, emit, sqlqueue
from producers import Emitter
from producers._emitter import Usage, event_of
from producers._stream import encode
from worker.settings import Settings, load_settings

_KEY = "bench:{0}"
_PREPARED = 20_000
_TICK = 0.002


class Producer:
    """Emits the same usage again and again; each event has an id and a time of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._emitter = Emitter(settings.producer)
        self._client = redis.Redis.from_url(settings.redis_url)
        self._usages: list[Usage] = [event.usage() for event in data.events(_PREPARED)]

    def frames(self, *, count: int, size: int, stopped: threading.Event) -> child.Answer:
        """This function will emit `count` events in batches of `size`."""
        usages = self._endless()
        began = time.time()
        for _ in range(0, count, size):
            with self._emitter.batch() as batch:
                for usage in itertools.islice(usages, size):
                    batch.emit(**usage)
        return {"began": began, "seconds": time.time() - began}

    def one_by_one(self, *, count: int, stopped: threading.Event) -> child.Answer:
        """This function will emit `count` events, each acknowledged before the next."""
        began = time.time()
        for usage in itertools.islice(self._endless(), count):
            self._emitter.emit(**usage)
        return {"began": began, "seconds": time.time() - began}

    def calls(self, *, count: int, stopped: threading.Event) -> child.Answer:
        """This function will time single calls of `emit` against bare redis-py XADDs of prebuilt bytes."""
        usages = self._endless()
        payload = encode(event_of(next(usages)))
        taken = emit.calls(
            lambda: self._emitter.emit(**next(usages)),
            lambda: self._client.xadd(_KEY, {"data": payload}),
            count=count,
        )
        # A call is no share of a stream of events: its mean has no ratio to a COPY.
        return {name: value for name, value in taken.items() if name not in ("us", "cpu_us")}

    def paced(self, *, rate: float, seconds: float, stopped: threading.Event) -> child.Answer:
        """This function will emit at a steady rate, one event per call; what comes late is not left out."""
        usages, began, sent = self._endless(), time.monotonic(), 0
        while (passed := time.monotonic() - began) < seconds and not stopped.is_set():
            for _ in range(int(passed * rate) - sent):
                self._emitter.emit(**next(usages))
                sent += 1
            time.sleep(_TICK)
        return {"sent": sent, "seconds": time.monotonic() - began}

    def lone(self, *, count: int, every: float, stopped: threading.Event) -> child.Answer:
        """This function will emit single events with pauses between them."""
        for usage in itertools.islice(self._endless(), count):
            self._emitter.emit(**usage)
            time.sleep(every)
        return {"sent": count}

    def enqueue(self, *, url: str, count: int, size: int, stopped: threading.Event) -> child.Answer:
        """This function will put events into the compared queue table, `size` per INSERT and commit."""
        usages = self._endless()
        with psycopg.connect(url, autocommit=True) as connection:
            began = time.time()
            for _ in range(0, count, size):
                sqlqueue.put(connection, itertools.islice(usages, size))
            return {"began": began, "seconds": time.time() - began}

    def _endless(self) -> Iterator[Usage]:
        return itertools.cycle(self._usages)


def main() -> None:
    """This function will take orders until there are no more."""
    producer = Producer(load_settings())
    handlers: dict[str, Callable[..., child.Answer]] = {
        name: getattr(producer, name)
        for name in ("frames", "one_by_one", "calls", "paced", "lone", "enqueue")
    }
    child.serve(handlers)


if __name__ == "__main__":
    main()
