"""The drain of one shard, with everything that it is given: a session, a stream, the clock, limits."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from worker import db
from worker.entrypoints import pricing, streams
from worker.entrypoints._clock import utcnow
from worker.ingest import dead_letters as letters
from worker.ingest import queries as ingest
from worker.ingest import switch
from worker.ingest.consumer import CONSUMER, Drain
from worker.ingest.effects import DrainLimits, DrainOutcome
from worker.ingest.rules import AgeLimits
from worker.pricing.rules import CostPolicy
from worker.settings import Settings
from worker.valkey import StreamReader

# A run takes at most 20 steps of 500; what is left waits a minute for the next one.
MOST_REPLAY_STEPS = 20


def drain_shard(settings: Settings, *, shard: int, should_stop: Callable[[], bool]) -> dict[str, object]:
    """This function will drain one shard once, until its budget is used up, and return what it counted."""
    with streams.stream_client(settings) as client:
        drain = Drain(
            shard=shard,
            stream=settings.usage_stream,
            reader=StreamReader(client, group=settings.usage_consumer_group, consumer=CONSUMER),
            open_session=db.platform_session,
            age_limits=age_limits(settings),
            cost_policy=CostPolicy(settings.usage_cost_policy),
            holder=f"{socket.gethostname()}:{os.getpid()}",
            should_stop=should_stop,
            now=utcnow,
            monotonic=time.monotonic,
            sleep=time.sleep,
            limits=drain_limits(settings),
            stage_ahead=settings.usage_worker_pool_size > 1,
        )
        return drain.run()


def is_left_alone(counts: dict[str, object]) -> bool:
    """This function will say whether a ring now would be useless: another has the shard, or it is paused."""
    return counts["outcome"] in (DrainOutcome.BUSY.value, DrainOutcome.PAUSED.value)


def drain_limits(settings: Settings) -> DrainLimits:
    """This function will return what a drain may do at once, and when it puts aside or pauses."""
    return DrainLimits(
        batch_size=settings.usage_batch_size,
        linger_ms=settings.usage_batch_linger_ms,
        poison_deliveries=settings.usage_poison_deliveries,
        flood_share=settings.usage_flood_share,
        flood_events=settings.usage_flood_events,
        flood_window_seconds=settings.usage_flood_window_seconds,
    )


def undrained_shards(settings: Settings) -> list[int]:
    """This function will name the shards that nobody drains at the moment and that are not paused."""
    with db.platform_session() as session:
        left_alone = {position.shard for position in ingest.positions(session) if position.is_held}
        left_alone |= {shard for shard, row in switch.supervision(session).items() if row.is_paused}
    return [shard for shard in range(settings.usage_stream_shards) if shard not in left_alone]


def age_limits(settings: Settings) -> AgeLimits:
    """This function will return the window in which an event may say it occurred."""
    return AgeLimits(
        max_age=timedelta(days=settings.usage_max_age_days),
        max_future=timedelta(seconds=settings.usage_max_future_seconds),
    )


def replay_waiting(settings: Settings, *, now: datetime) -> dict[str, object]:
    """This function will replay the dead letters whose user or target has come, and count them."""
    total = {"tried": 0, "accepted": 0, "duplicates": 0, "refused": 0}
    prices = pricing.load(settings)
    for _ in range(MOST_REPLAY_STEPS):
        with db.platform_session() as session:
            step = letters.replay_waiting(session, limits=age_limits(settings), prices=prices, now=now)
        for name in total:
            total[name] += getattr(step, name)
        if not step.accepted + step.duplicates:
            break
    return dict(total)
