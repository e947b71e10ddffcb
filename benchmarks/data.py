"""Events as customers cause them: a few hundred users, some of them heavy, several models, varied costs.

They are made once per run and used in every round and case; the tables are emptied in between.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from typing import Final

from producers._emitter import Usage
from producers._ids import new_event_id, utcnow
from producers._stream import pack
from worker.dev.traffic import CALLS
from worker.pricing.book import PriceBook
from worker.pricing.rules import TokenUse

USERS: Final = 300
FRAME: Final = 100
SEED: Final = 7
_BOOK: Final = PriceBook()
_PLACES: Final = Decimal("0.000000000001")
_WEIGHTS: Final = tuple(itertools.accumulate(call.weight for call in CALLS))
_USER_WEIGHTS: Final = tuple(itertools.accumulate(1 / rank for rank in range(1, USERS + 1)))
COLUMNS: Final = (
    "id, user_id, feature, provider, model, input_tokens, output_tokens, cache_read_tokens, "
    "cache_write_tokens, reasoning_tokens, tokens_used, cost_usd, cost_reported_usd, cost_source, "
    "cost_computed_usd, "
    "payload_hash, price_version, occurred_at, received_at, duration_ms, status, corrects, void, hold_id, "
    "producer_id, seq, shard, metadata"
)
"""What the drain stores of an event, in the order of `Dataset.copy_text`."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event, as its parts."""

    event_id: uuid.UUID
    user_id: uuid.UUID
    feature: str
    provider: str
    model: str
    input_tokens: int
    output_tokens: int
    duration_ms: int
    cost_usd: Decimal
    occurred_at: datetime

    def usage(self) -> Usage:
        """This function will return what an app passes to `emit`; id and time are the emitter's."""
        return {
            "user_id": self.user_id,
            "feature": self.feature,
            "provider": self.provider,
            "model": self.model,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "duration_ms": self.duration_ms,
            "status": "ok",
            "cost_usd": self.cost_usd,
        }

    def wire(self) -> bytes:
        """This function will return the bytes that the emitter sends for this event."""
        cost = f"{self.cost_usd.normalize():f}"
        return (
            f'{{"v":1,"event_id":"{self.event_id}","user_id":"{self.user_id}","feature":"{self.feature}",'
            f'"provider":"{self.provider}","model":"{self.model}","input_tokens":{self.input_tokens},'
            f'"output_tokens":{self.output_tokens},"duration_ms":{self.duration_ms},"status":"ok",'
            f'"cost_usd":"{cost}","occurred_at":"{_time(self.occurred_at)}"}}'
        ).encode()

    def copy_line(self) -> str:
        """This function will return the finished row as a line of COPY text; nothing is checked."""
        digest = hashlib.sha256(self.event_id.bytes).hexdigest()[:32]
        at = self.occurred_at.isoformat()
        price = _BOOK.price_at(self.provider, self.model, self.occurred_at)
        computed, version = "\\N", "\\N"
        if price is not None:
            computed = str(price.cost(TokenUse(self.input_tokens, self.output_tokens)))
            version = price.version
        return (
            f"{self.event_id}\t{self.user_id}\t{self.feature}\t{self.provider}\t{self.model}\t"
            f"{self.input_tokens}\t{self.output_tokens}\t\\N\t\\N\t\\N\t"
            f"{self.input_tokens + self.output_tokens}\t{self.cost_usd}\t{self.cost_usd}\treported\t"
            f"{computed}\t\\\\x{digest}\t{version}\t{at}\t{at}\t{self.duration_ms}\tok\t\\N\tf\t\\N\t\\N\t\\N\t0\t\\N\n"
        )


def users(*, seed: int = SEED) -> list[uuid.UUID]:
    """This function will return the users of all events, the heaviest first."""
    draw = random.Random(f"users {seed}")  # noqa: S311  sample data, no secret
    return [uuid.UUID(int=draw.getrandbits(128), version=4) for _ in range(USERS)]


def events(count: int, *, seed: int = SEED, random_ids: bool = False) -> Iterator[Event]:
    """This function will make `count` events of now; `random_ids` gives them version 4 in place of 7."""
    draw = random.Random(seed)  # noqa: S311  sample data, no secret
    customers = users()
    for _ in range(count):
        call = draw.choices(CALLS, cum_weights=_WEIGHTS)[0]
        tokens_in = max(1, int(call.input_tokens * draw.lognormvariate(0, 0.6)))
        tokens_out = int(call.output_tokens * draw.lognormvariate(0, 0.6))
        cost = tokens_in * Decimal(call.input_price) + tokens_out * Decimal(call.output_price)
        yield Event(
            event_id=uuid.uuid4() if random_ids else new_event_id(),
            user_id=draw.choices(customers, cum_weights=_USER_WEIGHTS)[0],
            feature=call.feature,
            provider=call.provider,
            model=call.model,
            input_tokens=tokens_in,
            output_tokens=tokens_out,
            duration_ms=draw.randrange(150, 9_000),
            cost_usd=(cost / 1_000_000).quantize(_PLACES),
            occurred_at=utcnow(),
        )


class Dataset:
    """The same events in every shape that a case needs."""

    def __init__(self, count: int, *, seed: int = SEED, random_ids: bool = False) -> None:
        self.events = list(events(count, seed=seed, random_ids=random_ids))

    @cached_property
    def payloads(self) -> list[bytes]:
        """One entry per event."""
        return [event.wire() for event in self.events]

    @cached_property
    def frames(self) -> list[bytes]:
        """Entries of 100 events."""
        return frames(self.payloads)

    @cached_property
    def frames_with_duplicates(self) -> list[bytes]:
        """Entries of 100 events, every tenth of which is the one before it once more."""
        return frames(
            [
                self.payloads[number - 1] if number % 10 == 9 else payload
                for number, payload in enumerate(self.payloads)
            ]
        )

    @cached_property
    def copy_text(self) -> bytes:
        """The finished rows, for COPY."""
        return "".join(event.copy_line() for event in self.events).encode()


def frames(payloads: Sequence[bytes], *, size: int = FRAME) -> list[bytes]:
    """This function will join encoded events to entries of `size` events."""
    return [
        frame for start in range(0, len(payloads), size) for frame, _ in pack(payloads[start : start + size])
    ]


def _time(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
