"""What a run does to its programs and when: all of it chosen by the seed, before anything starts."""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tests.chaos.failpoints import BOUNDARIES, Action


class Fault(enum.StrEnum):
    """What can happen."""

    CHILD_KILL = "child-kill"
    WORKER_KILL = "worker-kill"
    PRODUCER_KILL = "producer-kill"
    BEAT_KILL = "beat-kill"
    CHILD_PAUSE = "child-pause"
    VALKEY_KILL = "valkey-kill"
    VALKEY_RESTART = "valkey-restart"
    POSTGRES_IMMEDIATE = "postgres-immediate"
    POSTGRES_FAST = "postgres-fast"
    HALF_OPEN_STREAM = "half-open-stream"
    HALF_OPEN_TABLES = "half-open-tables"
    LOST_REPLY_PRODUCER = "lost-reply-producer"
    LOST_REPLY_WORKER = "lost-reply-worker"
    LOST_REPLY_TABLES = "lost-reply-tables"
    ROLE_CHANGE = "role-change"
    OUT_OF_MEMORY = "out-of-memory"
    DISK_FULL_STREAM = "disk-full-stream"
    DISK_FULL_TABLES = "disk-full-tables"
    TWO_BEATS = "two-beats"
    OLD_WORKER = "old-worker"
    FAILPOINT = "failpoint"


class Profile(enum.StrEnum):
    """How much a run does."""

    SMALL = "small"
    FULL = "full"
    MATRIX = "matrix"


# For a million events, what the product promises to survive.
_FULL: Final = {
    Fault.CHILD_KILL: 35,
    Fault.WORKER_KILL: 15,
    Fault.PRODUCER_KILL: 3,
    Fault.BEAT_KILL: 2,
    Fault.CHILD_PAUSE: 4,
    Fault.VALKEY_KILL: 10,
    Fault.VALKEY_RESTART: 10,
    Fault.POSTGRES_IMMEDIATE: 10,
    Fault.POSTGRES_FAST: 10,
    Fault.HALF_OPEN_STREAM: 3,
    Fault.HALF_OPEN_TABLES: 2,
    Fault.LOST_REPLY_PRODUCER: 4,
    Fault.LOST_REPLY_WORKER: 2,
    Fault.LOST_REPLY_TABLES: 2,
    Fault.ROLE_CHANGE: 3,
    Fault.OUT_OF_MEMORY: 2,
    Fault.DISK_FULL_STREAM: 1,
    Fault.DISK_FULL_TABLES: 1,
    Fault.TWO_BEATS: 2,
    Fault.OLD_WORKER: 2,
}
_SMALL: Final = {
    Fault.CHILD_KILL: 2,
    Fault.WORKER_KILL: 1,
    Fault.PRODUCER_KILL: 1,
    Fault.VALKEY_KILL: 1,
    Fault.POSTGRES_IMMEDIATE: 1,
    Fault.POSTGRES_FAST: 1,
    Fault.HALF_OPEN_STREAM: 1,
    Fault.LOST_REPLY_PRODUCER: 1,
    Fault.ROLE_CHANGE: 1,
    Fault.OUT_OF_MEMORY: 1,
    Fault.DISK_FULL_STREAM: 1,
    Fault.DISK_FULL_TABLES: 1,
    Fault.TWO_BEATS: 1,
    Fault.OLD_WORKER: 1,
}
# Those that no other kind of fault reaches.
_SMALL_FAILPOINTS: Final = (
    ("begin", Action.PAUSE),
    ("after-commit", Action.KILL),
    ("commit", Action.DROP),
    ("before-commit", Action.RAISE),
    ("mirror", Action.DROP),
)
# In a short run a pause has to begin early, and a broker that fell silent would hide what comes after it.
_ORDER: Final = {Fault.OLD_WORKER: 1, Fault.HALF_OPEN_STREAM: 2}
_GAP_SECONDS: Final = {Profile.SMALL: 2.6, Profile.FULL: 5.2, Profile.MATRIX: 8.0}
_FIRST_SECONDS: Final = 2.0
_LULL_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault: when it begins, in seconds after the first row, and a seed of its own."""

    at: float
    fault: Fault
    seed: int
    boundary: str = ""
    action: Action | None = None

    @property
    def what(self) -> str:
        """Its name in the timeline."""
        return self.fault if self.action is None else f"{self.fault} {self.boundary} {self.action}"


@dataclass(frozen=True, slots=True)
class Plan:
    """A run: its faults in order, and for how long producers emit."""

    seed: int
    events: int
    profile: Profile
    faults: tuple[Planned, ...]
    seconds: float


def chance(*names: object) -> random.Random:
    """This function will return a generator that is the same for the same names."""
    return random.Random(" ".join(map(str, names)))  # noqa: S311  a seeded choice, no secret


def make_plan(*, seed: int, events: int, profile: Profile, only: Iterable[Fault] | None = None) -> Plan:
    """This function will choose the faults of a run and their times; `only` leaves the others out."""
    dice = chance(seed, profile, "plan")
    chosen = [
        (fault, "", None)
        for fault, count in _counts(profile, events).items()
        for _ in range(count)
        if only is None or fault in only
    ]
    every: list[tuple[Fault, str, Action | None]] = [*chosen]
    if only is None or Fault.FAILPOINT in only:
        every += [(Fault.FAILPOINT, *point) for point in _failpoints(profile, events, dice)]
    dice.shuffle(every)
    if profile is Profile.SMALL:
        every.sort(key=lambda one: 0 if one[2] is Action.PAUSE else _ORDER.get(one[0], 1))
    gap = _GAP_SECONDS[profile]
    faults = tuple(
        Planned(
            _FIRST_SECONDS + number * gap + dice.random() * gap / 2 + _lull(profile, fault),
            fault,
            dice.getrandbits(32),
            name,
            action,
        )
        for number, (fault, name, action) in enumerate(every)
    )
    lull = max((_lull(profile, one.fault) for one in faults), default=0)
    return Plan(seed, events, profile, faults, _FIRST_SECONDS + (len(every) + 1) * gap + lull)


def _lull(profile: Profile, fault: Fault) -> float:
    """In a short run what recovers for longest comes last, after the leases of the killed have ended."""
    return _LULL_SECONDS if profile is Profile.SMALL and fault is Fault.HALF_OPEN_STREAM else 0


def _counts(profile: Profile, events: int) -> dict[Fault, int]:
    match profile:
        case Profile.SMALL:
            return _SMALL
        case Profile.MATRIX:
            return {}
        case Profile.FULL:
            share = min(events / 1_000_000, 1.0)
            return {fault: math.ceil(count * share) for fault, count in _FULL.items()}


def _failpoints(profile: Profile, events: int, dice: random.Random) -> list[tuple[str, Action]]:
    every = [(boundary.name, action) for boundary in BOUNDARIES for action in Action]
    match profile:
        case Profile.SMALL:
            return list(_SMALL_FAILPOINTS)
        case Profile.MATRIX:
            return every
        case Profile.FULL:
            return dice.sample(every, math.ceil(8 * min(events / 1_000_000, 1.0)))
