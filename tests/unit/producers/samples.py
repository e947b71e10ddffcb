"""One good event as JSON has it, and ways to spoil it."""

from collections.abc import Mapping

import pytest

from producers import InvalidEvent
from producers._events import parse

EVENT = "018f3c1a-7b1c-7d3e-9a55-0123456789ab"
USER = "7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11"
OTHER = "11111111-2222-4333-8444-555555555555"
BASE: dict[str, object] = {
    "event_id": EVENT,
    "user_id": USER,
    "feature": "blog_writer",
    "input_tokens": 812,
    "output_tokens": 455,
    "occurred_at": "2026-01-31T09:30:00Z",
}
VOID = {
    "event_id": EVENT,
    "user_id": USER,
    "corrects": OTHER,
    "void": True,
    "occurred_at": "2026-01-31T09:30:00Z",
}
GONE = object()


def fields(**changes: object) -> dict[str, object]:
    return {name: value for name, value in {**BASE, **changes}.items() if value is not GONE}


def correction(**changes: object) -> dict[str, object]:
    return fields(corrects=OTHER, input_tokens=GONE, output_tokens=GONE, **changes)


def reason_of(given: Mapping[str, object], *, correction: bool = False) -> tuple[str, str]:
    with pytest.raises(InvalidEvent) as caught:
        parse(given, correction=correction)
    return caught.value.reason, caught.value.field
