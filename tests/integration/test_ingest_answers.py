"""What becomes of each event: accepted, duplicate, conflict or rejected, and what the tables hold then."""

from __future__ import annotations

import hashlib
import json
import uuid
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.integration.ingest_world import NOW, USER, World, event

pytestmark = pytest.mark.redis_compatible


class TestAccepted:
    def test_becomes_one_row_with_every_field(self, world: World) -> None:
        sent = event(
            cache_read_tokens=100,
            cache_write_tokens=20,
            reasoning_tokens=55,
            duration_ms=1234,
            status="ok",
            hold_id="hold-1",
            producer_id="app-1",
            seq=7,
            metadata={"path": "C:\\temp\nline", "tab": "a\tb", "quote": '"', "umlaut": "für"},
        )
        world.add(sent)
        counts = world.drain()
        (row,) = world.rows()
        assert (counts["entries"], counts["events"], counts["accepted"], counts["batches"]) == (1, 1, 1, 1)
        assert row.id == uuid.UUID(sent["event_id"])
        assert row.user_id == USER
        assert (row.feature, row.provider, row.model) == ("blog_writer", "openai", "gpt-4o-mini")
        assert (row.input_tokens, row.output_tokens, row.tokens_used) == (812, 455, 1267)
        assert (row.cache_read_tokens, row.cache_write_tokens, row.reasoning_tokens) == (100, 20, 55)
        assert row.cost_usd == row.cost_reported_usd == Decimal("0.000394800000")
        assert (row.cost_computed_usd, row.cost_source) == (Decimal("0.000387300000"), "reported")
        assert "gpt-4o-mini" in row.price_version
        assert (row.occurred_at, row.received_at) == (NOW, NOW)
        assert (row.duration_ms, row.status, row.hold_id, row.producer_id, row.seq) == (
            1234,
            "ok",
            "hold-1",
            "app-1",
            7,
        )
        assert row.metadata["path"] == "C:\\temp\nline"
        assert row.metadata["tab"] == "a\tb"
        assert row.metadata["umlaut"] == "für"
        assert (row.corrects, row.void, row.shard) == (None, False, 0)

    def test_keeps_what_is_unknown_as_null_and_counts_it_as_unpriced(self, world: World) -> None:
        world.add(
            event(
                provider=None, model=None, input_tokens=None, output_tokens=None, tokens_used=9, cost_usd=None
            )
        )
        world.drain()
        (row,) = world.rows()
        assert (row.provider, row.model, row.input_tokens, row.output_tokens, row.tokens_used) == (
            None,
            None,
            None,
            None,
            9,
        )
        assert (row.cost_usd, row.cost_source) == (None, "unpriced")
        (hour,) = world.rows("SELECT * FROM usage_hourly")
        assert (hour.provider, hour.model, hour.events, hour.unpriced_events) == ("", "", 1, 1)
        assert (hour.input_tokens, hour.tokens_used, hour.cost_usd) == (0, 9, 0)

    @pytest.mark.parametrize("backslash", ["a\\b", "\\N", "\\.", "\\x41"])
    def test_survives_what_copy_would_read_as_its_own(self, world: World, backslash: str) -> None:
        world.add(event(feature=backslash, model=backslash))
        world.drain()
        (row,) = world.rows()
        assert (row.feature, row.model) == (backslash, backslash)

    def test_finds_the_user_behind_a_clerk_id(self, world: World) -> None:
        world.execute("INSERT INTO users (id, clerk_id) VALUES (:id, 'user_2a')", id=USER)
        world.add(event(user_id=None, clerk_id="user_2a"))
        assert world.drain()["accepted"] == 1
        assert world.rows()[0].user_id == USER

    def test_stores_a_user_that_nobody_knows(self, world: World) -> None:
        world.add(event(user_id=str(uuid.uuid4())))
        assert world.drain()["accepted"] == 1


class TestDuplicate:
    def test_changes_nothing_whether_in_one_batch_or_a_later_one(self, world: World) -> None:
        sent = event()
        world.add(sent)
        world.add(sent)
        first = world.drain()
        before = world.rows(), world.rows("SELECT * FROM usage_hourly")
        world.add([sent, sent])
        second = world.drain()
        assert (first["accepted"], first["duplicates"]) == (1, 1)
        assert (second["accepted"], second["duplicates"]) == (0, 2)
        assert (world.rows(), world.rows("SELECT * FROM usage_hourly")) == before
        assert world.letters() == []
        world.assert_books_hold()

    def test_may_carry_another_time_and_metadata(self, world: World) -> None:
        sent = event(metadata={"attempt": 1})
        world.add(sent)
        world.drain()
        world.add(
            {**sent, "occurred_at": (NOW + timedelta(minutes=1)).isoformat(), "metadata": {"attempt": 2}}
        )
        assert world.drain()["duplicates"] == 1
        assert world.rows()[0].occurred_at == NOW

    def test_may_name_the_same_user_by_clerk_id(self, world: World) -> None:
        world.execute("INSERT INTO users (id, clerk_id) VALUES (:id, 'user_2a')", id=USER)
        sent = event()
        world.add(sent)
        world.add(
            {**{name: value for name, value in sent.items() if name != "user_id"}, "clerk_id": "user_2a"}
        )
        assert world.drain()["duplicates"] == 1


