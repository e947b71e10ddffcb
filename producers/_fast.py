"""Writes the bytes of an ordinary event straight from the arguments of `emit`.

`UsageEvent` is the contract and stays its only definition. Here is only recognised what is canonical as it
stands, by its exact type and shape; for whatever else the answer is None, and the long way judges it. Both
ways end in the same bytes, as a property test says for any arguments.
"""

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Final, NamedTuple
from uuid import UUID

from producers._events import MAX_DURATION_MS, MAX_SEQ, UsageEvent
from producers._fields import MAX_COST, MAX_TOKENS
from producers._ids import keyed_event_id, new_event_id
from producers._metadata import EXTRA, MAX_BYTES, MAX_KEY_LENGTH, REPAIRED, looks_secret, repair
from producers._stream import decode, encode, to_json

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_NIL: Final = 0
_MAX: Final = 2**128 - 1
_NO_USERS: Final = frozenset({str(UUID(int=_NIL)), str(UUID(int=_MAX))})
# Below the largest cost and at most 12 places, so that nothing is left to round.
_COST = re.compile(r"(?:0|[1-9][0-9]{0,5})(\.[0-9]{1,12})?")
_MAX_MEMBERS: Final = 16
_INT64: Final = 2**63


class Numbers(NamedTuple):
    """A series of numbers, drawn by any thread without a lock: each is one call of a counter in C."""

    producer_id: str
    members: str
    """What stands before the number in an event: prebuilt, since it is the same in all of them."""
    take: Callable[[], int]


class Encoded(NamedTuple):
    """An event on its way: its bytes, and what is needed of it beside them."""

    event_id: UUID
    user_text: str
    data: bytes
    original: UsageEvent | None = None
    """The event that was encoded; None where the bytes were written from the arguments."""

    @property
    def event(self) -> UsageEvent:
        """The event, read back from its bytes if need be."""
        if self.original is not None:
            return self.original
        (decoded,) = decode(self.data)
        if decoded.event is None:
            raise AssertionError(f"an event was written that cannot be read: {decoded.detail}")
        return decoded.event

    @property
    def is_correction(self) -> bool:
        """Whether it belongs on the stream of corrections; the arguments of `emit` never make one."""
        return self.original is not None and self.original.corrects is not None


def encoded(event: UsageEvent) -> Encoded:
    """This function will encode an event that exists already, by the contract."""
    return Encoded(event.event_id, event.user_text, encode(event), event)


def written(
    at_ns: int,
    numbers: Numbers | None = None,
    /,
    *,
    user_id: object = None,
    clerk_id: object = None,
    feature: object = None,
    provider: object = None,
    model: object = None,
    input_tokens: object = None,
    output_tokens: object = None,
    cache_read_tokens: object = None,
    cache_write_tokens: object = None,
    reasoning_tokens: object = None,
    tokens_used: object = None,
    units: object = None,
    cost_usd: object = None,
    occurred_at: object = None,
    duration_ms: object = None,
    status: object = None,
    metadata: object = None,
    hold_id: object = None,
    producer_id: object = None,
    seq: object = None,
    event_id: object = None,
    idempotency_key: object = None,
    **strangers: object,
) -> Encoded | None:
    """This function will write the event of a call of `emit`, or return None where it is not plain.

    `at_ns` is the present, in nanoseconds since 1970: for the id and the time, where the call states none.
    A number is taken from `numbers` where the call states neither `producer_id` nor `seq`, and only for what
    is written.
    """
    if type(user_id) is UUID and clerk_id is None:
        user = _spelt(user_id.int)
        member = f'"user_id":"{user}"'
        if user in _NO_USERS:
            return None
    elif type(user_id) is str and clerk_id is None:
        user = user_id
        member = f'"user_id":"{user}"'
        if not _UUID.fullmatch(user) or user in _NO_USERS:
            return None
    elif user_id is None and _is_identifier(clerk_id, longest=255):
        user = str(clerk_id)
        member = f'"clerk_id":{encode_basestring(user)}'
    else:
        return None
    if (
        strangers
        or units is not None
        or type(feature) is not str
        or type(input_tokens) is not int
        or type(output_tokens) is not int
    ):
        return None
    if not (0 <= input_tokens <= MAX_TOKENS and 0 <= output_tokens <= MAX_TOKENS):
        return None
    names = _names(feature, _word(provider), _word(model))
    if names is None:
        return None
    tail = ""
    # A chain of `is`: what most calls leave out costs one test for all.
    if not (
        cache_read_tokens is cache_write_tokens is reasoning_tokens is tokens_used is duration_ms is None
        and status is hold_id is producer_id is seq is None
    ):
        if tokens_used is not None and (
            type(tokens_used) is not int or tokens_used != input_tokens + output_tokens
        ):
            return None
        parts = (cache_read_tokens, cache_write_tokens, reasoning_tokens)
        rest = _subsets(*parts, whole=(input_tokens, output_tokens))
        more = _analytics(duration_ms, status, hold_id, producer_id, seq)
        if rest is None or more is None:
            return None
        tail = rest + more
    cost: str | None = ""
    if cost_usd is not None:
        cost = _cost(cost_usd)
        if cost is None:
            return None
        cost = f',"cost_usd":"{cost}"'
    if occurred_at is None:
        seconds, nanoseconds = divmod(at_ns, 1_000_000_000)
        moment: str | None = _second(seconds)
        if nanoseconds >= 1000:
            moment = f"{moment}.{nanoseconds // 1000:06d}"
    else:
        moment = _moment(occurred_at)
    if idempotency_key is not None:
        identity = _keyed(user, idempotency_key) if event_id is None else None
    elif event_id is None:
        identity = new_event_id(at_ns=at_ns)
    else:
        identity = event_id if type(event_id) is UUID and event_id.int not in (_NIL, _MAX) else None
    if moment is None or identity is None:
        return None
    last = ""
    if metadata is not None:
        if type(metadata) is not dict:
            return None
        last = _metadata(metadata)
    if numbers is not None and producer_id is seq is None:
        tail += f"{numbers.members}{numbers.take()}"
    hexadecimal = f"{identity.int:032x}"
    text = (
        f'{{"v":1,"event_id":"{hexadecimal[:8]}-{hexadecimal[8:12]}-{hexadecimal[12:16]}'
        f'-{hexadecimal[16:20]}-{hexadecimal[20:]}",{member},{names},"input_tokens":{input_tokens},'
        f'"output_tokens":{output_tokens}{tail}{cost},"occurred_at":"{moment}Z"{last}}}'
    )
    return Encoded(identity, user, text.encode())


