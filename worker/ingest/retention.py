"""How long processed entries stay: trimmed by age and by memory, and only where nobody will need them.

An entry goes when all of these have passed it: the position in the database, the books audit, the consumer
group, and everything pending in it. The database is asked first, so that what is read from the stream can
only be further on: a crash at any point leaves entries that the next run deletes. Nothing is ever trimmed by
a number of entries (MAXLEN), which knows nothing of all that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from producers import _stream
from worker import log
from worker.entries import EntryId
from worker.ingest.retained import RetainedStreams
from worker.ingest.switch import Supervision

MEGABYTE: Final = 1024 * 1024
# So many entries are deleted within a few milliseconds, in which the server answers nobody else.
STEP: Final = 10_000
# What a node of the stream holds unless the server is told otherwise.
NODE: Final = 100
# One run deletes at most this many times STEP per stream; the next one goes on.
MOST_STEPS: Final = 200

AUDIT: Final = "the books audit"
POSITION: Final = "the drain"
GROUP: Final = "the consumer group"
PENDING: Final = "pending entries"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ZERO: Final = EntryId(0, 0)
_log = log.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long entries stay at most, and how much memory all streams together may take, in bytes."""

    keep: timedelta
    most_bytes: int


@dataclass(frozen=True, slots=True)
class Trimmed:
    """One stream after its trimming.

    `free_up_to` is the highest id that may go, and `held_by` who stands there; `trimmed` entries went.
    """

    stream: str
    shard: int
    free_up_to: EntryId
    held_by: str
    trimmed: int
    length: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Trimming:
    """What one run has come to. `is_short`: too much memory is used, and nothing more may be trimmed.

    `waits_for_audit`: an audit of the books would free some of it.
    """

    streams: tuple[Trimmed, ...]
    is_short: bool
    waits_for_audit: bool

    @property
    def trimmed(self) -> int:
        """How many entries went."""
        return sum(one.trimmed for one in self.streams)

    @property
    def memory_bytes(self) -> int:
        """What all streams take now."""
        return sum(one.memory_bytes for one in self.streams)


def trim(
    streams: RetainedStreams,
    *,
    stream: str,
    shards: Sequence[int],
    supervision: Callable[[], Mapping[int, Supervision]],
    retention: Retention,
    now: datetime,
    dry_run: bool = False,
) -> Trimming:
    """This function will trim the streams of `shards`: what is too old first, then, while all of them take
    too much memory, the oldest of the largest.

    `supervision` reads the shards' rows. With `dry_run` nothing is deleted.
    """
    rows = supervision()
    states = []
    for shard in sorted({*shards, *rows}):
        for correction in (False, True):
            key = (_stream.correction_key if correction else _stream.stream_key)(stream, shard)
            states.append(_state(streams, key, shard, rows.get(shard), correction=correction))
    if not dry_run:
        oldest = EntryId(max(0, int((now - retention.keep - _EPOCH) / timedelta(milliseconds=1))), 0).before()
        states = [_trim_by_age(streams, one, oldest) for one in states]
        states = _trim_by_memory(streams, states, most_bytes=retention.most_bytes)
    used = sum(one.memory_bytes for one in states)
    is_short = used > retention.most_bytes
    result = Trimming(
        streams=tuple(states),
        is_short=is_short,
        waits_for_audit=is_short and any(one.length and one.held_by == AUDIT for one in states),
    )
    if is_short and not dry_run:
        _log.error(
            "streams take too much memory and nothing more may be trimmed",
            megabytes=used // MEGABYTE,
            most_megabytes=retention.most_bytes // MEGABYTE,
            held_by={one.stream: one.held_by for one in states if one.length},
        )
    return result


def _state(
    streams: RetainedStreams, key: str, shard: int, row: Supervision | None, *, correction: bool
) -> Trimmed:
    # The pending list before the group: what is read and acknowledged in between is behind both.
    pending, group = None, streams.group(key)
    if group is not None and group.pending:
        pending = streams.lowest_pending(key)
    passed = [
        (row.processed(correction=correction) if row else _ZERO, POSITION),
        (group.last_delivered if group else _ZERO, GROUP),
    ]
    if pending is not None:
        passed.append((pending.before(), PENDING))
    # Last, so that an audit is waited for only where it is what all wait for.
    passed.append((row.audited(correction=correction) if row else _ZERO, AUDIT))
    free_up_to, held_by = min(passed, key=lambda one: one[0])
    return Trimmed(key, shard, free_up_to, held_by, 0, streams.length(key), streams.memory_bytes(key))


def _trim_by_age(streams: RetainedStreams, one: Trimmed, oldest: EntryId) -> Trimmed:
    up_to = min(one.free_up_to, oldest)
    if not one.length or up_to == _ZERO:
        return one
    trimmed = 0
    for _ in range(MOST_STEPS):
        step = streams.trim(one.stream, up_to=up_to, most=STEP)
        trimmed += step
        if not step:
            # Whole nodes are gone; what is left below is part of one.
            trimmed += streams.trim(one.stream, up_to=up_to, most=None)
            break
    return _measured(streams, one, trimmed)


def _trim_by_memory(streams: RetainedStreams, states: list[Trimmed], *, most_bytes: int) -> list[Trimmed]:
    after = {one.stream: one for one in states}
    for one in sorted(states, key=lambda state: state.memory_bytes, reverse=True):
        current = one
        for _ in range(MOST_STEPS):
            excess = sum(each.memory_bytes for each in after.values()) - most_bytes
            if excess <= 0 or not current.length or current.free_up_to == _ZERO:
                break
            wanted = 1 + excess * current.length // max(current.memory_bytes, 1)
            step = _trim_oldest(streams, current, min(STEP, wanted))
            if not step:
                break
            current = after[one.stream] = _measured(streams, current, step)
    return [after[one.stream] for one in states]


def _trim_oldest(streams: RetainedStreams, one: Trimmed, wanted: int) -> int:
    """A node goes as a whole, so fewer than it holds would be none."""
    for most in (wanted, NODE, STEP, None):
        step = streams.trim(one.stream, up_to=one.free_up_to, most=most)
        if step:
            return step
    return 0


def _measured(streams: RetainedStreams, one: Trimmed, trimmed: int) -> Trimmed:
    if not trimmed:
        return one
    return replace(
        one,
        trimmed=one.trimmed + trimmed,
        length=streams.length(one.stream),
        memory_bytes=streams.memory_bytes(one.stream),
    )
