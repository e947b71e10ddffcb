"""Retention: entries leave the streams by age and by memory, and only those that nobody will need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from producers._client import connect
from producers._config import EmitterConfig
from tests.integration.books_world import Books
from tests.integration.ingest_world import GROUP, NOW, STREAM, World, event
from worker import db
from worker.entries import EntryId
from worker.ingest import retention, switch
from worker.ingest.retained import RetainedStreams
from worker.ingest.retention import Retention, Trimming
from worker.ingest.switch import Supervision
from worker.valkey import StreamTrouble

pytestmark = pytest.mark.redis_compatible

EVENTS = "usage:events:{0}"
CORRECTIONS = "usage:corrections:{0}"
DAY = timedelta(hours=24)
PLENTY = 1 << 40


def supervision() -> Mapping[int, Supervision]:
    with db.platform_session() as session:
        return switch.supervision(session)


class Streams:
    """The streams of a world and their trimming."""

    def __init__(self, world: World, url: str) -> None:
        self.world = world
        self.retained = RetainedStreams(connect(EmitterConfig(redis_url=url), for_emit=False), group=GROUP)

    def trim(
        self,
        *,
        now: datetime = NOW + 3 * DAY,
        most_bytes: int = PLENTY,
        retained: RetainedStreams | None = None,
        read: Callable[[], Mapping[int, Supervision]] = supervision,
        dry_run: bool = False,
    ) -> Trimming:
        """This function will trim both streams of shard 0 once."""
        return retention.trim(
            retained or self.retained,
            stream=STREAM,
            shards=[0],
            supervision=read,
            retention=Retention(keep=DAY, most_bytes=most_bytes),
            now=now,
            dry_run=dry_run,
        )

    def ids(self, key: str = EVENTS) -> list[str]:
        """This function will list the entries that are still there."""
        return [entry_id.decode() for entry_id, _ in self.world.command("XRANGE", key, "-", "+")]

    def add(self, count: int, *, at: datetime = NOW, correction: bool = False, **fields: Any) -> list[str]:
        """This function will add entries with one event each."""
        return [self.world.add(event(**fields), at=at, correction=correction) for _ in range(count)]

    def prove(self) -> None:
        """This function will do what an audit does that found nothing: prove all that is processed."""
        self.world.execute(
            "UPDATE ingest_positions SET audited_entry_id = last_entry_id,"
            " audited_correction_id = last_correction_id, audited_at = clock_timestamp()"
        )


@pytest.fixture
def streams(world: World, valkey_url: str) -> Streams:
    return Streams(world, valkey_url)


class TestByAge:
    def test_deletes_exactly_what_is_older(self, streams: Streams) -> None:
        # The stream's tree has some 13 of these in a node: part of one has to go.
        streams.add(135)
        younger = streams.add(130, at=NOW + timedelta(hours=1))
        streams.world.drain()
        streams.prove()
        found = streams.trim(now=NOW + timedelta(hours=1) + DAY)
        assert streams.ids() == younger
        assert (found.trimmed, found.is_short, found.streams[0].length) == (135, False, 130)
        assert streams.trim(now=NOW + timedelta(hours=1) + DAY).trimmed == 0
        assert streams.trim(now=NOW + timedelta(hours=1, milliseconds=1) + DAY).trimmed == 130
        streams.world.assert_books_hold()

    def test_deletes_in_bounded_steps(self, streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(retention, "STEP", 100)
        monkeypatch.setattr(retention, "MOST_STEPS", 2)
        streams.add(450)
        streams.world.drain()
        streams.prove()
        steps = [streams.trim().trimmed for _ in range(4)]
        assert sum(steps) == 450
        assert max(steps) <= 200
        assert steps[-1] == 0

    def test_keeps_what_is_young(self, streams: Streams) -> None:
        streams.add(3)
        streams.world.drain()
        streams.prove()
        assert streams.trim(now=NOW + DAY).trimmed == 0
        assert len(streams.ids()) == 3

    def test_trims_corrections_by_their_own_position(self, streams: Streams) -> None:
        (target,) = [event()]
        streams.world.add(target)
        correction = event(
            corrects=target["event_id"], void=True, cost_usd=None, input_tokens=None, output_tokens=None
        )
        streams.world.add(correction, correction=True)
        streams.world.drain()
        streams.prove()
        streams.world.execute("UPDATE ingest_positions SET audited_correction_id = '0-0'")
        assert streams.trim().trimmed == 1
        assert (len(streams.ids()), len(streams.ids(CORRECTIONS))) == (0, 1)
        streams.prove()
        assert streams.trim().trimmed == 1

    def test_of_nothing_at_all(self, streams: Streams) -> None:
        assert streams.trim().trimmed == 0
        streams.world.drain()
        assert streams.trim().trimmed == 0

    def test_dry_run_deletes_nothing(self, streams: Streams) -> None:
        last = streams.add(5)[-1]
        streams.world.drain()
        streams.prove()
        found = streams.trim(dry_run=True, most_bytes=1)
        assert (found.trimmed, found.is_short, len(streams.ids())) == (0, True, 5)
        assert str(found.streams[0].free_up_to) == last


class TestKeeps:
    """Each of the four is further back in turn, and not one entry above it goes, old or not."""

    def held_at_two(self, streams: Streams, held_by: str) -> None:
        found = streams.trim(most_bytes=1)
        assert (found.streams[0].held_by, found.trimmed) == (held_by, 2)
        assert len(streams.ids()) == 3
        assert found.is_short

    @pytest.fixture
    def ids(self, streams: Streams) -> list[str]:
        ids = streams.add(5)
        streams.world.drain()
        streams.prove()
        return ids

    def test_what_is_not_audited(self, streams: Streams, ids: list[str]) -> None:
        streams.world.execute("UPDATE ingest_positions SET audited_entry_id = :at", at=ids[1])
        self.held_at_two(streams, retention.AUDIT)

    def test_what_the_database_has_not_stored(self, streams: Streams, ids: list[str]) -> None:
        # A restore of an older backup: the group is further on.
        streams.world.execute("UPDATE ingest_positions SET last_entry_id = :at", at=ids[1])
        self.held_at_two(streams, retention.POSITION)

    def test_what_the_group_has_not_passed(self, streams: Streams, ids: list[str]) -> None:
        streams.world.command("XGROUP", "SETID", EVENTS, GROUP, ids[1])
        self.held_at_two(streams, retention.GROUP)

    def test_what_is_pending(self, streams: Streams, ids: list[str]) -> None:
        streams.world.command("XGROUP", "SETID", EVENTS, GROUP, ids[1])
        streams.world.command("XREADGROUP", "GROUP", GROUP, "old", "STREAMS", EVENTS, ">")
        self.held_at_two(streams, retention.PENDING)

    def test_everything_without_a_group(self, streams: Streams, ids: list[str]) -> None:
        streams.world.command("XGROUP", "DESTROY", EVENTS, GROUP)
        assert streams.trim(most_bytes=1).trimmed == 0
        assert streams.ids() == ids

    def test_everything_of_a_shard_that_was_never_drained(self, streams: Streams) -> None:
        streams.add(4)
        streams.world.reader().create_groups([EVENTS])
        streams.world.command("XGROUP", "SETID", EVENTS, GROUP, "$")
        assert streams.trim(most_bytes=1).trimmed == 0

    def test_what_comes_while_it_trims(self, streams: Streams, ids: list[str]) -> None:
        del ids
        later: list[str] = []

        def read() -> Mapping[int, Supervision]:
            rows = supervision()
            # A drain and an audit go on after the database was asked.
            later.extend(streams.add(2))
            streams.world.drain()
            streams.prove()
            return rows

        assert streams.trim(read=read).trimmed == 5
        assert streams.ids() == later


class TestByMemory:
    def test_deletes_the_oldest_until_it_fits(self, streams: Streams) -> None:
        ids = streams.add(3000, metadata={"words": "x" * 200})
        streams.world.drain()
        streams.prove()
        used = streams.retained.memory_bytes(EVENTS)
        found = streams.trim(now=NOW, most_bytes=used // 2)
        left = streams.ids()
        assert left == ids[-len(left) :]
        assert not found.is_short
        assert found.memory_bytes <= used // 2
        # No more than a node or two too many.
        assert len(left) > 3000 // 2 - 2 * retention.NODE

    def test_counts_the_streams_of_all_shards_together(self, streams: Streams) -> None:
        streams.add(400)
        for _ in range(100):
            streams.world.add(event(), shard=1)
        for shard in (0, 1):
            streams.world.drain(shard=shard)
        streams.prove()
        both = sum(streams.retained.memory_bytes(f"usage:events:{{{shard}}}") for shard in (0, 1))
        assert streams.trim(now=NOW, most_bytes=both + 10_000).trimmed == 0
        found = streams.trim(now=NOW, most_bytes=both - 10_000)
        trimmed = {one.stream: one.trimmed for one in found.streams if one.trimmed}
        # The largest one gives first.
        assert list(trimmed) == [EVENTS]

    def test_says_that_it_is_short_and_what_holds_it(self, streams: Streams) -> None:
        ids = streams.add(300)
        streams.world.drain()
        with capture_logs() as lines:
            found = streams.trim(now=NOW, most_bytes=1000)
        assert (found.is_short, found.waits_for_audit, found.trimmed) == (True, True, 0)
        assert streams.ids() == ids
        (line,) = [line for line in lines if line["log_level"] == "error"]
        assert line["event"] == "streams take too much memory and nothing more may be trimmed"
        assert line["held_by"] == {EVENTS: retention.AUDIT}

    def test_does_not_wait_for_an_audit_that_would_free_nothing(self, streams: Streams) -> None:
        streams.add(300)
        assert streams.trim(now=NOW, most_bytes=1000).waits_for_audit is False
        streams.world.drain()
        streams.prove()
        found = streams.trim(now=NOW, most_bytes=1)
        assert (found.is_short, found.waits_for_audit) == (True, False)

    def test_an_audit_frees_it(self, streams: Streams, databases: Any, valkey_url: str) -> None:
        streams.add(300)
        streams.world.drain()
        used = streams.retained.memory_bytes(EVENTS)
        assert streams.trim(now=NOW, most_bytes=used // 2).waits_for_audit
        books = Books(streams.world, databases, valkey_url)
        assert books.found() == {}
        assert not streams.trim(now=NOW, most_bytes=used // 2).is_short
        # Later audits miss nothing.
        streams.add(5)
        streams.world.drain()
        assert books.found() == {}
        streams.trim()
        assert books.found(full=True) == {}


class Breaks(RetainedStreams):
    """The process ends, or the server goes, at the n-th command that deletes, before or after it."""

    def __init__(self, client: Any, *, at: int, done: bool) -> None:
        super().__init__(client, group=GROUP)
        self.left, self.done = at, done

    def trim(self, key: str, *, up_to: EntryId, most: int | None) -> int:
        """This function will trim, and fail once."""
        self.left -= 1
        if not self.left and not self.done:
            raise StreamTrouble
        trimmed = super().trim(key, up_to=up_to, most=most)
        if not self.left:
            raise StreamTrouble
        return trimmed


class TestCrash:
    @pytest.mark.parametrize("done", [False, True])
    @pytest.mark.parametrize("at", [1, 2, 3])
    def test_anywhere_is_made_good_by_the_next_run(
        self, at: int, done: bool, streams: Streams, valkey: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(retention, "STEP", 100)
        streams.add(250)
        streams.world.drain()
        streams.prove()
        younger = streams.add(50, at=NOW + 3 * DAY)
        with pytest.raises(StreamTrouble):
            streams.trim(retained=Breaks(valkey, at=at, done=done))
        streams.world.assert_books_hold()
        streams.trim()
        assert streams.ids() == younger
        assert streams.world.drain()["accepted"] == 50
        streams.world.assert_books_hold()
