"""The books agree while everything is counted once, and name what does not when something is not."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
import pytest

from tests.integration.ingest_world import GROUP, World, event

pytestmark = pytest.mark.redis_compatible


@pytest.fixture
def drained(world: World) -> World:
    """A shard with a little of everything."""
    sent = event()
    world.add([sent, sent, {**sent, "cost_usd": "9"}, event(cost_usd="no")])
    world.add(event())
    world.drain()
    return world


def checks(world: World) -> list[str]:
    return [difference.check.partition(" ")[0] for difference in world.book_differences()]


class TestBooks:
    def test_agree_at_rest_and_with_entries_in_flight(self, drained: World) -> None:
        assert drained.book_differences() == []
        for _ in range(3):
            drained.add(event())
        drained.client.xreadgroup(GROUP, "somebody", {"usage:events:{0}": ">"}, count=1)
        assert drained.book_differences() == []

    def test_agree_with_more_in_flight_than_one_page(self, drained: World) -> None:
        pipeline = drained.client.pipeline(transaction=False)
        for _ in range(2500):
            pipeline.xadd("usage:events:{0}", {"data": "{"})
        pipeline.execute()
        assert drained.book_differences() == []

    def test_miss_entries_that_were_trimmed_unread(self, drained: World) -> None:
        for _ in range(3):
            drained.add(event())
        drained.client.xtrim("usage:events:{0}", maxlen=1, approximate=False)
        (difference,) = drained.book_differences()
        assert difference.check == "entries added to the stream = entries counted + in flight"
        assert (difference.expected, difference.found, difference.shard) == (5, 3, 0)

    @pytest.mark.parametrize(
        ("sabotage", "broken"),
        [
            ("UPDATE ingest_positions SET entries = entries + 1", {"entries"}),
            ("UPDATE ingest_positions SET duplicates = duplicates + 1", {"events"}),
            ("UPDATE ingest_positions SET accepted = accepted + 1", {"events", "rows"}),
            (
                "DELETE FROM platform_usage_logs WHERE ctid = (SELECT min(ctid) FROM platform_usage_logs)",
                {"rows", "roll-ups"},
            ),
            ("DELETE FROM usage_dead_letters WHERE reason = 'conflict'", {"conflicts"}),
            ("UPDATE usage_hourly SET tokens_used = tokens_used + 1", {"roll-ups"}),
            ("DELETE FROM usage_hourly", {"roll-ups"}),
        ],
    )
    def test_say_what_does_not_agree(
        self, drained: World, databases: Any, sabotage: str, broken: set[str]
    ) -> None:
        with psycopg.connect(databases.platform.url("superuser"), autocommit=True) as connection:
            connection.execute(sabotage)
        assert set(checks(drained)) == broken

    def test_name_the_keys_of_roll_ups_that_differ(self, drained: World) -> None:
        user = uuid.uuid4()
        drained.execute(
            "INSERT INTO usage_hourly (user_id, feature, provider, model, hour, events)"
            " VALUES (:user, 'invented', '', '', '2026-01-01T00:00Z', 1)",
            user=user,
        )
        (difference,) = drained.book_differences()
        assert difference.names == (f"{user} invented 2026-01-01T00:00:00+00:00",)
