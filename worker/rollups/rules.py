"""The key of a roll-up and the arithmetic of its hours."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

HOUR = timedelta(hours=1)


class RollupKey(NamedTuple):
    """What one roll-up row sums over; '' stands for an absent provider or model, so no part is ever NULL."""

    user_id: UUID
    feature: str
    provider: str
    model: str
    hour: datetime


def key_of(
    *, user_id: UUID, feature: str, provider: str | None, model: str | None, occurred_at: datetime
) -> RollupKey:
    """This function will return the key under which an event is summed."""
    return RollupKey(user_id, feature, provider or "", model or "", hour_of(occurred_at))


def hour_of(moment: datetime) -> datetime:
    """This function will return the start of the UTC hour that holds `moment`."""
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def whole_hours(start: datetime, end: datetime) -> tuple[datetime, datetime]:
    """This function will return the largest [first, last) of whole hours in [start, end); it may be empty."""
    first = hour_of(start)
    if first < start:
        first += HOUR
    return first, max(first, hour_of(end))


def covering_hours(start: datetime, end: datetime) -> tuple[datetime, datetime]:
    """This function will return the smallest [first, last) of whole hours that holds [start, end)."""
    last = hour_of(end)
    return hour_of(start), last if last == end else last + HOUR
