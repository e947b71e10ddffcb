"""The fast way of ordinary events and the slow one of all others end in the same rows, sums and counts."""

from __future__ import annotations

import json
import random
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from tests.fuzz.differential import PRICES
from tests.integration.ingest_world import AGE, NOW, World, event
from worker import db
from worker.entries import EntryId, RawEntry
from worker.ingest import consumer, plain_rows, preparing
from worker.ingest.plain import Decoder
from worker.ingest.plain_rows import Staged
from worker.ingest.rules import AgeLimits, Batch
from worker.settings import load_settings

ROWS = """
    SELECT id, user_id, feature, provider, model, input_tokens, output_tokens, cache_read_tokens,
           cache_write_tokens, reasoning_tokens, tokens_used, cost_usd, cost_reported_usd, cost_computed_usd,
           cost_source, payload_hash, price_version, occurred_at, received_at, duration_ms, status, corrects,
           void, hold_id, producer_id, seq, shard, metadata
      FROM platform_usage_logs ORDER BY id
"""
HOURS = "SELECT * FROM usage_hourly ORDER BY user_id, feature, provider, model, hour"
COUNTERS = ("entries", "events", "accepted", "duplicates", "conflicts", "rejected", "recovered")


def anything(seed: int) -> list[list[dict[str, Any]]]:
    """Frames of ordinary events, unusual ones, bad ones, repeats and ids that are used again."""
    chosen = random.Random(seed)  # noqa: S311  what to send, no secret
    users = [str(uuid.UUID(int=chosen.getrandbits(128), version=4)) for _ in range(5)]
    sent: list[dict[str, Any]] = []
    for _ in range(400):
        one = event(
            event_id=str(uuid.UUID(int=chosen.getrandbits(128), version=4)),
            user_id=chosen.choice(users),
            feature=chosen.choice(("chat", "blog_writer", "recherché", "a\\b")),
            provider=chosen.choice(("openai", "", None)),
            model=chosen.choice(("gpt-4o", None)),
            cost_usd=chosen.choice(("0.000000000001", "12.5", 3, 0.25, None, "0")),
            occurred_at=(NOW - timedelta(seconds=chosen.randrange(10**6), microseconds=7)).isoformat(),
            metadata=chosen.choice((None, None, {"trace": "é", "n": 1}, {"api_key": "sk-1"}, {"x": [1.5]})),
            duration_ms=chosen.choice((None, 12)),
        )
        match chosen.randrange(20):
            case 0:
                one["input_tokens"] = -1
            case 1:
                one.update(input_tokens="77", unknown_field=True)
            case 2:
                one.update(cache_read_tokens=10, reasoning_tokens=3, status="ok", seq=5, producer_id="p-1")
            case 3 if sent:
                one = dict(chosen.choice(sent))
            case 4 if sent:
                one = {**chosen.choice(sent), "feature": "another"}
            case _:
                pass
        sent.append(one)
    return [sent[start : start + 20] for start in range(0, len(sent), 20)]


def state(world: World) -> tuple[Any, ...]:
    letters = [
        (letter.stream_id, letter.entry_index, letter.reason, letter.raw, letter.event_id)
        for letter in world.letters()
    ]
    position = world.position()
    return (
        world.rows(ROWS),
        world.rows(HOURS),
        letters,
        {name: getattr(position, name) for name in COUNTERS},
    )


