"""Watches a run: how long each fault held it up, and whether the books agree at every moment."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
import redis

from tests.chaos.plan import Planned
from tests.chaos.world import Where, World, entry, now_ms

LIMIT_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.3
# For so long after a fault a stream without anything new may only be quiet.
_QUIET_SECONDS: Final = 3.0
_SAMPLE_SECONDS: Final = 3.0

# Everything that is not the same on both sides, by a definition of the suite's own.
DIFFERENCES: Final = """
    WITH log AS (
        SELECT user_id, feature, coalesce(provider, '') AS provider, coalesce(model, '') AS model,
               date_trunc('hour', occurred_at, 'UTC') AS hour,
               sum(CASE WHEN void THEN -1 WHEN corrects IS NOT NULL THEN 0 ELSE 1 END) AS events,
               sum(CASE WHEN cost_usd IS NOT NULL THEN 0 WHEN void THEN -1 WHEN corrects IS NOT NULL THEN 0
                        ELSE 1 END) AS unpriced_events,
               sum(coalesce(input_tokens, 0)) AS input_tokens,
               sum(coalesce(output_tokens, 0)) AS output_tokens,
               sum(tokens_used) AS tokens_used, coalesce(sum(cost_usd), 0) AS cost_usd
          FROM platform_usage_logs GROUP BY 1, 2, 3, 4, 5
    )
    SELECT user_id, feature, provider, model, hour, log.events, rollup.events, log.cost_usd,
           rollup.cost_usd
      FROM log FULL JOIN usage_hourly AS rollup USING (user_id, feature, provider, model, hour)
     WHERE (log.events, log.unpriced_events, log.input_tokens, log.output_tokens, log.tokens_used,
            log.cost_usd)
           IS DISTINCT FROM
           (rollup.events, rollup.unpriced_events, rollup.input_tokens, rollup.output_tokens,
            rollup.tokens_used, rollup.cost_usd)
     LIMIT 20
"""
_ROWS: Final = """
    SELECT id, payload_hash, cost_usd, stored_at FROM platform_usage_logs TABLESAMPLE SYSTEM (1) LIMIT 100
"""


@dataclass
class Record:
    """One fault of the timeline. Times are in seconds since the run's beginning."""

    planned: Planned
    began: float
    target: str = ""
    ended: float | None = None
    ended_ms: int = 0
    recovered: float | None = None
    problem: str = ""
    seen: dict[str, float] = field(default_factory=dict)
    """When each stream was first seen to go on, or to have nothing that waits."""

    def look(self, where: list[Where], *, now: float) -> None:
        """This function will take in how far the streams are, and note when all of them have recovered."""
        for stream in where:
            if _has_passed(stream, self.ended_ms):
                self.seen.setdefault(stream.key, now)
            else:
                # What looked empty was only quiet: something has come since, and it waits.
                self.seen.pop(stream.key, None)
        if self.ended is not None and now - self.ended >= _QUIET_SECONDS and len(self.seen) == len(where):
            self.recovered = max(self.seen.values())

    @property
    def recovery_seconds(self) -> float | None:
        """How long after the fault's end an entry that came after it was processed, on every stream."""
        if self.recovered is None or self.ended is None:
            return None
        return self.recovered - self.ended


@dataclass
class Samples:
    """What was seen during the run."""

    taken: int = 0
    differences: list[str] = field(default_factory=list)
    rows: dict[str, tuple[Any, ...]] = field(default_factory=dict)


class Monitor:
    """Two threads beside the run."""

    def __init__(self, world: World, *, started: float) -> None:
        self._world = world
        self._started = started
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._waiting: list[Record] = []
        self.records: list[Record] = []
        self.notes: list[tuple[float, str]] = []
        self.samples = Samples()
        self._threads = [
            threading.Thread(target=work, name=work.__name__, daemon=True)
            for work in (self._watch_recovery, self._sample)
        ]

    def start(self) -> None:
        """This function will begin to watch."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """This function will end both threads."""
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(30)

    def elapsed(self) -> float:
        """This function will return the seconds since the run's beginning."""
        return time.monotonic() - self._started

    def note(self, text: str) -> None:
        """This function will add something that is no fault to the timeline."""
        with self._lock:
            self.notes.append((self.elapsed(), text))

    def begin(self, planned: Planned) -> Record:
        """This function will add a fault to the timeline."""
        record = Record(planned, self.elapsed())
        with self._lock:
            self.records.append(record)
        return record

    def end(self, record: Record) -> None:
        """This function will note that a fault is over, so that recovering from it begins."""
        record.ended, record.ended_ms = self.elapsed(), now_ms()
        with self._lock:
            self._waiting.append(record)

    def unrecovered(self) -> int:
        """This function will count the faults that the run has not recovered from yet."""
        with self._lock:
            return len(self._waiting)

    def _watch_recovery(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            with self._lock:
                waiting = list(self._waiting)
            if not waiting:
                continue
            with contextlib.suppress(psycopg.Error, redis.RedisError, OSError):
                where, now = self._world.where(), self.elapsed()
                for record in waiting:
                    record.look(where, now=now)
                with self._lock:
                    self._waiting = [one for one in self._waiting if one.recovered is None]

    def _sample(self) -> None:
        pause = _SAMPLE_SECONDS
        while not self._stop.wait(pause):
            began = time.monotonic()
            with contextlib.suppress(psycopg.Error), self._world.database() as database:
                self._take(database)
            # It may not take the processor away from what it watches.
            pause = max(_SAMPLE_SECONDS, 12 * (time.monotonic() - began))

    def _take(self, database: psycopg.Connection[Any]) -> None:
        with database.transaction():
            database.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            found = database.execute(DIFFERENCES).fetchall()
            rows = database.execute(_ROWS).fetchall()
        self.samples.taken += 1
        at = self.elapsed()
        self.samples.differences += [f"at {at:.1f} s: {row}" for row in found]
        self.samples.rows.update({str(row[0]): tuple(row) for row in rows})


def _has_passed(stream: Where, ended_ms: int) -> bool:
    position = entry(stream.position)
    return position[0] >= ended_ms or position >= entry(stream.tail)
