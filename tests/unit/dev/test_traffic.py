"""Traffic: the same for the same seed, and every expectation about it is what the wire format says."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from producers import UsageEvent
from producers import _stream as wire
from producers._events import age_problem
from worker.dev import seed, traffic
from worker.dev.traffic import Burst, Traffic

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def play(count: int, *, random_seed: int = 7) -> list[Burst]:
    generator = Traffic(seed.users(50), seed=random_seed)
    return list(traffic.bursts(generator, count=count, clock=lambda: NOW))


class TestTraffic:
    def test_is_the_same_for_the_same_seed_and_another_for_another(self) -> None:
        assert play(500) == play(500)
        assert play(500) != play(500, random_seed=8)

    @pytest.mark.parametrize("count", [1, 2, 999])
    def test_holds_exactly_as_many_events_as_asked_for(self, count: int) -> None:
        assert sum(burst.count for burst in play(count)) == count

    def test_is_skewed_and_of_several_features_and_models(self) -> None:
        events = [event for burst in play(5_000) for event in burst.events]
        spent = Counter(event.user_text for event in events).most_common()
        assert spent[0][1] > 5 * spent[len(spent) // 2][1]
        assert len({event.feature for event in events}) >= 5
        assert len({event.model for event in events}) >= 6
        assert any(event.clerk_id for event in events)
        assert any(event.cost_usd is None for event in events)

    def test_comes_in_bursts_of_one_customer_and_in_quiet_moments(self) -> None:
        sizes = Counter(burst.count for burst in play(5_000))
        assert min(sizes) <= 2
        assert max(sizes) >= 80

    def test_counts_repetitions_with_the_same_content_and_with_another(self) -> None:
        first: dict[UUID, UsageEvent] = {}
        same_count = other_count = 0
        bursts = play(10_000)
        for event in (event for burst in bursts for event in burst.events):
            if event.event_id not in first:
                first[event.event_id] = event
            elif event == first[event.event_id]:
                same_count += 1
            else:
                other_count += 1
        assert same_count == sum(burst.duplicate_count for burst in bursts) > 0
        assert other_count == sum(burst.conflict_count for burst in bursts) > 0

    def test_has_events_that_the_window_accepts(self) -> None:
        for burst in play(2_000):
            for event in burst.events:
                window = {"max_age": timedelta(days=35), "max_future": timedelta(seconds=300)}
                assert age_problem(event, received_at=NOW, **window) is None

    def test_breaks_events_for_the_reason_that_it_says(self) -> None:
        broken = [one for burst in play(20_000) for one in burst.broken]
        assert len({one.reason for one in broken}) == 9
        for one in broken:
            if one.reason == "malformed_entry":
                assert one.field != "data"
            elif one.reason in ("too_old", "unknown_user"):
                # Good on the wire: the time of arrival and the database refuse these.
                (decoded,) = wire.decode(one.data)
                assert decoded.event is not None
                assert "user_id" not in json.loads(one.data) or one.reason == "too_old"
            else:
                assert [decoded.reason for decoded in wire.decode(one.data)] == [one.reason]
