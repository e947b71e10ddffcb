"""Roll-ups: what they answer, how a difference is named, and how they are made anew."""

from __future__ import annotations

import threading
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.integration.ingest_world import NOW, USER, World, event
from worker import db
from worker.rollups import operations, queries
from worker.rollups.queries import By, Usage
from worker.rollups.rules import RollupKey

START, END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
HOUR = NOW.replace(minute=0)


def usage(by: By, *, start: datetime = START, end: datetime = END, user: uuid.UUID = USER) -> list[Usage]:
    with db.platform_session() as session:
        return queries.usage(session, user, start=start, end=end, by=by)


def differences() -> list[queries.Difference]:
    with db.platform_session() as session:
        return queries.differences(session, start=START, end=END)


def rebuild(start: datetime = START, end: datetime = END) -> int:
    with db.platform_session() as session:
        return operations.rebuild(session, start=start, end=end)


@pytest.fixture
def used(world: World) -> World:
    """Ten days of usage of two users, some of it unpriced."""
    for day in range(10):
        world.add(
            [
                event(
                    feature=f"f{n % 2}",
                    model=None if n % 3 == 0 else f"m{n % 3}",
                    input_tokens=n,
                    output_tokens=1,
                    cost_usd=None if n == 5 else "0.000000000001",
                    user_id=str(USER) if n else str(uuid.UUID(int=7)),
                    occurred_at=(NOW - timedelta(days=day, minutes=13 * n)).isoformat(),
                )
                for n in range(12)
            ]
        )
    world.drain()
    return world


class TestUsage:
    @pytest.mark.parametrize("by", ["feature", "model", "day"])
    def test_is_what_the_log_says(self, used: World, by: By) -> None:
        column = {"feature": "feature", "model": "coalesce(model, '')", "day": "occurred_at::date::text"}[by]
        expected = used.rows(
            "SELECT {column}, count(*), count(*) FILTER (WHERE cost_usd IS NULL), sum(input_tokens),"
            " sum(output_tokens), sum(tokens_used), coalesce(sum(cost_usd), 0)"
            " FROM platform_usage_logs WHERE user_id = :user GROUP BY 1 ORDER BY 1".replace(
                "{column}", column
            ),
            user=USER,
        )
        found = usage(by)
        assert len(found) > 1
        assert [
            (
                one.group,
                one.events,
                one.unpriced_events,
                one.input_tokens,
                one.output_tokens,
                one.tokens_used,
                one.cost_usd,
            )
            for one in found
        ] == [tuple(row) for row in expected]

    @pytest.mark.parametrize(
        ("start", "end"),
        [
            (NOW - timedelta(minutes=40), NOW),
            (NOW - timedelta(days=2, minutes=1), NOW - timedelta(days=1, seconds=3)),
            (NOW - timedelta(minutes=29), NOW - timedelta(minutes=10)),
            (HOUR, HOUR + timedelta(hours=1)),
            (NOW, NOW),
        ],
    )
    def test_is_exact_for_a_period_that_begins_and_ends_within_an_hour(
        self, used: World, start: datetime, end: datetime
    ) -> None:
        (expected,) = used.rows(
            "SELECT count(*) FROM platform_usage_logs"
            " WHERE user_id = :user AND occurred_at >= :start AND occurred_at < :end",
            user=USER,
            start=start,
            end=end,
        )
        assert sum(one.events for one in usage("feature", start=start, end=end)) == expected[0]

    def test_of_a_user_without_any_is_empty(self, used: World) -> None:
        assert usage("day", user=uuid.uuid4()) == []


class TestDifferences:
    def test_are_none_after_ingest(self, used: World) -> None:
        assert differences() == []
        assert used.rows("SELECT count(*) FROM usage_hourly")[0][0] > 10

    def test_name_the_keys_that_differ_with_both_sides(self, used: World) -> None:
        key = RollupKey(USER, "f1", "openai", "m1", HOUR)
        used.execute(
            "UPDATE usage_hourly SET cost_usd = cost_usd + 0.000000000001"
            " WHERE user_id = :user AND feature = 'f1' AND model = 'm1' AND hour = :hour",
            user=USER,
            hour=HOUR,
        )
        (difference,) = differences()
        assert difference.key == key
        assert difference.rollup is not None
        assert difference.log is not None
        assert difference.rollup["cost_usd"] - difference.log["cost_usd"] == Decimal("0.000000000001")

    def test_name_rows_that_are_missing_on_either_side(self, used: World) -> None:
        used.execute("DELETE FROM usage_hourly WHERE user_id = :user AND hour = :hour", user=USER, hour=HOUR)
        missing = differences()
        assert missing
        assert all(one.rollup is None and one.log is not None for one in missing)
        rebuild()
        used.execute(
            "INSERT INTO usage_hourly (user_id, feature, provider, model, hour, events)"
            " VALUES (:user, 'invented', '', '', :hour, 1)",
            user=USER,
            hour=HOUR,
        )
        (invented,) = differences()
        assert (invented.key.feature, invented.log) == ("invented", None)


class TestRebuild:
    def test_makes_any_range_what_the_log_says(self, used: World) -> None:
        before = used.rows("SELECT * FROM usage_hourly ORDER BY user_id, feature, provider, model, hour")
        used.execute(
            "UPDATE usage_hourly SET events = events + 1, tokens_used = 0 WHERE hour < :now", now=NOW
        )
        used.execute("DELETE FROM usage_hourly WHERE feature = 'f1'")
        assert len(differences()) > 5
        assert rebuild() == len(before)
        assert differences() == []
        assert (
            used.rows("SELECT * FROM usage_hourly ORDER BY user_id, feature, provider, model, hour") == before
        )

    def test_leaves_hours_outside_of_the_range_alone(self, used: World) -> None:
        used.execute("UPDATE usage_hourly SET events = 99")
        rebuild(NOW - timedelta(hours=25), NOW - timedelta(hours=20))
        touched = used.rows("SELECT DISTINCT hour FROM usage_hourly WHERE events <> 99 ORDER BY hour")
        assert [row.hour for row in touched] == [HOUR - timedelta(hours=25), HOUR - timedelta(hours=24)]

    def test_beside_running_drains_loses_nothing(self, used: World) -> None:
        for n in range(60):
            used.add([event(feature=f"f{n % 4}") for _ in range(10)])
        results: list[dict[str, Any]] = []
        drain = threading.Thread(target=lambda: results.append(used.drain(batch_size=30)))
        drain.start()
        for _ in range(10):
            rebuild()
        drain.join(30)
        assert results[0]["accepted"] == 600
        assert differences() == []
        used.assert_books_hold()
