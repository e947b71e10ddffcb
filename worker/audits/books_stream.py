"""What the books ask the stream's server: figures of both streams of a shard, and entries to read again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import redis

from worker import valkey
from worker.entries import EntryId, RawEntry
from worker.valkey import Client

# A frame has up to a megabyte.
PAGE: Final = 200


@dataclass(frozen=True, slots=True)
class StreamState:
    """One stream at one moment: entries ever added, those above a position, and its ends.

    `first_id` is the oldest entry that is still there, `deleted_id` the highest that XDEL ever took out.
    """

    key: str
    added: int
    above: int
    last_id: EntryId
    first_id: EntryId | None
    deleted_id: EntryId

    @property
    def passed(self) -> int:
        """The entries that the stream ever had at or below the position."""
        return self.added - self.above


class BookStreams:
    """The streams of every shard, as the books read them; nothing here changes them.

    `keys` gives the key of a shard's events and that of its corrections. A command that fails raises one of
    our own kinds (worker.valkey).
    """

    def __init__(self, client: Client, *, keys: Callable[[int], tuple[str, str]]) -> None:
        self._client = client
        self.keys = keys

    def states(self, shard: int, *, events_at: EntryId, corrections_at: EntryId) -> tuple[StreamState, ...]:
        """This function will return the state of a shard's events and of its corrections, in this order."""
        events, corrections = self.keys(shard)
        return self._state(events, events_at), self._state(corrections, corrections_at)

    def _state(self, key: str, position: EntryId) -> StreamState:
        info = self._info(key)
        first, last_id = info.get("first-entry"), EntryId.parse(info.get("last-generated-id", b"0-0"))
        return StreamState(
            key=key,
            added=int(info.get("entries-added", 0)),
            # Up to the end of that moment: what has come since is in neither figure.
            above=self.retained(key, above=position, up_to=last_id) if last_id > position else 0,
            last_id=last_id,
            first_id=EntryId.parse(first[0]) if first else None,
            deleted_id=EntryId.parse(info.get("max-deleted-entry-id", b"0-0")),
        )

    def entries(self, key: str, *, above: EntryId, up_to: EntryId) -> Iterator[list[RawEntry]]:
        """This function will yield the entries of (above, up_to] that are still there, page by page."""
        start = above
        while True:
            page = self._range(key, above=start, up_to=up_to)
            if page:
                yield page
            if len(page) < PAGE:
                return
            start = EntryId.parse(page[-1][0])

    def retained(self, key: str, *, above: EntryId, up_to: EntryId) -> int:
        """This function will count the entries of (above, up_to] that are still there."""
        return sum(len(page) for page in self.entries(key, above=above, up_to=up_to))

    def _info(self, key: str) -> dict[str, Any]:
        try:
            return dict(self._client.xinfo_stream(key))
        except redis.ResponseError as error:
            if "no such key" in str(error):
                return {}
            raise valkey.translate(error) from error
        except redis.RedisError as error:
            raise valkey.translate(error) from error

    def _range(self, key: str, *, above: EntryId, up_to: EntryId) -> list[RawEntry]:
        try:
            # As the server sent it: a dict would lose the first of two fields of one name. Each time, for a
            # node that joined a cluster has a connection of its own.
            for node in valkey.nodes(self._client):
                node.set_response_callback("XRANGE", _raw)
            reply: list[RawEntry] = self._client.execute_command(  # type: ignore[no-untyped-call]  # redis-py: untyped
                "XRANGE", key, f"({above}", str(up_to), "COUNT", PAGE
            )
        except redis.RedisError as error:
            raise valkey.translate(error) from error
        return reply


def _raw(reply: Any, **_options: Any) -> Any:
    return reply
