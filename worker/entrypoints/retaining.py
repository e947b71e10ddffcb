"""What stays in the streams and what is read from them again: retention, recovery and the switch."""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta

from worker import db
from worker.entrypoints import draining, pricing, streams
from worker.entrypoints._clock import utcnow
from worker.ingest import recovery, retention, switch
from worker.ingest.recovery import Recovered, Recovery
from worker.ingest.retained import RetainedStreams
from worker.ingest.retention import Retention, Trimming
from worker.ingest.switch import Supervision
from worker.settings import Settings


def trim(settings: Settings, *, now: datetime, dry_run: bool = False) -> Trimming:
    """This function will trim the streams of every shard, also of those that a larger installation left."""
    with streams.stream_client(settings) as client:
        return retention.trim(
            RetainedStreams(client, group=settings.usage_consumer_group),
            stream=settings.usage_stream,
            shards=range(settings.usage_stream_shards),
            supervision=supervision,
            retention=Retention(
                keep=timedelta(hours=settings.usage_stream_retention_hours),
                most_bytes=settings.usage_stream_max_mb * retention.MEGABYTE,
            ),
            now=now,
            dry_run=dry_run,
        )


def counts_of(trimming: Trimming) -> dict[str, object]:
    """This function will say in few words what a trimming has come to, for the record of its run."""
    return {
        "trimmed": trimming.trimmed,
        "megabytes": trimming.memory_bytes // retention.MEGABYTE,
        "short": trimming.is_short,
    }


def recover(
    settings: Settings, *, shards: Iterable[int], since: datetime, dry_run: bool, wait_seconds: float
) -> Iterator[Recovered]:
    """This function will recover one shard after the other; see Recovery.recover for the errors."""
    with streams.stream_client(settings) as client:
        work = Recovery(
            stream=settings.usage_stream,
            streams=RetainedStreams(client, group=settings.usage_consumer_group),
            open_session=db.platform_session,
            age_limits=draining.age_limits(settings),
            prices=pricing.load(settings),
            limits=draining.drain_limits(settings),
            holder=f"{socket.gethostname()}:{os.getpid()}",
            now=utcnow,
            monotonic=time.monotonic,
            sleep=time.sleep,
            wait_seconds=wait_seconds,
        )
        for shard in shards:
            try:
                yield work.recover(shard, since=since, dry_run=dry_run)
            except recovery.NothingDrained:
                # Whatever is in its stream will be drained.
                yield Recovered(shard)


def supervision() -> Mapping[int, Supervision]:
    """This function will read what the shards' rows say about trouble, pauses and proof."""
    with db.platform_session() as session:
        return switch.supervision(session)


def pause(shards: Iterable[int], *, reason: str | None) -> list[int]:
    """This function will pause shards in the name of whoever runs this, and return those that were not."""
    with db.platform_session() as session:
        return switch.pause(session, list(shards), by=_operator(), reason=reason)


def resume(shards: Iterable[int]) -> list[int]:
    """This function will let shards go on, and return those that were paused."""
    with db.platform_session() as session:
        return switch.resume(session, list(shards))


def _operator() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        # In a container a user may have a number only.
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"
