"""Every way in which entries come twice, late or out of turn: counted once, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import exc as sqlalchemy_errors
from sqlalchemy import text
from sqlalchemy.orm import Session

from tests.integration.ingest_world import GROUP, NOW, Reader, World, event
from worker import db
from worker.entries import EntryId, GroupState, RawEntry
from worker.errors import ConfigurationError
from worker.rollups import operations as rollups
from worker.valkey import StreamTrouble

EVENTS = "usage:events:{0}"

pytestmark = pytest.mark.redis_compatible


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


class DiesBeforeAcknowledging(Reader):
    def advance(
        self, key: str, entry_id: str, *, entries_read: int | None, expected: EntryId
    ) -> GroupState | None:
        raise Killed


class FailsToAcknowledgeOnce(Reader):
    failed = False

    def advance(
        self, key: str, entry_id: str, *, entries_read: int | None, expected: EntryId
    ) -> GroupState | None:
        if self.failed:
            return super().advance(key, entry_id, entries_read=entries_read, expected=expected)
        self.failed = True
        raise StreamTrouble("connection reset")


class Hooked(Reader):
    """Does something before a read that waits, once."""

    before: Callable[[], object] | None = None

    def read(
        self, cursors: Mapping[str, str], *, count: int, block_ms: int | None
    ) -> dict[str, list[RawEntry]]:
        if self.before is not None and block_ms is not None:
            before, self.before = self.before, None
            before()
        return super().read(cursors, count=count, block_ms=block_ms)


class LosesOneReply(Reader):
    lost = False

    def read(
        self, cursors: Mapping[str, str], *, count: int, block_ms: int | None
    ) -> dict[str, list[RawEntry]]:
        entries = super().read(cursors, count=count, block_ms=block_ms)
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
        assert world.unacknowledged() == 0

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
        assert world.unacknowledged() == 2
        before = world.rows(), world.rows("SELECT * FROM usage_hourly"), world.letters()
        counted = world.position()
        counts = world.drain()
        assert (counts["entries"], counts["events"], counts["recovered"], counts["batches"]) == (0, 0, 0, 1)
        assert world.unacknowledged() == 0
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
        assert world.unacknowledged() == 3
        counts = world.drain()
        assert (counts["entries"], counts["accepted"], counts["recovered"]) == (3, 3, 0)
        world.assert_books_hold()

    def test_after_a_failed_acknowledgement_happens_in_the_same_run(self, world: World) -> None:
        add_some(world)
        counts = world.drain(reader=world.reader_of(FailsToAcknowledgeOnce))
        assert (counts["entries"], counts["accepted"], counts["batches"]) == (3, 3, 2)
        assert world.unacknowledged() == 0
        world.assert_books_hold()

    def test_takes_over_what_a_dead_consumer_left(self, world: World) -> None:
        add_some(world, 5)
        world.reader().create_groups([EVENTS])
        world.client.xreadgroup(GROUP, "long-gone", {EVENTS: ">"}, count=3)
        counts = world.drain()
        assert (counts["entries"], counts["accepted"], counts["recovered"]) == (5, 5, 0)
        assert world.unacknowledged() == 0
        world.assert_books_hold()

    def test_takes_over_more_than_one_read_at_a_time_holds(self, world: World) -> None:
        for n in range(1200):
            world.add(event(input_tokens=n))
        world.reader().create_groups([EVENTS])
        world.client.xreadgroup(GROUP, "long-gone", {EVENTS: ">"}, count=1200)
        counts = world.drain(batch_size=300)
        assert (counts["accepted"], counts["recovered"]) == (1200, 0)
        assert counts["batches"] >= 3
        assert world.unacknowledged() == 0
        world.assert_books_hold()

    def test_acknowledges_what_a_stranger_in_the_group_reads_meanwhile(self, world: World) -> None:
        reader = world.reader_of(Hooked)
        add_some(world, 2)
        world.drain()

        def intrude() -> None:
            add_some(world, 3)
            world.client.xreadgroup(GROUP, "stranger", {EVENTS: ">"}, count=2)

        reader.before = intrude
        counts = world.drain(reader=reader)
        assert (counts["entries"], counts["accepted"], counts["recovered"]) == (3, 3, 0)
        assert world.unacknowledged() == 0
        world.assert_books_hold()

    def test_reports_pending_entries_that_were_deleted(self, world: World) -> None:
        add_some(world)
        world.reader().create_groups([EVENTS])
        world.client.xreadgroup(GROUP, "long-gone", {EVENTS: ">"}, count=2)
        world.client.xdel(EVENTS, str(world.reader().pending(EVENTS).lowest_id))
        counts = world.drain()
        assert (counts["accepted"], counts["lost"]) == (2, 1)
        assert world.reader().pending(EVENTS).entries == 0


class TestPosition:
    def test_never_passes_an_entry_whose_reply_was_lost(self, world: World) -> None:
        add_some(world)
        counts = world.drain(reader=world.reader_of(LosesOneReply))
        assert (counts["entries"], counts["accepted"], counts["recovered"]) == (3, 3, 0)
        world.assert_books_hold()

    def test_is_mirrored_by_the_group(self, world: World) -> None:
        add_some(world, 2)
        world.drain()
        add_some(world, 3)
        assert world.unacknowledged() == 3
        world.drain()
        state = world.reader().states([EVENTS])[EVENTS]
        assert (str(state.last_delivered), state.entries_read, state.pending) == (
            world.position().last_entry_id,
            5,
            0,
        )

    def test_ahead_of_a_restored_database_is_read_again(self, world: World, databases: Any) -> None:
        add_some(world, 4)
        world.drain(batch_size=1)
        # What a restore of an older backup leaves: fewer rows, and the position and counters of then.
        older = sorted(world.reader().read({EVENTS: "0-0"}, count=2, block_ms=None)[EVENTS])[-1][0]
        world.execute(
            "UPDATE ingest_positions SET last_entry_id = :older, entries = 2, events = 2, accepted = 2",
            older=older.decode(),
        )
        kept = [str(one.id) for one in world.rows("SELECT id FROM platform_usage_logs ORDER BY stored_at")]
        with psycopg.connect(databases.platform.url("superuser")) as superuser:
            superuser.execute("DELETE FROM platform_usage_logs WHERE id::text = ANY(%s)", [kept[2:]])
        with db.platform_session() as session:
            rollups.rebuild(session, start=NOW - timedelta(days=1), end=NOW + timedelta(days=1))
        counts = world.drain()
        assert (counts["entries"], counts["accepted"], counts["recovered"]) == (2, 2, 0)
        assert world.unacknowledged() == 0
        world.assert_books_hold()

    def test_of_a_stream_that_went_back_under_a_working_drain_is_noticed(self, world: World) -> None:
        add_some(world)
        world.drain()
        standing = world.reader().states([EVENTS])[EVENTS]
        reader = world.reader_of(Hooked)

        def go_back() -> None:
            # A failover to a replica that had less: stream and group begin again, with lower ids.
            world.client.delete(EVENTS)
            world.client.xgroup_create(EVENTS, GROUP, id="0", mkstream=True)
            earlier = NOW - timedelta(hours=1)
            world.add(event(occurred_at=earlier.isoformat()), at=earlier)

        reader.before = go_back
        counts = world.drain(reader=reader, should_stop=lambda: reader.quiet and len(world.rows()) > 3)
        assert (counts["entries"], counts["recovered"]) == (0, 1)
        assert len(world.rows()) == 4
        assert world.reader().states([EVENTS])[EVENTS].last_delivered < standing.last_delivered
        world.assert_rollups_hold()

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

    @pytest.mark.parametrize("fate", ["waits", "replayed", "discarded"])
    def test_of_what_was_put_aside_is_left_to_its_letter(self, world: World, fate: str) -> None:
        world.add(event(user_id=None, clerk_id="user_late"))
        with pytest.raises(Killed):
            world.drain(reader=world.reader_of(DiesBeforeAcknowledging))
        (letter,) = world.letters()
        world.execute("INSERT INTO users (clerk_id) VALUES ('user_late')")
        if fate == "replayed":
            assert world.replay_waiting().accepted == 1
        elif fate == "discarded":
            world.execute("UPDATE usage_dead_letters SET discarded_at = now()")
        # The entry is read once more, below the position, now that its user is there.
        counts = world.drain()
        assert (counts["recovered"], counts["accepted"], counts["batches"]) == (0, 0, 1)
        assert len(world.rows()) == (1 if fate == "replayed" else 0)
        assert [one.id for one in world.letters()] == [letter.id]
        if fate == "waits":
            assert world.replay_waiting().accepted == 1
        world.assert_books_hold()


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
        assert world.unacknowledged() == 3
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
        assert world.unacknowledged() == 0
        assert len(world.rows()) == 20
        world.assert_books_hold()
