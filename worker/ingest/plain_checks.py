"""What makes the bytes of an event ordinary: read twice as fast, and proven to say one thing only.

msgspec takes the last of repeated keys and says nothing about it, so what it read is written again: when that
gives the same bytes, nothing was repeated, escaped or spelled in another way. Whatever cannot be proven here
is left to the contract; see docs/decisions/0009.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from msgspec.structs import astuple

from producers import _fields as rules
from producers._events import InvalidEvent
from producers._metadata import EXTRA, MAX_BYTES, MAX_KEY_LENGTH, MAX_KEYS, REPAIRED, looks_secret
from producers._stream import MAX_EVENT_BYTES, MAX_FRAME_BYTES, MAX_FRAME_EVENTS
from worker.ingest.rules import AgeLimits

if TYPE_CHECKING:
    from worker.ingest.plain_prices import HourPrices

# Entries in a cache before it is emptied: a few megabytes each.
MOST_CACHED: Final = 16_384
MAX_TOKENS: Final = rules.MAX_TOKENS
_MAX_DURATION_MS: Final = 10**12
_MAX_SEQ: Final = 2**63 - 1

_Tokens = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
_Sum = Annotated[int, Meta(ge=0, le=2 * MAX_TOKENS)]
_Duration = Annotated[int, Meta(ge=0, le=_MAX_DURATION_MS)]
_Seq = Annotated[int, Meta(ge=0, le=_MAX_SEQ)]
_Version = Literal[1]
_Status = Literal["ok", "error"]
_Flat = dict[str, str | int | float | bool | None]

Fields = tuple[Any, ...]
"""The values of an event in the order of `_Canonical`; None is absent."""
WireErrors: Final = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError)

_ABSENT: Final = Raw(b"")
# What COPY text has for an absent value.
NULL: Final = "\\N"
_UUID: Final = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").fullmatch
_NIL_OR_MAX: Final = (str(UUID(int=0)), str(UUID(int=2**128 - 1)))


class _Canonical(Struct, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """An event in the order and spelling of our own emitters: written again it gives the same bytes."""

    v: _Version | None = None
    event_id: str = ""
    user_id: str = ""
    feature: str = ""
    provider: str | None = None
    model: str | None = None
    input_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None
    cache_read_tokens: _Tokens | None = None
    cache_write_tokens: _Tokens | None = None
    reasoning_tokens: _Tokens | None = None
    duration_ms: _Duration | None = None
    status: _Status | None = None
    hold_id: str | None = None
    producer_id: str | None = None
    seq: _Seq | None = None
    tokens_used: _Sum | None = None
    cost_usd: str | None = None
    occurred_at: str = ""
    metadata: _Flat | None = None


class _Loose(Struct, gc=False, forbid_unknown_fields=True):
    """The same in any order, with `null` for absent values and the cost also as a number."""

    v: _Version | None = None
    event_id: str = ""
    user_id: str = ""
    feature: str = ""
    provider: str | None = None
    model: str | None = None
    input_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None
    cache_read_tokens: _Tokens | None = None
    cache_write_tokens: _Tokens | None = None
    reasoning_tokens: _Tokens | None = None
    duration_ms: _Duration | None = None
    status: _Status | None = None
    hold_id: str | None = None
    producer_id: str | None = None
    seq: _Seq | None = None
    tokens_used: _Sum | None = None
    cost_usd: Raw = _ABSENT
    occurred_at: str = ""
    metadata: Raw = _ABSENT


class _Present(Struct, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """The same again, to be written with every member that was there, and no other."""

    v: int | UnsetType | None = UNSET
    event_id: str | UnsetType = UNSET
    user_id: str | UnsetType = UNSET
    feature: str | UnsetType = UNSET
    provider: str | UnsetType | None = UNSET
    model: str | UnsetType | None = UNSET
    input_tokens: int | UnsetType | None = UNSET
    output_tokens: int | UnsetType | None = UNSET
    cache_read_tokens: int | UnsetType | None = UNSET
    cache_write_tokens: int | UnsetType | None = UNSET
    reasoning_tokens: int | UnsetType | None = UNSET
    duration_ms: int | UnsetType | None = UNSET
    status: str | UnsetType | None = UNSET
    hold_id: str | UnsetType | None = UNSET
    producer_id: str | UnsetType | None = UNSET
    seq: int | UnsetType | None = UNSET
    tokens_used: int | UnsetType | None = UNSET
    cost_usd: Raw = _ABSENT
    occurred_at: str | UnsetType = UNSET
    metadata: Raw = _ABSENT


_encode: Final = msgspec.json.Encoder().encode
_encode_lines: Final = msgspec.json.Encoder().encode_lines
_canonical_lines: Final = msgspec.json.Decoder(_Canonical).decode_lines
_canonical: Final = msgspec.json.Decoder(_Canonical).decode
_canonical_frame: Final = msgspec.json.Decoder(list[_Canonical]).decode
_loose: Final = msgspec.json.Decoder(_Loose).decode
_loose_frame: Final = msgspec.json.Decoder(list[_Loose]).decode
_present: Final = msgspec.json.Decoder(_Present).decode
_present_frame: Final = msgspec.json.Decoder(list[_Present]).decode
_flat: Final = msgspec.json.Decoder(_Flat).decode

_BLANKS: Final = b" \t\n\r"
# Strings stand on both sides as they are, so a repeated key shows in the quotes, a number in another spelling
# in its point or exponent.
_UNTELLING: Final = bytes(sorted(set(range(256)) - set(b'".eE')))


class Party:
    """Who used what: the part of an event that comes again and again."""

    __slots__ = ("columns", "hashed", "owner", "prices")

    def __init__(self, user: str, feature: str, provider: str, model: str, *, prices: HourPrices) -> None:
        self.prices = prices
        self.columns = f"{user}\t{feature}\t{provider or NULL}\t{model or NULL}"
        # The same as a roll-up has it.
        self.owner = f"{user}\t{feature}\t{provider}\t{model}"
        # The beginning of what `rules.payload_hash` hashes.
        self.hashed = f"{user.replace('-', '')}\0{feature}\0{provider}\0{model}\0"


Arrival = tuple[str, str, str, datetime]
"""Arrival as text; times from the second text to before the third lie in its window; arrival."""


class Window:
    """How far a time may lie from its arrival, as `age_problem` says; and the times in it as text."""

    __slots__ = ("_arrival", "_from", "_limits", "_texts", "_until", "hours")

    def __init__(self, limits: AgeLimits) -> None:
        self._limits = limits
        self._from = self._until = datetime.max.replace(tzinfo=UTC)
        self._texts = ("", "", "")
        self._arrival: Arrival = ("", "", "", self._from)
        # From `2026-11-21T09` to the same hour as a roll-up has it.
        self.hours: dict[str, str] = {}

    def arrival(self, received_at: datetime) -> Arrival:
        """This function will spell the time of arrival, and the bounds that hold for all of its second."""
        if received_at is self._arrival[3]:
            return self._arrival
        if not self._from <= received_at < self._until:
            self._open(received_at)
        second, earliest, latest = self._texts
        self._arrival = (f"{second}.{received_at.microsecond:06}+00:00", earliest, latest, received_at)
        return self._arrival

    def _open(self, received_at: datetime) -> None:
        second = timedelta(seconds=1)
        begin = received_at.replace(microsecond=0)
        earliest = latest = ""
        # At the ends of the calendar each time is compared on its own.
        self._from = self._until = begin
        with suppress(OverflowError):
            self._until = begin + second
            earliest = (begin + second - self._limits.max_age + second).isoformat()[:19]
            latest = (begin + self._limits.max_future).isoformat()[:19]
        self._texts = (begin.isoformat()[:19], max(earliest, "1970-01-01T00:00:00"), latest)

    def moment(self, text: str, arrival: Arrival) -> tuple[str, str] | None:
        """This function will return (moment as a line has it, its hour), or None where it is refused."""
        try:
            moment = rules.time_value(text, "occurred_at")
        except InvalidEvent:
            return None
        age = arrival[3] - moment
        if age < -self._limits.max_future or age > self._limits.max_age:
            return None
        spelled = moment.isoformat()
        if len(self.hours) >= MOST_CACHED:
            self.hours.clear()
        hour = self.hours[spelled[:13]] = f"{spelled[:10]} {spelled[11:13]}:00:00+00"
        return spelled, hour


def is_frame(data: bytes) -> bool:
    """This function will say whether an entry's bytes are an array."""
    return data[:1] == b"[" or (data[:1] != b"{" and data.lstrip(_BLANKS)[:1] == b"[")


