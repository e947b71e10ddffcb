"""Where billing periods begin and end: anchor day, time zone, months of unequal length."""

from __future__ import annotations

import calendar
from datetime import UTC, date, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from worker.errors import PermanentError

MONTHS: Final = {"month": 1, "year": 12}
"""Length in months of the intervals that follow the anchor day."""

DAYS: Final = {"day": 1, "week": 7}
"""Length in days of the others."""


class UnknownZone(PermanentError):
    """The time zone of the subscription is not in the time zone database."""


class UnknownInterval(PermanentError):
    """The interval of the plan is not `day`, `week`, `month` or `year`."""


def next_boundary(
    period_start: datetime, period_end: datetime, *, anchor_day: int, timezone: str, interval: str
) -> datetime:
    """This function will be the end (UTC) of the period that follows [period_start, period_end).

    Months and years end on `anchor_day`, or on the last day of a shorter month, days and weeks when their
    days are over; each at the time of day that the subscription always had in `timezone`. A `period_end` that
    is off this grid (somebody moved it, or the zone changed) counts as the grid's nearest boundary, so nobody
    gets a month of one day. Raises UnknownZone and UnknownInterval.
    """
    zone = _zone(timezone)
    at = _time_of_day(period_start, period_end, zone)
    local = period_end.astimezone(zone)
    if interval in DAYS:
        return instant(datetime.combine(local.date() + timedelta(days=DAYS[interval]), at), zone)
    if interval not in MONTHS:
        raise UnknownInterval(f"{interval!r} is not an interval: day, week, month or year")
    month = local.year * 12 + local.month - 1
    nearest = min(
        (month - 1, month, month + 1),
        key=lambda candidate: abs(_boundary_in(candidate, anchor_day, at, zone) - period_end),
    )
    return _boundary_in(nearest + MONTHS[interval], anchor_day, at, zone)


def instant(local: datetime, zone: ZoneInfo) -> datetime:
    """This function will be the moment (UTC) of a naive local time.

    A time that does not exist is read with the old offset; of one that comes twice, the first is taken.
    """
    return local.replace(tzinfo=zone, fold=0).astimezone(UTC)


def _boundary_in(month: int, anchor_day: int, at: time, zone: ZoneInfo) -> datetime:
    year, month_index = divmod(month, 12)
    day = min(anchor_day, calendar.monthrange(year, month_index + 1)[1])
    return instant(datetime.combine(date(year, month_index + 1, day), at), zone)


def _time_of_day(period_start: datetime, period_end: datetime, zone: ZoneInfo) -> time:
    # Where one end fell into the hour that a clock change skipped, it was moved; the other end still shows
    # the time that was meant. It is the one that explains both.
    ends = [moment.astimezone(zone).replace(tzinfo=None, fold=0) for moment in (period_end, period_start)]
    for candidate in ends:
        explained = (instant(datetime.combine(end.date(), candidate.time()), zone) for end in ends)
        if list(explained) == [period_end, period_start]:
            return candidate.time()
    return ends[0].time()


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UnknownZone(f"{name!r} is not a time zone of the time zone database") from error
