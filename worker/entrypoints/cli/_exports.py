"""Events from usage exports of OpenAI, Anthropic and LiteLLM: the same record is the same event each time.

An export is a JSON document, several of them, or JSON lines. The id of an event follows from what the record
is about (a response, or a bucket with its dimensions) and never from its amounts: a record that comes again
is a duplicate, and one that comes again with other amounts is put aside as a conflict instead of counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import NAMESPACE_DNS, UUID, uuid5

from producers import InvalidEvent
from worker.entrypoints.cli import _exports_anthropic, _exports_litellm, _exports_openai
from worker.entrypoints.cli._events_file import Line, Source, make_event
from worker.entrypoints.cli._exports_records import Record, Unreadable

FORMATS: Final[Mapping[str, Callable[[Any, datetime], Iterator[Record]]]] = {
    "anthropic": _exports_anthropic.records,
    "litellm": _exports_litellm.records,
    "openai": _exports_openai.records,
}
_BUCKETS: Final = uuid5(uuid5(NAMESPACE_DNS, "usage-worker"), "export")
# One document is read whole. Longer exports come as JSON lines.
_LONGEST: Final = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose usage a record is, and what it was used for."""

    feature: str
    users: Mapping[str, str]
    """From what an export calls its user (project, key, workspace, custom_id …) to a user's id."""
    everybody: str | None = None
    """The user of all records that name none of ours."""
    occurred_at: str | None = None
    """The time of records that have none."""
    source: str | None = None
    """The provider's account, where there are several: their buckets are not each other's."""

    def of(self, record: Record) -> dict[str, object] | None:
        """This function will return the user's field, None where nobody knows whose it is."""
        for name in record.users:
            if name and str(name) in self.users:
                return user_field(self.users[str(name)])
        if isinstance(record.own_user, str) and _is_uuid(record.own_user):
            return {"user_id": record.own_user}
        return None if self.everybody is None else user_field(self.everybody)


def user_field(user: str) -> dict[str, object]:
    """This function will tell a user's id from a clerk_id by its shape."""
    return {"user_id": user} if _is_uuid(user) else {"clerk_id": user}


def read_export(source: Source, *, format: str, owner: Owner, now: datetime) -> Iterator[Line]:
    """This function will yield an event, a refusal or a reason to skip for each record of an export."""
    seen: set[str] = set()
    for number, size, document in _documents(source):
        # The bytes are counted with the document's first line.
        yield Line(number, size)
        if isinstance(document, Unreadable):
            yield Line(number, 0, reason=document.reason, detail=document.detail)
            continue
        try:
            for record in FORMATS[format](document, now):
                yield _line(number, record, owner, now, seen)
        except Unreadable as error:
            yield Line(number, 0, reason=error.reason, detail=error.detail)


def _line(number: int, record: Record, owner: Owner, now: datetime, seen: set[str]) -> Line:
    def refused(reason: str, detail: str) -> Line:
        return Line(number, 0, reason=reason, detail=f"{record.place}: {detail}" if record.place else detail)

    if record.skipped is not None:
        return Line(number, 0, skipped=record.skipped)
    if record.problem is not None:
        return refused("unreadable_record", record.problem)
    user = owner.of(record)
    if user is None:
        names = ", ".join(str(name) for name in record.users if name) or "no name at all"
        return refused("unmapped_user", f"whose usage is it? Found {names}: give --user-map or --user")
    fields: dict[str, object] = {
        **user,
        "feature": owner.feature,
        "occurred_at": owner.occurred_at or now,
        **record.fields,
    }
    if record.is_bucket:
        if record.key in seen:
            return refused("ambiguous_record", "the same bucket and dimensions stood here before")
        seen.add(record.key)
        # Without the user: a bucket that is given to another one later is a conflict, not a second event.
        fields["event_id"] = uuid5(_BUCKETS, f"{owner.source or ''}|{record.key}")
    else:
        # As an emitter makes it of the response's id: what was tracked in the app counts once.
        fields["idempotency_key"] = record.key
    try:
        return Line(number, 0, event=make_event(fields))
    except InvalidEvent as error:
        return refused(error.reason, f"{error.field}: {error.detail}")


def _documents(source: Source) -> Iterator[tuple[int, int, Any]]:
    """Line number, size in bytes, and what the line holds; or all that the whole rest holds."""
    number, is_lines = 0, False
    while line := source.readline(_LONGEST):
        number += 1
        if not line.strip():
            continue
        found = _parsed(line)
        if is_lines or not isinstance(found[0], Unreadable):
            is_lines = True
            for document in found:
                yield number, len(line), document
            continue
        # No JSON line: documents that go over many lines. One byte more tells that they are too long.
        pieces, size = [line], len(line)
        while size <= _LONGEST and (more := source.readline(_LONGEST + 1 - size)):
            pieces.append(more)
            size += len(more)
        if size > _LONGEST:
            problem = f"a document of more than {_LONGEST} bytes; make JSON lines of it (jq -c '.[]')"
            found = [Unreadable("not_json", problem)]
        else:
            found = _parsed(b"".join(pieces))
        for document in found:
            yield number, size, document
            size = 0
        return


def _parsed(data: bytes) -> list[Any]:
    """All documents that stand in `data`, one behind the other; or one Unreadable."""
    found: list[Any] = []
    try:
        text = data.decode().strip()
        position = 0
        while position < len(text):
            value, end = _DECODER.raw_decode(text, position)
            found.append(value)
            position = end + len(_BLANKS.match(text, end)[0])  # type: ignore[index]  # matches anywhere
    except (ValueError, RecursionError) as error:
        return [Unreadable("not_json", str(error)[:200])]
    return found


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


_BLANKS: Final = re.compile(r"[ \t\r\n]*")
_DECODER: Final = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_constant)


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False
