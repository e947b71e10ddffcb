"""An app's own database with an outbox in it, and a stream that its relay sends to."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import Any

import redis

from producers import UsageEvent
from producers._stream import decode

USER = uuid.UUID("0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11")
USAGE: dict[str, Any] = {"user_id": USER, "feature": "chat", "input_tokens": 8, "output_tokens": 4}
SHARDS = 2


def sent(client: redis.Redis, *, correction: bool = False) -> list[UsageEvent]:
    """This function will read all events on the stream, as often as they stand there."""
    found: list[UsageEvent] = []
    for shard in range(SHARDS):
        entries: Any = client.xrange(f"usage:{'corrections' if correction else 'events'}:{{{shard}}}")
        for _, fields in entries:
            for one in decode(fields[b"data"], correction=correction):
                assert one.event is not None, one.detail
                found.append(one.event)
    return found


def ids(client: redis.Redis) -> Counter[uuid.UUID]:
    """This function will count how often each event stands on the stream."""
    return Counter(event.event_id for event in sent(client))
