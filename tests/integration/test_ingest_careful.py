"""Processes that vanish over an entry: it is found and put aside with its bytes, and nothing else is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.integration.ingest_world import NOW, Reader, World, event
from worker import db
from worker.entries import EntryId, GroupState, RawEntry
from worker.ingest import consumer, leases, rules
from worker.ingest.effects import LeaseLost
from worker.ingest.rules import AgeLimits, Batch
from worker.valkey import StreamTrouble

POISON = b'{"event_id":"poison"}'


class Vanished(BaseException):
    """Stands for a process that is killed: nothing of ours catches it, and nothing is given back."""


def vanish_over_poison(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Decoding an entry with these bytes ends the process, whichever way it is decoded."""
    sizes: list[int] = []
    read = rules.read_entries

    def check(entries: Sequence[RawEntry]) -> None:
        sizes.append(len(entries))
        if any(POISON in fields for _, fields in entries):
            raise Vanished

    def read_entries(entries: Sequence[RawEntry], **options: Any) -> Batch:
        check(entries)
        return read(entries, **options)

    def prepare(
        decoder: object, entries: Sequence[RawEntry], *, position: EntryId, limits: AgeLimits, now: datetime
    ) -> Batch | None:
        check(entries)
        return read(entries, position=position, limits=limits, now=now, correction=False)

    monkeypatch.setattr(rules, "read_entries", read_entries)
    monkeypatch.setattr(consumer, "prepare", prepare)
    # A process that is killed releases nothing: its name stays in the row.
    monkeypatch.setattr(consumer.Drain, "_release", lambda self: None)
    return sizes


def drain_until_it_survives(world: World, *, most: int = 12) -> tuple[int, list[dict[str, Any]]]:
    """Starts processes, as Celery does, until one survives; returns how many vanished, and its counts."""
    vanished, survived = 0, list[dict[str, Any]]()
    for _ in range(most):
        world.execute("UPDATE ingest_positions SET lease_until = clock_timestamp() - interval '1 second'")
        try:
            survived.append(world.drain(batch_size=20))
        except Vanished:
            vanished += 1
        else:
            break
    return vanished, survived


class TestPoison:
    def test_is_parked_after_its_deliveries_and_its_neighbours_are_stored(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        vanish_over_poison(monkeypatch)
        for _ in range(7):
            world.add(event())
        entry_id = world.add(POISON)
        for _ in range(6):
            world.add([event(), event()])
        with capture_logs() as lines:
            vanished, survived = drain_until_it_survives(world)
        # Two batches and three times alone: the fifth delivery was the last one.
        assert vanished == 5
        assert len(survived) == 1
        said = [one for one in lines if one["event"] == "an entry's process vanished too often: put aside"]
        assert [(one["entry_id"], one["deliveries"], one["log_level"]) for one in said] == [
            (entry_id, 5, "error")
        ]
        (letter,) = world.letters()
        assert (letter.reason, letter.stream_id, letter.entry_index) == ("poison", entry_id, -1)
        assert letter.raw == POISON
        assert letter.raw_sha256 == sha256(POISON).digest()
        assert len(world.rows()) == 19
        position = world.position()
        assert (position.entries, position.events, position.rejected) == (14, 20, 1)
        assert world.unacknowledged() == 0
        world.assert_books_hold()

    def test_alone_counts_as_suspect_only_when_its_process_vanished(self, world: World) -> None:
        world.add(event())
        lease = acquire()
        with db.platform_session() as session:
            assert leases.note_suspect(session, lease, entry="k 1-0") == 1
        with db.platform_session() as session:
            # Its answer was lost, and it asks again.
            assert leases.note_suspect(session, lease, entry="k 1-0") == 1
        world.execute("UPDATE ingest_positions SET lease_until = clock_timestamp() - interval '1 second'")
        lease = acquire()
        assert lease.suspect_id == "k 1-0"
        with db.platform_session() as session:
            assert leases.note_suspect(session, lease, entry="k 1-0") == 2
        with db.platform_session() as session:
            leases.release_lease(session, lease)
        assert world.rows("SELECT suspect_id, suspect_deliveries FROM ingest_positions") == [("k 1-0", 1)]
        lease = acquire()
        with db.platform_session() as session:
            assert leases.note_suspect(session, lease, entry="k 2-0") == 1
        world.execute("UPDATE ingest_positions SET lease_until = clock_timestamp() - interval '1 second'")
        world.drain()
        assert world.rows("SELECT suspect_id, suspect_deliveries, crashes FROM ingest_positions") == [
            (None, 0, 2)
        ]

    def test_suspicion_belongs_to_the_holder(self, world: World) -> None:
        lease = acquire()
        world.execute("UPDATE ingest_positions SET lease_until = clock_timestamp() - interval '1 second'")
        acquire()
        with pytest.raises(LeaseLost), db.platform_session() as session:
            leases.note_suspect(session, lease, entry="k 1-0")


class TestCrashes:
    def test_are_forgotten_with_the_next_batch(self, world: World) -> None:
        world.add(event())
        acquire()
        world.execute("UPDATE ingest_positions SET lease_until = clock_timestamp() - interval '1 second'")
        world.drain()
        assert world.rows("SELECT crashes, careful_left FROM ingest_positions") == [(0, 0)]

    def test_make_the_next_events_go_one_by_one_and_then_together_again(self, world: World) -> None:
        for _ in range(30):
            world.add(event())
        for _ in range(3):
            acquire()
            world.execute("UPDATE ingest_positions SET lease_until = clock_timestamp() - interval '1 second'")
        counts = world.drain(batch_size=5)
        # Ten events (twice a batch) alone, the other twenty in batches of at least three.
        assert counts["accepted"] == 30
        assert 12 <= counts["batches"] <= 18
        assert world.rows("SELECT crashes, careful_left FROM ingest_positions") == [(0, 0)]
        world.assert_books_hold()

    def test_are_not_what_a_drain_leaves_that_gave_its_shard_back(self, world: World) -> None:
        for _ in range(4):
            world.drain()
        assert world.rows("SELECT crashes FROM ingest_positions") == [(0,)]


class TestTroubleWhileCareful:
    def test_that_the_process_survives_says_nothing_about_the_entry(self, world: World) -> None:
        class FailsOften(Reader):
            failures = 6

            def advance(
                self, key: str, entry_id: str, *, entries_read: int | None, expected: EntryId
            ) -> GroupState | None:
                if self.failures:
                    self.failures -= 1
                    raise StreamTrouble("reset")
                return super().advance(key, entry_id, entries_read=entries_read, expected=expected)

        world.add(event(occurred_at=(NOW - timedelta(hours=1)).isoformat()))
        for _ in range(3):
            acquire()
            world.execute("UPDATE ingest_positions SET lease_until = clock_timestamp() - interval '1 second'")
        counts = world.drain(reader=world.reader_of(FailsOften), shortest_wait=0.001)
        assert (counts["accepted"], counts["rejected"]) == (1, 0)
        assert world.letters() == []
        world.assert_books_hold()


def acquire() -> leases.Lease:
    with db.platform_session() as session:
        lease = leases.acquire_lease(
            session,
            shard=0,
            holder="vanished",
            duration=timedelta(minutes=1),
            careful_after=2,
            careful_events=10,
        )
    assert lease is not None
    return lease
