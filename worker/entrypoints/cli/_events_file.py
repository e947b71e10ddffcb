"""Events from lines of JSON: each line judged alone, ids and times filled in where they are absent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID, uuid5

from producers import InvalidEvent, UsageEvent
from producers import _events as events
from producers import _ids as ids
from producers import _json as json
from producers import _stream as stream

# Longer lines are read on in pieces and refused: a file without line ends must not fill the memory.
_LONGEST = stream.MAX_EVENT_BYTES + 1024


class Source(Protocol):
    """A file, a pipe, or what counts and hashes its bytes on the way."""

    def readline(self, limit: int = -1, /) -> bytes:
        """Returns one line with its end, at most `limit` bytes of it, or b'' at the end."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the file, or one record of an export: an event, or the reason why there is none.

    With neither it only says how many bytes have been read.
    """

    number: int
    size_bytes: int
    event: UsageEvent | None = None
    reason: str | None = None
    detail: str | None = None
    skipped: str | None = None
    """Why a record is left out that is nothing wrong: it stands for no usage, or not for good yet."""
    complete: bool = True
    """Whether its line has an end; one without may still be growing."""


def read_lines(
    source: Source, *, now: datetime, run_id: UUID | None = None, start: int = 0, number: int = 0
) -> Iterator[Line]:
    """This function will yield each line that is not blank, numbered from 1, whatever is in it.

    With `run_id`, an event without an id gets the one that belongs to its line's place in the file, which
    begins `start` bytes and `number` lines before the first one read here.
    """
    offset = start
    while line := source.readline(_LONGEST):
        number += 1
        size = len(line)
        complete = line.endswith(b"\n")
        while not complete and (rest := source.readline(_LONGEST)):
            size += len(rest)
            complete = rest.endswith(b"\n")
        if size > _LONGEST:
            yield Line(number, size, reason="event_too_large", detail=f"{size} bytes", complete=complete)
        elif line.strip():
            place = None if run_id is None else uuid5(run_id, str(offset))
            yield _read(number, line, now, place)
        offset += size


def make_event(fields: dict[str, object]) -> UsageEvent:
    """This function will make an event of `fields`, among them `occurred_at`, and `event_id` or a key.

    Raises InvalidEvent, also for what is too long to be sent: in a batch it would stop its neighbours.
    """
    key = fields.pop("idempotency_key", None)
    if key is not None and (not isinstance(key, str) or not key or fields.get("event_id") is not None):
        raise InvalidEvent(
            "invalid_event_id", "idempotency_key", "expected a string, and no event_id beside it"
        )
    if fields.get("event_id") is None:
        fields["event_id"] = ids.new_event_id()
    event = events.build(fields)
    if key is not None:
        try:
            event = event.model_copy(update={"event_id": ids.keyed_event_id(event.user_text, str(key))})
        except UnicodeEncodeError:
            raise InvalidEvent(
                "invalid_event_id", "idempotency_key", "expected text that UTF-8 can hold"
            ) from None
    stream.encode(event)
    return event


def _read(number: int, line: bytes, now: datetime, place: UUID | None) -> Line:
    complete = line.endswith(b"\n")

    def refused(reason: str, detail: str) -> Line:
        return Line(number, len(line), reason=reason, detail=detail, complete=complete)

    try:
        text = json.read_text(line)
        value, end = json.read_value(text, json.skip_blank(text, 0))
        json.expect_end(text, end)
    except json.NotJSON as error:
        return refused("not_json", str(error))
    if not isinstance(value, dict):
        return refused("not_an_object", "a line holds one JSON object")
    if isinstance(value, json.RepeatedKeys):
        return refused("duplicate_key", "a key stands more than once")
    if place is not None and value.get("idempotency_key") is None and value.get("event_id") is None:
        value["event_id"] = place
    if value.get("occurred_at") is None:
        value["occurred_at"] = now
    try:
        return Line(number, len(line), event=make_event(value), complete=complete)
    except InvalidEvent as error:
        return refused(error.reason, f"{error.field}: {error.detail}")
