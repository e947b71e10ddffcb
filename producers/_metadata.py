"""Repair of `metadata`: whatever it holds, it never keeps an event out, and what was changed is marked.

The result is plain JSON (str, int, float, bool, None, list, dict), at most 8 KiB, 8 levels deep, 64 keys per
object. Repairing it again changes nothing.
"""

import enum
import json
import math
import re
import uuid
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from functools import lru_cache
from typing import Final

MAX_BYTES: Final = 8 * 1024
MAX_DEPTH: Final = 8
MAX_KEYS: Final = 64
MAX_KEY_LENGTH: Final = 128

REPAIRED: Final = "_repaired"
EXTRA: Final = "_extra"

# What may stand in the list under `_repaired`.
MARKS: Final = frozenset(
    {
        "cost_became_zero",  # the cost was less than half of the last decimal place
        "depth",  # deeper than 8 levels: replaced
        "duplicate_key",  # a key stood twice inside: the last one won
        "key",  # a key was too long, or no string
        "keys",  # more than 64 keys in one object: the rest left out
        "not_an_object",  # metadata was something else: it stands under `_value`
        "number",  # not finite: null; too long for JSON readers: its text
        "redacted",  # a value under a key that looks like a secret
        "reserved",  # `_repaired` or `_extra` held something of the caller's
        "size",  # more than 8 KiB: strings cut, then members left out
        "text",  # NUL or half a surrogate pair: U+FFFD
        "type",  # a Python object that is not JSON
    }
)

_REDACTED: Final = "[redacted]"
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_MAX_NODES: Final = MAX_BYTES // 2 + 64
_MAX_NUMBER_TEXT: Final = 64
_CUT_STRING: Final = 256
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SEPARATORS = re.compile(r"[^a-z0-9]+")
_SECRET_WORDS = frozenset(
    "authorization bearer cookie cookies credential credentials jwt passphrase passwd password passwords pwd "
    "secret secrets apikey apikeys accesskey privatekey".split()
)
_SECRET_ENDS = (
    ("token",),
    ("api", "key"),
    ("access", "key"),
    ("private", "key"),
    ("signing", "key"),
    ("encryption", "key"),
    ("auth", "key"),
    ("session", "id"),
    ("auth",),
)


def repair(value: object, *, extra: Mapping[str, object], marks: set[str]) -> dict[str, object] | None:
    """This function will return `value` as storable metadata, with `extra` kept under `_extra`.

    `marks` names what was changed before; the union with what is changed here is written under `_repaired`.
    Returns None where there is nothing to keep.
    """
    if value is None and not extra and not marks:
        return None
    repairs = _Repairs(marks)
    result = repairs.top_level(value, extra)
    if _size(result, repairs.marks) > MAX_BYTES:
        repairs.marks.add("size")
        result = _shrink(result, repairs.marks)
    if repairs.marks:
        result[REPAIRED] = sorted(repairs.marks)
    return result


@lru_cache(maxsize=2048)
def looks_secret(key: str) -> bool:
    """This function will tell whether `key` is what people call passwords, tokens and API keys."""
    words = tuple(word for word in _SEPARATORS.split(_CAMEL.sub("_", key).lower()) if word)
    if not _SECRET_WORDS.isdisjoint(words):
        return True
    return any(words[-len(end) :] == end for end in _SECRET_ENDS)


