"""Windows of periodic jobs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.jobs.rules import window_start


class TestWindowStart:
    @pytest.mark.parametrize(
        ("now", "seconds", "expected"),
        [
            ("2026-11-21T02:03:04.5+00:00", 60, "2026-11-21T02:03:00+00:00"),
            ("2026-11-21T02:03:00+00:00", 60, "2026-11-21T02:03:00+00:00"),
            ("2026-11-21T02:02:59.999999+00:00", 60, "2026-11-21T02:02:00+00:00"),
            ("2026-11-21T02:14:59+00:00", 900, "2026-11-21T02:00:00+00:00"),
            ("2026-10-25T02:30:00+02:00", 3600, "2026-10-25T00:00:00+00:00"),
        ],
    )
    def test_is_the_last_multiple_of_the_period(self, now: str, seconds: int, expected: str) -> None:
        found = window_start(datetime.fromisoformat(now), period=timedelta(seconds=seconds))
        assert found == datetime.fromisoformat(expected)

    @given(
        st.datetimes(min_value=datetime(1990, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001  hypothesis wants naive bounds
        st.integers(1, 86_400),
    )
    def test_every_moment_lies_in_exactly_one_window(self, now: datetime, seconds: int) -> None:
        period = timedelta(seconds=seconds)
        start = window_start(now, period=period)
        assert start <= now < start + period
        assert window_start(start, period=period) == start
        assert window_start(start + period, period=period) == start + period
