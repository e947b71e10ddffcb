"""What the producers of a run send, as a function of the seed alone.

The checker makes the same events again and so knows every row to the last digit, without asking anything that
a fault could have touched. A producer's ledger only says which of its steps were tried and acknowledged.
"""

from __future__ import annotations

import datetime as dt
import enum
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, NamedTuple
from uuid import UUID

USERS: Final = 60
CLERKS: Final = 8
LATE: Final = 3
CANARY: Final = "sk-canary-4f1d2a9be7c35806"
SINGLES: Final = 5
_CALLS: Final = (
    ("blog_writer", "openai", "gpt-4o-mini"),
    ("chat_assistant", "anthropic", "claude-sonnet-4-5"),
    ("seo_analysis", "google", "gemini-2.0-flash"),
    ("image studio \\ \u00e4\u00df", None, None),
)
_HOURS: Final = 6


class Kind(enum.StrEnum):
    """What one step sends."""

    FRAME = "frame"
    SINGLES = "singles"
    MIXED = "mixed frame"
    BAD = "bad entry"
    CONFLICT = "conflict"
    AGAIN = "again"
    VOID = "void"
    CORRECTION = "correction"
    LATE = "late user"


# Of a thousand steps; frames are the rest.
_SHARES: Final = (
    (Kind.SINGLES, 60),
    (Kind.MIXED, 30),
    (Kind.BAD, 30),
    (Kind.CONFLICT, 10),
    (Kind.AGAIN, 30),
    (Kind.VOID, 15),
    (Kind.CORRECTION, 15),
    (Kind.LATE, 10),
)