class _Repairs:
    """One pass over one metadata object."""

    def __init__(self, marks: set[str]) -> None:
        self.marks = set(marks)
        self._nodes = 0

    def top_level(self, value: object, extra: Mapping[str, object]) -> dict[str, object]:
        members: dict[object, object]
        if value is None:
            members = {}
        elif isinstance(value, Mapping):
            members = dict(value)
            self._note_repeated(value)
        else:
            members = {"_value": value}
            self.marks.add("not_an_object")
        self._take_marks(members)
        kept = members.pop(EXTRA, None)
        if extra:
            if isinstance(kept, Mapping):
                kept = {**kept, **extra}
            else:
                if kept is not None:
                    self.marks.add("reserved")
                kept = dict(extra)
        result = self._members(members, depth=1)
        # Not finite becomes null, and null is nothing to keep: a second look finds nothing to repair.
        kept = None if kept is None else self._value(kept, depth=2)
        if kept is not None:
            result[EXTRA] = kept
        return result

    def _take_marks(self, members: dict[object, object]) -> None:
        earlier = members.pop(REPAIRED, None)
        if earlier is None:
            return
        if isinstance(earlier, list) and all(isinstance(mark, str) and mark in MARKS for mark in earlier):
            self.marks.update(earlier)
        else:
            self.marks.add("reserved")

    def _note_repeated(self, value: object) -> None:
        if getattr(value, "repeated_keys", False):
            self.marks.add("duplicate_key")

    def _members(self, members: Mapping[object, object], *, depth: int) -> dict[str, object]:
        result: dict[str, object] = {}
        for name, value in members.items():
            if depth == 1:
                # A member that is far too large is left out below; it must not cost the members behind it.
                self._nodes = 0
            elif self._is_exhausted():
                break
            key = self._key(name)
            if len(result) >= MAX_KEYS and key not in result:
                self.marks.add("keys")
                break
            secret = looks_secret(key)
            kept = _REDACTED if secret and not _is_plain(value) else self._value(value, depth=depth + 1)
            if secret and isinstance(kept, str) and kept:
                # Also a number that had to become text: a second look would take it for a secret.
                kept = _REDACTED
                if not (isinstance(value, str) and value == _REDACTED):
                    self.marks.add("redacted")
            result[key] = kept
        return result

    def _key(self, name: object) -> str:
        if isinstance(name, str):
            key = self._text(name)
        else:
            self.marks.add("key")
            key = str(name) if isinstance(name, (int, float, uuid.UUID)) or name is None else "[type]"
        if len(key) > MAX_KEY_LENGTH:
            self.marks.add("key")
            key = key[:MAX_KEY_LENGTH]
        return key

    def _text(self, text: str) -> str:
        text = str.__str__(text)
        # Most strings are plain; only those that PostgreSQL or UTF-8 cannot hold are rebuilt.
        if (text.isascii() and "\x00" not in text) or not _UNSTORABLE.search(text):
            return text
        self.marks.add("text")
        return _UNSTORABLE.sub("\ufffd", text)

    def _value(self, value: object, *, depth: int) -> object:
        self._nodes += 1
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, enum.Enum):
            return self._value(value.value, depth=depth)
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, (int, float, Decimal)):
            return self._number(value)
        if isinstance(value, (Mapping, list, tuple)):
            if depth > MAX_DEPTH:
                self.marks.add("depth")
                return "[too deep]"
            if isinstance(value, Mapping):
                self._note_repeated(value)
                return self._members(value, depth=depth)
            return self._items(value, depth=depth)
        if isinstance(value, uuid.UUID):
            return str(value)
        if isinstance(value, date):
            return value.isoformat()
        self.marks.add("type")
        return "[type]"

    def _items(self, items: list[object] | tuple[object, ...], *, depth: int) -> list[object]:
        result: list[object] = []
        for item in items:
            if self._is_exhausted():
                break
            result.append(self._value(item, depth=depth + 1))
        return result

    def _is_exhausted(self) -> bool:
        """More than this cannot fit anyway: what contains itself many times over must come to an end."""
        if self._nodes < _MAX_NODES:
            return False
        self.marks.add("size")
        return True

    def _number(self, value: int | float | Decimal) -> object:
        if isinstance(value, int) and -(2**63) <= value < 2**63:
            return int(value)
        if isinstance(value, float) and math.isfinite(value):
            return float(value)
        if isinstance(value, Decimal) and value.is_finite():
            nearest = (
                float(value)
                if -330 < value.adjusted() < 310 and len(str(value)) <= _MAX_NUMBER_TEXT
                else None
            )
            if nearest is not None and Decimal(float.__repr__(nearest)) == value:
                return nearest
        # JSON readers disagree about the rest: not finite, beyond 64 bits, or more digits than a float has.
        self.marks.add("number")
        if isinstance(value, int):
            return str(value) if value.bit_length() <= 200 else "[number too long]"
        if isinstance(value, Decimal) and value.is_finite():
            text = str(value)
            return text if len(text) <= _MAX_NUMBER_TEXT else "[number too long]"
        return None


def _is_plain(value: object) -> bool:
    """Numbers are counts (`max_token`), and nothing is no secret."""
    return value is None or (isinstance(value, str) and not value) or isinstance(value, (int, float, Decimal))


def _encoded(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _size(members: Mapping[str, object], marks: set[str]) -> int:
    return len(_encoded({**members, REPAIRED: sorted(marks)} if marks else members))


def _cut(value: object) -> object:
    if isinstance(value, str):
        return value if len(value) <= _CUT_STRING else value[:_CUT_STRING] + "…"
    if isinstance(value, list):
        return [_cut(item) for item in value]
    if isinstance(value, dict):
        return {key: _cut(item) for key, item in value.items()}
    return value


def _shrink(members: dict[str, object], marks: set[str]) -> dict[str, object]:
    """Cuts long strings; where that is not enough, leaves out the members that do not fit any more."""
    shorter = {key: _cut(value) for key, value in members.items()}
    if _size(shorter, marks) <= MAX_BYTES:
        return shorter
    room = MAX_BYTES - _size({}, marks)
    extra = shorter.pop(EXTRA, None)
    result, room = _fitting(shorter, room)
    if isinstance(extra, dict):
        fitting, _ = _fitting(extra, room - len(EXTRA) - 8)
        if fitting:
            result[EXTRA] = fitting
    return result


def _fitting(members: Mapping[str, object], room: int) -> tuple[dict[str, object], int]:
    result: dict[str, object] = {}
    for key, value in members.items():
        needed = len(_encoded(key)) + len(_encoded(value)) + 2
        if needed <= room:
            room -= needed
            result[key] = value
    return result, room
