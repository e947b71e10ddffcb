"""Pausing and resuming a shard: entries wait, nothing is lost, and only that shard is concerned."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from tests.integration.ingest_world import Reader, World, event
from worker import db
from worker.entries import RawEntry
from worker.entrypoints import draining
from worker.ingest import leases, switch
from worker.ingest.effects import DrainOutcome
from worker.settings import Settings


def pause(*shards: int, reason: str | None = "a bad deploy") -> list[int]:
    with db.platform_session() as session:
        return switch.pause(session, shards, by="someone@here", reason=reason)


def resume(*shards: int) -> list[int]:
    with db.platform_session() as session:
        return switch.resume(session, shards)


def state(shard: int = 0) -> switch.Supervision:
    with db.platform_session() as session:
        return switch.supervision(session)[shard]


class PausesInTheMiddle(Reader):
    """Somebody pauses the shard between the reading of a batch and its transaction."""

    is_paused = False

    def read(
        self, cursors: Mapping[str, str], *, count: int, block_ms: int | None
    ) -> dict[str, list[RawEntry]]:
        """This function will read, and pause the shard as soon as something came."""
        entries = super().read(cursors, count=count, block_ms=block_ms)
        if entries and not self.is_paused:
            self.is_paused = pause(0) == [0]
        return entries


class TestPause:
    def test_keeps_entries_waiting_until_it_is_resumed(self, world: World) -> None:
        world.add([event(), event()])
        world.drain()
        assert pause(0) == [0]
        for _ in range(3):
            world.add(event())
        counts = world.drain()
        assert (counts["outcome"], counts["entries"]) == (DrainOutcome.PAUSED, 0)
        assert (len(world.rows()), world.unacknowledged()) == (2, 3)
        assert resume(0) == [0]
        assert world.drain()["accepted"] == 3
        world.assert_books_hold()

    def test_commits_nothing_that_was_read_before_it(self, world: World) -> None:
        for _ in range(5):
            world.add(event())
        counts = world.drain(reader=world.reader_of(PausesInTheMiddle))
        assert (counts["outcome"], counts["events"], world.rows()) == (DrainOutcome.PAUSED, 0, [])
        resume(0)
        assert world.drain()["accepted"] == 5
        world.assert_books_hold()

    def test_holds_for_a_shard_that_was_never_drained(self, world: World) -> None:
        assert pause(3) == [3]
        world.add(event(), shard=3)
        assert world.drain(shard=3)["outcome"] == DrainOutcome.PAUSED
        assert resume(3) == [3]
        assert world.drain(shard=3)["accepted"] == 1

    def test_says_who_and_why_and_keeps_the_first_reason(self, world: World) -> None:
        del world
        assert pause(0, 1) == [0, 1]
        assert pause(0, 1, 2, reason="another") == [2]
        first, last = state(0), state(2)
        assert (first.paused_by, first.paused_reason, last.paused_reason) == (
            "someone@here",
            "a bad deploy",
            "another",
        )
        assert first.paused_at is not None
        assert first.paused_at.tzinfo is not None

    def test_leaves_no_crash_and_no_lease_behind(self, world: World) -> None:
        world.add(event())
        world.drain(reader=world.reader_of(PausesInTheMiddle))
        assert world.position().holder is None
        resume(0)
        with db.platform_session() as session:
            assert (
                leases.acquire_lease(session, shard=0, holder="a", duration=timedelta(minutes=1)) is not None
            )
        assert state().crashes == 0


class TestResume:
    def test_changes_nothing_where_nothing_is_paused(self, world: World) -> None:
        world.add(event())
        world.drain()
        before = state()
        assert resume(0, 7) == []
        assert state() == before

    def test_forgets_the_counted_flood(self, world: World) -> None:
        world.add([event(feature="") for _ in range(4)])
        world.drain(flood_events=4)
        assert (state().paused_reason, state().flood_refused) == ("flood", 4)
        resume(0)
        after = state()
        assert (after.paused_at, after.paused_by, after.paused_reason) == (None, None, None)
        assert (after.flood_since, after.flood_events, after.flood_refused) == (None, 0, 0)


class TestRings:
    def test_leave_out_paused_shards(self, world: World, settings: Settings) -> None:
        del world
        assert draining.undrained_shards(settings) == [0]
        pause(0)
        assert draining.undrained_shards(settings) == []
        assert draining.is_left_alone({"outcome": "paused"})
        resume(0)
        assert draining.undrained_shards(settings) == [0]
