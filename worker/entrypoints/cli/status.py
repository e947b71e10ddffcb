"""`usage-worker status`: where the stream, the counts and the jobs stand."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click
import redis

from producers import _stream
from worker import db
from worker.audits import queries as audits
from worker.entrypoints import streams
from worker.entrypoints._clock import utcnow
from worker.entrypoints.cli import _output
from worker.entrypoints.cli._options import settings
from worker.ingest import queries as ingest
from worker.ingest import switch
from worker.ingest.queries import Position
from worker.ingest.switch import Supervision
from worker.jobs import queries as jobs
from worker.rollups import queries as rollups
from worker.settings import Settings
from worker.valkey import Client

SUPERVISED = (
    *("paused_at", "paused_by", "paused_reason", "flood_events", "flood_refused"),
    *(
        "crashes",
        "suspect_id",
        "suspect_deliveries",
        "audited_entry_id",
        "audited_correction_id",
        "audited_at",
    ),
)
SUPERVISED_COLUMNS = (
    *("shard", "paused_reason", "flood_events", "flood_refused", "crashes", "suspect_id"),
    *("suspect_deliveries", "audited_entry_id", "unaudited_seconds"),
)
COUNTERS = ("entries", "events", "accepted", "duplicates", "conflicts", "rejected", "recovered", "replayed")


@dataclass(frozen=True, slots=True)
class StreamState:
    """What the server says about one stream; `depth` is what no drain has acknowledged yet."""

    stream: str
    shard: int
    depth: int
    unread: int
    pending: int
    consumers: int


@click.command()
@click.option(
    "--seconds",
    type=click.FloatRange(0, 60),
    default=1.0,
    show_default=True,
    help="How long to watch for the rates; 0: do not.",
)
@_output.json_option
def command(seconds: float, as_json: bool) -> None:
    """Show queue depth, leases, counts and rates per shard, dead letters, unpriced events, and the last jobs.

    `depth` is what waits on the stream: entries that nobody has read, and entries read but not acknowledged.
    `unaudited_seconds` is how long ago the books of a shard were proved; its streams keep what came since.
    """
    bound = settings()
    with streams.stream_client(bound) as client:
        found = [_state(client, bound, shard, key) for shard, key in _keys(bound)]
    before = _positions()
    if seconds:
        time.sleep(seconds)
    with db.platform_session() as session:
        positions = {position.shard: position for position in ingest.positions(session)}
        supervision = switch.supervision(session)
        runs = jobs.last_runs(session)
        at = utcnow()
        document: dict[str, Any] = {
            "at": at,
            "streams": found,
            "shards": [
                _shard(position, before.get(shard), seconds) | _supervised(supervision[shard], at)
                for shard, position in positions.items()
            ],
            "dead_letters": ingest.open_letters_by_reason(session),
            "unpriced_events": rollups.unpriced_events(session),
            "jobs": runs,
            "last_beat": _last_beat(runs),
            "audits": audits.latest_runs(session),
        }
    if as_json:
        _output.write_json(document)
    else:
        _show(document)


def _keys(bound: Settings) -> list[tuple[int, str]]:
    return [
        (shard, key(bound.usage_stream, shard))
        for shard in range(bound.usage_stream_shards)
        for key in (_stream.stream_key, _stream.correction_key)
    ]


def _state(client: Client, bound: Settings, shard: int, key: str) -> StreamState:
    try:
        groups = client.xinfo_groups(key)
    except redis.ResponseError as error:
        if "no such key" not in str(error):
            raise
        return StreamState(key, shard, 0, 0, 0, 0)
    for group in groups:
        if group["name"] == bound.usage_consumer_group.encode():
            # No lag: entries were deleted behind the group's back; the length is what it can be at most.
            unread = group["lag"] if group["lag"] is not None else client.xlen(key)
            pending = group["pending"]
            return StreamState(key, shard, unread + pending, unread, pending, group["consumers"])
    length = client.xlen(key)
    return StreamState(key, shard, length, length, 0, 0)


def _positions() -> dict[int, Position]:
    with db.platform_session() as session:
        return {position.shard: position for position in ingest.positions(session)}


def _shard(position: Position, before: Position | None, seconds: float) -> dict[str, object]:
    counted = position.events - (before.events if before else 0)
    return {
        "shard": position.shard,
        "holder": position.holder if position.is_held else None,
        "lease_until": position.lease_until,
        "epoch": position.epoch,
        "last_entry_id": position.last_entry_id,
        **{name: getattr(position, name) for name in COUNTERS},
        "events_per_second": round(counted / seconds, 1) if seconds else None,
        "updated_at": position.updated_at,
    }


def _supervised(row: Supervision, now: datetime) -> dict[str, object]:
    unaudited = None if row.audited_at is None else max(0, round((now - row.audited_at).total_seconds()))
    return {**{name: getattr(row, name) for name in SUPERVISED}, "unaudited_seconds": unaudited}


def _last_beat(runs: list[jobs.LastRun]) -> datetime | None:
    """When the schedule last had something run; every periodic job but the ring leaves a row."""
    return max((run.started_at for run in runs), default=None)


def _show(document: Mapping[str, Any]) -> None:
    _output.write_table(
        "Streams",
        ("stream", "depth", "unread", "pending", "consumers"),
        [(one.stream, one.depth, one.unread, one.pending, one.consumers) for one in document["streams"]],
    )
    columns = ("shard", "holder", "epoch", "events_per_second", *COUNTERS)
    _output.write_table(
        "Shards", columns, [[shard[column] for column in columns] for shard in document["shards"]]
    )
    for shard in document["shards"]:
        if shard["paused_at"] is not None:
            _output.say(
                f"shard {shard['shard']} is paused since {_output.cell(shard['paused_at'])}"
                f" by {shard['paused_by']}: {shard['paused_reason'] or 'no reason given'}"
            )
    _output.write_table(
        "Supervision",
        SUPERVISED_COLUMNS,
        [[shard[column] for column in SUPERVISED_COLUMNS] for shard in document["shards"]],
    )
    _output.write_table("Dead letters", ("reason", "open"), list(document["dead_letters"].items()))
    _output.write_table(
        "Jobs",
        ("job", "started", "outcome", "attempt", "counts"),
        [(run.job, run.started_at, run.outcome, run.attempts, run.counts) for run in document["jobs"]],
    )
    _output.write_table(
        "More",
        ("what", "is"),
        [
            ("unpriced events", document["unpriced_events"]),
            ("last beat", document["last_beat"]),
            ("now", document["at"]),
        ],
    )
