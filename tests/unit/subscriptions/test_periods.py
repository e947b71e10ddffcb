"""Where periods end: anchor days, months of unequal length, zones and their clock changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.subscriptions import periods

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Santiago",  # changes its clock at midnight
    "Australia/Lord_Howe",  # by half an hour
    "Pacific/Apia",  # left out a whole day in 2011
    "Asia/Kathmandu",
]


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def local(text: str, zone: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


def boundaries(
    start: datetime, *, anchor_day: int, timezone: str, interval: str, count: int
) -> list[datetime]:
    """The first period is as long as the rules make it from its own start on the grid."""
    found = [
        start,
        periods.next_boundary(start, start, anchor_day=anchor_day, timezone=timezone, interval=interval),
    ]
    while len(found) < count:
        found.append(
            periods.next_boundary(
                found[-2], found[-1], anchor_day=anchor_day, timezone=timezone, interval=interval
            )
        )
    return found


class TestNextBoundary:
    @pytest.mark.parametrize(
        ("start", "expected"),
        [
            ("2026-01-31", ["2026-02-28", "2026-03-31", "2026-04-30", "2026-05-31"]),
            ("2028-01-31", ["2028-02-29", "2028-03-31", "2028-04-30", "2028-05-31"]),
            ("2026-01-30", ["2026-02-28", "2026-03-30", "2026-04-30", "2026-05-30"]),
            ("2026-12-15", ["2027-01-15", "2027-02-15", "2027-03-15", "2027-04-15"]),
        ],
    )
    def test_keeps_the_anchor_day_through_shorter_months(self, start: str, expected: list[str]) -> None:
        moment = utc(start)
        found = boundaries(moment, anchor_day=moment.day, timezone="UTC", interval="month", count=5)
        assert [boundary.date().isoformat() for boundary in found[1:]] == expected

    def test_keeps_the_leap_day_through_common_years(self) -> None:
        found = boundaries(utc("2024-02-29"), anchor_day=29, timezone="UTC", interval="year", count=6)
        assert [boundary.date().isoformat() for boundary in found] == [
            "2024-02-29",
            "2025-02-28",
            "2026-02-28",
            "2027-02-28",
            "2028-02-29",
            "2029-02-28",
        ]

    def test_counts_days_and_weeks_in_the_zone(self) -> None:
        start, end = local("2026-03-22T09:00", "Europe/Berlin"), local("2026-03-28T09:00", "Europe/Berlin")
        day = periods.next_boundary(start, end, anchor_day=1, timezone="Europe/Berlin", interval="day")
        week = periods.next_boundary(start, end, anchor_day=1, timezone="Europe/Berlin", interval="week")
        assert day - end == timedelta(hours=23)  # the clock goes forward in the night to the 29th
        assert week == local("2026-04-04T09:00", "Europe/Berlin")

    def test_reads_a_time_that_does_not_exist_with_the_old_offset_and_returns_to_it(self) -> None:
        found = boundaries(
            local("2026-01-29T02:30", "Europe/Berlin"),
            anchor_day=29,
            timezone="Europe/Berlin",
            interval="month",
            count=5,
        )
        assert found[2] == local("2026-03-29T03:30", "Europe/Berlin")  # 02:30 is skipped that night
        assert found[3] == local("2026-04-29T02:30", "Europe/Berlin")
        assert found[4] == local("2026-05-29T02:30", "Europe/Berlin")

    def test_takes_the_first_of_a_time_that_comes_twice(self) -> None:
        found = boundaries(
            local("2026-09-25T02:30", "Europe/Berlin"),
            anchor_day=25,
            timezone="Europe/Berlin",
            interval="month",
            count=2,
        )
        assert found[1] == utc("2026-10-25T00:30")  # still summer time, the second 02:30 is at 01:30 UTC

    def test_takes_a_boundary_off_the_grid_for_its_nearest_neighbour(self) -> None:
        # Midnight in UTC is the evening before in New York: no period of a few hours follows.
        found = periods.next_boundary(
            utc("2026-01-28"), utc("2026-02-28"), anchor_day=28, timezone="America/New_York", interval="month"
        )
        assert found == local("2026-03-28T19:00", "America/New_York")

    def test_refuses_an_unknown_zone(self) -> None:
        for name in ("Mars/Olympus", "../etc/passwd", ""):
            with pytest.raises(periods.UnknownZone):
                periods.next_boundary(
                    utc("2026-01-01"), utc("2026-02-01"), anchor_day=1, timezone=name, interval="month"
                )

    def test_refuses_an_unknown_interval(self) -> None:
        with pytest.raises(periods.UnknownInterval):
            periods.next_boundary(
                utc("2026-01-01"), utc("2026-02-01"), anchor_day=1, timezone="UTC", interval="fortnight"
            )

    @settings(max_examples=40, deadline=None)
    @given(
        zone=st.sampled_from(ZONES),
        day=st.integers(1, 31),
        minute=st.integers(0, 24 * 60 - 1),
        year=st.integers(1990, 2035),
    )
    def test_tiles_a_hundred_years_of_months(self, zone: str, day: int, minute: int, year: int) -> None:
        # January has every day; its own start is the first boundary.
        start = (datetime(year, 1, day) + timedelta(minutes=minute)).replace(tzinfo=ZoneInfo(zone))  # noqa: DTZ001 local
        found = boundaries(start.astimezone(UTC), anchor_day=day, timezone=zone, interval="month", count=1201)
        lengths = [after - before for before, after in pairwise(found)]
        assert min(lengths) >= timedelta(days=27)
        assert max(lengths) <= timedelta(days=32)
        # No month is skipped and none comes twice: a hundred years later it is the same day and time.
        last = found[-1].astimezone(ZoneInfo(zone))
        assert (last.year, last.month, last.day) == (year + 100, 1, day)
        assert found[-1] == periods.instant(last.replace(tzinfo=None, fold=0), ZoneInfo(zone))

    @settings(max_examples=30, deadline=None)
    @given(zone=st.sampled_from(ZONES), start=st.datetimes(datetime(1990, 1, 1), datetime(2035, 1, 1)))  # noqa: DTZ001 local
    def test_tiles_a_hundred_years_of_years(self, zone: str, start: datetime) -> None:
        first = periods.instant(start, ZoneInfo(zone))
        day = first.astimezone(ZoneInfo(zone)).day
        found = boundaries(first, anchor_day=day, timezone=zone, interval="year", count=101)
        lengths = [after - before for before, after in pairwise(found)]
        assert min(lengths) >= timedelta(days=363)
        assert max(lengths) <= timedelta(days=368)
        assert found[-1].astimezone(ZoneInfo(zone)).year == start.year + 100
