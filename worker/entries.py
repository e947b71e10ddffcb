"""What a stream is made of: entries with ordered ids, and a group that remembers how far it was read."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from worker.errors import TransientError

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class GroupMissing(TransientError):
    """The consumer group is gone (FLUSHALL, a deleted key, an old snapshot): create it again at 0."""


RawEntry = tuple[bytes, Sequence[bytes]]
"""One stream entry as the parser left it: its id, and names and values in the order they were added."""


class EntryId(NamedTuple):
    """The id of a stream entry, ordered as the server orders them."""

    milliseconds: int
    sequence: int

    @classmethod
    def parse(cls, text: bytes | str) -> EntryId:
        """This function will read `123-4`, the server's own spelling."""
        milliseconds, _, sequence = (text.decode() if isinstance(text, bytes) else text).partition("-")
        return cls(int(milliseconds), int(sequence or 0))

    def __str__(self) -> str:
        return f"{self.milliseconds}-{self.sequence}"

    def before(self) -> EntryId:
        """This function will return the highest id below this one; that of 0-0 is itself."""
        if self.sequence:
            return EntryId(self.milliseconds, self.sequence - 1)
        return EntryId(self.milliseconds - 1, 2**64 - 1) if self.milliseconds else self

    def received_at(self, *, now: datetime) -> datetime:
        """This function will return when the server took the entry; `now` for an id that is no time.

        A producer may choose an entry's id itself, up to a number that no calendar holds.
        """
        try:
            return _EPOCH + timedelta(milliseconds=self.milliseconds)
        except OverflowError:
            return now


class Adopted(NamedTuple):
    """What a group held pending: the ids in order, and those whose entry is gone from the stream."""

    entry_ids: list[str]
    deleted: list[str]


class GroupState(NamedTuple):
    """Where a group stands on one stream; `entries_read` is None where the server lost count."""

    last_delivered: EntryId
    entries_read: int | None
    pending: int
