"""Traffic as customers make it: bursts, a few heavy users, duplicates, and events that are broken."""

from __future__ import annotations

import itertools
import json
import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from producers import Emitter, EmitterConfig, UsageEvent
from producers import _stream as wire
from producers._client import Client
from worker.dev.seed import SeededUser


@dataclass(frozen=True, slots=True)
class Call:
    """One kind of model call: who serves it, and what a million tokens cost in and out (plausible)."""

    feature: str
    provider: str
    model: str
    input_price: str
    output_price: str
    input_tokens: int
    output_tokens: int
    weight: int


CALLS: Final = (
    Call("blog_writer", "openai", "gpt-4o-mini", "0.15", "0.60", 900, 1200, 30),
    Call("blog_writer", "anthropic", "claude-sonnet-4-5", "3.00", "15.00", 1400, 1500, 14),
    Call("seo_analysis", "google", "gemini-2.0-flash", "0.10", "0.40", 3500, 400, 18),
    Call("chat_assistant", "openai", "gpt-4o", "2.50", "10.00", 700, 350, 16),
    Call("chat_assistant", "mistral", "mistral-small-latest", "0.20", "0.60", 600, 300, 10),
    Call("research", "anthropic", "claude-opus-4-1", "15.00", "75.00", 9000, 2200, 4),
    Call("image_studio", "openai", "gpt-image-1", "5.00", "40.00", 200, 4000, 5),
    Call("embeddings", "openai", "text-embedding-3-small", "0.02", "0.00", 2500, 0, 3),
)

DUPLICATE_SHARE: Final = 0.01
CONFLICT_SHARE: Final = 0.001
BROKEN_SHARE: Final = 0.004
_WEIGHTS: Final = tuple(itertools.accumulate(call.weight for call in CALLS))
_PLACES: Final = Decimal("0.000000000001")
_REMEMBERED: Final = 500


@dataclass(frozen=True, slots=True)
class Broken:
    """An entry that no good client would write: the reason code it earns, and what XADD is given."""

    reason: str
    data: bytes
    field: str = "data"