class Event(NamedTuple):
    """One event as its producer means it; `cost` counts units of 10^-12 US dollars."""

    event_id: UUID
    user_id: UUID | None
    clerk_id: str | None
    feature: str
    provider: str | None
    model: str | None
    input_tokens: int
    output_tokens: int
    cost: int | None
    occurred_at: dt.datetime
    corrects: UUID | None = None
    void: bool = False

    @property
    def owner(self) -> UUID:
        """The user that the row will have."""
        if self.user_id is not None:
            return self.user_id
        return clerk_user(self.clerk_id or "")

    @property
    def cost_usd(self) -> Decimal | None:
        """The cost in US dollars, exact."""
        return None if self.cost is None else Decimal(self.cost).scaleb(-12)

    def wire(self) -> dict[str, object]:
        """This function will return the event as any program may write it."""
        values: dict[str, object] = {
            "event_id": str(self.event_id),
            "user_id": None if self.user_id is None else str(self.user_id),
            "clerk_id": self.clerk_id,
            "feature": self.feature,
            "provider": self.provider,
            "model": self.model,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": None if self.cost_usd is None else f"{self.cost_usd:f}",
            "occurred_at": self.occurred_at.isoformat(),
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a producer does: `count` new events from number `first`, or one about `target`."""

    number: int
    kind: Kind
    first: int
    count: int
    target: int = -1


@dataclass(frozen=True, slots=True)
class Bad:
    """Bytes that have to become a dead letter with this reason."""

    reason: str
    raw: bytes
    fields: tuple[tuple[bytes, bytes], ...]


def _digest(*parts: object) -> bytes:
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=32).digest()


def _uuid(content: bytes) -> UUID:
    return UUID(bytes=content[:16], version=4)


def user(number: int) -> UUID:
    """This function will return the id of one of the run's users."""
    return _uuid(_digest("user", number))


def clerk_user(clerk_id: str) -> UUID:
    """This function will return the id of the user who has this clerk_id."""
    return _uuid(_digest("clerk", clerk_id))


class Traffic:
    """All that one producer of a run sends."""

    def __init__(self, *, seed: int, producer: int, events: int, frame: int, base: dt.datetime) -> None:
        self._seed, self._producer, self._events, self._frame = seed, producer, events, frame
        self._base = base

    def steps(self) -> Iterator[Step]:
        """This function will list the steps in order; together they make `events` events, or a few more."""
        made, number, newest, used, limit = 0, 0, -1, 0, 0
        while made < self._events:
            roll = int.from_bytes(_digest(self._seed, self._producer, "step", number)[:4], "big") % 1000
            kind = _kind(roll)
            count, target = 0, -1
            match kind:
                case Kind.FRAME:
                    count = self._frame
                case Kind.SINGLES:
                    count = SINGLES
                case Kind.MIXED:
                    count = 2
                case Kind.LATE:
                    count = 1
                case Kind.AGAIN if newest >= 0:
                    target = newest
                case Kind.CONFLICT | Kind.VOID | Kind.CORRECTION if newest >= 0 and used < limit:
                    # Each of these has a target of its own, so that it is clear what has to become of it.
                    target = newest + used
                    used += 1
                case Kind.BAD:
                    pass
                case _:
                    kind, count = Kind.FRAME, self._frame
            yield Step(number, kind, made, count, target)
            if kind is Kind.FRAME:
                newest, used, limit = made, 0, count
            made += count
            number += 1

    def event(self, number: int, *, late: bool = False) -> Event:
        """This function will return event `number`, the same at each call."""
        content = _digest(self._seed, self._producer, number)
        who = int.from_bytes(content[16:18], "big")
        feature, provider, model = _CALLS[content[18] % len(_CALLS)]
        user_id: UUID | None = None
        clerk_id: str | None = None
        if late:
            clerk_id = f"late-{who % LATE}"
        elif who % 16 == 0:
            clerk_id = f"clerk-{who // 16 % CLERKS}"
        else:
            user_id = _USERS[who % USERS]
        cost = None if content[23] < 12 else int.from_bytes(content[24:28], "big")
        if cost is None:
            # Nor has anybody a price for it: the cost stays unknown.
            provider, model = "in-house", "distilled-7"
        return Event(
            event_id=_uuid(content),
            user_id=user_id,
            clerk_id=clerk_id,
            feature=feature,
            provider=provider,
            model=model,
            input_tokens=2 + int.from_bytes(content[19:21], "big"),
            output_tokens=int.from_bytes(content[21:23], "big") % 5000,
            cost=cost,
            occurred_at=self._base - dt.timedelta(milliseconds=int.from_bytes(content[28:32], "big") % _SPAN),
        )

    def adjustment(self, step: Step) -> Event:
        """This function will return the void or the correction of a step, with the amounts of its row."""
        target = self.event(step.target)
        if step.kind is Kind.VOID:
            tokens, output = -target.input_tokens, -target.output_tokens
            cost = None if target.cost is None else -target.cost
        else:
            tokens, output = -(target.input_tokens // 2), 0
            cost = None if target.cost is None else -(target.cost // 2)
        return target._replace(
            event_id=_uuid(_digest(self._seed, self._producer, "adjustment", step.number)),
            input_tokens=tokens,
            output_tokens=output,
            cost=cost,
            occurred_at=target.occurred_at + dt.timedelta(milliseconds=1),
            corrects=target.event_id,
            void=step.kind is Kind.VOID,
        )

    def conflict(self, step: Step) -> Bad:
        """This function will return another event under the id of one that was acknowledged before."""
        target = self.event(step.target)
        raw = to_json(target._replace(input_tokens=target.input_tokens + 1).wire())
        return Bad("conflict", raw, ((b"data", raw),))

    def bad(self, step: Step) -> Bad:
        """This function will return the bytes that a step of bad input sends, or puts into its frame."""
        nonce = _digest(self._seed, self._producer, "bad", step.number)
        made = _bad(nonce, self._base)
        if step.kind is Kind.MIXED:
            # Inside a frame only what is JSON can be wrong by itself.
            made = [one for one in made if one.reason not in ("not_json", "malformed_entry")]
        return made[nonce[31] % len(made)]

    def mixed(self, step: Step) -> bytes:
        """This function will return a frame with good neighbours around a bad event."""
        first, last = (to_json(self.event(step.first + place).wire()) for place in range(2))
        return b"[" + b",".join((first, self.bad(step).raw, last)) + b"]"

    def shard_text(self, step: Step) -> str:
        """This function will return the text that decides the shard of what a step sends by hand."""
        if step.kind is not Kind.CONFLICT:
            return str(step.number)
        target = self.event(step.target)
        return str(target.user_id or target.clerk_id)

    def rows(self, step: Step) -> list[Event]:
        """This function will return the events of a step that have to become rows."""
        match step.kind:
            case Kind.VOID | Kind.CORRECTION:
                return [self.adjustment(step)]
            case Kind.LATE:
                return [self.event(step.first, late=True)]
            case _:
                return [self.event(step.first + place) for place in range(step.count)]

    def letter(self, step: Step) -> Bad | None:
        """This function will return what of a step has to become a dead letter for good."""
        match step.kind:
            case Kind.CONFLICT:
                return self.conflict(step)
            case Kind.BAD | Kind.MIXED:
                return self.bad(step)
            case _:
                return None


def to_json(value: object) -> bytes:
    """This function will write JSON without blanks."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _kind(roll: int) -> Kind:
    for kind, share in _SHARES:
        if roll < share:
            return kind
        roll -= share
    return Kind.FRAME


def _bad(nonce: bytes, base: dt.datetime) -> list[Bad]:
    name = nonce.hex()[:24]
    good: dict[str, object] = {
        "event_id": str(_uuid(nonce)),
        "user_id": str(_USERS[nonce[30] % USERS]),
        "feature": "chat",
        "input_tokens": 1,
        "output_tokens": 1,
        "occurred_at": base.isoformat(),
        "metadata": {"note": name, "api_key": CANARY},
    }

    def but(reason: str, **values: object) -> Bad:
        raw = to_json(good | values)
        return Bad(reason, raw, ((b"data", raw),))

    def text(reason: str, raw: bytes) -> Bad:
        return Bad(reason, raw, ((b"data", raw),))

    without = {key: value for key, value in good.items() if key != "feature"}
    fields = ((b"payload", name.encode()),)
    return [
        text("not_json", b'{"event_id":"' + name.encode()),
        text("not_json", b"\xff\xfe\x00" + nonce),
        text("not_an_object", to_json(name)),
        text("missing_field", to_json(without)),
        text("duplicate_key", to_json(good)[:-1] + b',"input_tokens":2}'),
        but("invalid_cost", cost_usd="NaN"),
        but("invalid_cost", cost_usd=-1),
        but("invalid_tokens", input_tokens=True),
        but("invalid_tokens", output_tokens=-5),
        but("invalid_occurred_at", occurred_at="2026-03-01T12:00:00"),
        but("too_old", occurred_at="2001-01-01T00:00:00Z"),
        but("in_future", occurred_at=(base + dt.timedelta(days=2)).isoformat()),
        but("unknown_version", v=99),
        but("invalid_event_id", event_id=f"{{{name}}}"),
        but("invalid_feature", feature=f"a\x00{name}"),
        Bad("malformed_entry", _resp(fields), fields),
    ]


def _resp(fields: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """What the docs say is kept of an entry without `data`: its fields as the server's protocol has them."""
    flat = [part for pair in fields for part in pair]
    return b"*%d\r\n" % len(flat) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in flat)


_SPAN: Final = _HOURS * 3_600_000
_USERS: Final = tuple(user(number) for number in range(USERS))
