"""Makes events from the arguments of a call: id, time and number are settled here, once."""

import base64
import itertools
import os
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal, Required, TypedDict, Unpack
from uuid import UUID

from producers import _fields as rules
from producers._events import InvalidEvent, UsageEvent, build
from producers._fast import Encoded, Numbers, encoded, written
from producers._ids import keyed_event_id, new_event_id, now_ns, utcnow, void_event_id

_PRODUCER_ID_LENGTH: Final = 12


class Usage(TypedDict, total=False):
    """The arguments of `emit`; `user_id` or `clerk_id`, `feature`, and tokens are required."""

    user_id: UUID | str | None
    clerk_id: str | None
    feature: Required[str]
    provider: str | None
    model: str | None
    input_tokens: int | None
    output_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    tokens_used: int | None
    units: Mapping[str, Decimal | int | float | str] | None
    cost_usd: Decimal | float | str | None
    occurred_at: datetime | str | None
    duration_ms: int | None
    status: Literal["ok", "error"] | None
    metadata: Mapping[str, Any] | None
    hold_id: str | None
    producer_id: str | None
    seq: int | None
    event_id: UUID | str | None
    idempotency_key: str | None


_ARGUMENTS = Usage.__required_keys__ | Usage.__optional_keys__


class Maker:
    """Makes events and numbers them: 1, 2, 3 … under a `producer_id` of its own, without gaps.

    The numbers let the books tell which events never arrived. They may be drawn by any thread; a forked child
    draws from a series of its own.
    """

    __slots__ = ("_numbers", "_pid")

    def __init__(self) -> None:
        self._renew()

    @property
    def producer_id(self) -> str:
        """The name of this process's series of numbers."""
        if self._pid != os.getpid():
            self._renew()
        return self._numbers.producer_id

    def make(self, **usage: Unpack[Usage]) -> Encoded:
        """This function will make the event of one call, ready to be sent any number of times.

        An event that states `producer_id` or `seq` is not numbered. Raises InvalidEvent, or TypeError for an
        argument that does not exist; neither uses up a number.
        """
        if self._pid != os.getpid():
            self._renew()
        numbers = self._numbers
        made = written(now_ns(), numbers, **usage)
        if made is not None:
            return made
        event = event_of(usage)
        if event.producer_id is None and event.seq is None:
            # An event that was judged is far below the size that `encode` refuses: the number will be used.
            numbered = {"producer_id": numbers.producer_id, "seq": numbers.take()}
            event = event.model_copy(update=numbered)
        return encoded(event)

    def _renew(self) -> None:
        # Two threads of a fresh child may both come here: then there are two series, each without a gap.
        self._numbers = new_numbers()
        self._pid = os.getpid()


def new_numbers() -> Numbers:
    """This function will begin a series of numbers under a new random name of 12 characters."""
    name = base64.b32encode(os.urandom(8)).decode().lower()[:_PRODUCER_ID_LENGTH]
    return Numbers(name, f',"producer_id":"{name}","seq":', itertools.count(1).__next__)


def void_of(
    event_id: UUID | str, *, user_id: UUID | str | None = None, clerk_id: str | None = None
) -> UsageEvent:
    """This function will make the reversal of this user's event; made again, it has the same id."""
    target = rules.uuid_value(event_id, "event_id", "invalid_event_id")
    fields = {"user_id": user_id, "clerk_id": clerk_id, "corrects": target, "void": True}
    return build({**fields, "event_id": void_event_id(target), "occurred_at": utcnow()})


def event_of(usage: Usage) -> UsageEvent:
    """This function will make the event of a call, unnumbered: its id and time are settled here, once."""
    strangers = sorted(usage.keys() - _ARGUMENTS)
    if strangers:
        raise TypeError(f"emit() got an unexpected argument {strangers[0]!r}")
    fields: dict[str, object] = dict(usage)
    key = fields.pop("idempotency_key", None)
    if key is not None and fields.get("event_id") is not None:
        raise InvalidEvent("invalid_event_id", "event_id", "give event_id or idempotency_key, not both")
    if fields.get("occurred_at") is None:
        fields["occurred_at"] = utcnow()
    if key is not None or fields.get("event_id") is None:
        fields["event_id"] = new_event_id()
    if fields.get("units") is None:
        fields.pop("units", None)
    event = build(fields)
    if key is None:
        return event
    if not isinstance(key, str) or not key:
        raise InvalidEvent("invalid_event_id", "idempotency_key", "expected a string that is not empty")
    try:
        return event.model_copy(update={"event_id": keyed_event_id(event.user_text, key)})
    except UnicodeEncodeError:
        raise InvalidEvent(
            "invalid_event_id", "idempotency_key", "expected text that UTF-8 can hold"
        ) from None
