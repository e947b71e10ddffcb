"""How a drain ends: its budget, an order to stop, nothing to do."""

from __future__ import annotations

import json

import pytest

from tests.integration.ingest_world import Reader, World, event
from worker.entries import EntryId, GroupState

pytestmark = pytest.mark.redis_compatible


class TestEndOfARun:
    def test_finishes_the_batch_in_hand_when_told_to_stop(self, world: World) -> None:
        for _ in range(40):
            world.add(event())
        told = [False]

        class TellsToStop(Reader):
            def advance(
                self, key: str, entry_id: str, *, entries_read: int | None, expected: EntryId
            ) -> GroupState | None:
                told[0] = True
                return super().advance(key, entry_id, entries_read=entries_read, expected=expected)

        counts = world.drain(reader=world.reader_of(TellsToStop), should_stop=lambda: told[0], batch_size=10)
        assert (counts["outcome"], counts["batches"]) == ("stopped", 1)
        assert 0 < counts["accepted"] < 40
        assert world.unacknowledged() == 40 - counts["entries"]
        world.assert_books_hold()

    def test_is_idle_when_nothing_came(self, world: World) -> None:
        counts = world.drain(should_stop=lambda: False, idle_seconds=0.1)
        assert (counts["outcome"], counts["entries"], counts["batches"]) == ("idle", 0, 0)

    def test_comes_when_the_budget_of_work_is_used_up(self, world: World) -> None:
        for _ in range(40):
            world.add(event())
        counts = world.drain(should_stop=lambda: False, batch_size=10, work_seconds=0.000001)
        assert (counts["outcome"], counts["batches"]) == ("drained", 1)

    def test_answers_small_json(self, world: World) -> None:
        counts = world.drain()
        assert set(json.loads(json.dumps(counts))) == {
            "shard",
            "entries",
            "events",
            "accepted",
            "duplicates",
            "conflicts",
            "rejected",
            "recovered",
            "lost",
            "batches",
            "seconds",
            "outcome",
        }
