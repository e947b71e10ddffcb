"""Ids and time of new events: made once, in the call, before anything is sent."""

import os
import time
from datetime import UTC, datetime
from typing import Final
from uuid import NAMESPACE_DNS, UUID, SafeUUID, uuid5

_NAMESPACE = uuid5(NAMESPACE_DNS, "usage-worker")
# Apart from the keyed ids, so that no user and key can name the id of a void.
_VOIDS = uuid5(_NAMESPACE, "void")
_UNKNOWN = SafeUUID.unknown
_set = object.__setattr__

now_ns: Final = time.time_ns
"""The present moment in nanoseconds since 1970, for what is written without a datetime."""


def utcnow() -> datetime:
    """This function will return the present moment: the default of `occurred_at`."""
    return datetime.now(UTC)  # noqa: TID251 - the producers' only clock; everywhere else time is an argument


def new_event_id(*, at_ns: int | None = None) -> UUID:
    """This function will return a UUID of version 7: what is made later sorts later, to a quarter of a µs.

    `at_ns` is the time in nanoseconds since 1970, by default now. No state is kept, so that threads and
    forked children cannot make the same one.
    """
    milliseconds, nanoseconds = divmod(now_ns() if at_ns is None else at_ns, 1_000_000)
    # RFC 9562, method 3: the 12 bits after the version hold the fraction of the millisecond.
    head = (milliseconds & 0xFFFFFFFFFFFF) << 16 | 0x7000 | (nanoseconds << 12) // 1_000_000
    number = head << 64 | 0x8000000000000000 | int.from_bytes(os.urandom(8)) >> 2
    # What `UUID(int=number)` does, without its search for the one argument that was given.
    identity = UUID.__new__(UUID)
    _set(identity, "int", number)
    _set(identity, "is_safe", _UNKNOWN)
    return identity


def keyed_event_id(user: str, key: str) -> UUID:
    """This function will return the id that belongs to `key` for the user with the canonical id text `user`.

    Raises UnicodeEncodeError where `key` is not text that UTF-8 can hold.
    """
    return uuid5(_NAMESPACE, f"{user}|{key}")


def void_event_id(target: UUID) -> UUID:
    """This function will return the id of the event that reverses `target`: there is only one."""
    return uuid5(_VOIDS, str(target))