def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(*_: Any, **__: Any) -> Batch | None:
        return None

    monkeypatch.setattr(consumer, "prepare", prepare)


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many plain rows each transaction stored, in order."""
    sizes: list[int] = []
    store = plain_rows.store

    def noting(session: Session, part: preparing.PlainPart, staged: Staged, *, shard: int) -> None:
        store(session, part, staged, shard=shard)
        sizes.append(len(part.plain.ids) - part.known)

    monkeypatch.setattr(plain_rows, "store", noting)
    return sizes


class TestEqual:
    @pytest.mark.parametrize("seed", range(4))
    def test_to_the_slow_way_whatever_comes(
        self, world: World, monkeypatch: pytest.MonkeyPatch, seed: int
    ) -> None:
        frames = anything(seed)
        for frame in frames:
            world.add(frame)
        world.drain(batch_size=90)
        world.drain(batch_size=90)
        quick = state(world)
        world.assert_books_hold()
        world.assert_rollups_hold()
        slow(monkeypatch)
        for frame in frames:
            world.add(frame, shard=1)
        # The same events again on another shard, by the other way: every one is known, with the same content.
        counts = world.drain(shard=1, batch_size=90)
        assert counts["accepted"] == 0
        assert counts["duplicates"] == quick[3]["accepted"] + quick[3]["duplicates"]
        assert (counts["conflicts"], counts["rejected"]) == (quick[3]["conflicts"], quick[3]["rejected"])
        assert world.rows(ROWS) == quick[0]
        assert world.rows(HOURS) == quick[1]

    def test_takes_the_fast_way_for_ordinary_events(self, world: World, stored: list[int]) -> None:
        world.add([event() for _ in range(10)])
        world.add(event())
        assert world.drain()["accepted"] == 11
        assert stored == [11]
        world.assert_books_hold()


class TestKnown:
    def test_events_are_duplicates_and_in_no_sum(self, world: World, stored: list[int]) -> None:
        first = [event(cost_usd="0.1", input_tokens=n) for n in range(20)]
        world.add(first)
        world.drain()
        world.add([*first[5:15], *(event(cost_usd="0.2") for _ in range(7))])
        counts = world.drain()
        assert (counts["accepted"], counts["duplicates"]) == (7, 10)
        assert stored == [20, 7]
        world.assert_books_hold()
        world.assert_rollups_hold()

    def test_ids_with_other_content_are_conflicts(self, world: World, stored: list[int]) -> None:
        first = [event() for _ in range(5)]
        world.add(first)
        world.drain()
        world.add([{**first[0], "cost_usd": "9"}, *(event() for _ in range(4)), first[1]])
        counts = world.drain()
        assert (counts["accepted"], counts["duplicates"], counts["conflicts"]) == (4, 1, 1)
        assert stored == [5]
        (letter,) = world.letters()
        assert json.loads(letter.raw or b"")["cost_usd"] == "9"
        world.assert_books_hold()
        world.assert_rollups_hold()

    def test_ids_that_come_twice_in_a_batch_are_answered_in_order(self, world: World) -> None:
        one, other = event(), event()
        world.add([one, {**one, "input_tokens": 1}, other, other])
        counts = world.drain()
        assert (counts["accepted"], counts["duplicates"], counts["conflicts"]) == (2, 1, 1)
        assert {row.input_tokens for row in world.rows()} == {812}
        world.assert_books_hold()

    def test_id_of_an_event_that_only_the_contract_reads_is_answered_in_order(self, world: World) -> None:
        by_contract = event(input_tokens="5", unknown=1)
        world.add([by_contract, {**by_contract, "input_tokens": 6}])
        counts = world.drain()
        assert (counts["accepted"], counts["conflicts"]) == (1, 1)
        assert [row.input_tokens for row in world.rows()] == [5]
        world.assert_books_hold()


class TestRace:
    def test_with_another_writer_of_the_same_id_is_no_loss_and_no_double(
        self, world: World, monkeypatch: pytest.MonkeyPatch, stored: list[int]
    ) -> None:
        events = [event() for _ in range(6)]
        world.add(events, shard=0)
        world.add(events[3:], shard=1)
        looked, may_go_on = threading.Event(), threading.Event()
        store = plain_rows.store

        def pausing(session: Session, part: preparing.PlainPart, staged: Staged, *, shard: int) -> None:
            if shard == 0 and not looked.is_set():
                cursor_of = plain_rows._cursor

                @contextmanager
                def cursor(of: Session) -> Iterator[Any]:
                    with cursor_of(of) as inner:
                        yield _PausesBeforeInsert(inner, looked, may_go_on)

                monkeypatch.setattr(plain_rows, "_cursor", cursor)
            store(session, part, staged, shard=shard)

        monkeypatch.setattr(plain_rows, "store", pausing)
        results: list[dict[str, Any]] = []
        slower = threading.Thread(target=lambda: results.append(world.drain()))
        slower.start()
        assert looked.wait(20)
        monkeypatch.undo()
        quicker = world.drain(shard=1)
        may_go_on.set()
        slower.join(20)
        assert quicker["accepted"] == 3
        assert (results[0]["accepted"], results[0]["duplicates"]) == (3, 3)
        assert len(world.rows()) == 6
        world.assert_books_hold()
        world.assert_rollups_hold()


class _PausesBeforeInsert:
    def __init__(self, cursor: Any, looked: threading.Event, may_go_on: threading.Event) -> None:
        self._cursor = cursor
        self._looked = looked
        self._may_go_on = may_go_on

    def execute(self, statement: str, parameters: Any = None, **options: Any) -> Any:
        if "INSERT INTO platform_usage_logs" in statement:
            self._looked.set()
            assert self._may_go_on.wait(20)
        return self._cursor.execute(statement, parameters, **options)

    def copy(self, statement: str) -> Any:
        return self._cursor.copy(statement)


class TestStagedAhead:
    def test_rows_of_a_batch_that_is_forgotten_are_stored_with_the_next_reading(self, world: World) -> None:
        for _ in range(12):
            world.add([event() for _ in range(10)])
        fails = [3]

        @contextmanager
        def failing() -> Iterator[Session]:
            with db.platform_session() as session:
                yield session
                fails[0] -= 1
                if not fails[0]:
                    raise plain_rows.ConnectionLost

        counts = world.drain(open_session=failing, batch_size=20, shortest_wait=0.001)
        assert (counts["accepted"], counts["recovered"]) == (120, 0)
        world.assert_books_hold()
        world.assert_rollups_hold()

    def test_ids_that_the_batch_before_is_storing_are_duplicates(
        self, world: World, monkeypatch: pytest.MonkeyPatch, stored: list[int]
    ) -> None:
        """Their rows are not there yet when the next batch looks for what is known."""
        first = [event() for _ in range(20)]
        for one in (*first, *first[:5], *(event() for _ in range(15))):
            world.add([one])
        stage, store, staged = plain_rows.stage, plain_rows.store, threading.Semaphore(0)

        def telling(*arguments: Any, **options: Any) -> Staged:
            found = stage(*arguments, **options)
            staged.release()
            return found

        def waiting(*arguments: Any, **options: Any) -> None:
            # The first batch is staged by itself, the second one ahead.
            assert stored or (staged.acquire(timeout=20) and staged.acquire(timeout=20))
            store(*arguments, **options)

        monkeypatch.setattr(plain_rows, "stage", telling)
        monkeypatch.setattr(plain_rows, "store", waiting)
        counts = world.drain(batch_size=20)
        assert (counts["accepted"], counts["duplicates"]) == (35, 5)
        # Both were stored the fast way.
        assert stored == [20, 15]
        world.assert_books_hold()
        world.assert_rollups_hold()

    @pytest.mark.parametrize("size", [1, 2])
    def test_takes_no_more_connections_than_there_are(
        self, world: World, environ: dict[str, str], size: int
    ) -> None:
        changed = {**environ, "DB_POOL_SIZE": str(size), "DB_MAX_OVERFLOW": "0", "DB_POOL_TIMEOUT": "2"}
        db.configure(load_settings(changed))
        for _ in range(30):
            world.add([event() for _ in range(10)])
        counts = world.make_drain(batch_size=20, stage_ahead=size > 1).run()
        assert (counts["accepted"], counts["outcome"]) == (300, "stopped")
        world.assert_books_hold()


class TestPrepare:
    def test_gives_what_is_unusual_to_the_contract_and_keeps_its_place(self) -> None:
        good, bad = event(), event(input_tokens=-1)
        entries: list[RawEntry] = [
            (b"1772368200000-1", [b"data", json.dumps([good, bad, event()]).encode()]),
            (b"1772368200000-2", [b"other", b"x"]),
        ]
        batch = preparing.prepare(
            Decoder(AGE, PRICES),
            entries,
            position=EntryId(0, 0),
            limits=AgeLimits(AGE.max_age, AGE.max_future),
            now=NOW,
        )
        assert batch is not None
        assert batch.plain is not None
        assert batch.plain.plain.count == 2
        assert [(one.entry_id, one.index, one.reason) for one in batch.events] == [
            ("1772368200000-1", 1, "invalid_tokens"),
            ("1772368200000-2", -1, "malformed_entry"),
        ]
        assert (batch.entry_count, str(batch.last_id)) == (2, "1772368200000-2")
