"""The rules of single fields: each function returns the canonical value of what came or raises InvalidEvent.

They accept what JSON gives (str, int, Decimal) and what Python programs have (UUID, datetime, float), by the
same rules, and take no longer for hostile values than for honest ones.
"""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Final
from uuid import UUID

from producers._reasons import InvalidEvent, Reason

MAX_TOKENS: Final = 10**9
MAX_COST: Final = 10**6
COST_PLACES: Final = 12
MAX_UNITS: Final = 8
MAX_QUANTITY: Final = 10**9
QUANTITY_PLACES: Final = 6

_UUID = re.compile(r"[0-9a-fA-F]{8}(-?)[0-9a-fA-F]{4}\1[0-9a-fA-F]{4}\1[0-9a-fA-F]{4}\1[0-9a-fA-F]{12}")
_DIGITS = re.compile(r"-?[0-9]{1,40}")
_DECIMAL = re.compile(r"-?[0-9]{1,60}(?:\.[0-9]{1,60})?(?:[eE][+-]?[0-9]{1,4})?")
_UNIT = re.compile(r"[a-z][a-z0-9_]{0,63}")
_RFC_3339 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,60}))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
_NIL = UUID(int=0)
_MAX = UUID(int=2**128 - 1)
_STEP = Decimal(1).scaleb(-COST_PLACES)
_ZERO = Decimal(0).quantize(_STEP)
_BEYOND = 10 * max(MAX_COST, MAX_QUANTITY)
_QUANTUM = Decimal(1).scaleb(-QUANTITY_PLACES)
_NO_QUANTITY = Decimal(0).quantize(_QUANTUM)
# A context of our own: the application's may have another precision or rounding.
_MONEY = Context(prec=80, rounding=ROUND_HALF_EVEN)
# Every float lies within; what does not is an exponent bomb.
_MAX_EXPONENT = 400
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)


def uuid_value(value: object, field: str, reason: Reason) -> UUID:
    """This function will return the id: upper case and missing hyphens normalised, nil and max refused."""
    if isinstance(value, UUID):
        identity = value if type(value) is UUID else UUID(int=value.int)
    elif isinstance(value, str) and _UUID.fullmatch(value):
        identity = UUID(int=int(value.replace("-", ""), 16))
    else:
        raise InvalidEvent(reason, field, "expected a UUID as 32 hexadecimal digits, with or without hyphens")
    if identity == _NIL or identity == _MAX:
        raise InvalidEvent(reason, field, "the nil and the max UUID identify nothing")
    return identity


def text_value(value: object, field: str, reason: Reason, *, longest: int) -> str:
    """This function will return a string of 1 to `longest` printable characters that is not blank."""
    if not isinstance(value, str):
        raise InvalidEvent(reason, field, "expected a string")
    if not 1 <= len(value) <= longest:
        raise InvalidEvent(reason, field, f"expected 1 to {longest} characters, found {len(value)}")
    if not value.isprintable() or value.isspace():
        raise InvalidEvent(reason, field, "expected printable characters, and not only spaces")
    return str.__str__(value)


def identifier_value(value: object, field: str, reason: Reason, *, longest: int) -> str:
    """This function will return a printable string without any space."""
    text = text_value(value, field, reason, longest=longest)
    if " " in text:
        raise InvalidEvent(reason, field, "expected an identifier without spaces")
    return text


def integer_value(value: object, field: str, reason: Reason, *, low: int, high: int) -> int:
    """This function will return a whole number from `low` to `high`, given as 3, "3" or 3.0."""
    number: int | None = None
    if isinstance(value, bool):
        pass
    elif isinstance(value, int):
        number = int(value)
    elif isinstance(value, str):
        if _DIGITS.fullmatch(value) and (low < 0 or not value.startswith("-")):
            number = int(value)
    elif isinstance(value, float):
        number = int(value) if value.is_integer() else None
    elif (
        isinstance(value, Decimal)
        and value.is_finite()
        and abs(value.adjusted()) <= _MAX_EXPONENT
        and value == value.to_integral_value(context=_MONEY)
    ):
        number = int(value)
    if number is None:
        raise InvalidEvent(reason, field, "expected a whole number written in plain digits")
    if not low <= number <= high:
        raise InvalidEvent(reason, field, f"expected a number from {low} to {high}")
    return number


def cost_value(value: object, field: str, *, negative: bool) -> tuple[Decimal, bool]:
    """This function will return (cost at 12 decimal places, whether rounding made a cost vanish).

    A float counts as the number that its shortest spelling says (`repr`), never as its binary fraction.
    """
    cost = _decimal(value)
    if isinstance(value, str) and value.startswith("-") and not negative:
        cost = None
    if cost is None or not cost.is_finite() or abs(cost.adjusted()) > _MAX_EXPONENT:
        raise InvalidEvent("invalid_cost", field, "expected a decimal number in US dollars, as in 0.000241")
    if not (-MAX_COST if negative else 0) <= cost <= MAX_COST:
        low = -MAX_COST if negative else 0
        raise InvalidEvent("invalid_cost", field, f"expected a cost from {low} to {MAX_COST}")
    quantised = cost.quantize(_STEP, context=_MONEY)
    if not quantised:
        return _ZERO, bool(cost)
    return quantised, False


