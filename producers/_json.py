"""A strict and bounded JSON reader: nothing that a producer writes can make it raise anything but NotJSON.

Numbers never pass through float, a repeated key is remembered instead of overwritten unseen, and neither deep
nesting nor a number of a million digits costs more than time in proportion to its length.
"""

import json
import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation

_BLANK = re.compile(r"[ \t\n\r]*")
_BOM = b"\xef\xbb\xbf"
# Longer integers become Decimal, which is read in linear time and has no limit of 4,300 digits.
_MAX_INT_DIGITS = 64
_INFINITY = Decimal("Infinity")


class NotJSON(ValueError):
    """The text is not JSON; the message says where, and shows none of it."""


class RepeatedKeys(dict[str, object]):
    """An object in which some key stood more than once; the last value won."""

    repeated_keys = True


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    return members if len(members) == len(pairs) else RepeatedKeys(members)


def _fraction(text: str) -> object:
    try:
        return Decimal(text)
    except InvalidOperation:
        # An exponent that even Decimal cannot hold: not finite, so no field takes it.
        return _INFINITY


def _integer(text: str) -> object:
    return int(text) if len(text) <= _MAX_INT_DIGITS else _fraction(text)


# NaN and Infinity become a Decimal that no field takes: one of them in `metadata` must not cost the event.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_fraction, parse_int=_integer, parse_constant=Decimal
)


def read_text(data: bytes) -> str:
    """This function will decode `data` as UTF-8 without a byte order mark, or raise NotJSON."""
    if data.startswith(_BOM):
        raise NotJSON("begins with a byte order mark")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotJSON(f"not UTF-8 at byte {error.start}") from None


def skip_blank(text: str, position: int) -> int:
    """This function will return the first position at or after `position` that is not JSON white space."""
    match = _BLANK.match(text, position)
    return match.end() if match is not None else position


def read_value(text: str, position: int) -> tuple[object, int]:
    """This function will read the value that begins at `position` and return it with its end."""
    try:
        return _DECODER.raw_decode(text, position)
    except json.JSONDecodeError as error:
        raise NotJSON(f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        return _read_nested(text, position)


def read_elements(text: str, position: int) -> Iterator[tuple[object, int, int]]:
    """This function will yield (value, start, end) for each element of the array whose `[` is at `position`.

    Raises NotJSON where the array, or what follows it, is not JSON: after the elements before that.
    """
    position = skip_blank(text, position + 1)
    if text[position : position + 1] != "]":
        while True:
            value, end = read_value(text, position)
            yield value, position, end
            position = skip_blank(text, end)
            separator = text[position : position + 1]
            if separator == "]":
                break
            if separator != ",":
                raise NotJSON(f"Expecting ',' or ']' at character {position}")
            position = skip_blank(text, position + 1)
    expect_end(text, position + 1)


def expect_end(text: str, position: int) -> None:
    """This function will raise NotJSON when anything but white space stands at or after `position`."""
    position = skip_blank(text, position)
    if position != len(text):
        raise NotJSON(f"Extra data at character {position}")


def _read_nested(text: str, position: int) -> tuple[object, int]:
    """Reads what is nested too deeply for the interpreter's stack: same grammar, a stack of its own."""
    open_containers: list[tuple[list[object] | list[tuple[str, object]], str | None]] = []
    while True:
        # A value begins here.
        position = skip_blank(text, position)
        opener = text[position : position + 1]
        value: object
        if opener == "[":
            inside = skip_blank(text, position + 1)
            if text[inside : inside + 1] != "]":
                open_containers.append(([], None))
                position = inside
                continue
            value, position = [], inside + 1
        elif opener == "{":
            inside = skip_blank(text, position + 1)
            if text[inside : inside + 1] != "}":
                key, position = _read_key(text, inside)
                open_containers.append(([], key))
                continue
            value, position = {}, inside + 1
        else:
            value, position = read_value(text, position)
        # A value has ended: close every container that ends with it.
        while open_containers:
            members, key_of_value = open_containers.pop()
            closer = "]" if key_of_value is None else "}"
            members.append(value if key_of_value is None else (key_of_value, value))  # type: ignore[arg-type]  # which list it is follows from the key
            position = skip_blank(text, position)
            separator = text[position : position + 1]
            position += 1
            if separator == ",":
                if key_of_value is not None:
                    key_of_value, position = _read_key(text, skip_blank(text, position))
                open_containers.append((members, key_of_value))
                break
            if separator != closer:
                raise NotJSON(f"Expecting ',' or '{closer}' at character {position - 1}")
            value = members if key_of_value is None else _object(members)  # type: ignore[arg-type]  # as above
        else:
            return value, position


def _read_key(text: str, position: int) -> tuple[str, int]:
    if text[position : position + 1] != '"':
        raise NotJSON(f"Expecting property name enclosed in double quotes at character {position}")
    key, position = read_value(text, position)
    position = skip_blank(text, position)
    if text[position : position + 1] != ":":
        raise NotJSON(f"Expecting ':' delimiter at character {position}")
    return str(key), position + 1
