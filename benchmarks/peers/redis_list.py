"""A Redis list and a flusher, as LiteLLM's proxy buffers its spend logs.

The request pushes one JSON per event. The flusher pops one after the other, or 1000 at once, collects up to
1000 and writes them with one INSERT that skips known ids. LiteLLM waits 10 to 60 s between two flushes and
goes through Prisma's engine: both are left out here. What was popped is lost when the flusher dies.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import redis

from benchmarks.peers.sink import Sink, ready

_KEY = "bench:list"
_MOST = 1000
_IDLE_SECONDS = 0.005


def _pop(client: redis.Redis, at_once: int) -> list[bytes]:
    if at_once > 1:
        many = client.lpop(_KEY, at_once)
        return [one for one in many if isinstance(one, bytes)] if isinstance(many, list) else []
    popped: list[bytes] = []
    while len(popped) < _MOST and isinstance(one := client.lpop(_KEY), bytes):
        popped.append(one)
    return popped


def main() -> None:
    """This function will push the lines of a file, or flush without end."""
    client = redis.Redis.from_url(os.environ["BENCH_BROKER"])  # noqa: TID251  a compared program
    if sys.argv[1] == "emit":
        for line in Path(sys.argv[2]).read_bytes().splitlines():
            client.rpush(_KEY, line)
        return
    sink, at_once = Sink(os.environ["BENCH_DATABASE"]), int(sys.argv[2])  # noqa: TID251  the same
    sink.connection.execute("SELECT 1")
    client.ping()
    ready()
    while True:
        if popped := _pop(client, at_once):
            sink.store_rows([json.loads(one) for one in popped])
        else:
            time.sleep(_IDLE_SECONDS)


if __name__ == "__main__":
    main()
