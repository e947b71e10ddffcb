"""The numbers that emitters gave their events, as they stand in an entry, whatever else is wrong with it."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from producers import _fields as fields
from producers._events import MAX_SEQ, InvalidEvent

HIGHEST: Final = MAX_SEQ - 1
"""Of a range of numbers PostgreSQL keeps the one behind it."""
# A frame that is too large is put aside as a whole; beyond this it is not even looked at.
_MOST_BYTES: Final = 16 * 1024 * 1024
_LONGEST_NAME: Final = 128
_UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError)


class _Event(msgspec.Struct):
    """What is read of an event here; whether the rest of it is any good does not matter."""

    producer_id: Any = None
    seq: Any = None


_read = msgspec.json.Decoder(_Event).decode
_read_frame = msgspec.json.Decoder(list[_Event]).decode
_read_parts = msgspec.json.Decoder(list[msgspec.Raw]).decode


def numbers_in(data: bytes) -> list[tuple[str, int]]:
    """This function will return (producer_id, seq) of the events in one `data` field that can be read.

    An event may be refused for anything else: its number did arrive.
    """
    if len(data) > _MOST_BYTES:
        return []
    found = []
    for event in _events(data):
        try:
            name = fields.identifier_value(
                event.producer_id, "producer_id", "invalid_field", longest=_LONGEST_NAME
            )
            number = fields.integer_value(event.seq, "seq", "invalid_field", low=1, high=HIGHEST)
        except InvalidEvent:
            continue
        found.append((name, number))
    return found


def _events(data: bytes) -> list[_Event]:
    try:
        return _read_frame(data) if data.lstrip()[:1] == b"[" else [_read(data)]
    except _UNREADABLE:
        pass
    try:
        parts = _read_parts(data)
    except _UNREADABLE:
        return []
    readable = []
    for part in parts:
        try:
            readable.append(_read(part))
        except _UNREADABLE:
            continue
    return readable