def read(data: bytes) -> list[Fields] | None:
    """This function will return the events of an entry, or None where one of them is not ordinary JSON.

    The types and ranges of numbers are checked, the texts not yet.
    """
    if b"\\" in data or len(data) > MAX_FRAME_BYTES:
        return None
    try:
        if not data.isascii():
            data.decode()
        if data.startswith(b"{"):
            event = _canonical(data)
            if _encode(event) == data:
                return [astuple(event)]
        elif data.startswith(b"["):
            events = _canonical_frame(data)
            if 0 < len(events) <= MAX_FRAME_EVENTS and _encode(events) == data:
                return [astuple(event) for event in events]
    except WireErrors:
        pass
    return _read_loose(data, frame=is_frame(data))


def read_lines(entries: list[bytes]) -> list[Fields] | None:
    """This function will do the same for many entries that have a single event each, or None for all."""
    data = b"\n".join(entries)
    if b"\\" in data:
        return None
    try:
        if not data.isascii():
            data.decode()
        events = _canonical_lines(data)
        # No event is written with a line feed in it: as many lines as entries, so each line is an entry.
        if len(events) == len(entries) and _encode_lines(events) == data + b"\n":
            return [astuple(event) for event in events]
    except WireErrors:
        pass
    return None


def _read_loose(data: bytes, *, frame: bool) -> list[Fields] | None:
    if len(data) > MAX_EVENT_BYTES:
        # Blanks could make one event of a frame longer than an event may be.
        return None
    try:
        if frame:
            events = _loose_frame(data)
            written = _encode(_present_frame(data))
        else:
            events = [_loose(data)]
            written = _encode(_present(data))
        if b"\\" in written or not 0 < len(events) <= MAX_FRAME_EVENTS:
            return None
        if len(written.translate(None, _UNTELLING)) != len(data.translate(None, _UNTELLING)):
            return None
        return [
            (*head, _cost_text(cost), occurred_at, _members(metadata))
            for *head, cost, occurred_at, metadata in map(astuple, events)
        ]
    except WireErrors:
        return None


