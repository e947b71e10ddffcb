"""Sets of numbers: whatever the order in which numbers arrive, the holes are those of a plain set."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.audits import books_numbers
from worker.audits.books_numbers import Arrivals, Producer, Stretch
from worker.ingest.numbers import HIGHEST, numbers_in
from worker.models.vocabulary import NumbersSettled

START = datetime(2026, 3, 1, tzinfo=UTC)
MOST = 4

numbers = st.sets(st.integers(1, 60), min_size=1)
histories = st.lists(numbers, min_size=1, max_size=8)


def at(minute: int) -> datetime:
    """This function will return a minute of the day of these tests."""
    return START + timedelta(minutes=minute)


def single(arrived: Iterable[int], minute: int = 0) -> list[Stretch]:
    """This function will make a stretch of each number, all stored at one time."""
    return [Stretch(one, one, at(minute), at(minute)) for one in arrived]


def known(history: Iterable[Iterable[int]], *, most: int = 1000) -> Producer:
    """This function will take numbers in, one minute after the other."""
    producer = None
    for minute, arrived in enumerate(history):
        stretches = single(arrived, minute)
        producer = books_numbers.taken_in(
            producer or books_numbers.new_producer("p", stretches), stretches, most=most
        )
    assert producer is not None
    return producer


def named(producer: Producer) -> set[int]:
    """This function will return the numbers that are missing by name."""
    return {one for hole in producer.holes for one in range(hole.low, hole.high + 1)}


def missing(arrived: Iterable[int]) -> set[int]:
    """This function will return the numbers below the highest that a plain set does not have."""
    have = set(arrived)
    return set(range(1, max(have))) - have


class TestTakenIn:
    @given(histories)
    def test_has_the_holes_of_a_plain_set(self, history: list[set[int]]) -> None:
        producer, everything = known(history), set().union(*history)
        assert named(producer) == missing(everything)
        assert producer.missing == len(missing(everything))
        assert producer.highest == max(everything)
        pairs = zip(producer.stretches, producer.stretches[1:], strict=False)
        assert all(below.high + 1 < above.low for below, above in pairs)

    @given(histories, st.randoms())
    def test_order_and_repeats_change_nothing(self, history: list[set[int]], random: object) -> None:
        again = [*history, *history]
        random.shuffle(again)  # type: ignore[attr-defined]  # Hypothesis gives a random.Random
        first, second = known(history), known(again)
        assert [(one.low, one.high) for one in first.stretches] == [
            (one.low, one.high) for one in second.stretches
        ]

    @given(histories)
    def test_says_when_the_numbers_beside_a_hole_were_first_or_last_stored(
        self, history: list[set[int]]
    ) -> None:
        minutes = {
            one: [m for m, each in enumerate(history) if one in each] for each in history for one in each
        }
        for hole in known(history).holes:
            assert hole.before in [at(minute) for minute in minutes[hole.high + 1]]
            if hole.low == 1:
                assert hole.after is None
            else:
                assert hole.after in [at(minute) for minute in minutes[hole.low - 1]]

    @given(st.permutations(range(1, 40)), st.sets(st.integers(1, 39)))
    def test_with_a_bound_the_count_is_exact_while_each_number_comes_once(
        self, order: list[int], lost: set[int]
    ) -> None:
        arrived = [one for one in order if one not in lost]
        if not arrived:
            return
        producer = known([[one] for one in arrived], most=MOST)
        assert len(producer.stretches) <= MOST
        assert producer.missing == len(missing(arrived))
        assert named(producer) == {one for one in missing(arrived) if one > producer.settled_upto}
        assert (producer.unnamed > 0) == (producer.unnamed_from is not None)

    def test_keeps_the_highest_when_there_are_too_many(self) -> None:
        producer = known([[1, 3, 5, 7, 9, 11]], most=MOST)
        assert [one.low for one in producer.stretches] == [5, 7, 9, 11]
        assert (producer.settled_upto, producer.unnamed) == (3, 1)
        assert producer.settled_because is NumbersSettled.CAPPED
        assert named(producer) == {4, 6, 8, 10}


class TestRipe:
    def test_is_a_hole_whose_next_number_is_old(self) -> None:
        producer = known([[1, 3], [5], [9]])
        assert [hole.low for hole in producer.ripe(at(1))] == [2, 4]
        assert [hole.low for hole in producer.ripe(at(2))] == [2, 4, 6]
        assert producer.ripe(at(-1)) == []

    def test_unnamed_ones_wait_a_day(self) -> None:
        producer = known([[1, 3, 5, 7, 9, 11]], most=MOST)
        assert producer.ripe_unnamed(START + timedelta(hours=23)) == 0
        assert producer.ripe_unnamed(START + timedelta(hours=24)) == 1


class TestAccepted:
    def test_nothing_is_ripe(self) -> None:
        producer = known([[1], [3]])
        assert books_numbers.accepted(producer, until=at(0), reason="lost") is producer

    @given(histories, st.integers(0, 8))
    def test_gives_up_what_is_ripe_and_counts_the_rest(self, history: list[set[int]], minute: int) -> None:
        producer = known(history)
        ripe = sum(hole.count for hole in producer.ripe(at(minute)))
        left = books_numbers.accepted(producer, until=at(minute), reason="lost")
        assert left.missing == producer.missing - ripe
        assert left.ripe(at(minute)) == []
        assert left.highest == producer.highest

    def test_the_reason_stays_on_record(self) -> None:
        left = books_numbers.accepted(known([[1, 3]]), until=at(0), reason="lost")
        assert (left.settled_because, left.settled_reason) == (NumbersSettled.ACCEPTED, "lost")
        more = books_numbers.taken_in(left, single([5, 7, 9, 11, 13]), most=MOST)
        assert (more.settled_because, more.settled_reason) == (NumbersSettled.CAPPED, "lost")

    def test_unnamed_ones_are_given_up_when_they_are_ripe(self) -> None:
        producer = known([[1, 3, 5, 7, 9, 11]], most=MOST)
        left = books_numbers.accepted(producer, until=START + timedelta(days=2), reason="lost")
        assert (left.missing, left.unnamed_from) == (0, None)


class TestBefore:
    @given(histories, st.integers(1, 60))
    def test_what_was_stored_before_is_settled_and_named_again(
        self, history: list[set[int]], upto: int
    ) -> None:
        producer = known(history)
        later = books_numbers.counted_from_here(producer, upto)
        everything = set().union(*history)
        assert named(later) == {one for one in missing(everything) if one > upto}
        assert later.unnamed == 0
        again = books_numbers.named_again(later)
        assert named(books_numbers.taken_in(again, single(everything))) == missing(everything)

    def test_numbers_right_behind_may_have_come_before(self) -> None:
        later = books_numbers.counted_from_here(known([[1]]), 4)
        first = books_numbers.taken_in(later, single([3, 7, 9]))
        assert (first.settled_upto, named(first)) == (6, {8})
        assert named(books_numbers.taken_in(first, single([11]))) == {8, 10}

    def test_what_an_operator_settled_is_not_named_again(self) -> None:
        settled = books_numbers.accepted(known([[1, 3]]), until=at(0), reason="lost")
        assert books_numbers.named_again(settled) is settled


class TestArrivals:
    @given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 20_000))))
    def test_have_the_stretches_of_a_plain_set(self, arrived: list[tuple[str, int]]) -> None:
        arrivals = Arrivals()
        for name, number in arrived:
            arrivals.add(name, number, START)
        found = dict(arrivals.stretches())
        assert list(found) == sorted({name for name, _ in arrived})
        for name, stretches in found.items():
            assert stretches == books_numbers.union(single({one for own, one in arrived if own == name}))

    def test_the_parts_of_two_shards_take_little(self) -> None:
        arrivals = Arrivals(most=30)
        for shard in (0, 1):
            for number in range(1 + shard, 100_001, 2):
                arrivals.add("p", number, at(shard))
        assert [(one.low, one.high) for _, found in arrivals.stretches() for one in found] == [(1, 100_000)]
        assert not arrivals.overflowed

    def test_a_producer_that_numbers_at_random_is_not_held_for_ever(self) -> None:
        arrivals = Arrivals(most=10)
        for place in range(20):
            arrivals.add("p", 1 + place * 10**9, START)
        arrivals.add("p", HIGHEST, START)
        assert arrivals.overflowed
        assert sum(len(found) for _, found in arrivals.stretches()) == 10

    def test_say_when_they_came(self) -> None:
        arrivals = Arrivals()
        for number, minute in ((2, 5), (1, 9), (3, 7)):
            arrivals.add("p", number, at(minute))
        assert dict(arrivals.stretches()) == {"p": [Stretch(1, 3, at(5), at(9))]}


def wire(**fields: object) -> bytes:
    """This function will write one event's JSON."""
    return json.dumps(fields).encode()


