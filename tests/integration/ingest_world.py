"""A shard with real servers around it: entries go in by XADD, drains run in this process, rows come out.

Entries get ids of a fixed day, so that no test depends on the clock of the machine.
"""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar

import redis
from sqlalchemy import text
from sqlalchemy.orm import Session

from producers._client import connect
from producers._config import EmitterConfig
from worker import db
from worker.entries import RawEntry
from worker.ingest import dead_letters, queries
from worker.ingest.consumer import CONSUMER, Drain
from worker.ingest.effects import DrainLimits
from worker.ingest.rules import AgeLimits
from worker.pricing.book import Prices
from worker.pricing.rules import CostPolicy
from worker.rollups import queries as rollups
from worker.valkey import StreamFigures, StreamReader

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
USER = uuid.UUID("11111111-1111-4111-8111-111111111111")
GROUP = "usage-workers"
STREAM = "usage:events"
AGE = AgeLimits(max_age=timedelta(days=35), max_future=timedelta(seconds=300))
QUICK = DrainLimits(linger_ms=0, block_ms=5, idle_seconds=20, work_seconds=20)

OpenSession = Callable[[], AbstractContextManager[Session]]


def event(**fields: Any) -> dict[str, Any]:
    """This function will return one good event as it stands on the wire; a field that is None is left out."""
    standard: dict[str, Any] = {
        "event_id": str(uuid.uuid4()),
        "user_id": str(USER),
        "feature": "blog_writer",
        "provider": "openai",
        "model": "gpt-4o-mini",
        "input_tokens": 812,
        "output_tokens": 455,
        "cost_usd": "0.000394800000",
        "occurred_at": NOW.isoformat(),
    }
    return {name: value for name, value in {**standard, **fields}.items() if value is not None}


class Reader(StreamReader):
    """A reader that knows when the stream was empty; tests derive those from it that fail."""

    quiet = False

    def read(
        self, cursors: Mapping[str, str], *, count: int, block_ms: int | None
    ) -> dict[str, list[RawEntry]]:
        """This function will read, and remember that a read that waited brought nothing."""
        entries = super().read(cursors, count=count, block_ms=block_ms)
        self.quiet = not entries and block_ms is not None
        return entries


