"""What an entry of the stream is, and what becomes of each event in it. Nothing here touches a server."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Final
from uuid import UUID

from producers import _events, _fields, _stream
from producers._events import UsageEvent
from worker.entries import EntryId, RawEntry

if TYPE_CHECKING:
    from worker.ingest.preparing import PlainPart

WHOLE_ENTRY: Final = -1
FIELD: Final = b"data"
_LONGEST_DETAIL: Final = 500

CONFLICT_DETAIL: Final = (
    "this event_id was stored before with another user, feature, provider, model, token count or cost"
)


class Outcome(enum.StrEnum):
    """The answer to one event."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class AgeLimits:
    """How far `occurred_at` may lie from the time the server took the entry."""

    max_age: timedelta
    max_future: timedelta


@dataclass(slots=True)
class Received:
    """One event as it came, and what became of it."""

    entry_id: str
    index: int
    raw: bytes
    received_at: datetime
    # Whether its entry stands above the position: what stands below was counted before.
    counted: bool
    event: UsageEvent | None = None
    event_id: UUID | None = None
    user_id: UUID | None = None
    clerk_id: str | None = None
    payload_hash: bytes = b""
    cost_usd: Decimal | None = None
    cost_computed_usd: Decimal | None = None
    cost_source: str = ""
    price_version: str | None = None
    outcome: Outcome | None = None
    reason: str | None = None
    detail: str | None = None

    @property
    def target_id(self) -> UUID | None:
        """The event that this one corrects."""
        return None if self.event is None else self.event.corrects

    def refuse(self, reason: str, detail: str | None, *, outcome: Outcome = Outcome.REJECTED) -> None:
        """This function will put the event aside with a reason code and words without its values."""
        self.outcome, self.reason, self.detail = outcome, reason, storable(detail)

    def conflict(self) -> None:
        """This function will put the event aside because another one holds its id."""
        self.refuse("conflict", CONFLICT_DETAIL, outcome=Outcome.CONFLICT)


