"""The stream's side of the contract: keys, shards, and the bytes of an entry's `data` field."""

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from producers import _fields as rules
from producers._events import InvalidEvent, Reason, UsageEvent, parse
from producers._json import (
    NotJSON,
    RepeatedKeys,
    expect_end,
    read_elements,
    read_text,
    read_value,
    skip_blank,
)

FIELD: Final = b"data"
MAX_EVENT_BYTES: Final = 256 * 1024
MAX_FRAME_EVENTS: Final = 500
MAX_FRAME_BYTES: Final = 1024 * 1024

_BLANKS: Final = b" \t\n\r"
to_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""Writes JSON as it stands on the wire: no blanks, and characters as themselves."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """One event of an entry as it was judged: `event` if it is good, `reason` and `detail` if it is not.

    `index` is its place in the frame, 0 for a single event, -1 where the entry as a whole was refused. `raw`
    has its bytes as received. The ids of a refused event are best effort: they help to find it.
    """

    index: int
    raw: bytes
    event: UsageEvent | None = None
    reason: Reason | None = None
    detail: str | None = None
    event_id: UUID | None = None
    user_id: UUID | None = None
    clerk_id: str | None = None


def stream_key(stream: str, shard: int) -> str:
    """This function will return the key of one shard's events, as in `usage:events:{0}`."""
    return f"{stream}:{{{shard}}}"


def correction_key(stream: str, shard: int) -> str:
    """This function will return the key of one shard's corrections, as in `usage:corrections:{0}`.

    The last part of the stream's name is replaced, so that `acme:events` has `acme:corrections` beside it.
    """
    prefix, separator, _ = stream.rpartition(":")
    return f"{prefix}{separator}corrections:{{{shard}}}"


def shard_of(user_text: str, shards: int) -> int:
    """This function will return the shard of a user: CRC-32 of the id's text on the wire, modulo `shards`."""
    return zlib.crc32(user_text.encode()) % shards


def encode(event: UsageEvent) -> bytes:
    """This function will return the event's JSON; raises InvalidEvent where it is longer than 256 KiB."""
    data = to_json(event.wire()).encode()
    if len(data) > MAX_EVENT_BYTES:
        raise InvalidEvent("event_too_large", "event", f"{len(data)} bytes, at most {MAX_EVENT_BYTES} fit")
    return data


def encode_frame(events: Iterable[UsageEvent]) -> bytes:
    """This function will return one frame of at most 500 events and 1 MiB, or raise InvalidEvent."""
    frames = list(pack([encode(event) for event in events]))
    if not frames:
        raise InvalidEvent("empty_frame", "frame", "a frame has at least one event")
    if len(frames) > 1:
        raise InvalidEvent(
            "frame_too_large", "frame", f"at most {MAX_FRAME_EVENTS} events and {MAX_FRAME_BYTES} bytes fit"
        )
    return frames[0][0]


def pack(payloads: Sequence[bytes]) -> Iterator[tuple[bytes, int]]:
    """This function will join encoded events, in order, to (frame, event count) within the limits."""
    # Two brackets, and a comma behind each event but the last.
    start, size = 0, 2
    for position, payload in enumerate(payloads):
        full = position - start == MAX_FRAME_EVENTS or size + len(payload) > MAX_FRAME_BYTES
        if full and position > start:
            yield _frame(payloads[start:position]), position - start
            start, size = position, 2
        size += len(payload) + 1
    if start < len(payloads):
        yield _frame(payloads[start:]), len(payloads) - start


def _frame(payloads: Sequence[bytes]) -> bytes:
    return b"[" + b",".join(payloads) + b"]"


def decode(data: bytes, *, correction: bool = False) -> list[Decoded]:
    """This function will judge the `data` of an entry, event by event; `correction` tells its stream.

    It never raises, whatever the bytes are, and always returns at least one Decoded.
    """
    single = data[:64].lstrip(_BLANKS)[:1] != b"["
    if len(data) > MAX_FRAME_BYTES:
        reason: Reason = "event_too_large" if single else "frame_too_large"
        return [_refused(-1, data, reason, f"{len(data)} bytes")]
    try:
        text = read_text(data)
        start = skip_blank(text, 0)
        if not text.startswith("[", start):
            value, end = read_value(text, start)
            expect_end(text, end)
            return [_judge(0, data, value, correction)]
        decoded: list[Decoded] = []
        # Positions in text are positions in bytes as long as every character is one byte.
        plain = len(text) == len(data)
        for index, (value, begin, end) in enumerate(read_elements(text, start)):
            if index == MAX_FRAME_EVENTS:
                return [_refused(-1, data, "too_many_events", f"more than {MAX_FRAME_EVENTS} events")]
            raw = data[begin:end] if plain else text[begin:end].encode()
            decoded.append(_judge(index, raw, value, correction))
    except NotJSON as error:
        return [_refused(-1, data, "not_json", str(error))]
    return decoded or [_refused(-1, data, "empty_frame", "an array without events")]


def _refused(index: int, raw: bytes, reason: Reason, detail: str) -> Decoded:
    return Decoded(index=index, raw=raw, reason=reason, detail=detail)


def _judge(index: int, raw: bytes, value: object, correction: bool) -> Decoded:
    if not isinstance(value, dict):
        return _refused(index, raw, "not_an_object", "an event is a JSON object")
    try:
        if len(raw) > MAX_EVENT_BYTES:
            raise InvalidEvent("event_too_large", "event", f"{len(raw)} bytes, at most {MAX_EVENT_BYTES} fit")
        if isinstance(value, RepeatedKeys):
            raise InvalidEvent("duplicate_key", "event", "a key stands more than once")
        event = parse(value, correction=correction)
    except InvalidEvent as error:
        return Decoded(
            index=index,
            raw=raw,
            reason=error.reason,
            detail=f"{error.field}: {error.detail}",
            event_id=_uuid_hint(value.get("event_id")),
            user_id=_uuid_hint(value.get("user_id")),
            clerk_id=_clerk_hint(value.get("clerk_id")),
        )
    return Decoded(
        index=index,
        raw=raw,
        event=event,
        event_id=event.event_id,
        user_id=event.user_id,
        clerk_id=event.clerk_id,
    )


def _uuid_hint(value: object) -> UUID | None:
    try:
        return rules.uuid_value(value, "", "invalid_field")
    except InvalidEvent:
        return None


def _clerk_hint(value: object) -> str | None:
    try:
        return rules.identifier_value(value, "", "invalid_field", longest=255)
    except InvalidEvent:
        return None
