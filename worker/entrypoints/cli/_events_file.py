"""Events from lines of JSON: each line judged alone, ids and times filled in where they are absent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO

from producers import InvalidEvent, UsageEvent
from producers import _events as events
from producers import _ids as ids
from producers import _json as json
from producers import _stream as stream

# Longer lines are read on in pieces and refused: a file without line ends must not fill the memory.
_LONGEST = stream.MAX_EVENT_BYTES + 1024


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the file: the event in it, or the reason why there is none."""

    number: int
    size_bytes: int
    event: UsageEvent | None = None
    reason: str | None = None
    detail: str | None = None


def read_lines(source: BinaryIO, *, now: datetime) -> Iterator[Line]:
    """This function will yield each line that is not blank, numbered from 1, whatever is in it."""
    number = 0
    while line := source.readline(_LONGEST):
        number += 1
        size = len(line)
        while not line.endswith(b"\n") and (rest := source.readline(_LONGEST)):
            size += len(rest)
            if rest.endswith(b"\n"):
                break
        if size > _LONGEST:
            yield Line(number, size, reason="event_too_large", detail=f"{size} bytes")
        elif line.strip():
            yield _read(number, line, now)


def _read(number: int, line: bytes, now: datetime) -> Line:
    try:
        text = json.read_text(line)
        value, end = json.read_value(text, json.skip_blank(text, 0))
        json.expect_end(text, end)
    except json.NotJSON as error:
        return Line(number, len(line), reason="not_json", detail=str(error))
    if not isinstance(value, dict):
        return Line(number, len(line), reason="not_an_object", detail="a line holds one JSON object")
    if isinstance(value, json.RepeatedKeys):
        return Line(number, len(line), reason="duplicate_key", detail="a key stands more than once")
    try:
        return Line(number, len(line), event=_event(value, now))
    except InvalidEvent as error:
        return Line(number, len(line), reason=error.reason, detail=f"{error.field}: {error.detail}")


def _event(fields: dict[str, object], now: datetime) -> UsageEvent:
    key = fields.pop("idempotency_key", None)
    if key is not None and (not isinstance(key, str) or not key or fields.get("event_id") is not None):
        raise InvalidEvent(
            "invalid_event_id", "idempotency_key", "expected a string, and no event_id beside it"
        )
    if fields.get("event_id") is None:
        fields["event_id"] = ids.new_event_id()
    if fields.get("occurred_at") is None:
        fields["occurred_at"] = now
    event = events.build(fields)
    if key is not None:
        event = event.model_copy(update={"event_id": ids.keyed_event_id(event.user_text, str(key))})
    # Refuses here what is too long, alone; in a batch it would stop its neighbours.
    stream.encode(event)
    return event
