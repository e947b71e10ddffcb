"""What the exports have in common: a record, its buckets, and numbers that may be absent."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from producers.integrations import AmbiguousUsage, ImpossibleUsage, usage_of

# Providers go on adding to a bucket for a while after its end.
SETTLED_AFTER: Final = timedelta(hours=1)


class Unreadable(Exception):
    """A document is not what its format says; `reason` is a code, `detail` says what was expected."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Record:
    """One record of an export: the fields of its event, or why there is none."""

    key: str = ""
    """The same for the same record of each export, whatever its amounts are."""
    fields: Mapping[str, object] = field(default_factory=dict)
    users: tuple[object, ...] = ()
    """What the export knows about whose it is, the closest first."""
    own_user: object = None
    """Which of them may be our user's id itself, because the app has passed it on."""
    place: str = ""
    is_bucket: bool = False
    skipped: str | None = None
    problem: str | None = None


def count(values: Mapping[str, Any], name: str) -> int:
    """This function will return a count that is 0 where it is absent; raises Unreadable for what is none."""
    value = values.get(name)
    if value is None:
        return 0
    if isinstance(value, Decimal) and value.adjusted() < 20 and value == value.to_integral_value():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise Unreadable("unreadable_record", f"{name} is no count")
    return value


def members(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """This function will return an object that is empty where it is absent."""
    value = values.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise Unreadable("unreadable_record", f"{name} is no object")
    return value


def batch_fields(
    line: Mapping[str, Any], *, provider: str, kind: str
) -> tuple[str | None, dict[str, object]]:
    """This function will return the id of a batch line's response, None without one, and its event's fields.

    They are read as the app itself reads a response, so that both count the same. Raises Unreadable for
    counts that are none or contradict each other.
    """
    try:
        usage = usage_of(line, provider=provider)
    except (AmbiguousUsage, ImpossibleUsage) as error:
        raise Unreadable("unreadable_record", str(error)) from error
    if usage is None:
        raise Unreadable("unreadable_record", "its usage has no counts")
    key = usage.pop("idempotency_key", None)
    export = {"kind": kind, "custom_id": line["custom_id"]}
    usage["metadata"] = {**usage.get("metadata", {}), "export": export}
    return key if isinstance(key, str) and key else None, usage


def moment(value: object, name: str) -> datetime:
    """This function will read a time: seconds since 1970, or RFC 3339; one without offset is UTC."""
    try:
        if isinstance(value, int | Decimal) and not isinstance(value, bool):
            return datetime.fromtimestamp(float(value), UTC)
        if isinstance(value, str):
            found = datetime.fromisoformat(value)
            return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        pass
    raise Unreadable("unreadable_record", f"{name} is no time")


def bucket_key(kind: str, start: datetime, end: datetime, dimensions: Iterable[object]) -> str:
    """This function will name a bucket's record by what it is about."""
    about = [kind, start.isoformat(), end.isoformat(), *dimensions]
    return json.dumps(about, ensure_ascii=False, separators=(",", ":"), default=str)


def is_open(end: datetime, now: datetime) -> bool:
    """This function will tell whether a bucket may still grow."""
    return end + SETTLED_AFTER > now


def bucket_metadata(kind: str, start: datetime, end: datetime, **more: object) -> dict[str, object]:
    """This function will say in an event's metadata where it comes from."""
    facts = {name: value for name, value in more.items() if value is not None}
    return {"export": {"kind": kind, "from": start.isoformat(), "to": end.isoformat(), **facts}}