class TestNumbersIn:
    @pytest.mark.parametrize(
        ("data", "expected"),
        [
            (wire(producer_id="p", seq=3, cost_usd="no"), [("p", 3)]),
            (wire(producer_id="p", seq="3"), [("p", 3)]),
            (wire(producer_id="p", seq=3.0), [("p", 3)]),
            (wire(producer_id="p", seq=HIGHEST), [("p", HIGHEST)]),
            (b' [{"producer_id":"p","seq":1},{"producer_id":"q","seq":2}]', [("p", 1), ("q", 2)]),
            (b'[{"producer_id":"p","seq":1},7,{"producer_id":"p","seq":2}]', [("p", 1), ("p", 2)]),
            (wire(producer_id="p"), []),
            (wire(seq=3), []),
            (wire(producer_id="p", seq=0), []),
            (wire(producer_id="p", seq=-1), []),
            (wire(producer_id="p", seq=True), []),
            (wire(producer_id="p", seq=2.5), []),
            (wire(producer_id="p", seq=HIGHEST + 1), []),
            (wire(producer_id="p", seq=10**400), []),
            (wire(producer_id=["p"], seq=1), []),
            (wire(producer_id="a b", seq=1), []),
            (wire(producer_id="a\x00b", seq=1), []),
            (wire(producer_id="p" * 129, seq=1), []),
            (b'{"producer_id":"p\\ud800","seq":1}', []),
            (b"", []),
            (b"[", []),
            (b"{", []),
            (b"\xff\xfe", []),
            (b"null", []),
            (b"[" * 100_000, []),
            (b'{"producer_id":"p","seq":1}' + b" " * (16 * 1024 * 1024), []),
        ],
    )
    def test_of_what_can_be_read(self, data: bytes, expected: list[tuple[str, int]]) -> None:
        assert numbers_in(data) == expected

    @given(st.binary())
    def test_never_raises(self, data: bytes) -> None:
        assert isinstance(numbers_in(data), list)


def test_a_stretch_and_a_hole_count_their_numbers() -> None:
    producer = known([[1, 2, 6]])
    assert [one.count for one in producer.stretches] == [2, 1]
    assert [hole.count for hole in producer.holes] == [3]
    assert replace(producer, stretches=()).highest == 0
