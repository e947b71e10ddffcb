"""The hours of roll-ups."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from worker.rollups import rules

HOUR = datetime(2026, 3, 1, 12, tzinfo=UTC)
MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 bounds


class TestKeyOf:
    def test_has_no_null_and_the_utc_hour(self) -> None:
        user = uuid.uuid4()
        india = timezone(timedelta(hours=5, minutes=30))
        key = rules.key_of(
            user_id=user,
            feature="f",
            provider=None,
            model=None,
            occurred_at=datetime(2026, 3, 1, 18, 15, 59, 999999, tzinfo=india),
        )
        assert key == rules.RollupKey(user, "f", "", "", HOUR)


class TestHours:
    @given(MOMENTS, MOMENTS)
    def test_within_a_period_are_the_most_that_fit(self, one: datetime, other: datetime) -> None:
        start, end = sorted((one, other))
        first, last = rules.whole_hours(start, end)
        assert first - start < rules.HOUR
        assert first <= last
        assert start <= first
        assert last <= end or first == last
        assert rules.hour_of(first) == first
        assert rules.hour_of(last) == last
        if first < last:
            assert end - last < rules.HOUR

    @given(MOMENTS, MOMENTS)
    def test_that_cover_a_period_are_the_fewest_that_do(self, one: datetime, other: datetime) -> None:
        start, end = sorted((one, other))
        first, last = rules.covering_hours(start, end)
        assert first <= start
        assert end <= last
        assert start - first < rules.HOUR
        assert last - end < rules.HOUR

    def test_of_a_period_that_is_whole_hours_are_that_period(self) -> None:
        assert rules.whole_hours(HOUR, HOUR + rules.HOUR) == (HOUR, HOUR + rules.HOUR)
        assert rules.covering_hours(HOUR, HOUR + rules.HOUR) == (HOUR, HOUR + rules.HOUR)
