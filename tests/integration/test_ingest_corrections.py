"""Corrections and voids: an event and all of its corrections are one total that never falls below zero."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.integration.ingest_world import NOW, USER, World, event

pytestmark = pytest.mark.redis_compatible


def correction(target: dict[str, Any], **fields: Any) -> dict[str, Any]:
    standard: dict[str, Any] = {
        "event_id": str(uuid.uuid4()),
        "user_id": str(USER),
        "corrects": target["event_id"],
        "occurred_at": NOW.isoformat(),
    }
    return {**standard, **fields}


def stored(world: World, **fields: Any) -> dict[str, Any]:
    target = event(**{"input_tokens": 100, "output_tokens": 50, "cost_usd": "1.5", **fields})
    world.add(target)
    world.drain()
    return target


def correct(world: World, *sent: dict[str, Any]) -> dict[str, Any]:
    for one in sent:
        world.add(one, correction=True)
    return world.drain()


class TestCorrection:
    def test_inherits_from_its_target_and_counts_at_its_own_time(self, world: World) -> None:
        target = stored(world)
        later = (NOW + timedelta(minutes=1)).isoformat()
        sent = correction(target, input_tokens=-40, output_tokens=-20, occurred_at=later)
        assert correct(world, sent)["accepted"] == 1
        (row,) = world.rows("SELECT * FROM platform_usage_logs WHERE corrects IS NOT NULL")
        assert (row.user_id, row.feature, row.provider, row.model) == (
            USER,
            "blog_writer",
            "openai",
            "gpt-4o-mini",
        )
        assert (row.input_tokens, row.output_tokens, row.tokens_used) == (-40, -20, -60)
        assert (row.cost_usd, row.cost_reported_usd, row.cost_source) == (Decimal("-0.6"), None, "reported")
        assert row.occurred_at == NOW + timedelta(minutes=1)
        (hour,) = world.rows("SELECT * FROM usage_hourly")
        assert (hour.events, hour.input_tokens, hour.output_tokens) == (1, 60, 30)
        assert hour.cost_usd == Decimal("0.9")
        assert world.position().last_correction_id != "0-0"
        world.assert_books_hold()

    def test_takes_a_cost_that_is_stated(self, world: World) -> None:
        target = stored(world)
        correct(world, correction(target, cost_usd="-0.25"), correction(target, cost_usd="0.05"))
        assert world.sums()["cost"] == Decimal("1.3")
        assert world.sums()["tokens"] == 150
        world.assert_books_hold()

    def test_may_come_years_later(self, world: World) -> None:
        target = stored(world)
        world.add(correction(target, input_tokens=-1), correction=True, at=NOW + timedelta(days=900))
        assert world.drain()["accepted"] == 1

    def test_adds_up_to_zero_in_thirds_to_the_last_digit(self, world: World) -> None:
        target = stored(world, input_tokens=3, output_tokens=0, cost_usd="0.000000000100")
        correct(world, *(correction(target, input_tokens=-1) for _ in range(3)))
        assert world.sums() == {"rows": 4, "input": 0, "output": 0, "tokens": 0, "cost": 0}
        world.assert_books_hold()

    @pytest.mark.parametrize(
        "too_much",
        [
            {"input_tokens": -101},
            {"output_tokens": -51},
            {"cost_usd": "-1.500000000001"},
            {"reasoning_tokens": -1},
        ],
        ids=lambda fields: next(iter(fields)),
    )
    def test_never_takes_more_than_there_is(self, world: World, too_much: dict[str, Any]) -> None:
        target = stored(world)
        counts = correct(world, correction(target, **too_much))
        assert (counts["accepted"], counts["rejected"]) == (0, 1)
        (letter,) = world.letters()
        assert (letter.reason, letter.stream) == ("over_correction", "usage:corrections:{0}")
        assert letter.target_id == uuid.UUID(target["event_id"])
        world.assert_books_hold()

    def test_never_takes_more_than_earlier_ones_left_in_one_batch_or_two(self, world: World) -> None:
        target = stored(world)
        counts = correct(world, correction(target, input_tokens=-60), correction(target, input_tokens=-60))
        assert (counts["accepted"], counts["rejected"]) == (1, 1)
        assert correct(world, correction(target, input_tokens=-41))["rejected"] == 1
        assert correct(world, correction(target, input_tokens=-40))["accepted"] == 1
        world.assert_books_hold()

    def test_of_one_target_from_two_shards_takes_turns(self, world: World) -> None:
        target = stored(world)
        for shard in (0, 1):
            for _ in range(20):
                world.add(correction(target, input_tokens=-10), shard=shard, correction=True)
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda shard: world.drain(shard=shard, batch_size=3), (0, 1)))
        assert sum(counts["accepted"] for counts in both) == 10
        assert sum(counts["rejected"] for counts in both) == 30
        assert world.sums()["input"] == 0
        world.assert_books_hold()

    def test_sent_twice_is_a_duplicate_and_changed_is_a_conflict(self, world: World) -> None:
        target = stored(world)
        sent = correction(target, input_tokens=-60)
        correct(world, sent, sent)
        counts = correct(world, sent, {**sent, "input_tokens": -50})
        assert (counts["duplicates"], counts["conflicts"]) == (1, 1)
        assert world.sums()["input"] == 40
        world.assert_books_hold()

    def test_of_another_users_event_is_refused(self, world: World) -> None:
        target = stored(world)
        correct(world, correction(target, input_tokens=-1, user_id=str(uuid.uuid4())))
        assert world.letters()[0].reason == "invalid_user_id"

    def test_of_a_correction_is_refused(self, world: World) -> None:
        target = stored(world)
        first = correction(target, input_tokens=-1)
        correct(world, first)
        correct(world, correction(first, input_tokens=1))
        assert world.letters()[0].reason == "invalid_field"

    def test_on_the_stream_of_events_is_refused(self, world: World) -> None:
        target = stored(world)
        world.add(correction(target, input_tokens=-1))
        world.drain()
        assert world.letters()[0].reason == "not_a_correction"

    def test_of_an_unpriced_event_stays_unpriced(self, world: World) -> None:
        target = stored(world, cost_usd=None, model="nobody-knows-it")
        correct(world, correction(target, input_tokens=-10), correction(target, cost_usd="-1"))
        assert [letter.reason for letter in world.letters()] == ["over_correction"]
        (hour,) = world.rows("SELECT * FROM usage_hourly")
        assert (hour.events, hour.unpriced_events, hour.input_tokens, hour.cost_usd) == (1, 1, 90, 0)
        world.assert_books_hold()

    def test_waits_for_a_target_that_comes_later(self, world: World) -> None:
        target = event(input_tokens=100, output_tokens=50)
        correct(world, correction(target, input_tokens=-30))
        (letter,) = world.letters()
        assert (letter.reason, letter.target_id) == ("unknown_target", uuid.UUID(target["event_id"]))
        assert world.replay_waiting().tried == 0
        world.add(target)
        world.drain()
        assert world.replay_waiting().accepted == 1
        assert world.replay_waiting().tried == 0
        assert world.sums()["input"] == 70
        assert world.letters()[0].state == "replayed"
        world.assert_books_hold()


class TestVoid:
    def test_takes_away_all_that_is_left_and_the_event(self, world: World) -> None:
        target = stored(world)
        correct(world, correction(target, input_tokens=-40))
        counts = correct(world, correction(target, void=True))
        assert counts["accepted"] == 1
        assert world.sums() == {"rows": 3, "input": 0, "output": 0, "tokens": 0, "cost": 0}
        (hour,) = world.rows("SELECT * FROM usage_hourly")
        assert (hour.events, hour.unpriced_events, hour.tokens_used, hour.cost_usd) == (0, 0, 0, 0)
        world.assert_books_hold()

    def test_counts_in_the_hour_in_which_it_happens(self, world: World) -> None:
        target = stored(world)
        later = (NOW + timedelta(hours=2)).isoformat()
        world.add(
            correction(target, void=True, occurred_at=later), correction=True, at=NOW + timedelta(hours=2)
        )
        world.drain()
        hours = world.rows("SELECT events, tokens_used FROM usage_hourly ORDER BY hour")
        assert [tuple(hour) for hour in hours] == [(1, 150), (-1, -150)]
        world.assert_books_hold()

    def test_of_an_unpriced_event_takes_it_from_the_unpriced_ones(self, world: World) -> None:
        target = stored(world, cost_usd=None)
        correct(world, correction(target, void=True))
        (hour,) = world.rows("SELECT * FROM usage_hourly")
        assert (hour.events, hour.unpriced_events, hour.tokens_used) == (0, 0, 0)

    def test_leaves_nothing_for_any_other(self, world: World) -> None:
        target = stored(world)
        correct(world, correction(target, void=True))
        correct(world, correction(target, void=True), correction(target, input_tokens=5))
        assert [letter.reason for letter in world.letters()] == ["over_correction"] * 2
        assert world.sums()["tokens"] == 0

    def test_keeps_null_where_the_target_has_no_split(self, world: World) -> None:
        target = stored(world, input_tokens=None, output_tokens=None, tokens_used=77)
        correct(world, correction(target, void=True))
        (row,) = world.rows("SELECT * FROM platform_usage_logs WHERE void")
        assert (row.input_tokens, row.output_tokens, row.tokens_used) == (None, None, -77)
