"""One drain per shard: whoever lost the lease cannot commit, and nobody has to wait for him."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from tests.integration.ingest_world import NOW, USER, World, event
from worker import db
from worker.database_url import Database
from worker.entries import EntryId
from worker.ingest import leases, operations, rules
from worker.ingest.effects import LeaseLost
from worker.pricing.book import Prices
from worker.settings import Settings, load_settings
from worker.sqlstate import sqlstate_of

MINUTE = timedelta(minutes=1)


def acquire(shard: int = 0, holder: str = "somebody", duration: timedelta = MINUTE) -> leases.Lease | None:
    with db.platform_session() as session:
        return leases.acquire_lease(session, shard=shard, holder=holder, duration=duration)


def expire(world: World) -> None:
    world.execute("UPDATE ingest_positions SET lease_until = clock_timestamp() - interval '1 second'")


def empty_batch(at: EntryId) -> rules.Batch:
    return rules.Batch(events=[], position=at, last_id=at, entry_count=0)


class TestLease:
    def test_is_given_to_one_only_until_it_ends(self, world: World) -> None:
        first = acquire(holder="a")
        assert first is not None
        assert acquire(holder="b") is None
        assert acquire(shard=1, holder="b") is not None
        expire(world)
        second = acquire(holder="b")
        assert second is not None
        assert second.epoch == first.epoch + 1

    def test_is_given_once_to_many_who_ask_at_the_same_time(self, world: World) -> None:
        del world
        with ThreadPoolExecutor(8) as pool:
            taken = list(pool.map(lambda n: acquire(holder=str(n)), range(8)))
        assert sum(lease is not None for lease in taken) == 1

    def test_released_is_free_at_once_and_not_by_a_former_holder(self, world: World) -> None:
        first = acquire(holder="a")
        assert first is not None
        expire(world)
        second = acquire(holder="b")
        assert second is not None
        with db.platform_session() as session:
            leases.release_lease(session, first)
        assert acquire(holder="c") is None
        with db.platform_session() as session:
            leases.release_lease(session, second)
        assert acquire(holder="c") is not None

    def test_renewed_lives_on_and_lost_is_not_renewed(self, world: World) -> None:
        lease = acquire()
        assert lease is not None
        expire(world)
        with db.platform_session() as session:
            leases.renew_lease(session, lease, duration=MINUTE)
        assert acquire() is None
        expire(world)
        assert acquire() is not None
        with pytest.raises(LeaseLost), db.platform_session() as session:
            leases.renew_lease(session, lease, duration=MINUTE)

    def test_lost_commits_no_batch(self, world: World) -> None:
        lease = acquire()
        assert lease is not None
        expire(world)
        assert acquire() is not None
        with pytest.raises(LeaseLost), db.platform_session() as session:
            operations.ingest_batch(
                session,
                empty_batch(lease.events_at),
                lease=lease,
                stream="usage:events:{0}",
                correction=False,
                prices=Prices(),
                duration=MINUTE,
            )

    def test_refuses_a_batch_that_was_read_before_the_position_moved(self, world: World) -> None:
        del world
        lease = acquire()
        assert lease is not None
        with pytest.raises(LeaseLost), db.platform_session() as session:
            operations.ingest_batch(
                session,
                empty_batch(EntryId(5, 0)),
                lease=lease,
                stream="usage:events:{0}",
                correction=False,
                prices=Prices(),
                duration=MINUTE,
            )

    def test_of_a_process_that_stops_inside_its_transaction_is_not_waited_for_long(
        self, world: World
    ) -> None:
        lease = acquire()
        assert lease is not None
        with pytest.raises(Exception, match="idle-in-transaction timeout") as raised:  # noqa: PT012 one wait
            with db.platform_session() as session:
                operations.ingest_batch(
                    session,
                    empty_batch(lease.events_at),
                    lease=lease,
                    stream="usage:events:{0}",
                    correction=False,
                    prices=Prices(),
                    duration=timedelta(milliseconds=50),
                )
                threading.Event().wait(0.4)
                session.execute(text("SELECT 1"))
        assert sqlstate_of(raised.value) == "25P03"
        assert acquire() is None  # still within its minute: the transaction was rolled back


class TestTwoDrains:
    def test_one_of_them_finds_the_shard_busy(self, world: World) -> None:
        assert acquire() is not None
        world.add(event())
        counts = world.drain()
        assert (counts["outcome"], counts["entries"]) == ("busy", 0)
        assert world.rows() == []

    def test_one_that_was_paused_too_long_commits_nothing_and_leaves(self, world: World) -> None:
        for _ in range(5):
            world.add(event())
        paused, resume = threading.Event(), threading.Event()
        calls = [0]

        @contextmanager
        def pausing() -> Iterator[Session]:
            calls[0] += 1
            if calls[0] == 2:  # the lease is taken, the batch is read and not yet stored
                paused.set()
                assert resume.wait(20)
            with db.platform_session() as session:
                yield session

        results: list[dict[str, Any]] = []
        slow = threading.Thread(target=lambda: results.append(world.drain(open_session=pausing)))
        slow.start()
        assert paused.wait(20)
        expire(world)
        world.add(event())
        quick = world.drain()
        resume.set()
        slow.join(20)
        assert (quick["entries"], quick["accepted"], quick["recovered"]) == (6, 6, 0)
        assert (results[0]["outcome"], results[0]["entries"]) == ("busy", 0)
        position = world.position()
        assert (position.entries, position.events, position.accepted, position.duplicates) == (6, 6, 6, 0)
        assert world.unacknowledged() == 0
        world.assert_books_hold()

    def test_an_idle_one_keeps_its_shard(self, world: World) -> None:
        stop = threading.Event()
        results: list[dict[str, Any]] = []
        idle = threading.Thread(
            target=lambda: results.append(
                world.drain(should_stop=stop.is_set, lease_seconds=0.6, idle_seconds=30, block_ms=50)
            )
        )
        idle.start()
        for _ in range(15):
            threading.Event().wait(0.1)
            outcome = world.drain()["outcome"] if acquired_once(world) else "busy"
            assert outcome == "busy"
        stop.set()
        idle.join(20)
        assert results[0]["outcome"] == "stopped"
        assert world.position().epoch == 1

    def test_on_shards_of_their_own_with_the_same_keys_and_ids_never_deadlock(
        self, world: World, databases: Any
    ) -> None:
        events = [
            event(
                event_id=str(uuid.UUID(int=(n * 7919) % 4001 + 1)),
                user_id=str(uuid.UUID(int=USER.int + n % 40)),
                feature=f"feature {n % 7}",
                occurred_at=(NOW - timedelta(hours=n % 5)).isoformat(),
            )
            for n in range(2000)
        ]
        for shard, order in ((0, events), (1, events[::-1])):
            for start in range(0, 2000, 100):
                world.add(order[start : start + 100], shard=shard)
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda shard: world.drain(shard=shard, batch_size=200), (0, 1)))
        assert sum(counts["accepted"] for counts in both) == 2000
        assert sum(counts["duplicates"] for counts in both) == 2000
        assert world.sums()["rows"] == 2000
        with psycopg.connect(databases.platform.url("superuser")) as connection:
            deadlocks = connection.execute(
                "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
            ).fetchone()
        assert deadlocks == (0,)
        world.assert_books_hold()


def acquired_once(world: World) -> bool:
    return bool(world.rows("SELECT 1 FROM ingest_positions WHERE epoch > 0"))


class TestConnections:
    def test_work_behind_a_pooler_in_transaction_mode(self, world: World, environ: dict[str, str]) -> None:
        db.configure(load_settings({**environ, "DB_POOL_MODE": "transaction"}))
        for _ in range(3):
            world.add([event(), event()])
            assert world.drain()["accepted"] == 2
        world.assert_books_hold()

    def test_never_commit_asynchronously(self, world: World, databases: Any, bound: Settings) -> None:
        with psycopg.connect(databases.platform.url("superuser"), autocommit=True) as connection:
            name = bound.database(Database.PLATFORM).url.database
            connection.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
        db.close_databases()
        seen: list[str] = []

        @contextmanager
        def watching() -> Iterator[Session]:
            with db.platform_session() as session:
                yield session
                if session.execute(text("SELECT count(*) FROM platform_usage_logs")).scalar_one():
                    seen.append(session.execute(text("SHOW synchronous_commit")).scalar_one())

        world.add(event())
        assert world.drain(open_session=watching)["accepted"] == 1
        assert world.rows("SHOW synchronous_commit")[0][0] == "off"
        assert seen[0] == "on"
