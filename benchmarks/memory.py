"""What the drain's process occupies while it drains a million events, or `--events 5000000`."""

from __future__ import annotations

import statistics
import sys
import time

import psutil

from benchmarks import data, figures
from benchmarks.measure import Report, Sample, compare
from benchmarks.world import KEY, World

BACKLOG = 200_000
PIECE = 20_000
_MB = 1024 * 1024


def run(rounds: int, events: int) -> Report:
    """This function will drain `events` events in one go and look at the process every second."""
    with World({"max_wal_size": "16GB"}) as world:
        return compare(
            {figures.LONG_DRAIN: lambda: _drain(world, events)},
            reference=figures.LONG_DRAIN,
            rounds=rounds,
            figures=figures.MEMORY,
            events={figures.LONG_DRAIN: events},
            notes=world.notes(),
            progress=lambda line: sys.stderr.write(f"{line}\n"),
        )


def _drain(world: World, events: int) -> Sample:
    """Keeps a backlog in front of a fresh process, and takes away what is committed, as retention does."""
    world.empty()
    drainer = world.child("benchmarks.drainer")
    process = psutil.Process(drainer.pid)
    seen: list[float] = []
    sent = counted = 0
    looked_at = time.monotonic()
    drainer.send("drain")
    while counted < events:
        if sent < events and sent - counted < BACKLOG:
            piece = min(PIECE, events - sent)
            world.load(data.frames([event.wire() for event in data.events(piece, seed=sent)]))
            sent += piece
        else:
            time.sleep(0.05)
        counted = world.counted()
        if time.monotonic() - looked_at >= 1:
            looked_at = time.monotonic()
            seen.append(process.memory_info().rss / _MB)
            sys.stderr.write(f"{counted:,} events, {seen[-1]:.0f} MB\n")
            _trim(world)
    seen.append(process.memory_info().rss / _MB)
    drainer.send("stop")
    drainer.answer()
    drainer.close()
    # No rate: what makes the events is slower than the drain.
    return flatness(seen)


def flatness(seen: list[float]) -> dict[str, float]:
    """This function will sum up the megabytes of each second: the highest, and whether they grow."""
    quarter = max(1, len(seen) // 4)
    second, last = seen[quarter : 2 * quarter] or seen, seen[-quarter:]
    return {
        "rss_first_mb": seen[0],
        "rss_highest_mb": max(seen),
        "rss_last_mb": seen[-1],
        "rss_growth": statistics.median(last) / statistics.median(second),
    }


def _trim(world: World) -> None:
    row = world.admin.execute("SELECT last_entry_id FROM ingest_positions WHERE shard = 0").fetchone()
    if row is not None:
        world.client.xtrim(KEY, minid=row[0], approximate=True)