def _cost_text(raw: Raw) -> str | None:
    """The digits, whether they came as text or as a number; what is neither is refused as a cost later."""
    text = bytes(raw).decode()
    if text in ("", "null"):
        return None
    return text[1:-1] if text[0] == '"' else text


def _members(raw: Raw) -> dict[str, Any] | None:
    content = bytes(raw)
    if content in (b"", b"null"):
        return None
    members: dict[str, Any] = _flat(content)
    # In the order of the bytes, so that only blanks may differ.
    if _encode(members).translate(None, _BLANKS) != content.translate(None, _BLANKS):
        raise ValueError("repeated keys, or numbers in another spelling")
    return members


def metadata_text(members: dict[str, Any], known_keys: set[str]) -> str | None:
    """This function will return flat metadata as compact JSON, or None where the contract would repair it.

    `known_keys` remembers the keys that need no repair.
    """
    if len(members) > MAX_KEYS:
        return None
    if not known_keys.issuperset(members):
        if not all(map(_is_ordinary_key, members)):
            return None
        if len(known_keys) > 4096:
            known_keys.clear()
        known_keys.update(members)
    for value in members.values():
        kind = type(value)
        # Between these, Python and msgspec spell a float alike: the shortest digits, no exponent.
        if kind is float and value and not 1e-4 <= abs(value) < 1e16:
            return None
        if kind is int and not -(2**63) <= value < 2**63:
            return None
    content = _encode(members)
    return content.decode() if len(content) <= MAX_BYTES else None


def _is_ordinary_key(key: str) -> bool:
    return key not in (REPAIRED, EXTRA) and len(key) <= MAX_KEY_LENGTH and not looks_secret(key)


def are_canonical_ids(events: list[Fields]) -> bool:
    """This function will say whether each event's id is spelled in the canonical way, and identifies it."""
    if len(events) == 1:
        text = events[0][1]
        return _UUID(text) is not None and text not in _NIL_OR_MAX
    ids = [event[1] for event in events]
    if set(map(len, ids)) != {36} or not set(_NIL_OR_MAX).isdisjoint(ids):
        return False
    joined = "".join(ids)
    hyphens = "-" * len(ids)
    # All at once: hyphens stand where they belong, and nothing is left but as many of them.
    return (
        joined.isascii()
        and joined.encode().translate(None, b"0123456789abcdef") == b"-" * (4 * len(ids))
        and joined[8::36] == joined[13::36] == joined[18::36] == joined[23::36] == hyphens
    )


def uuid_text(value: str) -> str | None:
    """This function will return an event's id in the canonical spelling, or None where it is none."""
    try:
        return str(rules.uuid_value(value, "event_id", "invalid_event_id"))
    except InvalidEvent:
        return None


def are_good_details(event: Fields) -> bool:
    """This function will check the parts of the tokens against the whole, and the hold's id."""
    inputs, outputs, cache_read, cache_write, reasoning, _, _, hold_id = event[6:14]
    if (cache_read is not None or cache_write is not None) and (
        inputs is None or (cache_read or 0) + (cache_write or 0) > inputs
    ):
        return False
    if reasoning is not None and (outputs is None or reasoning > outputs):
        return False
    try:
        if hold_id is not None:
            rules.identifier_value(hold_id, "hold_id", "invalid_field", longest=128)
    except InvalidEvent:
        return False
    return True


def cost_of(text: str) -> tuple[str, int] | None:
    """This function will return (cost in US dollars at 12 places as Decimal writes it, the same in 10^-12).

    None is a cost that the contract refuses, or that it has to mark because it became zero.
    """
    # One digit before the point is nearly all there is.
    if text[1:2] == "." and len(text) <= 14:
        spelled = text.ljust(14, "0")
        digits = spelled.replace(".", "")
        if len(text) > 2 and len(digits) == 13 and digits.isdigit() and text.isascii():
            scaled = int(digits)
            # Below a millionth Decimal writes an exponent.
            if scaled >= 10**6:
                return spelled, scaled
    try:
        cost, became_zero = rules.cost_value(text, "cost_usd", negative=False)
    except InvalidEvent:
        return None
    if became_zero:
        return None
    return str(cost), int(format(cost, "f").replace(".", ""))