class TestConflict:
    @pytest.mark.parametrize(
        "change",
        [
            {"cost_usd": "0.5"},
            {"cost_usd": None},
            {"input_tokens": 813},
            {"cache_read_tokens": 1},
            {"feature": "other"},
            {"provider": None},
            {"model": "gpt-4o"},
            {"user_id": str(uuid.UUID(int=USER.int + 1))},
        ],
        ids=lambda change: "+".join(change),
    )
    def test_lets_the_first_stand_and_keeps_the_other_ones_bytes(
        self, world: World, change: dict[str, Any]
    ) -> None:
        sent = event()
        other = {name: value for name, value in {**sent, **change}.items() if value is not None}
        world.add(sent)
        world.drain()
        entry_id = world.add(other)
        counts = world.drain()
        assert (counts["conflicts"], counts["accepted"]) == (1, 0)
        assert len(world.rows()) == 1
        (letter,) = world.letters()
        assert (letter.reason, letter.stream, letter.stream_id, letter.entry_index) == (
            "conflict",
            "usage:events:{0}",
            entry_id,
            0,
        )
        assert letter.raw == json.dumps(other).encode()
        assert letter.raw_sha256 == hashlib.sha256(letter.raw).digest()
        assert letter.event_id == uuid.UUID(sent["event_id"])
        world.assert_books_hold()

    @pytest.mark.parametrize("unusual", [False, True], ids=["plain", "by the contract"])
    def test_does_not_take_a_repeat_of_the_stored_event_along(self, world: World, unusual: bool) -> None:
        sent = event(**({"unknown": 1} if unusual else {}))
        world.add(sent)
        world.drain()
        other = {**sent, "cost_usd": "9"}
        world.add([other, sent, other, sent])
        counts = world.drain()
        assert (counts["accepted"], counts["duplicates"], counts["conflicts"]) == (0, 2, 2)
        assert [letter.entry_index for letter in world.letters()] == [0, 2]
        world.assert_books_hold()

    def test_is_told_from_a_duplicate_within_one_batch(self, world: World) -> None:
        sent = event()
        world.add([sent, {**sent, "cost_usd": "9"}, sent])
        counts = world.drain()
        assert (counts["accepted"], counts["duplicates"], counts["conflicts"]) == (1, 1, 1)
        assert world.rows()[0].cost_usd == Decimal("0.0003948")
        assert [letter.entry_index for letter in world.letters()] == [1]
        world.assert_books_hold()


