"""A stream server in memory: entries with ordered ids, one group, and a replica that lags behind."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from worker.entries import Adopted, EntryId, GroupMissing, GroupState, RawEntry

ZERO: Final = EntryId(0, 0)
# The content of an event that can only be refused.
BAD: Final = -1
PRIMARIES: Final = 1000


class Event(NamedTuple):
    """Content stands for user, tokens and cost: another one under a known id is a conflict."""

    event_id: int
    content: int


class Fields(list[bytes]):
    """What the server keeps of an entry; the simulation finds the entry by it."""

    __slots__ = ("entry",)
    entry: Entry


class Entry:
    """One entry as it was added, whatever became of it."""

    __slots__ = ("deaths", "entry_id", "events", "excused", "is_poison", "key", "raw", "seq")

    def __init__(
        self, key: str, entry_id: EntryId, events: tuple[Event, ...], *, is_poison: bool, seq: int
    ) -> None:
        fields = Fields([b"data", b'"event_id"' * len(events)])
        fields.entry = self
        self.key = key
        self.entry_id = entry_id
        self.raw: RawEntry = (str(entry_id).encode(), fields)
        self.events = events
        self.is_poison = is_poison
        self.seq = seq
        # Why its events need no outcome any more: the environment took it before anybody processed it.
        self.excused = ""
        self.deaths = 0


def entry_of(raw: RawEntry) -> Entry:
    """This function will return the entry that a raw one was made of."""
    fields = raw[1]
    if not isinstance(fields, Fields):
        raise TypeError
    return fields.entry


@dataclass(slots=True)
class Group:
    """What the server knows of the group; `pending` has the consumer by the entry's id."""

    last_delivered: EntryId
    entries_read: int | None
    pending: dict[EntryId, str] = field(default_factory=dict)

    def state(self) -> GroupState:
        return GroupState(self.last_delivered, self.entries_read, len(self.pending))


@dataclass(slots=True)
class Stream:
    """One key. Without a group and without entries ever added it does not exist."""

    ids: list[EntryId] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    last_id: EntryId = ZERO
    added: int = 0
    group: Group | None = None

    def copied(self) -> Stream:
        group = copy(self.group)
        if group is not None:
            group.pending = dict(group.pending)
        return Stream(list(self.ids), list(self.entries), self.last_id, self.added, group)

    def next_id(self, milliseconds: int, generation: int) -> EntryId:
        """This function will make the id of an entry added now; ids rise even when the clock does not.

        Two primaries never give the same id: that would take the same millisecond and the same sequence.
        """
        mine = generation % PRIMARIES
        if milliseconds > self.last_id.milliseconds:
            return EntryId(milliseconds, mine)
        following = self.last_id.sequence + 1
        return EntryId(self.last_id.milliseconds, following + (mine - following) % PRIMARIES)

    def add(self, entry: Entry) -> None:
        self.ids.append(entry.entry_id)
        self.entries.append(entry)
        self.last_id = entry.entry_id
        self.added += 1

    def between(self, low: EntryId, high: EntryId) -> list[Entry]:
        """This function will return the entries with low < id <= high."""
        return self.entries[bisect_right(self.ids, low) : bisect_right(self.ids, high)]

    def above(self, low: EntryId, count: int) -> list[Entry]:
        start = bisect_right(self.ids, low)
        return self.entries[start : start + count]

    def holds(self, entry_id: EntryId) -> bool:
        at = bisect_left(self.ids, entry_id)
        return at < len(self.ids) and self.ids[at] == entry_id

    def drop(self, entry: Entry) -> None:
        at = bisect_left(self.ids, entry.entry_id)
        del self.ids[at], self.entries[at]

    def trim(self, below: EntryId) -> list[Entry]:
        at = bisect_left(self.ids, below)
        gone = self.entries[:at]
        del self.ids[:at], self.entries[:at]
        return gone


class Server:
    """Both streams of a shard, as one primary with one replica."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = tuple(keys)
        self.streams = {key: Stream() for key in keys}
        self._replica = self.copied()
        # Grows when the server forgot something: a failover, FLUSHALL.
        self.generation = 0

    def copied(self) -> dict[str, Stream]:
        return {key: stream.copied() for key, stream in self.streams.items()}

    def replicate(self) -> None:
        """The replica catches up."""
        self._replica = self.copied()

    def fail_over(self) -> None:
        """The replica takes over: what it had not seen is lost, the group goes back with its stream."""
        self.streams = self._replica
        self._replica = self.copied()
        self.generation += 1

    def flush(self) -> None:
        self.streams = {key: Stream() for key in self.keys}
        self._replica = self.copied()
        self.generation += 1

    def group(self, key: str) -> Group:
        group = self.streams[key].group
        if group is None:
            raise GroupMissing
        return group

    def create_groups(self) -> None:
        for stream in self.streams.values():
            if stream.group is None:
                stream.group = Group(ZERO, stream.added - len(stream.entries))

    def states(self) -> dict[str, GroupState]:
        return {key: self.group(key).state() for key in self.keys}

    def read(self, cursors: Mapping[str, str], count: int) -> dict[str, list[RawEntry]]:
        """XREAD: nothing is remembered about who read."""
        answer = {}
        for key, cursor in cursors.items():
            some = self.streams[key].above(EntryId.parse(cursor), count)
            if some:
                answer[key] = [entry.raw for entry in some]
        return answer

    def advance(
        self, key: str, entry_id: EntryId, entries_read: int | None, expected: EntryId
    ) -> GroupState | None:
        """XINFO GROUPS and XGROUP SETID, unless the stream went back in time."""
        group = self.group(key)
        before = group.state()
        if before.last_delivered < expected or not self.streams[key].holds(entry_id):
            return None
        group.last_delivered, group.entries_read = entry_id, entries_read
        return before

    def adopt(self, key: str) -> Adopted:
        """XAUTOCLAIM: entries that are gone leave the pending list and are named."""
        group, stream = self.group(key), self.streams[key]
        kept, gone = list[str](), list[str]()
        for entry_id in sorted(group.pending):
            if stream.holds(entry_id):
                group.pending[entry_id] = "drain"
                kept.append(str(entry_id))
            else:
                del group.pending[entry_id]
                gone.append(str(entry_id))
        return Adopted(kept, gone)

    def acknowledge(self, key: str, entry_ids: Sequence[str]) -> int:
        group = self.group(key)
        return sum(group.pending.pop(EntryId.parse(one), None) is not None for one in entry_ids)

    def read_as_stranger(self, key: str, count: int) -> int:
        """XREADGROUP by somebody who never acknowledges."""
        group = self.streams[key].group
        if group is None:
            return 0
        some = self.streams[key].above(group.last_delivered, count)
        for entry in some:
            group.pending[entry.entry_id] = "stranger"
            group.last_delivered = entry.entry_id
        if some and group.entries_read is not None:
            group.entries_read += len(some)
        return len(some)