@lru_cache(maxsize=4096)
def _spelt(number: int) -> str:
    """Most calls are about users of the minutes before."""
    return str(UUID(int=number))


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:-6]


def _moment(value: object) -> str | None:
    # The test by identity is enough: a datetime with another UTC goes the long way.
    if type(value) is not datetime or value.tzinfo is not UTC or value.year < 1970:
        return None
    return value.isoformat()[:-6]


def _word(value: object) -> str | None:
    """'' for what is absent; None for what is no plain string."""
    if value is None:
        return ""
    return value if type(value) is str else None


@lru_cache(maxsize=1024)
def _names(feature: str, provider: str | None, model: str | None) -> str | None:
    """An app has few of them, so that most calls find theirs checked and escaped."""
    if provider is None or model is None:
        return None
    members = []
    for name, value, longest in (
        ("feature", feature, 128),
        ("provider", provider, 128),
        ("model", model, 256),
    ):
        if not value and name != "feature":
            continue
        if not 1 <= len(value) <= longest or not value.isprintable() or value.isspace():
            return None
        members.append(f'"{name}":{encode_basestring(value)}')
    return ",".join(members)


def _is_identifier(value: object, *, longest: int) -> bool:
    return type(value) is str and 1 <= len(value) <= longest and value.isprintable() and " " not in value


def _subsets(*parts: object, whole: tuple[int, int]) -> str | None:
    text = ""
    counts = []
    for name, value in zip(
        ("cache_read_tokens", "cache_write_tokens", "reasoning_tokens"), parts, strict=True
    ):
        if value is None:
            counts.append(0)
            continue
        if type(value) is not int or not 0 <= value <= MAX_TOKENS:
            return None
        counts.append(value)
        text += f',"{name}":{value}'
    fits = counts[0] + counts[1] <= whole[0] and counts[2] <= whole[1]
    return text if fits else None


def _analytics(
    duration_ms: object, status: object, hold_id: object, producer_id: object, seq: object
) -> str | None:
    text = ""
    if duration_ms is not None:
        if type(duration_ms) is not int or not 0 <= duration_ms <= MAX_DURATION_MS:
            return None
        text += f',"duration_ms":{duration_ms}'
    if status is not None:
        if type(status) is not str or status not in ("ok", "error"):
            return None
        text += f',"status":"{status}"'
    for name, value in (("hold_id", hold_id), ("producer_id", producer_id)):
        if value is not None:
            if not _is_identifier(value, longest=128):
                return None
            text += f',"{name}":{encode_basestring(str(value))}'
    if seq is not None:
        if type(seq) is not int or not 0 <= seq <= MAX_SEQ:
            return None
        text += f',"seq":{seq}'
    return text


def _cost(value: object) -> str | None:
    """The shortest plain spelling; a float counts as its shortest spelling says, like everywhere."""
    if type(value) is str:
        text = value
    elif type(value) is Decimal or type(value) is float or (type(value) is int and 0 <= value <= MAX_COST):
        text = str(value)
    else:
        return None
    match = _COST.fullmatch(text)
    if match is None:
        return None
    return text if match.end(1) < 0 else text.rstrip("0").rstrip(".")


def _keyed(user: str, key: object) -> UUID | None:
    if type(key) is not str or not key:
        return None
    try:
        return keyed_event_id(user, key)
    except UnicodeEncodeError:
        return None


def _metadata(metadata: dict[object, object]) -> str:
    kept: object = metadata
    text = to_json(metadata) if _needs_no_repair(metadata) else None
    if text is None or len(text.encode()) > MAX_BYTES:
        kept = repair(metadata, extra={}, marks=set())
        text = to_json(kept)
    return f',"metadata":{text}'


def _needs_no_repair(metadata: dict[object, object]) -> bool:
    if len(metadata) > _MAX_MEMBERS:
        return False
    for name, value in metadata.items():
        if type(name) is not str or not name.isprintable() or len(name) > MAX_KEY_LENGTH:
            return False
        if name in (REPAIRED, EXTRA) or looks_secret(name):
            return False
        kind = type(value)
        if kind is str:
            plain = value.isprintable()  # type: ignore[attr-defined]  # mypy does not follow `kind`
        elif kind is int:
            plain = -_INT64 <= value < _INT64  # type: ignore[operator]  # as above
        elif kind is float:
            plain = math.isfinite(value)  # type: ignore[arg-type]  # as above
        else:
            plain = value is None or kind is bool
        if not plain:
            return False
    return True
