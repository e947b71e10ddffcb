"""What a drain is given, what it asks for step by step, and how it ends.

What is answered to an effect, or thrown into the generator, is said at each.
"""

from __future__ import annotations

import enum
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Protocol

from worker.entries import EntryId, RawEntry
from worker.errors import TransientError
from worker.ingest.rules import Counts

BATCH_BYTES: Final = 16 * 1024 * 1024


class LeaseLost(TransientError):
    """Another drain has taken this shard: roll back, acknowledge nothing, leave."""


class ShardPaused(TransientError):
    """The shard is paused: roll back, acknowledge nothing, leave its entries where they are."""


class DrainOutcome(enum.StrEnum):
    """How a drain ended."""

    IDLE = "idle"
    """Nothing came for as long as it may wait."""
    DRAINED = "drained"
    """It processed entries, and its budget is used up or the stream is empty."""
    BUSY = "busy"
    """Somebody else has the shard."""
    PAUSED = "paused"
    """An operator or a flood of refused events paused the shard."""
    STOPPED = "stopped"
    """It was told to stop."""
    BACKING_OFF = "backing_off"
    """A server was in trouble until the budget was used up; only what is committed was acknowledged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainLimits:
    """How much a drain does at once and how long it stays, in seconds unless the name says otherwise.

    It ends `work_seconds` after its first batch, or after `idle_seconds` altogether; trouble is waited out
    for `work_seconds`. An entry whose process vanished `poison_deliveries` times is put aside. When more than
    `flood_share` of at least `flood_events` events within `flood_window_seconds` were refused, it pauses its
    shard.
    """

    batch_size: int = 5000
    batch_bytes: int = BATCH_BYTES
    linger_ms: int = 20
    block_ms: int = 1000
    work_seconds: float = 5.0
    idle_seconds: float = 60.0
    lease_seconds: float = 15.0
    shortest_wait: float = 0.1
    longest_wait: float = 5.0
    poison_deliveries: int = 5
    flood_share: Decimal = Decimal("0.5")
    flood_events: int = 1000
    flood_window_seconds: int = 300


class HeldLease(Protocol):
    """What the core knows of a lease."""

    @property
    def is_careful(self) -> bool:
        """Whether processes vanished over this shard, so that entries are taken one by one."""

    @property
    def suspect_id(self) -> str | None:
        """The entry that was being processed alone when the last holder vanished: `KEY ID`."""

    @property
    def is_paused(self) -> bool:
        """Whether the batch that returned this lease paused the shard."""

    def position(self, *, correction: bool) -> EntryId:
        """The highest entry processed on one of the two streams."""


@dataclass(frozen=True, slots=True)
class TakeLease:
    """Take the shard; the answer is a lease, None while somebody else has it; or ShardPaused."""


@dataclass(frozen=True, slots=True)
class RenewLease:
    """Lengthen the lease; the answer is the lease with the positions of now; or LeaseLost."""

    lease: HeldLease


@dataclass(frozen=True, slots=True)
class ReleaseLease:
    """Give the shard back."""

    lease: HeldLease


@dataclass(frozen=True, slots=True)
class Inspect:
    """Create the groups that are missing where `create` says so; the answer is the state of each."""

    create: bool


@dataclass(frozen=True, slots=True)
class Adopt:
    """Take over what the group holds pending on one stream; the answer names it."""

    key: str


@dataclass(frozen=True, slots=True)
class Read:
    """Read at most `count` entries of each stream above its cursor, waiting for the first if told to."""

    cursors: Mapping[str, str]
    count: int
    block_ms: int | None


@dataclass(frozen=True, slots=True)
class Suspect:
    """Note that this entry is about to be processed alone; the answer is how many leases did."""

    lease: HeldLease
    key: str
    entry_id: str


@dataclass(frozen=True, slots=True)
class Prepare:
    """Decode and judge entries; the answer is a batch. With `park` the entry is put aside unread."""

    key: str
    entries: Sequence[RawEntry]
    position: EntryId
    park: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    """Begin the transaction that stores a batch; it runs while the next one is read."""

    key: str
    batch: Any
    lease: HeldLease


@dataclass(frozen=True, slots=True)
class Finish:
    """Wait for the transaction; the answer is (lease, counts), or the error that rolled it back."""


@dataclass(frozen=True, slots=True)
class Advance:
    """Mirror a committed position into the group; the answer is the group's state before that.

    None, and nothing is moved, when the stream went back in time: its group stands before `expected`, or the
    entry is gone. The group is left as the witness of that, for whoever reads next.
    """

    key: str
    entry_id: str
    entries_read: int | None
    expected: EntryId


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Acknowledge adopted entries that are committed."""

    key: str
    entry_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait so many seconds."""

    seconds: float


Effect = (
    TakeLease
    | RenewLease
    | ReleaseLease
    | Inspect
    | Adopt
    | Read
    | Suspect
    | Prepare
    | Start
    | Finish
    | Advance
    | Acknowledge
    | Sleep
)
Step = Generator[Effect, Any, Any]


@dataclass(frozen=True, slots=True)
class Report:
    """What one drain has come to."""

    outcome: DrainOutcome
    counts: Counts
    batches: int
    lost: int