@dataclass(slots=True)
class Batch:
    """The events of some entries of one stream, in order.

    `position` is where the stream stood before, `last_id` where it stands after, `entry_count` how many
    entries lie between. `plain` has the ordinary events as finished rows; `events` all the others.
    """

    events: list[Received]
    position: EntryId
    last_id: EntryId
    entry_count: int
    plain: PlainPart | None = None
    # What it was made of, so that plain events can be read again the slow way.
    entries: Sequence[RawEntry] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a batch added to the counters of its shard; only entries above the position are in it.

    `recovered` is the exception: new rows from entries at or below it, which the books expect to be none.
    """

    entries: int = 0
    events: int = 0
    accepted: int = 0
    duplicates: int = 0
    conflicts: int = 0
    rejected: int = 0
    recovered: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in COUNTERS})


COUNTERS: Final = ("entries", "events", "accepted", "duplicates", "conflicts", "rejected", "recovered")


def read_entries(
    entries: Iterable[tuple[bytes, Sequence[bytes]]],
    *,
    position: EntryId,
    limits: AgeLimits,
    now: datetime,
    correction: bool,
) -> Batch:
    """This function will decode and judge entries as far as that needs no database.

    What is refused has its outcome; the others still have none. `position` is the highest entry processed
    before, on the same stream.
    """
    events: list[Received] = []
    entry_count, last_id = 0, position
    for raw_id, fields in entries:
        entry_id = EntryId.parse(raw_id)
        counted = entry_id > position
        entry_count += counted
        last_id = max(last_id, entry_id)
        events += read_entry(
            fields,
            entry_id=str(entry_id),
            received_at=entry_id.received_at(now=now),
            counted=counted,
            limits=limits,
            correction=correction,
        )
    return Batch(events=events, position=position, last_id=last_id, entry_count=entry_count)


def read_entry(
    fields: Sequence[bytes],
    *,
    entry_id: str,
    received_at: datetime,
    counted: bool,
    limits: AgeLimits,
    correction: bool,
) -> list[Received]:
    """This function will judge each event of one entry alone; other fields than `data` are ignored."""
    values = [fields[at + 1] for at in range(0, len(fields) - 1, 2) if fields[at] == FIELD]
    if len(values) != 1:
        whole = Received(entry_id, WHOLE_ENTRY, resp(fields), received_at, counted)
        whole.refuse("malformed_entry", f"expected exactly one field `data`, found {len(values)}")
        return [whole]
    return read_data(
        values[0],
        entry_id=entry_id,
        received_at=received_at,
        counted=counted,
        limits=limits,
        correction=correction,
    )


def read_data(
    data: bytes,
    *,
    entry_id: str,
    received_at: datetime,
    counted: bool,
    limits: AgeLimits,
    correction: bool,
) -> list[Received]:
    """This function will judge each event in the bytes of one `data` field."""
    events: list[Received] = []
    for decoded in _stream.decode(data, correction=correction):
        event = decoded.event
        received = Received(
            entry_id,
            decoded.index,
            decoded.raw,
            received_at,
            counted,
            event,
            decoded.event_id,
            decoded.user_id,
            decoded.clerk_id,
        )
        events.append(received)
        if event is None:
            received.refuse(decoded.reason or "invalid_field", decoded.detail)
            continue
        problem = _events.age_problem(
            event, received_at=received_at, max_age=limits.max_age, max_future=limits.max_future
        )
        if problem is not None:
            received.refuse(problem, "occurred_at is too far from the time the entry was received")
    return events


def read_letter(
    data: bytes,
    *,
    entry_id: str,
    index: int,
    received_at: datetime,
    limits: AgeLimits,
    correction: bool,
) -> list[Received]:
    """This function will judge the bytes of a dead letter again: one event at its place, or a whole frame."""
    events = read_data(
        data,
        entry_id=entry_id,
        received_at=received_at,
        counted=False,
        limits=limits,
        correction=correction,
    )
    if index == WHOLE_ENTRY:
        return events
    if len(events) > 1 or data.lstrip(b" \t\n\r").startswith(b"["):
        # An array in the place of an event is no frame, though it would look like one on its own.
        event = Received(entry_id, index, data, received_at, counted=False)
        event.refuse("not_an_object", "an event is a JSON object")
        return [event]
    events[0].index = index
    return events


def park_entry(entry: RawEntry, *, position: EntryId, deliveries: int, now: datetime) -> Batch:
    """This function will put a whole entry aside unread: it counts as one event, its bytes are kept."""
    raw_id, fields = entry
    entry_id = EntryId.parse(raw_id)
    values = [fields[at + 1] for at in range(0, len(fields) - 1, 2) if fields[at] == FIELD]
    raw = values[0] if len(values) == 1 else resp(fields)
    counted = entry_id > position
    whole = Received(str(entry_id), WHOLE_ENTRY, raw, entry_id.received_at(now=now), counted)
    whole.refuse("poison", f"its process vanished {deliveries} times while it was processed")
    return Batch(events=[whole], position=position, last_id=max(position, entry_id), entry_count=int(counted))


def is_correction_key(key: str) -> bool:
    """This function will say whether a stream's key is that of corrections, as in `usage:corrections:{0}`."""
    return key.split(":")[-2:-1] == ["corrections"]


def resp(fields: Sequence[bytes]) -> bytes:
    """This function will write an entry's fields as an array of the Redis protocol, whatever they hold."""
    parts = [b"*%d\r\n" % len(fields)]
    parts += [b"$%d\r\n%b\r\n" % (len(part), part) for part in fields]
    return b"".join(parts)


def unresolved(events: Iterable[Received]) -> set[str]:
    """This function will return the clerk_ids that have to be looked up."""
    return {
        event.clerk_id
        for event in events
        if event.outcome is None and event.user_id is None and event.clerk_id
    }


def resolve_users(events: Iterable[Received], users: Mapping[str, UUID]) -> None:
    """This function will give each event its user, and refuse those whose clerk_id belongs to nobody yet."""
    for event in events:
        if event.outcome is not None or event.user_id is not None:
            continue
        event.user_id = users.get(event.clerk_id or "")
        if event.user_id is None:
            event.refuse("unknown_user", "no user has this clerk_id yet; replayed when one does")


