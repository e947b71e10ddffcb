"""A synchronous INSERT per event, as a request handler would do it: one connection, one commit each."""

from __future__ import annotations

import os
import sys

import redis

from benchmarks.peers.sink import Sink, read_events, ready

GO = "bench:go"


def main() -> None:
    """This function will store the events of a file one by one, once it is told to begin."""
    sink = Sink(os.environ["BENCH_DATABASE"])  # noqa: TID251  a compared program, it has no settings of ours
    client = redis.Redis.from_url(os.environ["BENCH_BROKER"])  # noqa: TID251  the same
    events = read_events(sys.argv[1])
    sink.connection.execute("SELECT 1")
    ready()
    client.blpop([GO])
    for event in events:
        sink.store(event)


if __name__ == "__main__":
    main()
