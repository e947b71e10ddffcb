"""Recovery: what the database lost comes back from the streams, once, and nothing else changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from sqlalchemy import text

from producers._client import connect
from producers._config import EmitterConfig
from tests.integration.books_world import Books
from tests.integration.ingest_world import AGE, GROUP, NOW, QUICK, STREAM, World, event
from worker import db
from worker.database_url import Database
from worker.db import _backup, _migrations
from worker.entries import EntryId, RawEntry
from worker.ingest import leases, switch
from worker.ingest.effects import DrainLimits, DrainOutcome, ShardPaused
from worker.ingest.recovery import NothingDrained, Recovered, Recovery, ShardBusy, ShardMoved
from worker.ingest.retained import RetainedStreams
from worker.pricing.book import Prices
from worker.settings import Settings

EVENTS = "usage:events:{0}"


class Losses:
    """A world whose database loses things."""

    def __init__(self, world: World, databases: Any, url: str) -> None:
        self.world = world
        self._superuser = databases.platform.url("superuser")
        self.retained = RetainedStreams(connect(EmitterConfig(redis_url=url), for_emit=False), group=GROUP)

    def recovery(self, **options: Any) -> Recovery:
        """This function will return a recovery of this world."""
        standard: dict[str, Any] = {
            "stream": STREAM,
            "streams": self.retained,
            "open_session": db.platform_session,
            "age_limits": AGE,
            "prices": Prices(),
            "limits": QUICK,
            "holder": "test",
            "now": lambda: NOW,
            "monotonic": time.monotonic,
            "sleep": time.sleep,
        }
        return Recovery(**{**standard, **options})

    def recover(
        self, shard: int = 0, *, hours: float = 1, dry_run: bool = False, **options: Any
    ) -> Recovered:
        """This function will recover what came in the last hours."""
        since = NOW - timedelta(hours=hours)
        return self.recovery(**options).recover(shard, since=since, dry_run=dry_run)

    def lose(self, statement: str) -> list[Any]:
        """This function will do what only a superuser can."""
        with psycopg.connect(self._superuser, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return [] if cursor.description is None else cursor.fetchall()

    def content(self) -> Sequence[Any]:
        """This function will return the log without the times of storing."""
        return self.world.rows(
            "SELECT id, user_id, feature, tokens_used, cost_usd, occurred_at, received_at, payload_hash,"
            " corrects FROM platform_usage_logs ORDER BY id"
        )


@pytest.fixture
def losses(world: World, databases: Any, valkey_url: str) -> Losses:
    """A shard with events, frames, refusals, repetitions and a correction, drained."""
    sent = event()
    world.add([sent, event(), event(), sent])
    for _ in range(6):
        world.add(event(occurred_at=(NOW - timedelta(hours=3)).isoformat()))
    world.add(b"{")
    world.add(event(input_tokens=-1))
    world.add({**sent, "cost_usd": "9"})
    world.add(
        event(corrects=sent["event_id"], void=True, cost_usd=None, input_tokens=None, output_tokens=None),
        correction=True,
    )
    world.drain()
    world.assert_books_hold()
    return Losses(world, databases, valkey_url)


class TestRowsLostBehindThePosition:
    def test_come_back_with_the_same_content(self, losses: Losses) -> None:
        before, position = losses.content(), losses.world.position()
        lost = losses.lose("DELETE FROM platform_usage_logs RETURNING id")
        assert losses.world.drain()["events"] == 0
        found = losses.recover()
        assert (found.entries, found.events) == (11, 14)
        assert (found.recovered, found.duplicates, found.refused) == (len(lost), 1, 3)
        assert found.is_complete
        assert losses.content() == before
        after = losses.world.position()
        assert (after.last_entry_id, after.entries, after.events, after.accepted) == (
            position.last_entry_id,
            position.entries,
            position.events,
            position.accepted,
        )
        assert after.recovered == len(lost) == 10
        assert len(losses.world.letters()) == 3

    def test_are_added_to_no_rollup_that_still_has_them(self, losses: Losses) -> None:
        losses.lose("DELETE FROM platform_usage_logs WHERE occurred_at < '2026-03-01T12:00:00Z'")
        assert losses.recover().rebuilt_hours == 1
        losses.world.assert_rollups_hold()

    def test_are_added_to_rollups_that_lost_them_too(self, losses: Losses) -> None:
        losses.lose("DELETE FROM platform_usage_logs")
        losses.lose("DELETE FROM usage_hourly")
        assert losses.recover().rebuilt_hours == 0
        losses.world.assert_rollups_hold()

    def test_twice_adds_nothing(self, losses: Losses) -> None:
        losses.lose("DELETE FROM platform_usage_logs WHERE corrects IS NULL AND tokens_used > 0")
        assert losses.recover().recovered == 9
        before = losses.content()
        again = losses.recover()
        assert (again.recovered, again.duplicates, again.refused, again.rebuilt_hours) == (0, 11, 3, 0)
        assert losses.content() == before
        losses.world.assert_rollups_hold()

    def test_leave_the_books_in_agreement(self, losses: Losses) -> None:
        # Rows and counters of the log from an older copy, while the position is of today.
        losses.lose("DELETE FROM platform_usage_logs WHERE occurred_at < '2026-03-01T12:00:00Z'")
        losses.lose("DELETE FROM usage_hourly WHERE hour < '2026-03-01T12:00:00Z'")
        losses.lose("UPDATE ingest_positions SET accepted = accepted - 6, events = events - 6")
        assert losses.recover().recovered == 6
        losses.world.assert_books_hold()
        losses.recover()
        losses.world.assert_books_hold()

    def test_are_named_by_the_audit_until_somebody_accepts(
        self, losses: Losses, databases: Any, valkey_url: str
    ) -> None:
        books = Books(losses.world, databases, valkey_url)
        assert books.found() == {}
        losses.lose("DELETE FROM platform_usage_logs WHERE occurred_at < '2026-03-01T12:00:00Z'")
        assert "books.sealed" in books.found()
        assert losses.recover().recovered == 6
        # The rows are back, in another window than the one that was sealed with them.
        assert set(books.found()) == {"books.sealed"}
        books.found(accept="recovered after a mishap")
        assert books.found() == {}
        assert books.found(full=True) == {}

    def test_only_those_of_entries_since_then_are_read(self, losses: Losses) -> None:
        earlier = NOW + timedelta(hours=2)
        losses.world.add(event(), at=earlier)
        losses.world.drain()
        losses.lose("DELETE FROM platform_usage_logs")
        found = losses.recover(hours=-2)
        assert (found.entries, found.recovered) == (1, 1)
        assert losses.recover().recovered == 10

    def test_in_batches_bounded_by_events(self, losses: Losses, monkeypatch: pytest.MonkeyPatch) -> None:
        for _ in range(30):
            losses.world.add([event() for _ in range(10)])
        losses.world.drain()
        losses.lose("DELETE FROM platform_usage_logs")
        sizes: list[int] = []
        process = Recovery._process

        def counted(
            self: Recovery, lease: Any, result: Recovered, key: str, entries: Any, **more: Any
        ) -> Any:
            before = result.events
            held = process(self, lease, result, key, entries, **more)
            sizes.append(result.events - before)
            return held

        monkeypatch.setattr(Recovery, "_process", counted)
        found = losses.recover(limits=DrainLimits(batch_size=40))
        assert found.recovered == 310
        assert len(sizes) >= 5
        # The first read is by entries: nothing is known of their size yet.
        assert max(sizes[1:]) <= 100

    def test_dry_run_writes_nothing(self, losses: Losses) -> None:
        losses.lose("DELETE FROM platform_usage_logs")
        # The correction's target is missing while nothing is kept.
        found = losses.recover(dry_run=True)
        assert (found.recovered, found.refused) == (9, 4)
        assert losses.content() == []
        assert losses.world.position().recovered == 0
        assert len(losses.world.letters()) == 3
        assert losses.recover().recovered == 10


def restore(settings: Settings, folder: Path) -> None:
    """This function will bring both databases back to what the backup holds."""
    db.close_databases()
    for database in Database:
        _migrations.downgrade(settings.database(database), "base")
        _migrations.migrate(settings.database(database))
    _backup.restore(settings, folder)


class TestRestoredBackup:
    def test_is_caught_up_by_the_drain_and_leaves_a_recovery_nothing(
        self, losses: Losses, settings: Settings, tmp_path: Path
    ) -> None:
        _backup.backup(settings, tmp_path / "backup", now=NOW)
        for _ in range(5):
            losses.world.add([event(), event()])
        assert losses.world.drain()["accepted"] == 10
        before = losses.content()
        restore(settings, tmp_path / "backup")
        assert len(losses.content()) == len(before) - 10
        # What came while the database was away.
        losses.world.add(event())
        found = losses.recover()
        assert (found.recovered, found.duplicates) == (0, 11)
        counts = losses.world.drain()
        assert (counts["accepted"], counts["recovered"]) == (11, 0)
        assert set(before) <= set(losses.content())
        losses.world.assert_books_hold()
        assert losses.recover().recovered == 0
        losses.world.assert_books_hold()


class TestGaps:
    def test_are_told(self, losses: Losses) -> None:
        losses.world.add(event(), at=NOW + timedelta(hours=1))
        losses.world.drain()
        losses.world.command("XTRIM", EVENTS, "MAXLEN", "1")
        found = losses.recover()
        assert (found.is_complete, found.entries) == (False, 2)
        assert found.first_entry_at == NOW
        assert losses.recover(hours=-1.5).is_complete

    def test_are_none_where_everything_that_is_gone_is_older(self, losses: Losses) -> None:
        losses.world.command("XTRIM", EVENTS, "MAXLEN", "0")
        assert not losses.recover().is_complete
        assert losses.recover(hours=-1).is_complete

    def test_a_shard_that_was_never_drained_has_nothing_to_recover(self, losses: Losses) -> None:
        with pytest.raises(NothingDrained):
            losses.recover(5)


class TestLease:
    def test_is_taken_from_a_drain_at_work_which_loses_nothing(self, losses: Losses) -> None:
        losses.lose("DELETE FROM platform_usage_logs")
        stop = threading.Event()
        outcomes: list[Any] = []
        # Waits for entries for a minute, as a drain of an idle shard does.
        drain = losses.world.make_drain(should_stop=stop.is_set, idle_seconds=60, work_seconds=60)
        thread = threading.Thread(target=lambda: outcomes.append(drain.run()))
        thread.start()
        try:
            while losses.world.position().holder is None:
                time.sleep(0.01)
            assert losses.recover().recovered == 10
            losses.world.add(event())
            thread.join(timeout=30)
        finally:
            stop.set()
            thread.join(timeout=30)
        assert outcomes[0]["outcome"] in (DrainOutcome.BUSY, DrainOutcome.STOPPED)
        losses.world.drain()
        assert len(losses.content()) == 11

    def test_taken_from_a_drain_counts_as_no_crash(self, losses: Losses) -> None:
        with db.platform_session() as session:
            leases.acquire_lease(session, shard=0, holder="alive", duration=timedelta(minutes=1))
        # Nothing is read, so no batch clears the count.
        losses.recover(hours=-5)
        with db.platform_session() as session:
            assert switch.supervision(session)[0].crashes == 0

    def test_is_not_taken_from_another_recovery(self, losses: Losses) -> None:
        with db.platform_session() as session:
            leases.acquire_lease(session, shard=0, holder="recover:another", duration=timedelta(minutes=1))
        waits: list[float] = []
        with pytest.raises(ShardBusy):
            losses.recover(wait_seconds=3, monotonic=lambda: sum(waits), sleep=lambda s: waits.append(s))
        assert 3 <= sum(waits) < 4

    def test_that_ended_counts_its_holder_as_vanished(self, losses: Losses) -> None:
        with db.platform_session() as session:
            leases.acquire_lease(session, shard=0, holder="killed", duration=timedelta(seconds=-1))
        losses.recover(hours=-5)
        with db.platform_session() as session:
            assert switch.supervision(session)[0].crashes == 1

    def test_is_given_back(self, losses: Losses) -> None:
        losses.recover()
        position = losses.world.position()
        assert (position.holder, position.is_held) == (None, False)

    def test_is_refused_by_a_paused_shard(self, losses: Losses) -> None:
        with db.platform_session() as session:
            switch.pause(session, [0], by="me", reason=None)
        with pytest.raises(ShardPaused):
            losses.recover()

    def test_lost_in_the_middle_keeps_what_is_committed(self, losses: Losses) -> None:
        losses.lose("DELETE FROM platform_usage_logs")

        class Interrupted(RetainedStreams):
            def entries(self, key: str, **options: Any) -> Iterator[list[RawEntry]]:
                """This function will let somebody take the shard after the first batch."""
                for number, page in enumerate(super().entries(key, **options)):
                    if number:
                        with db.platform_session() as session:
                            session.execute(text("UPDATE ingest_positions SET epoch = epoch + 1"))
                    yield page

        for _ in range(20):
            losses.world.add(event())
        losses.world.drain()
        losses.lose("DELETE FROM platform_usage_logs")
        client: redis.Redis = losses.world.client
        with pytest.raises(ShardMoved):
            losses.recover(streams=Interrupted(client, group=GROUP))
        kept = len(losses.content())
        assert 0 < kept < 30
        losses.world.execute("UPDATE ingest_positions SET lease_until = clock_timestamp()")
        assert losses.recover().recovered == 30 - kept
        losses.world.assert_rollups_hold()


class TestPoison:
    def test_is_left_alone(self, losses: Losses) -> None:
        entry_id = losses.world.add(b'{"poison": true}')
        losses.world.drain()
        losses.world.execute(
            "UPDATE usage_dead_letters SET reason = 'poison' WHERE stream_id = :id", id=entry_id
        )
        found = losses.recover()
        assert (found.parked, found.entries, found.refused) == (1, 12, 3)


class TestPages:
    def test_meet_without_a_gap_or_an_overlap(self, losses: Losses) -> None:
        added = [losses.world.add(event(), at=NOW + timedelta(hours=1)) for _ in range(100)]
        start, end = EntryId.parse(added[10]), EntryId.parse(added[90])
        pages = losses.retained.entries(EVENTS, since=start, up_to=end, batch_size=7)
        assert [entry_id.decode() for page in pages for entry_id, _ in page] == added[10:91]

    def test_shrink_with_the_size_of_their_entries(self, losses: Losses) -> None:
        for _ in range(40):
            losses.world.add(b"x" * 10_000, at=NOW + timedelta(hours=1))
        since = EntryId(int((NOW + timedelta(minutes=1)).timestamp() * 1000), 0)
        pages = losses.retained.entries(
            EVENTS, since=since, up_to=EntryId(2**60, 0), batch_size=5000, batch_bytes=40_000
        )
        assert [len(page) for page in pages][1:] == [4] * 6
