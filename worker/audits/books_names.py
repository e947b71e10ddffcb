"""Naming what differs: entries are read again from the stream and held against log and dead letters.

Nothing of this runs while the books agree. It reads what the stream still has of a window; what was taken
out of the stream has no name any more, and the report says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, cast
from uuid import UUID

from sqlalchemy.orm import Session

from worker.audits import books_queries as queries
from worker.audits.books_queries import Ends
from worker.audits.books_stream import BookStreams
from worker.entries import EntryId, RawEntry
from worker.ingest import rules
from worker.ingest.rules import AgeLimits, Received

MOST_EVENTS: Final = 2_000_000
MOST_NAMES: Final = 20
# Whatever was refused for its age has a dead letter, so age decides nothing here.
_ANY_AGE: Final = AgeLimits(max_age=timedelta(days=36_500), max_future=timedelta(days=36_500))


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The entries that a window is made of, and the ends of the window in time."""

    ends: Ends
    events_above: EntryId
    events_up_to: EntryId
    corrections_above: EntryId
    corrections_up_to: EntryId
    entry_count: int


@dataclass(slots=True)
class Names:
    """What reading a window again brought up.

    `missing` are events of its entries that are neither in the log nor put aside, `unlettered` refused ones
    without a dead letter, `invented` rows that no entry of the window explains. `complete` says that every
    entry of the window was still in the stream and was read.
    """

    missing: list[str] = field(default_factory=list)
    unlettered: list[str] = field(default_factory=list)
    invented: list[str] = field(default_factory=list)
    entry_count: int = 0
    complete: bool = True


def of_window(session: Session, streams: BookStreams, span: Span) -> Names:
    """This function will read a window's entries again and name what log and dead letters do not have."""
    names, explained = Names(), set[UUID]()
    events_key, corrections_key = streams.keys(span.ends.shard)
    for key, above, up_to, correction in (
        (events_key, span.events_above, span.events_up_to, False),
        (corrections_key, span.corrections_above, span.corrections_up_to, True),
    ):
        for page in streams.entries(key, above=above, up_to=up_to):
            names.entry_count += len(page)
            _judge(session, page, names, explained, key=key, span=span, correction=correction)
            if len(explained) > MOST_EVENTS:
                names.complete = False
                return names
    names.complete = names.entry_count >= span.entry_count
    if names.complete:
        _invented(session, names, explained, span)
    return names


def _judge(
    session: Session,
    page: Sequence[RawEntry],
    names: Names,
    explained: set[UUID],
    *,
    key: str,
    span: Span,
    correction: bool,
) -> None:
    batch = rules.read_entries(
        page, position=EntryId(0, 0), limits=_ANY_AGE, now=span.ends.cut_at, correction=correction
    )
    good = [one for one in batch.events if one.outcome is None and one.event_id is not None]
    stored = queries.stored(session, {one.event_id for one in good if one.event_id is not None})
    letters = queries.letters_of(
        session,
        stream=key,
        shard=span.ends.shard,
        # The id as a letter has it, which is how the parser writes it.
        entry_ids={one.entry_id for one in batch.events},
    )
    explained.update(one.event_id for one in good if one.event_id is not None)
    for one in batch.events:
        if (one.entry_id, one.index) in letters or (one.entry_id, rules.WHOLE_ENTRY) in letters:
            continue
        if one.outcome is not None or one.event_id is None:
            names.unlettered.append(_place(one))
        elif one.event_id not in stored:
            names.missing.append(str(one.event_id))
        elif not _same(one, stored[one.event_id]):
            names.unlettered.append(_place(one))


def _same(one: Received, stored: queries.Stored) -> bool:
    if one.event is None:
        return False
    return rules.payload_hash(one.event, one.user_id or stored.user_id) == stored.payload_hash


def _place(one: Received) -> str:
    place = (
        f"entry {one.entry_id}" if one.index == rules.WHOLE_ENTRY else f"entry {one.entry_id}[{one.index}]"
    )
    return place if one.event_id is None else f"{one.event_id} ({place})"


def _invented(session: Session, names: Names, explained: set[UUID], span: Span) -> None:
    unexplained = {one for one in queries.window_ids(session, span.ends) if one not in explained}
    # A replayed letter is stored in the window of its replay.
    unexplained -= queries.events_with_letters(session, unexplained) if unexplained else set()
    names.invented = sorted(map(str, unexplained))


def altered(rows: Iterable[Any], *, most: int = MOST_NAMES) -> list[str]:
    """This function will name rows that contradict themselves: their hash, or the source of their cost.

    `payload_hash` was computed of the event as it came, so a row that was changed afterwards gives itself
    away. Corrections inherit from their target and are judged by their cost alone.
    """
    found: list[str] = []
    for row in rows:
        if not _is_consistent(row):
            found.append(str(row.id))
            if len(found) == most:
                break
    return found


_COSTS: Final[dict[str, Callable[[Any], Any]]] = {
    "reported": lambda row: row.cost_usd,
    "computed": lambda row: row.cost_computed_usd,
    "unpriced": lambda _row: None,
}


def _is_consistent(row: Any) -> bool:
    if row.corrects is not None:
        return True
    if row.chosen_cost != _COSTS[row.cost_source](row):
        return False
    # The row has every name that the hash asks an event for.
    return rules.payload_hash(cast("Any", row), row.user_id) == bytes(row.payload_hash)


def told(names: Sequence[str]) -> str:
    """This function will write the first names of a list, and how many there are in all."""
    shown = ", ".join(names[:MOST_NAMES])
    return shown if len(names) <= MOST_NAMES else f"{shown} and {len(names) - MOST_NAMES} more"
