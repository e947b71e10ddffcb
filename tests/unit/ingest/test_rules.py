"""The decision core of ingest, without any server."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers._events import parse
from worker.entries import EntryId
from worker.ingest import rules
from worker.ingest.rules import AgeLimits, Outcome, Received, UndecidedEvent

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
AT = int(NOW.timestamp() * 1000)
LIMITS = AgeLimits(max_age=timedelta(days=35), max_future=timedelta(seconds=300))
USER = uuid.UUID("11111111-1111-4111-8111-111111111111")


def wire(**fields: Any) -> dict[str, Any]:
    standard: dict[str, Any] = {
        "event_id": "22222222-2222-4222-8222-222222222222",
        "user_id": str(USER),
        "feature": "f",
        "provider": "p",
        "model": "m",
        "input_tokens": 10,
        "output_tokens": 5,
        "cost_usd": "0.5",
        "occurred_at": "2026-03-01T12:30:00Z",
    }
    return {name: value for name, value in {**standard, **fields}.items() if value is not None}


def read(*entries: tuple[bytes, list[bytes]], position: str = "0-0", correction: bool = False) -> rules.Batch:
    return rules.read_entries(
        entries, position=EntryId.parse(position), limits=LIMITS, now=NOW, correction=correction
    )


def entry(data: object, *, entry_id: str = f"{AT}-0") -> tuple[bytes, list[bytes]]:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return entry_id.encode(), [b"data", raw]


class TestEntryId:
    @given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
    def test_is_read_as_it_is_written(self, milliseconds: int, sequence: int) -> None:
        entry_id = EntryId(milliseconds, sequence)
        assert EntryId.parse(str(entry_id)) == EntryId.parse(str(entry_id).encode()) == entry_id

    def test_is_ordered_by_number_and_not_by_text(self) -> None:
        assert EntryId.parse("10-2") > EntryId.parse("9-10") > EntryId.parse("9-9") > EntryId.parse("0-0")

    @given(st.integers(0, 2**64 - 1))
    def test_is_a_time_or_else_now(self, milliseconds: int) -> None:
        received = EntryId(milliseconds, 0).received_at(now=NOW)
        assert received == NOW or (received - datetime(1970, 1, 1, tzinfo=UTC)) == timedelta(
            milliseconds=milliseconds
        )


class TestReadEntries:
    def test_counts_only_what_lies_above_the_position(self) -> None:
        batch = read(*(entry(wire(), entry_id=f"{AT}-{n}") for n in range(5)), position=f"{AT}-2")
        assert [event.counted for event in batch.events] == [False, False, False, True, True]
        assert (batch.entry_count, batch.position, batch.last_id) == (2, EntryId(AT, 2), EntryId(AT, 4))

    def test_never_moves_the_position_back(self) -> None:
        batch = read(entry(wire(), entry_id=f"{AT}-1"), position=f"{AT + 5}-0")
        assert (batch.entry_count, batch.last_id) == (0, EntryId(AT + 5, 0))

    def test_of_nothing_is_nothing(self) -> None:
        batch = read(position="7-7")
        assert (batch.events, batch.entry_count, batch.last_id) == ([], 0, EntryId(7, 7))

    @given(st.lists(st.binary(max_size=20), max_size=9))
    def test_keeps_every_entry_that_has_not_exactly_one_data_field(self, fields: list[bytes]) -> None:
        names = fields[0 : len(fields) - 1 : 2]
        (first, *_) = read((f"{AT}-0".encode(), fields)).events
        if names.count(b"data") != 1:
            assert (first.reason, first.index) == ("malformed_entry", -1)
            assert first.raw == rules.resp(fields)
        else:
            assert first.outcome is Outcome.REJECTED

    @given(st.binary(max_size=200))
    def test_gives_any_bytes_an_answer_and_keeps_them(self, data: bytes) -> None:
        events = read(entry(data)).events
        assert events
        for event in events:
            assert event.outcome is None or (
                event.outcome is Outcome.REJECTED and event.reason and event.raw in data
            )

    def test_takes_corrections_of_any_age_from_their_stream_only(self) -> None:
        correction = wire(
            corrects=str(uuid.uuid4()),
            input_tokens=-1,
            output_tokens=None,
            occurred_at="2020-01-01T00:00:00Z",
        )
        assert read(entry(correction), correction=True).events[0].outcome is None
        assert read(entry(correction)).events[0].reason == "not_a_correction"
        assert read(entry(wire()), correction=True).events[0].reason == "not_a_correction"


class TestPayloadHash:
    @pytest.mark.parametrize(
        "change",
        [
            {"feature": "g"},
            {"provider": "q"},
            {"provider": None},
            {"model": "n"},
            {"input_tokens": 11},
            {"output_tokens": 6},
            {"cache_read_tokens": 0},
            {"cache_write_tokens": 1},
            {"reasoning_tokens": 1},
            {"cost_usd": "0.500000000001"},
            {"cost_usd": None},
            {"input_tokens": None, "output_tokens": None, "tokens_used": 15},
        ],
        ids=str,
    )
    def test_tells_apart_what_was_spent(self, change: dict[str, Any]) -> None:
        assert rules.payload_hash(parse(wire(**change)), USER) != rules.payload_hash(parse(wire()), USER)

    @pytest.mark.parametrize(
        "change",
        [
            {"occurred_at": "2026-03-01T12:31:00Z"},
            {"metadata": {"attempt": 2}},
            {"cost_usd": "0.50"},
            {"cost_usd": 0.5},
            {"input_tokens": "10"},
            {"tokens_used": 15},
            {"duration_ms": 3},
            {"status": "ok"},
            {"seq": 3},
        ],
        ids=str,
    )
    def test_is_the_same_for_a_retry(self, change: dict[str, Any]) -> None:
        assert rules.payload_hash(parse(wire(**change)), USER) == rules.payload_hash(parse(wire()), USER)

    def test_covers_the_user_and_has_16_bytes(self) -> None:
        other = rules.payload_hash(parse(wire()), uuid.uuid4())
        assert other != rules.payload_hash(parse(wire()), USER)
        assert len(other) == 16

    def test_is_the_same_in_every_release(self) -> None:
        # Stored with each row: a change here would turn every later retry into a conflict.
        assert rules.payload_hash(parse(wire()), USER).hex() == "5103cd0b5c006a7b5e3d38a266c5b272"
        target = "33333333-3333-4333-8333-333333333333"
        void = parse(wire(corrects=target, void=True), correction=True)
        assert rules.payload_hash(void, None).hex() == "d89ed0aba9109b32da4d43b2ee35a329"


class TestRepeats:
    def test_first_stands_whatever_comes_later(self) -> None:
        batch = read(entry([wire(), wire(), wire(cost_usd="9"), wire(occurred_at="2026-03-01T12:29:00Z")]))
        rules.resolve_users(batch.events, {})
        stored = rules.first_of_each(batch.events)
        assert stored == [batch.events[0]]
        assert [event.outcome for event in batch.events] == [
            None,
            Outcome.DUPLICATE,
            Outcome.CONFLICT,
            Outcome.DUPLICATE,
        ]

    def test_of_unknown_users_wait_each_for_itself(self) -> None:
        batch = read(entry([wire(user_id=None, clerk_id="c1"), wire(user_id=None, clerk_id="c2")]))
        assert rules.unresolved(batch.events) == {"c1", "c2"}
        rules.resolve_users(batch.events, {"c2": USER})
        assert [event.reason for event in batch.events] == ["unknown_user", None]
        assert batch.events[1].user_id == USER


class TestCount:
    @given(st.lists(st.tuples(st.sampled_from(Outcome), st.booleans())))
    def test_conserves_events(self, answers: list[tuple[Outcome, bool]]) -> None:
        events = [
            Received("1-0", n, b"", NOW, counted, outcome=outcome)
            for n, (outcome, counted) in enumerate(answers)
        ]
        counts = rules.count(
            rules.Batch(events=events, position=EntryId(0, 0), last_id=EntryId(1, 0), entry_count=1)
        )
        assert counts.events == counts.accepted + counts.duplicates + counts.conflicts + counts.rejected
        assert counts.events == sum(counted for _, counted in answers)
        assert counts.recovered == sum(rules.is_recovered(event) for event in events)
        assert counts + counts == rules.Counts(**{n: 2 * getattr(counts, n) for n in rules.COUNTERS})

    def test_refuses_an_event_without_an_outcome(self) -> None:
        batch = read(entry(wire()))
        with pytest.raises(UndecidedEvent):
            rules.count(batch)


class TestReadLetter:
    def test_puts_one_event_back_in_its_place(self) -> None:
        (event,) = rules.read_letter(
            json.dumps(wire()).encode(),
            entry_id="1-0",
            index=7,
            received_at=NOW,
            limits=LIMITS,
            correction=False,
        )
        assert (event.index, event.outcome, event.counted) == (7, None, False)

    @pytest.mark.parametrize("count", [0, 1, 2])
    def test_takes_an_array_for_a_frame_only_where_a_frame_was(self, count: int) -> None:
        data = b" " + json.dumps([wire() for _ in range(count)]).encode()
        arguments: dict[str, Any] = {
            "entry_id": "1-0",
            "received_at": NOW,
            "limits": LIMITS,
            "correction": False,
        }
        (event,) = rules.read_letter(data, index=3, **arguments)
        assert (event.index, event.reason, event.raw) == (3, "not_an_object", data)
        assert len(rules.read_letter(data, index=-1, **arguments)) == max(count, 1)


class TestWords:
    @given(st.text())
    def test_that_are_stored_are_taken_by_every_text_column(self, text: str) -> None:
        stored = rules.storable(text)
        assert stored is not None
        assert "\0" not in stored
        stored.encode()
        assert len(stored) <= 500

    @pytest.mark.parametrize(
        ("key", "expected"),
        [
            ("usage:events:{0}", False),
            ("usage:corrections:{12}", True),
            ("corrections:{0}", True),
            ("corrections:events:{0}", False),
        ],
    )
    def test_that_name_a_stream_tell_its_kind(self, key: str, expected: bool) -> None:
        assert rules.is_correction_key(key) is expected
