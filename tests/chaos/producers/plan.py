"""What happens in a run and when, all of it chosen by the seed: who emits what, what hurts, who is killed."""

from __future__ import annotations

import enum
import hashlib
import random
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from tests.chaos.traffic import CLERKS, clerk_user


class Kind(enum.StrEnum):
    """How a producer process emits."""

    THREADS = "Emitter, threads"
    FORKED = "Emitter, forked"
    ASYNC = "AsyncEmitter"
    BUFFERED = "BufferedEmitter"


class Hurt(enum.StrEnum):
    """What happens to Valkey."""

    KILLED = "killed"
    FROZEN = "frozen"
    FULL = "full"
    READ_ONLY = "read-only"


PRODUCERS: Final = (
    Kind.THREADS,
    Kind.THREADS,
    # This one forks the next two while its threads emit.
    Kind.FORKED,
    Kind.FORKED,
    Kind.FORKED,
    Kind.ASYNC,
    Kind.ASYNC,
    Kind.BUFFERED,
)
PARENT: Final = 2
CHILDREN: Final = (3, 4)
LANES: Final = {Kind.THREADS: 4, Kind.FORKED: 3, Kind.ASYNC: 6, Kind.BUFFERED: 2}
"""So many threads or tasks of a producer emit, each with a book of its own."""
LAST: Final = 6
"""So many events of each lane wait for the last fault."""
# One of each is killed, so that every way of emitting loses a process: forks by a child.
_KILLABLE: Final = ((0, 1), CHILDREN, (5, 6), (7,))
_KILLS: Final = 3
_FEATURES: Final = ("chat", "search", "summary", "vision")
_MODELS: Final = (("openai", "gpt-4o"), ("anthropic", "claude-sonnet-4-5"), (None, None))
_USERS: Final = 500


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault: `at` and `seconds` in seconds since the emitting began; `kill` a producer in its middle."""

    hurt: Hurt
    at: float
    seconds: float
    kill: int | None = None
    kill_after: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """A run: the faults in the order of their times; the last one begins when everybody waits for it."""

    seed: int
    events: int
    seconds: float
    faults: tuple[Planned, ...]

    def numbers(self, producer: int, lane: int) -> range:
        """This function will return the numbers of the events that one lane of a producer emits."""
        share = self.events // len(PRODUCERS) + (producer < self.events % len(PRODUCERS))
        return range(lane, share, LANES[PRODUCERS[producer]])


@dataclass(frozen=True, slots=True)
class Use:
    """One event as it is emitted, and as its row has to be; `units` is the cost in 10^-12 dollars."""

    clerk_id: str | None
    owner: UUID
    feature: str
    provider: str | None
    model: str | None
    input_tokens: int
    output_tokens: int
    units: int

    def arguments(self, producer: int, number: int) -> dict[str, Any]:
        """This function will return the arguments of `emit`; the metadata says which event it is."""
        who = {"clerk_id": self.clerk_id} if self.clerk_id else {"user_id": self.owner}
        return {
            **who,
            "feature": self.feature,
            "provider": self.provider,
            "model": self.model,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": Decimal(self.units).scaleb(-12),
            "metadata": {"producer": producer, "number": number},
        }


def make_plan(*, seed: int, events: int, seconds: float, faults: int) -> Plan:
    """This function will choose `faults` faults over `seconds` seconds; the last one kills Valkey."""
    dice = random.Random(seed)  # noqa: S311  a plan, no secret
    kinds = [list(Hurt)[number % len(Hurt)] for number in range(faults)]
    kinds.remove(Hurt.KILLED)
    dice.shuffle(kinds)
    slot = seconds / faults
    groups = dice.sample(_KILLABLE, min(_KILLS, len(kinds)))
    kills = dict(zip(dice.sample(range(len(kinds)), len(groups)), map(dice.choice, groups), strict=True))
    chosen = []
    for number, hurt in enumerate(kinds):
        chosen.append(
            Planned(
                hurt=hurt,
                at=slot * (number + 0.1 + 0.3 * dice.random()),
                seconds=min(0.8 + 2.7 * dice.random(), slot * 0.5),
                kill=kills.get(number),
                kill_after=slot * (0.1 + 0.2 * dice.random()) if slot < 2 else 0.3 + 0.4 * dice.random(),
            )
        )
    last = Planned(Hurt.KILLED, at=seconds, seconds=0.5 + dice.random())
    return Plan(seed, events, seconds, (*chosen, last))


def use(seed: int, producer: int, number: int) -> Use:
    """This function will return what event `number` of a producer says: the same for the same arguments."""
    digest = hashlib.blake2b(f"{seed}/{producer}/{number}".encode(), digest_size=24).digest()
    a, b, c, d = (int.from_bytes(digest[at : at + 4], "big") for at in (0, 4, 8, 12))
    provider, model = _MODELS[a % len(_MODELS)]
    clerk_id = f"clerk-{b % CLERKS}" if b & 0x10000 else None
    owner = clerk_user(clerk_id) if clerk_id else UUID(int=0xA000_8000_0000_0000_0000 << 48 | b % _USERS)
    return Use(
        clerk_id=clerk_id,
        owner=owner,
        feature=_FEATURES[c % len(_FEATURES)],
        provider=provider,
        model=model,
        input_tokens=c >> 8 & 0xFFFF,
        output_tokens=d & 0xFFF,
        units=int.from_bytes(digest[16:24], "big") % 5 * 10**12 + int.from_bytes(digest[16:21], "big"),
    )