@dataclass(slots=True)
class Burst:
    """What one user's busy minute, or a few quiet ones, put on the stream, in order of arrival."""

    events: list[UsageEvent] = field(default_factory=list)
    duplicate_count: int = 0
    conflict_count: int = 0
    broken: list[Broken] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many events the burst has, good and bad."""
        return len(self.events) + len(self.broken)


@dataclass(slots=True)
class Emitted:
    """The exact counts of what went out, for comparison with the books."""

    events: int = 0
    duplicates: int = 0
    entries: int = 0
    dead_letters: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        """How many rows must exist afterwards: everything that is neither a repetition nor refused."""
        return self.events - self.duplicates - self.dead_letters.total()


class Traffic:
    """A stream of bursts that is the same for the same seed, users and times."""

    def __init__(self, users: Sequence[SeededUser], *, seed: int) -> None:
        """`users`: the customers, the heaviest first (usage falls off as 1/rank)."""
        self._draw = random.Random(seed)  # noqa: S311 sample data, no secret
        self._users = users
        self._weights = tuple(itertools.accumulate(1 / rank for rank in range(1, len(users) + 1)))
        self._recent: list[UsageEvent] = []
        self._breakers = itertools.cycle(_BREAKERS)

    def burst(self, *, most: int, now: datetime) -> Burst:
        """This function will make the next burst: 1 to `most` events of the seconds before `now`."""
        draw = self._draw
        size = min(most, draw.choice((1, 1, 2, 3, 12, 25, 40, 80, 250)))
        burst = Burst()
        user = self._user()
        while burst.count < size:
            chance = draw.random()
            if chance < BROKEN_SHARE:
                burst.broken.append(next(self._breakers)(self, now))
            elif chance < BROKEN_SHARE + CONFLICT_SHARE and self._recent:
                # The same id with another price: somebody's retry went through two price lists.
                known = draw.choice(self._recent)
                cost = (known.cost_usd or Decimal(0)) + Decimal("0.01")
                burst.events.append(known.model_copy(update={"cost_usd": cost}))
                burst.conflict_count += 1
            elif chance < BROKEN_SHARE + CONFLICT_SHARE + DUPLICATE_SHARE and self._recent:
                burst.events.append(draw.choice(self._recent))
                burst.duplicate_count += 1
            else:
                # A long burst is one customer at work; a short one is everybody.
                event = self._event(user if size > 10 else self._user(), now)
                burst.events.append(event)
                self._remember(event)
        return burst

    def _user(self) -> SeededUser:
        return self._draw.choices(self._users, cum_weights=self._weights)[0]

    def _remember(self, event: UsageEvent) -> None:
        if len(self._recent) < _REMEMBERED:
            self._recent.append(event)
        else:
            self._recent[self._draw.randrange(_REMEMBERED)] = event

    def _event(self, user: SeededUser, now: datetime) -> UsageEvent:
        return UsageEvent(**self._fields(user, now))

    def _fields(self, user: SeededUser, now: datetime) -> dict[str, Any]:
        draw = self._draw
        call = draw.choices(CALLS, cum_weights=_WEIGHTS)[0]
        input_tokens = max(1, int(call.input_tokens * draw.lognormvariate(0, 0.6)))
        output_tokens = int(call.output_tokens * draw.lognormvariate(0, 0.6))
        fields: dict[str, Any] = {
            "event_id": uuid.UUID(int=draw.getrandbits(128), version=4),
            "feature": call.feature,
            "provider": call.provider,
            "model": call.model,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "occurred_at": now - timedelta(milliseconds=draw.randrange(20_000)),
            "duration_ms": draw.randrange(150, 9_000),
            "status": "error" if draw.random() < 0.02 else "ok",
        }
        # Some apps know their customers by the id of the identity provider only.
        if draw.random() < 0.05:
            fields["clerk_id"] = user.clerk_id
        else:
            fields["user_id"] = user.id
        if draw.random() < 0.3:
            fields["cache_read_tokens"] = draw.randrange(input_tokens)
        # A few calls come back without a price.
        if draw.random() > 0.03:
            cost = input_tokens * Decimal(call.input_price) + output_tokens * Decimal(call.output_price)
            fields["cost_usd"] = (cost / 1_000_000).quantize(_PLACES)
        if draw.random() < 0.2:
            fields["metadata"] = {"request": f"req-{draw.getrandbits(32):08x}", "region": "eu-west-1"}
        return fields

    def wire_event(self, now: datetime, **changes: object) -> dict[str, Any]:
        """This function will return an event as JSON has it, with some fields replaced (None: left out)."""
        event = self._event(self._users[0], now).wire() | changes
        if changes.get("user_id") is not None:
            event.pop("clerk_id", None)
        return {name: value for name, value in event.items() if value is not None}


def _breaker(reason: str, **changes: object) -> Callable[[Traffic, datetime], Broken]:
    def make(traffic: Traffic, now: datetime) -> Broken:
        return Broken(reason, json.dumps(traffic.wire_event(now, **changes)).encode())

    return make


_BREAKERS: Final[Sequence[Callable[[Traffic, datetime], Broken]]] = (
    lambda _traffic, _now: Broken("not_json", b"{"),
    _breaker("invalid_tokens", input_tokens=-5),
    _breaker("missing_field", feature=None),
    _breaker("invalid_cost", cost_usd="NaN"),
    _breaker("unknown_version", v=99),
    lambda traffic, now: _breaker("too_old", occurred_at=(now - timedelta(days=400)).isoformat())(
        traffic, now
    ),
    _breaker("unknown_user", user_id=None, clerk_id="user_who_left"),
    lambda _traffic, _now: Broken("malformed_entry", b"from another system", field="payload"),
    _breaker("invalid_user_id", user_id="42"),
)


def bursts(traffic: Traffic, *, count: int, clock: Callable[[], datetime]) -> Iterator[Burst]:
    """This function will make bursts that hold exactly `count` events together."""
    left = count
    while left > 0:
        burst = traffic.burst(most=left, now=clock())
        left -= burst.count
        yield burst


def emit(burst: Burst, emitter: Emitter, client: Client, config: EmitterConfig, emitted: Emitted) -> None:
    """This function will put a burst on the stream, add it to `emitted`, and return once all is acknowledged.

    Large bursts go as frames, small ones event by event, broken ones past the emitter, which refuses them.
    """
    if len(burst.events) > 3:
        with emitter.batch() as batch:
            for event in burst.events:
                batch.add(event)
        emitted.entries += len({wire.shard_of(event.user_text, config.shards) for event in burst.events})
    else:
        for event in burst.events:
            emitter.send(event)
        emitted.entries += len(burst.events)
    for broken in burst.broken:
        client.xadd(wire.stream_key(config.stream, 0), {broken.field: broken.data})
        emitted.dead_letters[broken.reason] += 1
    emitted.entries += len(burst.broken)
    emitted.events += burst.count
    emitted.duplicates += burst.duplicate_count
    emitted.dead_letters["conflict"] += burst.conflict_count
