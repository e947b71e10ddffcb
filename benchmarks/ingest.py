"""How fast one drain counts events, beside a bare COPY and beside what else a Python shop could take.

The reference is a text COPY of prebuilt rows into the same table, over one connection, that checks nothing.
The drain's figures have everything in them: decoding, validation, cost, duplicates, dead letters, hourly
roll-ups, the position, acknowledgement. Compared systems store the rows only, unless their name says more.
At the end a real worker runs on the same servers: latencies, and its CPU time at rest. What a large table
does to the rate, and memory over millions of events, have benchmarks of their own.
"""

from __future__ import annotations

import contextlib
import sys
import time

from benchmarks import figures, live
from benchmarks.child import Child
from benchmarks.data import COLUMNS, FRAME, Dataset
from benchmarks.measure import Case, Report, Sample, compare
from benchmarks.peers import cases as peers
from benchmarks.world import World

Entries = list[bytes]
CALLS = 5000
# Shorter than the benchmarks `latency` and `idle`, so that the whole takes minutes.
LONE = 20
REST_ROUNDS = 2


def run(rounds: int, events: int) -> Report:
    """This function will run every case `rounds` times; `events` is the size of the drain's own cases."""
    with World() as world, contextlib.ExitStack() as stack:
        own = Ingest(world, events)
        cases: dict[str, Case] = {}
        sizes: dict[str, int] = {}
        for name, size, case in (*own.cases(), *peers.cases(world, own.data, own.producer, stack)):
            cases[name], sizes[name] = case, size
        own.warm_up()
        report = compare(
            cases,
            reference=figures.COPY,
            rounds=rounds,
            figures=figures.INGEST,
            events=sizes,
            notes=world.notes(),
            progress=lambda line: sys.stderr.write(f"{line}\n"),
        )
        world.empty()
        with live.worker(world) as pid:
            report += live.replies(world, own.producer, rounds=rounds, lone=LONE)
            report += live.rest(world, pid, rounds=REST_ROUNDS)
    return report


class Ingest:
    """The product's cases and the reference, on one world."""

    def __init__(self, world: World, events: int) -> None:
        self._world = world
        self._count = events
        self.data = Dataset(events)
        self.drainer: Child = world.child("benchmarks.drainer")
        self.producer: Child = world.child("benchmarks.producer")

    def cases(self) -> list[tuple[str, int, Case]]:
        """This function will return the cases as (name, events, case)."""
        data, count, few = self.data, self._count, min(10_000, self._count)
        return [
            (figures.COPY, count, self.copy),
            (figures.FRAMES, count, lambda: self.drain(data.frames)),
            (figures.SINGLES, count, lambda: self.drain(data.payloads)),
            (figures.DUPLICATES, count, lambda: self.drain(data.frames_with_duplicates, repeats=count // 10)),
            (figures.AT_ONCE, count, lambda: self.at_once(count)),
            (figures.EMIT_THEN_DRAIN, few, lambda: self.emit_then_drain(few)),
            (figures.EMIT, CALLS, self.calls),
        ]

    def warm_up(self) -> None:
        """This function will run each path once, so that no round has the first connections in it."""
        self.drain(self.data.frames[:5])
        self.copy()
        self.at_once(10 * FRAME)

    def copy(self) -> Sample:
        """This function will write prebuilt rows over one connection, in one transaction."""
        self._world.empty()
        text = self.data.copy_text
        with self._world.measure() as meter:
            began = time.time()
            with self._world.admin.cursor().copy(
                f"COPY platform_usage_logs ({COLUMNS}) FROM STDIN"
            ) as stream:
                stream.write(text)
        seconds = self._world.committed_at("platform_usage_logs") - began
        return meter.span.sample(seconds, self._count)

    def drain(self, entries: Entries, *, repeats: int = 0) -> Sample:
        """This function will drain entries that lie on the stream already."""
        world = self._world
        world.empty()
        world.load(entries)
        count = sum(entry.count(b'"event_id"') for entry in entries)
        with world.measure(worker=self.drainer.pid) as meter:
            began = time.time()
            self.drainer.send("drain")
            world.wait(world.counted, count)
        seconds = self._end(count - repeats) - began
        return meter.span.sample(seconds, count)

    def at_once(self, count: int) -> Sample:
        """This function will emit frames and drain them at the same time; from the first call to the end."""
        world = self._world
        world.empty()
        with world.measure(worker=self.drainer.pid, producer=self.producer.pid) as meter:
            self.drainer.send("drain")
            emitted = self.producer.ask("frames", count=count, size=FRAME)
            world.wait(world.counted, count)
        seconds = self._end(count) - emitted["began"]
        return meter.span.sample(seconds, count)

    def emit_then_drain(self, count: int) -> Sample:
        """This function will emit events one by one and then drain them; the CPU time is that of both."""
        world = self._world
        world.empty()
        with world.measure(worker=self.drainer.pid, producer=self.producer.pid) as meter:
            self.producer.ask("one_by_one", count=count)
            began = time.time()
            self.drainer.send("drain")
            world.wait(world.counted, count)
        seconds = self._end(count) - began
        return meter.span.sample(seconds, count)

    def calls(self) -> Sample:
        """This function will time single calls of the producer, in turns with bare XADDs."""
        self._world.client.flushall()
        took: Sample = self.producer.ask("calls", count=CALLS)
        return took

    def _end(self, rows: int) -> float:
        """The time of the last commit. A drain that stored anything else than all rows gets no figure."""
        # Giving the shard back writes the position's row once more.
        ended = self._world.committed_at("ingest_positions")
        self.drainer.send("stop")
        self.drainer.answer()
        if (found := self._world.rows()) != rows:
            raise SystemExit(f"{found} rows were stored instead of {rows}")
        return ended
