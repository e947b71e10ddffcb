"""One event as one line of COPY text. Nothing here touches a server."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Final

from producers._events import UsageEvent
from worker.ingest import rules
from worker.ingest.rules import Received

# In the order of the line; `n` is the event's place in its batch.
COLUMNS: Final = (
    "n",
    "id",
    "user_id",
    "feature",
    "provider",
    "model",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "tokens_used",
    "cost_usd",
    "cost_reported_usd",
    "cost_computed_usd",
    "cost_source",
    "payload_hash",
    "price_version",
    "occurred_at",
    "received_at",
    "duration_ms",
    "status",
    "corrects",
    "void",
    "hold_id",
    "producer_id",
    "seq",
    "shard",
    "metadata",
    "units",
)
_NULL: Final = "\\N"
_SPECIAL: Final = ("\\", "\t", "\n", "\r")
_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
# One encoder for all: `json.dumps` with these arguments would build one for every event.
_encode: Final = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


def line(n: int, received: Received, event: UsageEvent, *, shard: int) -> str:
    """This function will write the row of an event that is to be stored, as line `n` of its batch."""
    event_id, user_id, cost = received.event_id, received.user_id, received.cost_usd
    return (
        f"{n}\t{_NULL if event_id is None else event_id.hex}\t{_NULL if user_id is None else user_id.hex}\t"
        f"{_text(event.feature)}\t{_text(event.provider)}\t{_text(event.model)}\t"
        f"{_value(event.input_tokens)}\t{_value(event.output_tokens)}\t{_value(event.cache_read_tokens)}\t"
        f"{_value(event.cache_write_tokens)}\t{_value(event.reasoning_tokens)}\t{event.tokens_used}\t"
        f"{_value(cost)}\t{_value(event.cost_usd)}\t{_value(received.cost_computed_usd)}\t"
        f"{received.cost_source}\t"
        f"\\\\x{received.payload_hash.hex()}\t{_text(received.price_version)}\t{event.occurred_at.isoformat()}\t"
        f"{received.received_at.isoformat()}\t{_value(event.duration_ms)}\t{_text(event.status)}\t"
        f"{_NULL if event.corrects is None else event.corrects.hex}\t{'t' if event.void else 'f'}\t"
        f"{_text(event.hold_id)}\t{_text(event.producer_id)}\t{_value(event.seq)}\t{shard}\t"
        f"{_NULL if event.metadata is None else _text(_encode(event.metadata))}\t"
        f"{_NULL if event.units is None else rules.units_text(event.units)}\n"
    )


def _text(value: str | None) -> str:
    if value is None:
        return _NULL
    # Nearly no value needs it, and four searches cost a tenth of a translate.
    for special in _SPECIAL:
        if special in value:
            return value.translate(_ESCAPES)
    return value


def _value(value: int | Decimal | None) -> int | Decimal | str:
    return _NULL if value is None else value
