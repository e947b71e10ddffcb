"""What the streams still hold of what was processed: read again by a recovery, trimmed by the retention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import redis

from worker import valkey
from worker.entries import EntryId, GroupMissing, GroupState, RawEntry
from worker.ingest.effects import BATCH_BYTES
from worker.ingest.pacing import Pace, extent
from worker.valkey import Client, StreamReader

# A stream is a tree of nodes with up to a hundred entries each: enough of them for a good guess at its size.
_MEMORY_SAMPLES: Final = 50
_LARGEST_SEQUENCE: Final = 2**64 - 1


class RetainedStreams:
    """The streams as operators look after them. Every failure comes out as one of our own kinds."""

    def __init__(self, client: Client, *, group: str) -> None:
        self._client = client
        # It names no consumer: nothing is read through the group here.
        self._reader = StreamReader(client, group=group, consumer="")

    def group(self, key: str) -> GroupState | None:
        """This function will say where the group stands, None where stream or group do not exist."""
        try:
            return self._reader.states([key])[key]
        except GroupMissing:
            return None

    def lowest_pending(self, key: str) -> EntryId | None:
        """This function will return the lowest id that somebody was given and has not acknowledged."""
        lowest = self._reader.pending(key).lowest_id
        return None if lowest is None else EntryId.parse(lowest)

    def memory_bytes(self, key: str) -> int:
        """This function will estimate the memory of a stream; 0 for one that does not exist."""
        return int(self._execute("MEMORY", "USAGE", key, "SAMPLES", _MEMORY_SAMPLES) or 0)

    def length(self, key: str) -> int:
        """This function will count the entries of a stream."""
        return int(self._execute("XLEN", key))

    def trim(self, key: str, *, up_to: EntryId, most: int | None) -> int:
        """This function will delete entries at or below `up_to`, and return how many.

        With `most` at most so many of the oldest, and only nodes that lie wholly below; with None all of
        them, which is quick where nothing but part of one node is left.
        """
        # MINID keeps the id it names.
        keep_from = str(_after(up_to))
        if most is None:
            return int(self._execute("XTRIM", key, "MINID", "=", keep_from))
        return int(self._execute("XTRIM", key, "MINID", "~", keep_from, "LIMIT", most))

    def first_id(self, key: str) -> EntryId | None:
        """This function will return the oldest entry's id, None for a stream without entries."""
        first = self._info(key).get("first-entry")
        return EntryId.parse(first[0]) if first else None

    def may_lack(self, key: str, *, since: EntryId) -> bool:
        """This function will say whether entries from `since` on may have been deleted before the oldest one.

        The server knows how many it had, not which: so entries that are gone may be older than `since`.
        """
        info = self._info(key)
        if int(info.get("entries-added", 0)) == int(info.get("length", 0)):
            return False
        first = info.get("first-entry")
        has_older = first is not None and EntryId.parse(first[0]) <= since
        return not has_older and EntryId.parse(info["last-generated-id"]) >= since

    def entries(
        self, key: str, *, since: EntryId, up_to: EntryId, batch_size: int, batch_bytes: int = BATCH_BYTES
    ) -> Iterator[list[RawEntry]]:
        """This function will yield the entries of [since, up_to] in order, in batches bounded both ways.

        `batch_size` is in events, as Pace counts them, and a batch of none is never yielded.
        """
        pace = Pace(batch_size=batch_size, batch_bytes=batch_bytes)
        start = str(since)
        while True:
            count = pace.wanted()
            page: list[RawEntry] = self._execute("XRANGE", key, start, str(up_to), "COUNT", count)
            if page:
                yield page
            if len(page) < count:
                return
            start = f"({page[-1][0].decode()}"
            events, size = extent(page)
            pace.learn(entries=len(page), events=events, size=size)

    def _info(self, key: str) -> dict[str, Any]:
        try:
            return dict(self._client.xinfo_stream(key))
        except redis.ResponseError as error:
            if "no such key" in str(error):
                return {}
            raise valkey.translate(error) from error
        except redis.RedisError as error:
            raise valkey.translate(error) from error

    def _execute(self, *args: Any) -> Any:
        try:
            return self._client.execute_command(*args)  # type: ignore[no-untyped-call]  # redis-py: untyped
        except redis.RedisError as error:
            raise valkey.translate(error) from error


def _after(entry_id: EntryId) -> EntryId:
    if entry_id.sequence == _LARGEST_SEQUENCE:
        return EntryId(entry_id.milliseconds + 1, 0)
    return EntryId(entry_id.milliseconds, entry_id.sequence + 1)
