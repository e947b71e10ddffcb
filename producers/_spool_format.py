"""The bytes of a spool's segment: a header, then records that can be told whole, torn or spoilt.

    header   magic "USAGESPL" | version u32 | CRC-32 of both
    record   mark FF FE 55 45 | length u32 | CRC-32 of length and payload | payload
    payload  flags u8 (1: a correction) | length of the user's id u16 | the user's id | the event's JSON

Numbers are little-endian. No byte FF or FE stands in UTF-8, so that the next whole record is found again
behind any damage. The shard is computed when the event is sent: their number may have changed by then.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from producers._routes import Addressed
from producers._stream import MAX_EVENT_BYTES

VERSION: Final = 1
_MAGIC: Final = b"USAGESPL"
_MARK: Final = b"\xff\xfeUE"
_HEADER: Final = struct.Struct("<8sII")
_RECORD: Final = struct.Struct("<4sII")
_PAYLOAD: Final = struct.Struct("<BH")
_LENGTH: Final = struct.Struct("<I")
_POSITION: Final = struct.Struct("<QI")
_CORRECTION: Final = 1
_LONGEST: Final = _PAYLOAD.size + 65_535 + MAX_EVENT_BYTES

HEADER_BYTES: Final = _HEADER.size


class Kept(NamedTuple):
    """An event as the spool has it: what is needed to send it, and nothing was decoded."""

    data: bytes
    user_text: str
    is_correction: bool


class Piece(NamedTuple):
    """A stretch of a segment, from `begin` to before `end`: one event, or bytes that are none."""

    begin: int
    end: int
    event: Kept | None


def header() -> bytes:
    """This function will return the beginning of a segment."""
    head = _MAGIC + _LENGTH.pack(VERSION)
    return head + _LENGTH.pack(zlib.crc32(head))


def version_of(data: bytes) -> int | None:
    """This function will return the version that a whole header states, or None where there is none."""
    if len(data) < _HEADER.size:
        return None
    magic, version, checksum = _HEADER.unpack_from(data)
    if magic != _MAGIC or checksum != zlib.crc32(data[: _HEADER.size - _LENGTH.size]):
        return None
    return int(version)


def record(event: Addressed) -> bytes:
    """This function will return the record of one event."""
    user = event.user_text.encode()
    payload = _PAYLOAD.pack(_CORRECTION if event.is_correction else 0, len(user)) + user + event.data
    length = _LENGTH.pack(len(payload))
    return _RECORD.pack(_MARK, len(payload), zlib.crc32(payload, zlib.crc32(length))) + payload


def pieces(data: bytes, start: int = 0) -> Iterator[Piece]:
    """This function will cut `data` from `start`, where a record should begin, into events and what is none.

    What is no event ends where the next whole record begins, or with the data. Nothing is left out.
    """
    position = start
    while position < len(data):
        found = _event_at(data, position)
        if found is None:
            following = position
            while found is None:
                following = data.find(_MARK, following + 1)
                if following < 0:
                    yield Piece(position, len(data), None)
                    return
                found = _event_at(data, following)
            yield Piece(position, following, None)
            position = following
        event, end = found
        yield Piece(position, end, event)
        position = end


def is_torn(data: bytes) -> bool:
    """This function will tell whether `data` is the beginning of a record or of a header, and not its end.

    So the last bytes look after a power cut in the middle of a write, whose `emit` never returned.
    """
    if header().startswith(data):
        return True
    if len(data) < _RECORD.size:
        return _MARK.startswith(data[: len(_MARK)])
    mark, length, _ = _RECORD.unpack_from(data)
    return bool(mark == _MARK and length <= _LONGEST and len(data) < _RECORD.size + length)


def position_record(position: int) -> bytes:
    """This function will return the content of a .pos file: how much of a segment was acknowledged."""
    number = _POSITION.pack(position, 0)[:8]
    return number + _LENGTH.pack(zlib.crc32(number))


def position_of(content: bytes) -> int:
    """This function will read a .pos file; what cannot be read is 0: sending again does no harm."""
    if len(content) != _POSITION.size:
        return 0
    position, checksum = _POSITION.unpack(content)
    return int(position) if checksum == zlib.crc32(content[:8]) else 0


def _event_at(data: bytes, position: int) -> tuple[Kept, int] | None:
    begin = position + _RECORD.size
    if begin > len(data):
        return None
    mark, length, checksum = _RECORD.unpack_from(data, position)
    end = begin + length
    if mark != _MARK or length > _LONGEST or end > len(data):
        return None
    payload = data[begin:end]
    if zlib.crc32(payload, zlib.crc32(data[position + 4 : position + 8])) != checksum:
        return None
    flags, user_length = _PAYLOAD.unpack_from(payload)
    body = _PAYLOAD.size + user_length
    user = payload[_PAYLOAD.size : body].decode()
    return Kept(payload[body:], user, bool(flags & _CORRECTION)), end
