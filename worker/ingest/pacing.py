"""How much to read at once. Nothing here touches a server."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

MOST_AT_ONCE: Final = 512


def extent(entries: Iterable[tuple[bytes, Sequence[bytes]]]) -> tuple[int, int]:
    """This function will return about how many events entries hold, and how many bytes, without decoding."""
    events = size = 0
    for _, fields in entries:
        for value in fields:
            size += len(value)
            events += value.count(b'"event_id"')
    return events, size


@dataclass(slots=True)
class Pace:
    """How many entries to ask for next, from what the last ones held.

    A read has no limit in bytes, so the first one is small and each asks for at most twice the one before.
    What a read can hold at worst, when the largest frames follow on small events, is MOST_AT_ONCE mebibytes.
    """

    batch_size: int
    batch_bytes: int
    at_once: int = 16
    events_per_entry: float = 1.0
    bytes_per_entry: float = 0.0

    def wanted(self, *, events: int = 0, size: int = 0) -> int:
        """This function will return COUNT for the next read into a batch that holds so much; 0: full."""
        room, room_bytes = self.batch_size - events, self.batch_bytes - size
        if room <= 0 or room_bytes <= 0:
            return 0
        fitting = math.ceil(room / self.events_per_entry)
        if self.bytes_per_entry:
            fitting = min(fitting, math.ceil(room_bytes / self.bytes_per_entry))
        return max(1, min(self.at_once, fitting))

    def learn(self, *, entries: int, events: int, size: int) -> None:
        """This function will adapt to what a read brought."""
        if entries:
            self.events_per_entry = max(events / entries, 0.1)
            self.bytes_per_entry = size / entries
            self.at_once = min(self.at_once * 2, MOST_AT_ONCE)
