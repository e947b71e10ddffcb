"""The flood breaker: a bad deploy pauses its shard instead of pouring everything into the dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.integration.ingest_world import World, event
from worker import db
from worker.entrypoints import draining
from worker.ingest import switch
from worker.ingest.effects import DrainOutcome
from worker.settings import Settings


def state(shard: int = 0) -> switch.Supervision:
    with db.platform_session() as session:
        return switch.supervision(session)[shard]


def bad() -> dict[str, Any]:
    return event(input_tokens=-1)


def add(world: World, events: Sequence[dict[str, Any]], *, frame: int = 100) -> None:
    for start in range(0, len(events), frame):
        world.add(events[start : start + frame])


class TestFlood:
    def test_of_600_in_1000_pauses_the_shard_with_every_byte_stored(self, world: World) -> None:
        add(world, [bad() if n % 5 < 3 else event() for n in range(1000)])
        with capture_logs() as lines:
            counts = world.drain(flood_share=Decimal("0.5"), flood_events=1000)
        assert (counts["outcome"], counts["events"]) == (DrainOutcome.PAUSED, 1000)
        assert (counts["accepted"], counts["rejected"]) == (400, 600)
        letters = world.letters()
        assert len(letters) == 600
        assert all(letter.raw and b'"input_tokens"' in letter.raw for letter in letters)
        now = state()
        assert (now.paused_reason, now.paused_by) == ("flood", "usage-worker")
        assert (now.flood_events, now.flood_refused) == (1000, 600)
        said = [
            line for line in lines if line["event"] == "too many events were refused: the shard is paused"
        ]
        assert [(line["shard"], line["log_level"]) for line in said] == [(0, "error")]
        world.assert_books_hold()

    def test_lets_later_entries_wait_and_goes_on_when_resumed(self, world: World) -> None:
        add(world, [bad() for _ in range(60)])
        assert world.drain(flood_events=50)["outcome"] == DrainOutcome.PAUSED
        world.add([event(), event()])
        assert world.drain()["events"] == 0
        with db.platform_session() as session:
            assert switch.resume(session, [0]) == [0]
        assert world.drain(flood_events=50)["accepted"] == 2
        assert state().flood_events == 2
        world.assert_books_hold()

    def test_is_one_shards_affair(self, world: World) -> None:
        world.add([bad(), bad()])
        world.add([event(), event()], shard=1)
        assert world.drain(flood_events=2)["outcome"] == DrainOutcome.PAUSED
        assert world.drain(shard=1, flood_events=2)["accepted"] == 2

    def test_is_counted_over_batches_and_drains(self, world: World) -> None:
        for _ in range(3):
            world.add([bad() for _ in range(30)])
            assert world.drain(flood_events=100)["outcome"] != DrainOutcome.PAUSED
        world.add([bad() for _ in range(30)])
        assert world.drain(flood_events=100)["outcome"] == DrainOutcome.PAUSED

    @pytest.mark.parametrize(("refused", "is_paused"), [(50, False), (51, True)])
    def test_begins_above_its_share(self, refused: int, is_paused: bool, world: World) -> None:
        world.add([bad() if n < refused else event() for n in range(100)])
        counts = world.drain(flood_events=100, flood_share=Decimal("0.5"))
        assert (counts["outcome"] == DrainOutcome.PAUSED) is is_paused
        assert state().is_paused is is_paused

    def test_needs_enough_events(self, world: World) -> None:
        world.add([bad() for _ in range(99)])
        assert world.drain(flood_events=100)["outcome"] != DrainOutcome.PAUSED

    def test_is_switched_off_by_a_share_of_one(self, world: World) -> None:
        world.add([bad() for _ in range(100)])
        assert world.drain(flood_events=10, flood_share=Decimal(1))["outcome"] != DrainOutcome.PAUSED

    def test_does_not_count_conflicts_and_unknown_users(self, world: World) -> None:
        first = event()
        world.add(first)
        world.drain()
        world.add([{**first, "cost_usd": str(n)} for n in range(1, 40)])
        world.add([event(user_id=None, clerk_id=f"user_{n}") for n in range(40)])
        counts = world.drain(flood_events=10)
        assert (counts["conflicts"], counts["rejected"]) == (39, 40)
        assert counts["outcome"] != DrainOutcome.PAUSED
        assert state().flood_refused == 0

    def test_does_not_count_what_is_read_again(self, world: World) -> None:
        # The flood passed while the breaker was off; reading it once more is not another one.
        world.add([bad() for _ in range(20)])
        world.drain(flood_share=Decimal(1))
        world.execute("UPDATE ingest_positions SET flood_since = NULL, flood_events = 0, flood_refused = 0")
        world.command("XGROUP", "SETID", "usage:events:{0}", "usage-workers", "0")
        assert world.drain(flood_events=1)["outcome"] != DrainOutcome.PAUSED
        assert state().flood_refused == 0

    def test_never_trips_over_good_traffic(self, world: World) -> None:
        same = [event() for _ in range(50)]
        for _ in range(3):
            add(world, [*same, *(event() for _ in range(200))])
            assert world.drain(flood_events=10)["outcome"] != DrainOutcome.PAUSED
        assert (state().flood_refused, len(world.rows())) == (0, 650)

    def test_window_begins_anew_when_it_is_over(self, world: World) -> None:
        world.add([bad() for _ in range(30)])
        world.drain(flood_events=50)
        world.execute("UPDATE ingest_positions SET flood_since = clock_timestamp() - interval '301 seconds'")
        world.add([bad() for _ in range(30)])
        assert world.drain(flood_events=50)["outcome"] != DrainOutcome.PAUSED
        assert state().flood_events == 30
        world.execute("UPDATE ingest_positions SET flood_since = clock_timestamp() - interval '200 seconds'")
        world.add([bad() for _ in range(30)])
        assert world.drain(flood_events=50)["outcome"] == DrainOutcome.PAUSED

    def test_its_settings_reach_the_drain(self, settings: Settings) -> None:
        limits = settings.model_copy(
            update={
                "usage_flood_share": Decimal("0.25"),
                "usage_flood_events": 7,
                "usage_poison_deliveries": 4,
            }
        )
        from_settings = draining.drain_limits(limits)
        assert (from_settings.flood_share, from_settings.flood_events) == (Decimal("0.25"), 7)
        assert (from_settings.flood_window_seconds, from_settings.poison_deliveries) == (300, 4)