def _words(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


AnyReader = TypeVar("AnyReader", bound=Reader)


class World:
    """One Valkey, one platform database, and what a test does with them."""

    def __init__(self, client: redis.Redis, url: str) -> None:
        self.client = client
        self._config = EmitterConfig(redis_url=url)
        self._sequence = itertools.count(1)

    def add(self, data: object, *, shard: int = 0, correction: bool = False, at: datetime = NOW) -> str:
        """This function will add one entry with a `data` field (bytes as they are, the rest as JSON)."""
        raw = data if isinstance(data, bytes) else json.dumps(data).encode()
        return self.add_fields([b"data", raw], shard=shard, correction=correction, at=at)

    def add_fields(
        self, fields: Sequence[bytes], *, shard: int = 0, correction: bool = False, at: datetime = NOW
    ) -> str:
        """This function will add one entry with any fields, repeated ones included; returns its id."""
        name = "usage:corrections" if correction else STREAM
        entry_id = f"{int(at.timestamp() * 1000)}-{next(self._sequence)}"
        self.command("XADD", f"{name}:{{{shard}}}", entry_id, *fields)
        return entry_id

    def command(self, *arguments: Any) -> Any:
        """This function will send any command."""
        return self.client.execute_command(*arguments)  # type: ignore[no-untyped-call]  # redis-py: untyped

    def reader(self) -> Reader:
        """This function will return a reader with a connection of its own."""
        return self.reader_of(Reader)

    def reader_of(self, kind: type[AnyReader]) -> AnyReader:
        """This function will return one of a kind that fails in its own way."""
        return kind(connect(self._config, for_emit=False), group=GROUP, consumer=CONSUMER)

    def make_drain(
        self,
        *,
        shard: int = 0,
        reader: Reader | None = None,
        open_session: OpenSession = db.platform_session,
        should_stop: Callable[[], bool] | None = None,
        stage_ahead: bool = True,
        **limits: Any,
    ) -> Drain:
        """This function will return a drain that stops when the stream is empty, unless told otherwise."""
        own = reader or self.reader()
        return Drain(
            shard=shard,
            stream=STREAM,
            reader=own,
            open_session=open_session,
            cost_policy=CostPolicy.REPORTED_FIRST,
            age_limits=AGE,
            holder="test",
            should_stop=should_stop or (lambda: own.quiet),
            now=lambda: NOW,
            monotonic=time.monotonic,
            sleep=time.sleep,
            limits=replace(QUICK, **limits),
            stage_ahead=stage_ahead,
        )

    def drain(self, **arguments: Any) -> dict[str, Any]:
        """This function will drain what waits and return the counts."""
        return self.make_drain(**arguments).run()

    def rows(
        self, statement: str = "SELECT * FROM platform_usage_logs ORDER BY id", **values: Any
    ) -> list[Any]:
        """This function will return what a statement finds, as the worker's login sees it."""
        with db.platform_session() as session:
            return list(session.execute(text(statement), values).all())

    def execute(self, statement: str, **values: Any) -> None:
        """This function will change something, as the worker's login."""
        with db.platform_session() as session:
            session.execute(text(statement), values)

    def letters(self, **arguments: Any) -> list[queries.DeadLetter]:
        """This function will return the dead letters, in the order of their entries."""
        with db.platform_session() as session:
            found = queries.dead_letters(session, **{"state": None, "limit": 10_000, **arguments})
        return sorted(found, key=lambda letter: (letter.stream_id, letter.entry_index))

    def replay(self, *, corrected: bytes | None = None, **selection: Any) -> dead_letters.Replayed:
        """This function will replay one step and commit it."""
        with db.platform_session() as session:
            return dead_letters.replay(
                session,
                selection=dead_letters.Selection(**selection),
                limits=AGE,
                prices=Prices(),
                now=NOW,
                corrected=corrected,
            )

    def replay_waiting(self) -> dead_letters.Replayed:
        """This function will replay what no longer waits for its user or target."""
        with db.platform_session() as session:
            return dead_letters.replay_waiting(session, limits=AGE, prices=Prices(), now=NOW)

    def position(self, shard: int = 0) -> queries.Position:
        """This function will return the shard's row."""
        with db.platform_session() as session:
            return next(one for one in queries.positions(session) if one.shard == shard)

    def unacknowledged(self, shard: int = 0, *, correction: bool = False) -> int:
        """This function will add up what the group says: entries not counted as read, and pending ones."""
        name = "usage:corrections" if correction else STREAM
        groups = self.client.xinfo_groups(f"{name}:{{{shard}}}")
        group = next(one for one in groups if _words(one["name"]) == GROUP)
        return int(group["lag"]) + int(group["pending"])

    def sums(self) -> Mapping[str, Decimal]:
        """This function will return the exact sums of the log."""
        row = self.rows(
            "SELECT count(*) AS rows, coalesce(sum(input_tokens), 0) AS input,"
            " coalesce(sum(output_tokens), 0) AS output, coalesce(sum(tokens_used), 0) AS tokens,"
            " coalesce(sum(cost_usd), 0) AS cost FROM platform_usage_logs"
        )[0]
        return {name: Decimal(value) for name, value in row._mapping.items()}

    def book_differences(self) -> list[queries.BookDifference]:
        """This function will compare streams, counters, log, dead letters and roll-ups."""
        reader = self.reader()

        def figures(shard: int, events_at: str, corrections_at: str) -> list[StreamFigures]:
            return [
                reader.figures(f"{STREAM}:{{{shard}}}", position=events_at),
                reader.figures(f"usage:corrections:{{{shard}}}", position=corrections_at),
            ]

        with db.platform_session() as session:
            return queries.books(session, figures=figures)

    def assert_books_hold(self) -> None:
        """This function will fail unless the books agree exactly."""
        assert self.book_differences() == []

    def assert_rollups_hold(self) -> None:
        """This function will fail unless every roll-up row is what the log says."""
        with db.platform_session() as session:
            start, end = datetime(2020, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC)
            assert rollups.differences(session, start=start, end=end) == []