def units_value(value: object, field: str) -> dict[str, Decimal] | None:
    """This function will return quantities by the name of their unit, in the order of the names.

    None where there is none at all. A quantity has no sign and at most 6 decimal places; it is never rounded.
    """
    if not isinstance(value, Mapping):
        raise InvalidEvent("invalid_units", field, 'expected an object of quantities, as in {"images": 2}')
    if len(value) > MAX_UNITS:
        raise InvalidEvent("invalid_units", field, f"at most {MAX_UNITS} units, found {len(value)}")
    quantities: dict[str, Decimal] = {}
    for name, stated in value.items():
        if not isinstance(name, str) or not _UNIT.fullmatch(name):
            raise InvalidEvent("invalid_units", field, "a unit's name is like images or audio_seconds")
        quantities[str.__str__(name)] = _quantity(stated, field)
    return dict(sorted(quantities.items())) or None


def _quantity(value: object, field: str) -> Decimal:
    quantity = None if isinstance(value, str) and value.startswith("-") else _decimal(value)
    if quantity is None or not quantity.is_finite() or abs(quantity.adjusted()) > _MAX_EXPONENT:
        raise InvalidEvent("invalid_units", field, "expected quantities as decimal numbers, as in 12.5")
    if not 0 <= quantity <= MAX_QUANTITY:
        raise InvalidEvent("invalid_units", field, f"expected quantities from 0 to {MAX_QUANTITY}")
    exact = quantity.quantize(_QUANTUM, context=_MONEY)
    if exact != quantity:
        raise InvalidEvent("invalid_units", field, f"at most {QUANTITY_PLACES} decimal places")
    return exact if exact else _NO_QUANTITY


def plain_text(number: Decimal) -> str:
    """This function will return the shortest plain spelling: no exponent, no trailing zeros."""
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _decimal(value: object) -> Decimal | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        # What is beyond every limit anyway need not be spelled out.
        return Decimal(value) if -_BEYOND <= value <= _BEYOND else Decimal(_BEYOND)
    if isinstance(value, float):
        return Decimal(float.__repr__(value)) if math.isfinite(value) else None
    if isinstance(value, str):
        return Decimal(value) if _DECIMAL.fullmatch(value) else None
    return value if isinstance(value, Decimal) else None


def time_value(value: object, field: str) -> datetime:
    """This function will return the moment in UTC, from RFC 3339 text with an offset or an aware datetime.

    What is finer than a microsecond is cut off, never rounded up into the next one.
    """
    if isinstance(value, datetime):
        moment = value
        if moment.utcoffset() is None:
            raise InvalidEvent(
                "invalid_occurred_at", field, "expected a datetime with a time zone, found a naive one"
            )
    elif isinstance(value, str):
        moment = _rfc_3339(value, field)
    else:
        raise InvalidEvent("invalid_occurred_at", field, "expected RFC 3339 text, as in 2026-01-31T09:30:00Z")
    try:
        utc = moment.astimezone(UTC)
    except (OverflowError, ValueError):
        raise InvalidEvent("invalid_occurred_at", field, "the time lies outside of the calendar") from None
    if utc < _EARLIEST:
        raise InvalidEvent("invalid_occurred_at", field, "the time lies before 1970")
    if type(utc) is not datetime or utc.fold:
        # A subclass (pandas, freezegun) may carry more than a moment, and `fold` means nothing in UTC.
        utc = datetime(
            utc.year, utc.month, utc.day, utc.hour, utc.minute, utc.second, utc.microsecond, tzinfo=UTC
        )
    return utc


def _rfc_3339(text: str, field: str) -> datetime:
    match = _RFC_3339.fullmatch(text)
    if match is None:
        raise InvalidEvent(
            "invalid_occurred_at",
            field,
            "expected RFC 3339 with seconds and offset, as in 2026-01-31T09:30:00Z",
        )
    year, month, day, hour, minute, second = (int(part) for part in match.group(1, 2, 3, 4, 5, 6))
    fraction, sign, offset_hours, offset_minutes = match.group(7, 8, 9, 10)
    microsecond = int(fraction[:6].ljust(6, "0")) if fraction else 0
    zone: timezone = UTC
    try:
        if sign:
            if int(offset_minutes) > 59:
                raise ValueError
            ahead = timedelta(hours=int(offset_hours), minutes=int(offset_minutes))
            zone = timezone(-ahead if sign == "-" else ahead)
        return datetime(year, month, day, hour, minute, second, microsecond, tzinfo=zone)
    except ValueError:
        raise InvalidEvent("invalid_occurred_at", field, "no such date, time or offset exists") from None
