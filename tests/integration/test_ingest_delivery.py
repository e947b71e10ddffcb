"""Every way in which entries come twice, late or out of turn: counted once, and nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import exc as sqlalchemy_errors
from sqlalchemy import text
from sqlalchemy.orm import Session

from tests.integration.ingest_world import GROUP, NOW, Reader, World, event
from worker import db
from worker.errors import ConfigurationError
from worker.valkey import RawEntry, StreamTrouble

EVENTS = "usage:events:{0}"

pytestmark = pytest.mark.redis_compatible


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


class DiesBeforeAcknowledging(Reader):
    def acknowledge(self, key: str, entry_ids: Sequence[str]) -> int:
        raise Killed


class FailsToAcknowledgeOnce(Reader):
    failed = False

    def acknowledge(self, key: str, entry_ids: Sequence[str]) -> int:
        if self.failed:
            return super().acknowledge(key, entry_ids)
        self.failed = True
        raise StreamTrouble("connection reset")


class Hooked(Reader):
    """Does something before a read that waits, once."""

    before: Callable[[], object] | None = None

    def read(self, keys: Sequence[str], *, count: int, block_ms: int | None) -> dict[str, list[RawEntry]]:
        if self.before is not None and block_ms is not None:
            before, self.before = self.before, None
            before()
        return super().read(keys, count=count, block_ms=block_ms)


class LosesOneReply(Reader):
    lost = False

    def read(self, keys: Sequence[str], *, count: int, block_ms: int | None) -> dict[str, list[RawEntry]]:
        entries = super().read(keys, count=count, block_ms=block_ms)
        if entries and not self.lost:
            self.lost = True
            raise StreamTrouble("timed out")
        return entries


@contextmanager
def killed_before_commit() -> Iterator[Session]:
    with db.platform_session() as session:
        yield session
        if session.execute(text("SELECT count(*) FROM platform_usage_logs")).scalar_one():
            raise Killed


def expire_lease(world: World, shard: int = 0) -> None:
    """What a killed process leaves behind, some seconds later."""
    world.execute(
        "UPDATE ingest_positions SET lease_until = clock_timestamp() - interval '1 second'"
        " WHERE shard = :shard",
        shard=shard,
    )


def add_some(world: World, count: int = 3) -> list[dict[str, Any]]:
    sent = [event(cost_usd=f"0.{n + 1}") for n in range(count)]
    for one in sent:
        world.add(one)
    return sent


class TestGroup:
    def test_sees_what_was_added_before_it_existed(self, world: World) -> None:
        add_some(world)
        assert world.drain()["accepted"] == 3

    def test_is_made_anew_after_flushall_in_the_middle_of_a_run(self, world: World) -> None:
        def flush() -> None:
            world.client.flushall()
            world.add(event())

        add_some(world)
        reader = world.reader_of(Hooked)
        drain = world.make_drain(reader=reader)
        world.drain()
        reader.before = flush
        assert drain.run()["accepted"] == 1
        assert len(world.rows()) == 4
        assert world.pending() == 0

    def test_refuses_a_key_that_is_no_stream_as_configuration(self, world: World) -> None:
        world.client.set(EVENTS, "something else")
        with pytest.raises(ConfigurationError, match="REDIS_URL"):
            world.drain()

    def test_lets_a_corrections_stream_stand_empty(self, world: World) -> None:
        add_some(world)
        world.drain()
        assert world.client.exists("usage:corrections:{0}") == 1


class TestRedelivery:
    def test_after_a_crash_between_commit_and_acknowledgement_changes_nothing(self, world: World) -> None:
        sent = event()
        world.add([sent, {**sent, "cost_usd": "9"}, sent])
        world.add(b"{")
        with pytest.raises(Killed):
            world.drain(reader=world.reader_of(DiesBeforeAcknowledging))
        assert world.pending() == 2
        before = world.rows(), world.rows("SELECT * FROM usage_hourly"), world.letters()
        counted = world.position()
        counts = world.drain()
        assert (counts["entries"], counts["events"], counts["recovered"], counts["batches"]) == (0, 0, 0, 1)
        assert world.pending() == 0
        assert (world.rows(), world.rows("SELECT * FROM usage_hourly"), world.letters()) == before
        position = world.position()
        assert (position.entries, position.events, position.accepted) == (2, 4, 1)
        assert position.accepted == counted.accepted
        world.assert_books_hold()

    def test_after_a_crash_before_commit_stores_everything(self, world: World) -> None:
        add_some(world)
        with pytest.raises(Killed):
            world.drain(open_session=killed_before_commit)
        assert world.rows() == []
        assert world.pending() == 3
        counts = world.drain()
        assert (counts["entries"], counts["accepted"], counts["recovered"]) == (3, 3, 0)
        world.assert_books_hold()

    def test_after_a_failed_acknowledgement_happens_in_the_same_run(self, world: World) -> None:
        add_some(world)
        counts = world.drain(reader=world.reader_of(FailsToAcknowledgeOnce))
        assert (counts["entries"], counts["accepted"], counts["batches"]) == (3, 3, 2)
        assert world.pending() == 0
        world.assert_books_hold()

    def test_takes_over_what_a_dead_consumer_left(self, world: World) -> None:
        add_some(world, 5)
        world.reader().create_groups([EVENTS])
        world.client.xreadgroup(GROUP, "long-gone", {EVENTS: ">"}, count=3)
        counts = world.drain()
        assert (counts["entries"], counts["accepted"], counts["recovered"]) == (5, 5, 0)
        assert world.pending() == 0
        world.assert_books_hold()

    def test_claims_more_than_one_read_at_a_time_holds(self, world: World) -> None:
        for n in range(700):
            world.add(event(input_tokens=n))
        world.reader().create_groups([EVENTS])
        world.client.xreadgroup(GROUP, "long-gone", {EVENTS: ">"}, count=700)
        counts = world.drain(batch_size=300)
        assert (counts["accepted"], counts["recovered"]) == (700, 0)
        assert counts["batches"] >= 3
        world.assert_books_hold()

    def test_reports_pending_entries_that_were_deleted(self, world: World) -> None:
        add_some(world)
        world.reader().create_groups([EVENTS])
        world.client.xreadgroup(GROUP, "long-gone", {EVENTS: ">"}, count=2)
        world.client.xdel(EVENTS, str(world.reader().pending(EVENTS).lowest_id))
        counts = world.drain()
        assert (counts["accepted"], counts["lost"]) == (2, 1)
        assert world.pending() == 0


class TestPosition:
    def test_never_passes_an_entry_whose_reply_was_lost(self, world: World) -> None:
        add_some(world)
        counts = world.drain(reader=world.reader_of(LosesOneReply))
        assert (counts["entries"], counts["accepted"], counts["recovered"]) == (3, 3, 0)
        world.assert_books_hold()

    def test_never_passes_what_a_former_holder_reads_when_it_wakes_up(self, world: World) -> None:
        sleeper, reader = world.reader(), world.reader_of(Hooked)
        add_some(world, 1)
        world.drain()

        def wake_up() -> None:
            world.add(event())
            assert len(sleeper.read([EVENTS], count=10, block_ms=None)[EVENTS]) == 1
            world.add(event())

        reader.before = wake_up
        counts = world.drain(reader=reader)
        assert (counts["entries"], counts["accepted"], counts["recovered"]) == (2, 2, 0)
        assert world.pending() == 0
        world.assert_books_hold()

    def test_counts_a_new_event_below_it_as_recovered(self, world: World) -> None:
        add_some(world)
        world.drain()
        standing = world.position().last_entry_id
        # A failover to a replica whose clock is behind: the stream begins again with lower ids.
        world.client.delete(EVENTS)
        late = event(occurred_at=(NOW - timedelta(hours=2)).isoformat())
        world.add([late, late], at=NOW - timedelta(hours=1))
        counts = world.drain()
        assert (counts["entries"], counts["events"], counts["accepted"], counts["recovered"]) == (0, 0, 0, 1)
        position = world.position()
        assert (position.last_entry_id, position.recovered, position.accepted) == (standing, 1, 3)
        assert len(world.rows()) == 4
        world.assert_rollups_hold()


class TestTrouble:
    def test_of_the_stream_is_waited_out_inside_the_budget(self, world: World) -> None:
        class Away(Reader):
            def read(self, *_: Any, **__: Any) -> dict[str, list[RawEntry]]:
                raise StreamTrouble("refused")

        counts = world.drain(reader=world.reader_of(Away), work_seconds=0.3)
        assert counts["outcome"] == "backing_off"
        assert 0.2 < counts["seconds"] < 5
        assert world.position().is_held is False

    def test_of_the_database_leaves_everything_unacknowledged(self, world: World) -> None:
        add_some(world)
        calls = [0]

        @contextmanager
        def away() -> Iterator[Session]:
            calls[0] += 1
            # Taking the lease succeeds, then the server is gone.
            if calls[0] > 1:
                raise sqlalchemy_errors.OperationalError(
                    "", {}, Exception("gone"), connection_invalidated=True
                )
            with db.platform_session() as session:
                yield session

        counts = world.drain(open_session=away, work_seconds=0.3)
        assert (counts["outcome"], counts["entries"]) == ("backing_off", 0)
        assert calls[0] > 2
        assert world.pending() == 3
        expire_lease(world)
        assert world.drain()["accepted"] == 3
        world.assert_books_hold()

    @pytest.mark.parametrize("moment", ["inside", "at commit", "after commit"])
    def test_when_the_connection_is_cut_nothing_is_lost_or_doubled(self, world: World, moment: str) -> None:
        add_some(world, 20)
        cut = [False]

        @contextmanager
        def cutting() -> Iterator[Session]:
            with db.platform_session() as session:
                yield session
                if (
                    cut[0]
                    or not session.execute(text("SELECT count(*) FROM platform_usage_logs")).scalar_one()
                ):
                    return
                cut[0] = True
                if moment == "inside":
                    session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
                elif moment == "at commit":
                    own = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
                    with db.platform_session() as other:
                        other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": own})
            if cut[0] and moment == "after commit":
                cut[0] = False
                raise sqlalchemy_errors.OperationalError(
                    "", {}, Exception("gone"), connection_invalidated=True
                )

        if moment == "after commit":
            committed = [False]

            @contextmanager
            def unknown() -> Iterator[Session]:
                with db.platform_session() as session:
                    yield session
                    stored = session.execute(text("SELECT count(*) FROM platform_usage_logs")).scalar_one()
                if stored and not committed[0]:
                    committed[0] = True
                    raise sqlalchemy_errors.OperationalError("", {}, Exception(), connection_invalidated=True)

            counts = world.drain(open_session=unknown)
            assert (committed[0], counts["accepted"], counts["recovered"]) == (True, 0, 0)
        else:
            counts = world.drain(open_session=cutting)
            assert (cut[0], counts["accepted"], counts["recovered"]) == (True, 20, 0)
        assert world.pending() == 0
        assert len(world.rows()) == 20
        world.assert_books_hold()


class TestEndOfARun:
    def test_finishes_the_batch_in_hand_when_told_to_stop(self, world: World) -> None:
        for _ in range(40):
            world.add(event())
        told = [False]

        class TellsToStop(Reader):
            def acknowledge(self, key: str, entry_ids: Sequence[str]) -> int:
                told[0] = True
                return super().acknowledge(key, entry_ids)

        counts = world.drain(reader=world.reader_of(TellsToStop), should_stop=lambda: told[0], batch_size=10)
        assert (counts["outcome"], counts["batches"]) == ("stopped", 1)
        assert 0 < counts["accepted"] < 40
        assert world.pending() == 0
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
