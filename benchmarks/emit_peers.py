"""PostHog's and OpenMeter's Python clients, timed like our emitters.

As `python -m benchmarks.emit_peers NAME URL COUNT` it runs in the compared systems' own environment: nothing
of the product is imported. Both send to a server on this machine. PostHog's client has a queue and a thread,
with its own defaults except for the length of the queue, which would drop most of what is measured here;
OpenMeter's has none: a call is a request.
"""

from __future__ import annotations

import datetime
import importlib
import json
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

USER = "0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11"
PROPERTIES: dict[str, Any] = {
    "provider": "openai",
    "model": "gpt-4o-mini",
    "input_tokens": 812,
    "output_tokens": 455,
    "cost_usd": "0.000394800000",
}
_LEAD = 200


def posthog(url: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """This function will return what emits an event, and what ends the client."""
    client = importlib.import_module("posthog").Posthog(
        "phc_benchmark", host=url, max_queue_size=1_000_000, disable_geoip=True
    )

    def emit() -> object:
        return client.capture("blog_writer", distinct_id=USER, properties=PROPERTIES)

    return emit, client.shutdown


def openmeter(url: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """This function will return what emits an event, and what ends the client."""
    client = importlib.import_module("openmeter").Client(endpoint=url, token="benchmark")  # noqa: S106  of no service
    event_of = importlib.import_module("openmeter.models").Event

    def emit() -> object:
        return client.events.ingest_event(
            event_of(
                id=str(uuid.uuid4()),
                source="benchmark",
                specversion="1.0",
                type="blog_writer",
                subject=USER,
                time=datetime.datetime.now(datetime.UTC),  # noqa: TID251  a program of its own, with its own clock
                data=PROPERTIES,
            )
        )

    return emit, client.close


def measure(emit: Callable[[], object], end: Callable[[], object], count: int) -> dict[str, float]:
    """This function will call `emit` `count` times and return times per event, with that of the end."""
    taken = []
    began, began_cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        before = time.perf_counter()
        emit()
        taken.append(time.perf_counter() - before)
    end()
    wall, spent = time.perf_counter() - began, time.process_time() - began_cpu
    taken.sort()
    return {
        "us": wall / count * 1e6,
        "p50_us": taken[count // 2] * 1e6,
        "p99_us": taken[int(count * 0.99)] * 1e6,
        "cpu_us": spent / count * 1e6,
    }


def main(arguments: list[str]) -> None:
    """This function will measure one client and print the sample as JSON."""
    name, url, count = arguments
    emit, end = {"posthog": posthog, "openmeter": openmeter}[name](url)
    for _ in range(_LEAD):
        # Its first calls load modules and connect.
        emit()
    sys.stdout.write(json.dumps(measure(emit, end, int(count))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
