"""When: RFC 3339 to the letter, and the window around the arrival."""

import itertools
from datetime import UTC, datetime, timedelta, timezone

import pytest

from producers import UsageEvent
from producers._events import age_problem, parse
from tests.unit.producers.samples import GONE, VOID, fields, reason_of

TIMES_REFUSED = [
    "",
    0,
    1769850000,
    1769850000.5,
    True,
    "2026-01-31",
    "2026-01-31T09:30:00",
    "2026-01-31T09:30Z",
    "2026-01-31 09:30:00Z",
    "2026-01-31T24:00:00Z",
    "2026-01-31T23:59:60Z",
    "2026-02-29T00:00:00Z",
    "2026-13-01T00:00:00Z",
    "2026-01-31T09:30:00+24:00",
    "2026-01-31T09:30:00+01:60",
    "2026-01-31T09:30:00+0100",
    "2026-01-31T09:30:00+01",
    "2026-01-31T09:30:00.Z",
    "2026-01-31T09:30:00,5Z",
    "20260131T093000Z",
    "2026-W05-6T09:30:00Z",
    "+02026-01-31T09:30:00Z",
    "12026-01-31T09:30:00Z",
    "0000-01-01T00:00:00Z",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    "1969-12-31T23:59:59Z",
    "\uff12\uff10\uff12\uff16-01-31T09:30:00Z",
    "2026-01-31T09:30:00Z\n",
    " 2026-01-31T09:30:00Z",
    "2026-01-31T09:30:00ZZ",
    "2026-01-31T09:30:00 UTC",
    "now",
    "tomorrow",
    "infinity",
    "2026-01-31T09:30:00." + "1" * 100 + "Z",
]


class TestTime:
    @pytest.mark.parametrize("value", TIMES_REFUSED, ids=itertools.count())
    def test_refuses_what_is_no_moment(self, value: object) -> None:
        assert reason_of(fields(occurred_at=value)) == ("invalid_occurred_at", "occurred_at")

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("2026-01-31T09:30:00Z", "2026-01-31T09:30:00Z"),
            ("2026-01-31t09:30:00z", "2026-01-31T09:30:00Z"),
            ("2026-01-31T09:30:00+05:30", "2026-01-31T04:00:00Z"),
            ("2026-01-31T23:30:00-14:00", "2026-02-01T13:30:00Z"),
            ("2026-01-31T09:30:00-00:00", "2026-01-31T09:30:00Z"),
            ("2026-01-31T09:30:00.5Z", "2026-01-31T09:30:00.500000Z"),
            ("2026-01-31T09:30:00.9999999Z", "2026-01-31T09:30:00.999999Z"),
            ("2024-02-29T00:00:00.000000Z", "2024-02-29T00:00:00Z"),
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
            ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z"),
        ],
    )
    def test_takes_rfc_3339(self, value: str, expected: str) -> None:
        event = parse(fields(occurred_at=value))
        assert event.occurred_at.tzinfo is UTC
        assert event.wire()["occurred_at"] == expected

    def test_takes_aware_datetimes_only(self) -> None:
        aware = datetime(2026, 1, 31, 9, 30, tzinfo=timezone(timedelta(hours=1)))
        assert parse(fields(occurred_at=aware)).wire()["occurred_at"] == "2026-01-31T08:30:00Z"
        naive = datetime(2026, 1, 31)  # noqa: DTZ001 - the point of the test
        assert reason_of(fields(occurred_at=naive)) == ("invalid_occurred_at", "occurred_at")

    def test_is_needed(self) -> None:
        assert reason_of(fields(occurred_at=GONE)) == ("missing_field", "occurred_at")


class TestAgeProblem:
    NOW = datetime(2026, 2, 1, tzinfo=UTC)

    @pytest.mark.parametrize(
        ("age", "expected"),
        [
            (timedelta(0), None),
            (timedelta(days=35), None),
            (timedelta(days=35, microseconds=1), "too_old"),
            (-timedelta(seconds=300), None),
            (-timedelta(seconds=300, microseconds=1), "in_future"),
        ],
    )
    def test_both_ends_belong_to_the_window(self, age: timedelta, expected: str | None) -> None:
        event = parse(fields(occurred_at=self.NOW - age))
        assert self.problem(event, self.NOW) == expected

    def test_a_correction_may_be_of_any_age_but_not_of_the_future(self) -> None:
        old = parse({**VOID, "occurred_at": "1999-01-01T00:00:00Z"}, correction=True)
        assert self.problem(old, self.NOW) is None
        early = parse({**VOID, "occurred_at": "2026-02-02T00:00:00Z"}, correction=True)
        assert self.problem(early, self.NOW) == "in_future"

    def test_knows_the_edges_of_the_calendar(self) -> None:
        event = parse(fields())
        assert self.problem(event, datetime.max.replace(tzinfo=UTC)) == "too_old"
        assert self.problem(event, datetime(1, 1, 1, tzinfo=UTC)) == "in_future"

    @staticmethod
    def problem(event: UsageEvent, received_at: datetime) -> str | None:
        return age_problem(
            event, received_at=received_at, max_age=timedelta(days=35), max_future=timedelta(seconds=300)
        )