class TestRejected:
    @pytest.mark.parametrize(
        ("data", "reason", "index"),
        [
            (b"{", "not_json", -1),
            (b"\xff\xfe", "not_json", -1),
            (b"", "not_json", -1),
            (b"[]", "empty_frame", -1),
            (b"7", "not_an_object", 0),
        ],
    )
    def test_keeps_bytes_that_are_no_event(self, world: World, data: bytes, reason: str, index: int) -> None:
        world.add(data)
        counts = world.drain()
        assert (counts["entries"], counts["events"], counts["rejected"]) == (1, 1, 1)
        (letter,) = world.letters()
        assert (letter.raw, letter.reason, letter.entry_index) == (data, reason, index)
        assert letter.received_at == NOW
        assert world.unacknowledged() == 0
        world.assert_books_hold()

    def test_never_harms_a_neighbour_in_its_frame(self, world: World) -> None:
        good, bad, last = event(), event(cost_usd="NaN"), event()
        raw = b"[" + b" , ".join(json.dumps(one).encode() for one in (good, bad, last)) + b"]"
        world.add(raw)
        counts = world.drain()
        assert (counts["entries"], counts["events"], counts["accepted"], counts["rejected"]) == (1, 3, 2, 1)
        (letter,) = world.letters()
        assert (letter.entry_index, letter.reason) == (1, "invalid_cost")
        assert letter.raw == json.dumps(bad).encode()
        assert (letter.event_id, letter.user_id) == (uuid.UUID(bad["event_id"]), USER)
        world.assert_books_hold()

    @pytest.mark.parametrize(
        ("fields", "found"),
        [
            ([b"data", b'{"a":1}', b"data", b'{"a":2}'], 2),
            ([b"payload", b"{}"], 0),
            ([b"\xff\xfe", b"x"], 0),
        ],
    )
    def test_keeps_an_entry_without_exactly_one_data_field_as_it_came(
        self, world: World, fields: list[bytes], found: int
    ) -> None:
        world.add_fields(fields)
        world.add(event())
        counts = world.drain()
        assert (counts["accepted"], counts["rejected"]) == (1, 1)
        (letter,) = world.letters()
        assert (letter.reason, letter.entry_index) == ("malformed_entry", -1)
        assert f"found {found}" in str(letter.detail)
        expected = b"*%d\r\n" % len(fields) + b"".join(b"$%d\r\n%b\r\n" % (len(one), one) for one in fields)
        assert letter.raw == expected
        world.assert_books_hold()

    def test_ignores_other_fields_of_an_entry(self, world: World) -> None:
        world.add_fields([b"trace", b"\xff", b"data", json.dumps(event()).encode(), b"trace", b"2"])
        assert world.drain()["accepted"] == 1

    def test_measures_age_from_the_time_of_the_entry(self, world: World) -> None:
        world.add(event(occurred_at=(NOW - timedelta(days=35)).isoformat()))
        world.add(event(occurred_at=(NOW - timedelta(days=35, seconds=1)).isoformat()))
        world.add(event(occurred_at=(NOW + timedelta(seconds=300)).isoformat()))
        world.add(event(occurred_at=(NOW + timedelta(seconds=301)).isoformat()))
        assert world.drain()["accepted"] == 2
        assert [letter.reason for letter in world.letters()] == ["too_old", "in_future"]

    def test_puts_aside_a_clerk_id_that_belongs_to_nobody(self, world: World) -> None:
        world.add([event(), event(user_id=None, clerk_id="user_new")])
        counts = world.drain()
        assert (counts["accepted"], counts["rejected"]) == (1, 1)
        (letter,) = world.letters()
        assert (letter.reason, letter.clerk_id, letter.user_id) == ("unknown_user", "user_new", None)

    def test_takes_an_entry_whose_id_is_no_time(self, world: World) -> None:
        data = json.dumps(event()).encode()
        world.command("XADD", "usage:events:{0}", f"{2**63}-1", "data", data)
        assert world.drain()["accepted"] == 1
        assert world.rows()[0].received_at == NOW


class TestSums:
    def test_are_exact_to_the_last_digit_in_log_and_rollups(self, world: World) -> None:
        # More digits than a float holds.
        costs = [Decimal(n) * Decimal("0.000000000001") + 999_000 for n in range(1, 1201)]
        users = [str(uuid.UUID(int=USER.int + n)) for n in range(7)]
        events = [
            event(
                user_id=users[n % 7],
                cost_usd=str(cost),
                input_tokens=n,
                output_tokens=2 * n,
                feature=f"feature {n % 3}",
                model=None if n % 5 == 0 else f"model-{n % 4}",
                occurred_at=(NOW - timedelta(minutes=n)).isoformat(),
            )
            for n, cost in enumerate(costs)
        ]
        for start in range(0, 600, 100):
            world.add(events[start : start + 100])
        for one in events[600:]:
            world.add(one)
        counts = world.drain(batch_size=250)
        assert counts["accepted"] == 1200
        assert counts["batches"] > 3
        assert world.sums() == {
            "rows": 1200,
            "input": sum(range(1200)),
            "output": 2 * sum(range(1200)),
            "tokens": 3 * sum(range(1200)),
            "cost": sum(costs),
        }
        (hourly,) = world.rows("SELECT sum(events) AS events, sum(cost_usd) AS cost FROM usage_hourly")
        assert (hourly.events, hourly.cost) == (1200, sum(costs))
        world.assert_rollups_hold()
        world.assert_books_hold()

    def test_position_and_counters_say_what_was_done(self, world: World) -> None:
        sent = event()
        world.add(sent)
        world.add(sent)
        world.add({**sent, "cost_usd": "7"})
        last = world.add(b"{")
        world.drain()
        position = world.position()
        assert (position.last_entry_id, position.last_correction_id) == (last, "0-0")
        assert (position.entries, position.events) == (4, 4)
        assert (position.accepted, position.duplicates, position.conflicts, position.rejected) == (1, 1, 1, 1)
        assert (position.recovered, position.replayed, position.is_held, position.holder) == (
            0,
            0,
            False,
            None,
        )