def payload_hash(event: UsageEvent, user_id: UUID | None) -> bytes:
    """This function will return the 16 bytes that tell a retry from another event under the same id.

    They cover who spent what on what: user, feature, provider, model, tokens, reported cost, units. A retry
    under an idempotency key stamps `occurred_at` and metadata anew, so these are left out. A correction
    inherits user, feature, provider and model, so its target stands for them.
    """
    if event.corrects is not None:
        owner = f"{event.corrects.hex}|{event.void}"
    else:
        owner = user_id.hex if user_id is not None else ""
    # No field holds a NUL (they are printable), so the join is unambiguous; None is no number and no text.
    content = (
        f"{owner}\0{event.feature}\0{event.provider or ''}\0{event.model or ''}\0{event.input_tokens}\0"
        f"{event.output_tokens}\0{event.cache_read_tokens}\0{event.cache_write_tokens}\0"
        f"{event.reasoning_tokens}\0{event.tokens_used}\0{event.cost_usd}"
    )
    if event.units:
        # Only where there are some: events without have the hash that they always had.
        content += f"\0{units_text(event.units)}"
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def units_text(units: Mapping[str, Decimal]) -> str:
    """This function will spell quantities as JSON, in the order of their names, each in its shortest form."""
    members = (f'"{name}":{_fields.plain_text(quantity)}' for name, quantity in sorted(units.items()))
    return f"{{{','.join(members)}}}"


def first_of_each(events: Iterable[Received]) -> list[Received]:
    """This function will return the events to store, and answer the repeats within the batch.

    The first under an id stands; a later one with the same content is a duplicate, with another a conflict.
    """
    first: dict[UUID, Received] = {}
    for event in events:
        if event.outcome is not None or event.event is None or event.event_id is None:
            continue
        event.payload_hash = payload_hash(event.event, event.user_id)
        standing = first.setdefault(event.event_id, event)
        if standing is not event:
            answer_repeat(event, standing.payload_hash)
    return list(first.values())


def answer_repeat(event: Received, stored_hash: bytes) -> None:
    """This function will answer an event whose id is taken, by the content that stands there."""
    if event.payload_hash == stored_hash:
        event.outcome = Outcome.DUPLICATE
    else:
        event.conflict()


def ids_of(batch: Batch) -> set[str]:
    """This function will return the ids of all events of a batch."""
    ids = {str(event.event_id) for event in batch.events if event.event_id is not None}
    return ids.union(batch.plain.plain.ids) if batch.plain is not None else ids


def count(batch: Batch) -> Counts:
    """This function will sum up a batch in which every event has its outcome."""
    tally = dict.fromkeys(Outcome, 0)
    recovered = 0
    for event in batch.events:
        if event.outcome is None:
            raise UndecidedEvent
        if event.counted:
            tally[event.outcome] += 1
        elif event.outcome is Outcome.ACCEPTED:
            recovered += 1
    if batch.plain is not None:
        repeats = batch.plain.plain.repeats + batch.plain.known
        tally[Outcome.DUPLICATE] += repeats
        tally[Outcome.ACCEPTED] += batch.plain.plain.count - repeats
    return Counts(
        entries=batch.entry_count,
        events=sum(tally.values()),
        accepted=tally[Outcome.ACCEPTED],
        duplicates=tally[Outcome.DUPLICATE],
        conflicts=tally[Outcome.CONFLICT],
        rejected=tally[Outcome.REJECTED],
        recovered=recovered,
    )


def count_flood(batch: Batch) -> int:
    """This function will count what speaks of a bad deploy: neither ids used again nor unknown users."""
    return sum(
        event.counted and event.outcome is Outcome.REJECTED and event.reason != "unknown_user"
        for event in batch.events
    )


def is_recovered(event: Received) -> bool:
    """This function will say whether an event is new although its entry lies at or below the position."""
    return not event.counted and event.outcome is Outcome.ACCEPTED


class UndecidedEvent(AssertionError):
    """An event came to the books without an outcome."""


def storable(text: str | None) -> str | None:
    """This function will return words that a text column takes: short, without NUL or lone surrogates."""
    if text is None:
        return None
    clean = text[:_LONGEST_DETAIL].replace("\0", "\N{REPLACEMENT CHARACTER}")
    return clean.encode("utf-8", "replace").decode("utf-8")
