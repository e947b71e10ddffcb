"""Ordinary events are taken the fast way, whoever wrote them; and what a batch of them adds up to."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from producers import UsageEvent
from producers._stream import MAX_EVENT_BYTES, MAX_FRAME_EVENTS, encode, encode_frame
from tests.fuzz.differential import LIMITS, NOW, PRICES, compare, rows_of, sums_of
from worker.ingest import plain as module
from worker.ingest import plain_checks
from worker.ingest.plain import Decoder
from worker.ingest.plain_batch import COLUMNS, Plain
from worker.ingest.rules import AgeLimits

EVENT = "018f3c1a-7b1c-7d3e-9a55-0123456789ab"
USER = "7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11"


def usage(number: int = 0, **changes: object) -> UsageEvent:
    return UsageEvent(
        **{
            "event_id": UUID(int=UUID(EVENT).int + number),
            "user_id": USER,
            "feature": "blog_writer",
            "provider": "openai",
            "model": "gpt-5",
            "input_tokens": 812,
            "output_tokens": 455,
            "cost_usd": Decimal("0.004531"),
            "occurred_at": NOW - timedelta(microseconds=1_500_001),
            **changes,
        }
    )


def wire(number: int = 0, **changes: object) -> dict[str, object]:
    """An event as a program in another language writes it: no fixed order, its own spellings."""
    members = {**usage(number).wire(), "occurred_at": "2026-01-31T09:38:10.123Z", **changes}
    return dict(sorted(members.items(), reverse=True))


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def taken(*entries: bytes, received_at: datetime = NOW) -> Plain:
    plain, decoder = Plain(), Decoder(LIMITS, PRICES)
    for data in entries:
        assert decoder.take(data, received_at, plain) == []
    return plain


class TestWhatIsOrdinary:
    """Were one of these left to the contract, the drain would be right and ten times slower."""

    @pytest.mark.parametrize(
        "data",
        [
            encode(usage()),
            encode(usage(occurred_at=NOW.replace(microsecond=0))),
            encode(usage(cost_usd=None)),
            encode(usage(cost_usd=0)),
            encode(usage(cost_usd=Decimal("12.000000000001"))),
            encode(usage(cost_usd=Decimal("0.00000012"))),
            encode(usage(provider=None, model=None)),
            encode(usage(input_tokens=None, output_tokens=None, tokens_used=99)),
            encode(usage(feature="Übersetzung für später")),
            encode(usage(cache_read_tokens=500, cache_write_tokens=312, reasoning_tokens=455)),
            encode(usage(duration_ms=1500, status="ok", hold_id="h-1", producer_id="web-1", seq=2**63 - 1)),
            encode(
                usage(metadata={"request": "a 1", "attempt": 2, "rate": 0.7, "stream": True, "parent": None})
            ),
            encode(usage(metadata={})),
        ],
    )
    def test_our_emitters(self, data: bytes) -> None:
        assert compare(data) == 1

    def test_our_emitters_frames(self) -> None:
        events = [usage(n, metadata={"n": n} if n % 2 else None) for n in range(MAX_FRAME_EVENTS)]
        assert compare(encode_frame(events)) == MAX_FRAME_EVENTS

    @pytest.mark.parametrize(
        "members",
        [
            wire(),
            wire(cost_usd=0.004531),
            wire(cost_usd=0.30000000000000004),
            wire(cost_usd=3),
            wire(cost_usd=1e-7),
            wire(provider=None, model=None, metadata=None, cost_usd=None),
            wire(v=None),
            wire(tokens_used=1267),
            wire(occurred_at="2026-01-31T09:38:10Z"),
            wire(occurred_at="2026-01-31T09:38:10+00:00"),
            wire(occurred_at="2026-01-31T09:38:10.123456789Z"),
            wire(occurred_at="2026-01-31T15:08:10.5+05:30"),
            wire(event_id=EVENT.upper(), user_id=USER.replace("-", "")),
            wire(metadata={"tenant": "acme", "attempt": 1, "rate": 0.25}),
            wire(feature="naïve 😀"),
        ],
    )
    def test_other_producers(self, members: dict[str, object]) -> None:
        assert compare(compact(members)) == 1
        assert compare(json.dumps(members, ensure_ascii=False).encode()) == 1
        assert compare(json.dumps([members, wire(1)], ensure_ascii=False, indent=1).encode()) == 2

    def test_the_neighbours_of_what_is_not(self) -> None:
        plain, decoder = Plain(), Decoder(LIMITS, PRICES)
        frame = [wire(), wire(1, extra=1), None, wire(2, input_tokens=-1), wire(3)]
        assert decoder.take(compact(frame), NOW, plain) == [1, 2, 3]
        assert plain.ids == [EVENT, str(usage(3).event_id)]
        assert compare(compact(frame)) == 2

    def test_nothing_of_a_frame_without_ordinary_events(self) -> None:
        assert compare(compact([wire(extra=1), None])) is None
        assert compare(compact([{**wire(), "user_id": None, "clerk_id": "user_1"}])) is None

    @pytest.mark.parametrize("damage", [b"", b"]]", b"],", b"x"])
    def test_nothing_of_a_frame_that_is_not_json(self, damage: bytes) -> None:
        """An odd neighbour makes it look twice; then the whole frame has to be JSON."""
        assert compare(compact([wire(), wire(1, extra=1)])[:-1] + damage) is None

    def test_no_event_is_longer_for_its_blanks_than_the_contract_allows(self) -> None:
        blanks = b" " * MAX_EVENT_BYTES
        assert compare(blanks + compact(wire())) is None
        long = compact(wire(1)).replace(b'"v":1', b'"v":' + blanks + b"1")
        assert compare(b"[" + compact(wire()) + b"," + long + b"]") == 1


class TestManyAtOnce:
    def test_takes_each_with_its_own_arrival(self) -> None:
        arrivals = [NOW + timedelta(seconds=n % 7, microseconds=n) for n in range(200)]
        entries = [encode(usage(n)) for n in range(200)]
        entries[150] = encode_frame([usage(150), usage(1000)])
        together, alone, decoder = Plain(), Plain(), Decoder(LIMITS, PRICES)
        assert decoder.take_many(entries, arrivals, together) == [[]] * 200
        for data, received_at in zip(entries, arrivals, strict=True):
            assert decoder.take(data, received_at, alone) == []
        assert rows_of(together) == rows_of(alone)
        assert (together.sums, together.count) == (alone.sums, 201)

    def test_the_first_of_repeats_stands(self) -> None:
        later = usage(1, occurred_at=NOW)
        entries = [encode(usage()), encode(usage(1)), encode_frame([later, usage(2)]), encode(later)]
        plain = Plain()
        assert Decoder(LIMITS, PRICES).take_many(entries, [NOW] * 4, plain) == [[]] * 4
        assert (plain.ids, plain.repeats) == ([str(usage(n).event_id) for n in range(3)], 2)
        assert [str(row["occurred_at"])[:19] for row in rows_of(plain).values()] == [
            "2026-01-31 09:40:13"
        ] * 3

    def test_leaves_the_odd_ones(self) -> None:
        frame = compact([wire(4), wire(5, extra=1)])
        entries = [encode(usage(1)), compact(wire(2)), compact(wire(3, extra=1)), frame, b"", b"{", b"[]"]
        late = encode(usage(6, occurred_at=NOW - timedelta(days=40)))
        for some in (entries, [entries[0], late], [late]):
            plain, decoder = Plain(), Decoder(LIMITS, PRICES)
            answers = decoder.take_many(some, [NOW] * len(some), plain)
            assert answers == [Decoder(LIMITS, PRICES).take(data, NOW, Plain()) for data in some]
        assert plain.count == 0

    def test_sees_repeated_keys(self) -> None:
        repeated = encode(usage(1)).replace(b'"input_tokens":812', b'"input_tokens":1,"input_tokens":812')
        plain = Plain()
        answers = Decoder(LIMITS, PRICES).take_many([encode(usage()), repeated], [NOW] * 2, plain)
        assert (answers, plain.ids) == ([[], None], [EVENT])

    def test_knows_where_an_entry_ends(self) -> None:
        """What is one line after another when put together may be something else in each entry."""
        first, second = encode(usage(1)), encode(usage(2))
        for entries in (
            [first + b"\n" + second],
            [first + b"\n", second],
            [first, b"\n" + second],
            [first + b"\n" + second[:40], second[40:]],
            [first[:40], first[40:] + b"\n" + second],
            [first + b"\n" + second, second[:9] + b"\n" + second[9:]],
        ):
            plain, decoder = Plain(), Decoder(LIMITS, PRICES)
            answers = decoder.take_many(entries, [NOW] * len(entries), plain)
            assert answers == [Decoder(LIMITS, PRICES).take(data, NOW, Plain()) for data in entries]
            assert plain.count == answers.count([])


class TestTheWindow:
    @pytest.mark.parametrize(
        "offset", [-1_000_001, -1_000_000, -999_999, -1, 0, 1, 999_999, 1_000_000, 1_000_001]
    )
    @pytest.mark.parametrize("end", [-LIMITS.max_age, LIMITS.max_future])
    def test_is_that_of_the_contract_to_the_microsecond(self, end: timedelta, offset: int) -> None:
        moment = NOW + end + timedelta(microseconds=offset)
        inside = -LIMITS.max_age <= moment - NOW <= LIMITS.max_future
        decoder = Decoder(LIMITS, PRICES)
        for received_at in (NOW - timedelta(hours=1), NOW):
            # The second time its hour is known.
            found = compare(encode(usage(occurred_at=moment)), decoder=decoder, received_at=received_at)
        assert (found == 1) is inside

    def test_what_is_finer_than_a_microsecond_is_cut(self) -> None:
        decoder = Decoder(LIMITS, PRICES)
        for digits in (0, 1, 3, 6, 7, 9, 60):
            # After the first one its hour is known, which is the shorter way.
            moment = f"2026-01-31T09:38:10.{'9' * digits}Z".replace(".Z", "Z")
            assert compare(compact(wire(occurred_at=moment)), decoder=decoder) == 1
        for clock in ("38:60", "60:00", "38:99"):
            assert compare(compact(wire(occurred_at=f"2026-01-31T09:{clock}Z")), decoder=decoder) is None

    def test_moves_with_each_arrival(self) -> None:
        decoder = Decoder(LIMITS, PRICES)
        data = encode(usage(occurred_at=NOW))
        arrivals = [NOW, NOW + timedelta(days=36), NOW - timedelta(hours=1), NOW + timedelta(milliseconds=1)]
        answers = [compare(data, decoder=decoder, received_at=moment) for moment in arrivals]
        assert answers == [1, None, None, 1]

    @pytest.mark.parametrize(
        "received_at", [datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC)]
    )
    def test_lies_within_the_calendar(self, received_at: datetime) -> None:
        limits = AgeLimits(timedelta(days=10_000_000), timedelta(days=10_000_000))
        for moment in ("1970-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "9999-12-31T23:59:59.999999Z"):
            data = compact({**usage().wire(), "occurred_at": moment})
            found = compare(data, decoder=Decoder(limits, PRICES), received_at=received_at, limits=limits)
            # The last hour of the calendar has no end, so only the contract's way looks for its price.
            assert found == (1 if moment.startswith("1970") else None)


class TestABatch:
    def test_has_only_the_columns_that_it_needs(self) -> None:
        assert set(COLUMNS) - set(taken(encode(usage())).columns) == {
            *("cache_read_tokens", "cache_write_tokens", "reasoning_tokens", "hold_id", "metadata"),
        }
        mixed = taken(
            encode(usage(1)),
            encode(usage(2, hold_id="h")),
            encode(usage(3, metadata={"a": 1})),
            encode(usage(4, seq=7, metadata={"b": 2})),
        )
        base = taken(encode(usage())).columns
        assert mixed.columns == (*base, "hold_id", "metadata")
        rows = [line.split("\t") for line in mixed.text().splitlines()]
        at = [mixed.columns.index(name) for name in ("hold_id", "seq", "metadata")]
        assert [[row[column] for column in at] for row in rows] == [
            ["\\N", "\\N", "\\N"],
            ["h", "\\N", "\\N"],
            ["\\N", "\\N", '{"a":1}'],
            ["\\N", "7", '{"b":2}'],
        ]

    def test_counts_exact_repeats_and_has_one_line(self) -> None:
        # A retry stamps its time and metadata anew: these are no part of what has to be equal.
        retried = usage(occurred_at=NOW - timedelta(seconds=9), metadata={"try": 2})
        plain = taken(encode(usage()), encode(usage(1)), encode(retried), encode_frame([usage(1), usage()]))
        assert (plain.count, plain.repeats, plain.clash) == (5, 3, False)
        assert plain.ids == [EVENT, str(usage(1).event_id)]
        assert len(plain.text().splitlines()) == 2
        assert [row[0] for row in plain.sums.values()] == [2]
        assert "metadata" not in plain.columns

    @pytest.mark.parametrize(
        "change", [{"feature": "chat"}, {"cost_usd": "0.004532"}, {"output_tokens": 454}, {"model": None}]
    )
    def test_tells_when_an_id_came_with_another_content(self, change: dict[str, Any]) -> None:
        plain = taken(encode(usage()), encode(usage(**change)))
        assert plain.clash

    def test_knows_one_id_in_all_spellings(self) -> None:
        plain = taken(compact(wire()), compact(wire(event_id=EVENT.upper(), user_id=USER.upper())))
        assert (plain.ids, plain.repeats, plain.clash) == ([EVENT], 1, False)

    def test_forgets_a_frame_that_it_cannot_take_as_a_whole(self) -> None:
        """Its first events were in already when the odd one showed up; then each is read alone."""
        frame = compact(
            [usage(1, status="ok", metadata={"a": 1}).wire(), usage().wire(), wire(2, feature="\x7f")]
        )
        plain, decoder = taken(encode(usage())), Decoder(LIMITS, PRICES)
        assert decoder.take(frame, NOW, plain) == [2]
        assert (plain.count, plain.repeats, plain.clash) == (3, 1, False)
        assert plain.ids == [EVENT, str(usage(1).event_id)]
        # A single event in the brackets of a frame that is no JSON: nothing of it stays.
        before = plain.text(), plain.sums_text(), plain.count
        assert decoder.take(frame[:-1], NOW, plain) is None
        assert (plain.text(), plain.sums_text(), plain.count) == before

    def test_sums_are_exact(self) -> None:
        costs = ["999999.999999999999", "0.000000000001", "0.1", "1000000", None]
        events = [usage(n, model="our own", cost_usd=cost) for n, cost in enumerate(costs * 50)]
        plain = taken(*map(encode, events))
        ((key, row),) = sums_of(plain).items()
        assert key == (USER, "blog_writer", "openai", "our own", "2026-01-31 09:00:00+00")
        priced = sum(Decimal(cost) for cost in costs if cost)
        assert row[:5] == tuple(map(Decimal, (250, 50, 250 * 812, 250 * 455, 250 * 1267)))
        assert row[5] == 50 * priced

    def test_sums_have_one_row_for_all_spellings_of_a_key(self) -> None:
        plain = taken(
            compact(wire(1, provider="", model="")),
            compact(wire(2, provider=None, model=None, user_id=USER.upper())),
            encode(usage(3, provider=None, model=None, occurred_at="2026-01-31T10:38:10+01:00")),
            encode(usage(4, provider=None, model=None, occurred_at="2026-01-31T08:59:59.999999Z")),
        )
        assert {key[2:]: row[0] for key, row in plain.sums.items()} == {
            ("", "", "2026-01-31 09:00:00+00"): 3,
            ("", "", "2026-01-31 08:00:00+00"): 1,
        }

    def test_without_takes_known_events_out_of_the_sums(self) -> None:
        events = [
            usage(n, feature="chat" if n % 3 else "search", cost_usd=None if n == 4 else n) for n in range(9)
        ]
        plain = taken(encode_frame(events))
        text, known = plain.text(), {str(events[n].event_id) for n in (0, 3, 4, 6)}
        plain.without(known)
        rest = taken(*[encode(event) for event in events if str(event.event_id) not in known])
        assert sums_of(plain) == sums_of(rest)
        assert plain.text() == text
        plain.without(plain.ids)
        assert plain.sums_text() == ""

    def test_is_empty_at_first(self) -> None:
        plain = Plain()
        assert (plain.text(), plain.sums_text(), plain.ids, plain.count) == ("", "", [], 0)


def test_caches_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CACHED", 8)
    monkeypatch.setattr(plain_checks, "MOST_CACHED", 8)
    decoder, plain = Decoder(LIMITS, PRICES), Plain()
    for n in range(100):
        moment = NOW - timedelta(hours=n)
        event = usage(n, feature=f"feature {n}", occurred_at=moment, metadata={f"key {n}": n})
        assert decoder.take(encode(event), NOW, plain) == []
        assert max(len(decoder._parties), len(decoder._window.hours)) <= 8
    assert (plain.count, len(plain.sums)) == (100, 100)
