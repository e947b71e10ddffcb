"""The drain in a process of its own, as a worker's child runs it: `python -m benchmarks.drainer`."""

from __future__ import annotations

import threading

from benchmarks import child
from worker import db
from worker.entrypoints import draining
from worker.settings import Settings, load_settings


def drain(settings: Settings, stopped: threading.Event) -> child.Answer:
    """This function will drain shard 0, one budget after the other, until it is told to stop.

    This is the only place of the benchmarks that knows how the drain is called.
    """
    turns = []
    while not stopped.is_set():
        turns.append(draining.drain_shard(settings, shard=0, should_stop=stopped.is_set))
    return {"turns": len(turns), "outcome": turns[-1]["outcome"] if turns else "stopped"}


def main() -> None:
    """This function will take orders until there are no more."""
    settings = load_settings()
    db.configure(settings)
    db.use_worker_pool()
    with db.platform_session():
        pass
    child.serve({"drain": lambda stopped: drain(settings, stopped)})
    db.close_databases()


if __name__ == "__main__":
    main()
