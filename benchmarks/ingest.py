"""How fast one drain counts events, against a text COPY of prebuilt rows into the same table.

Validation, cost, duplicates, dead letters, hourly roll-ups and acknowledgement are in the drain's figure; the
COPY does none of it. Durable settings: fsync and synchronous_commit on, AOF everysec.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import psycopg
import redis

from benchmarks.measure import Report, compare, timed
from producers._events import UsageEvent
from producers._ids import new_event_id
from producers._stream import encode, pack
from worker import db, settings, valkey
from worker.db import _provision
from worker.dev import servers
from worker.ingest import consumer, rows, rules

USERS = 50
KEY = "usage:events:{0}"
REFERENCE = "COPY of prebuilt rows (text, no checks)"
CLEAN = "TRUNCATE platform_usage_logs, usage_hourly, usage_dead_letters, ingest_positions"


def run(rounds: int, events: int) -> Report:
    """This function will compare drains of several kinds of entries with a bare COPY; seconds per event."""
    with servers.EmbeddedServers() as own:
        configured = settings.load_settings(own.environ())
        _provision.provision(configured)
        db.configure(configured)
        client = redis.Redis.from_url(own.valkey.url())
        superuser = psycopg.connect(own.postgres.url(servers.PLATFORM_DATABASE), autocommit=True)

        def clean() -> None:
            client.flushall()
            superuser.execute(CLEAN)
            superuser.execute("CHECKPOINT")

        def copy() -> float:
            clean()
            lines = "".join(_lines(events))
            columns = ", ".join(rows.COLUMNS[1:])

            def work() -> None:
                with superuser.cursor().copy(f"COPY platform_usage_logs ({columns}) FROM STDIN") as stream:
                    stream.write(lines)

            return timed(work, events=events)

        def drain(entries: Callable[[], list[bytes]]) -> Callable[[], float]:
            def case() -> float:
                clean()
                with client.pipeline(transaction=False) as pipe:
                    for data in entries():
                        pipe.xadd(KEY, {"data": data})
                    pipe.execute()
                return timed(lambda: _drain(own.valkey.url(), events), events=events)

            return case

        try:
            return compare(
                {
                    REFERENCE: copy,
                    "drain, one event per entry": drain(lambda: [encode(one) for one in _events(events)]),
                    "drain, frames of 100": drain(lambda: _frames(_events(events))),
                    "drain, frames of 100, 10 % duplicates": drain(
                        lambda: _frames(_with_duplicates(_events(events)))
                    ),
                },
                reference=REFERENCE,
                rounds=rounds,
            )
        finally:
            superuser.close()
            client.close()
            db.close_databases()


class _UntilEmpty(valkey.StreamReader):
    """Notices that the stream is empty, which a drain in production would wait out."""

    empty = False

    def read(
        self, keys: Sequence[str], *, count: int, block_ms: int | None
    ) -> dict[str, list[valkey.RawEntry]]:
        """This function will read as its parent does, and remember that nothing came."""
        entries = super().read(keys, count=count, block_ms=block_ms)
        self.empty = not entries
        return entries


def _drain(url: str, events: int) -> None:
    """One drain in this process, as the task runs it, until the stream is empty."""
    client = redis.Redis.from_url(url)
    reader = _UntilEmpty(client, group="usage-workers", consumer="bench")
    counts = consumer.Drain(
        shard=0,
        stream="usage:events",
        reader=reader,
        open_session=db.platform_session,
        age_limits=rules.AgeLimits(max_age=timedelta(days=35), max_future=timedelta(minutes=5)),
        holder="bench",
        should_stop=lambda: reader.empty,
        now=_now,
        monotonic=time.monotonic,
        sleep=time.sleep,
        limits=consumer.DrainLimits(work_seconds=120, idle_seconds=120, block_ms=1, linger_ms=0),
    ).run()
    client.close()
    if counts["events"] != events:
        raise SystemExit(f"the drain counted {counts} instead of {events} events")


def _now() -> datetime:
    return datetime.fromtimestamp(time.time(), tz=UTC)


def _events(count: int) -> list[UsageEvent]:
    now = _now()
    users = [uuid.UUID(int=number + 1, version=4) for number in range(USERS)]
    return [
        UsageEvent(
            event_id=new_event_id(),
            user_id=users[number % USERS],
            feature=("blog_writer", "chat", "research")[number % 3],
            provider="openai",
            model=("gpt-4o-mini", "gpt-4o")[number % 2],
            input_tokens=800 + number % 100,
            output_tokens=400 + number % 50,
            cost_usd="0.000394800000",
            occurred_at=now,
        )
        for number in range(count)
    ]


def _with_duplicates(events: list[UsageEvent]) -> list[UsageEvent]:
    """Every tenth event is the one before it once more."""
    return [events[number - 1] if number % 10 == 9 else event for number, event in enumerate(events)]


def _frames(events: list[UsageEvent]) -> list[bytes]:
    payloads = [encode(event) for event in events]
    groups = (payloads[start : start + 100] for start in range(0, len(payloads), 100))
    return [frame for group in groups for frame, _ in pack(group)]


def _lines(count: int) -> list[str]:
    now = _now()
    lines = []
    for number, event in enumerate(_events(count)):
        received = rules.Received(
            "0-1",
            0,
            b"",
            now,
            counted=True,
            event=event,
            event_id=event.event_id,
            user_id=event.user_id,
            payload_hash=rules.payload_hash(event, event.user_id),
            cost_usd=event.cost_usd,
            cost_source="reported",
        )
        line = rows.line(number, received, event, shard=0)
        lines.append(line.partition("\t")[2])
    return lines
