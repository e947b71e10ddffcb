"""Sets of numbers: what arrived of the numbers that one producer gave its events, and the holes between them.

Nothing here touches a server. A set is kept as stretches without a hole, each with the times at which its
first and its last number were stored. There are at most `MOST_STRETCHES` of them for a producer: beyond that
the lowest are settled, which means that their holes are only counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import chain, groupby
from operator import itemgetter
from typing import Final

from worker.models.vocabulary import NumbersSettled

MOST_STRETCHES: Final = 1_000
UNNAMED_GRACE: Final = timedelta(days=1)
"""How long holes without a name may take to be filled: they are many, so something is far behind."""

MOST_PAGES: Final = 100_000
_PAGE: Final = 4096
_RUNS: Final = re.compile("1+").finditer


@dataclass(frozen=True, slots=True)
class Stretch:
    """The numbers `low` to `high`, all of them; `since` and `until`: when the ends of it were stored."""

    low: int
    high: int
    since: datetime
    until: datetime

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return self.high - self.low + 1


@dataclass(frozen=True, slots=True)
class Hole:
    """The numbers `low` to `high`, none of which arrived; when the numbers beside them were stored.

    `after` is None where nothing is known of a lower number.
    """

    low: int
    high: int
    after: datetime | None
    before: datetime

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return self.high - self.low + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Producer:
    """What is known of one producer's numbers; see worker.models.platform.UsageProducer.

    Every stretch lies above `settled_upto`.
    """

    producer_id: str
    stretches: Sequence[Stretch] = ()
    settled_upto: int = 0
    settled_because: NumbersSettled | None = None
    settled_reason: str | None = None
    unnamed: int = 0
    unnamed_from: datetime | None = None
    first_stored_at: datetime
    last_stored_at: datetime

    @property
    def highest(self) -> int:
        """The highest number that arrived, 0 when there is none."""
        return self.stretches[-1].high if self.stretches else self.settled_upto

    @property
    def holes(self) -> Iterator[Hole]:
        """The holes below the highest number that still have a name, the lowest first."""
        end, after = self.settled_upto, None
        for one in self.stretches:
            if one.low > end + 1:
                yield Hole(end + 1, one.low - 1, after, one.since)
            end, after = one.high, one.until

    @property
    def missing(self) -> int:
        """How many numbers below the highest have not arrived and were not given up."""
        return self.unnamed + sum(hole.count for hole in self.holes)

    def ripe(self, until: datetime) -> list[Hole]:
        """This method will return the holes whose next higher number was stored at `until` or before."""
        return [hole for hole in self.holes if hole.before <= until]

    def ripe_unnamed(self, until: datetime) -> int:
        """This method will return how many holes without a name have had their time to be filled."""
        patient = self.unnamed_from is not None and self.unnamed_from <= until - UNNAMED_GRACE
        return self.unnamed if patient else 0


def new_producer(producer_id: str, stretches: Sequence[Stretch]) -> Producer:
    """This function will return what is known of a producer before anything of its numbers was taken in."""
    return Producer(
        producer_id=producer_id,
        first_stored_at=min(one.since for one in stretches),
        last_stored_at=max(one.until for one in stretches),
    )


def union(stretches: Iterable[Stretch]) -> list[Stretch]:
    """This function will return the same numbers as stretches that neither overlap nor touch, in order."""
    joined: list[Stretch] = []
    for one in sorted(stretches, key=lambda each: (each.low, each.since)):
        last = joined[-1] if joined else None
        if last is None or one.low > last.high + 1:
            joined.append(one)
        elif one.high > last.high:
            joined[-1] = replace(last, high=one.high, until=one.until)
    return joined


def taken_in(known: Producer, stretches: Iterable[Stretch], *, most: int = MOST_STRETCHES) -> Producer:
    """This function will add numbers that arrived. The order, and taking some in again, change nothing.

    Numbers that are settled are the exception: there one more is one fewer that is missing.
    """
    arrived = union(stretches)
    if not arrived:
        return known
    if known.settled_because is NumbersSettled.BEFORE and not known.stretches:
        # Of the numbers between, some may have come before in events that left no row.
        known = replace(known, settled_upto=max(known.settled_upto, _lowest_above(known, arrived) - 1))
    late = sum(
        min(one.high, known.settled_upto) - one.low + 1 for one in arrived if one.low <= known.settled_upto
    )
    unnamed = max(known.unnamed - late, 0)
    grown = replace(
        known,
        stretches=union([*known.stretches, *unsettled(known, arrived)]),
        unnamed=unnamed,
        unnamed_from=known.unnamed_from if unnamed else None,
        first_stored_at=min(known.first_stored_at, *(one.since for one in arrived)),
        last_stored_at=max(known.last_stored_at, *(one.until for one in arrived)),
    )
    return _capped(grown, most)


def _lowest_above(known: Producer, arrived: Sequence[Stretch]) -> int:
    above = (max(one.low, known.settled_upto + 1) for one in arrived if one.high > known.settled_upto)
    return min(above, default=known.settled_upto + 1)


def _capped(known: Producer, most: int) -> Producer:
    excess = len(known.stretches) - most
    if excess <= 0:
        return known
    upto = known.stretches[excess - 1].high
    return _settled(known, upto, NumbersSettled.CAPPED, reason=None)


def _settled(known: Producer, upto: int, because: NumbersSettled, *, reason: str | None) -> Producer:
    """The holes up to a number lose their names and are counted; that number ends a stretch or a hole."""
    unnamed = known.unnamed + sum(hole.count for hole in known.holes if hole.high <= upto)
    return replace(
        known,
        stretches=[one for one in known.stretches if one.low > upto],
        settled_upto=upto,
        settled_because=because,
        # What an operator once gave up stays on record.
        settled_reason=reason or known.settled_reason,
        unnamed=unnamed,
        unnamed_from=(known.unnamed_from or known.last_stored_at) if unnamed else None,
    )


def accepted(known: Producer, *, until: datetime, reason: str) -> Producer:
    """This function will give up what is missing and ripe at `until`; what is younger stays missing."""
    ripe = known.ripe(until)
    given_up = sum(hole.count for hole in ripe) + known.ripe_unnamed(until)
    if not given_up:
        return known
    upto = max((hole.high for hole in ripe), default=known.settled_upto)
    settled = _settled(known, upto, NumbersSettled.ACCEPTED, reason=reason)
    unnamed = settled.unnamed - given_up
    return replace(settled, unnamed=unnamed, unnamed_from=settled.unnamed_from if unnamed else None)


def counted_from_here(known: Producer, upto: int) -> Producer:
    """This function will settle everything up to a number, for it was stored before anything was counted."""
    if upto <= known.settled_upto:
        return known
    settled = taken_in(replace(known, settled_upto=upto, stretches=()), known.stretches)
    return replace(settled, settled_because=NumbersSettled.BEFORE, unnamed=0, unnamed_from=None)


def named_again(known: Producer) -> Producer:
    """This function will forget that older numbers were not read, so that all of them are looked for."""
    if known.settled_because is not NumbersSettled.BEFORE:
        return known
    return replace(known, settled_upto=0, settled_because=None)


def unsettled(known: Producer, stretches: Iterable[Stretch]) -> list[Stretch]:
    """This function will return what stretches have above the numbers that are settled."""
    upto = known.settled_upto
    return [replace(one, low=max(one.low, upto + 1)) for one in union(stretches) if one.high > upto]


@dataclass(slots=True)
class _Page:
    """Which of 4096 numbers arrived, one bit each, and when the first and the last of them came."""

    bits: bytearray
    since: datetime
    until: datetime


@dataclass(slots=True)
class Arrivals:
    """Numbers that arrive one by one, from many producers, in any order.

    Each shard has its part of a producer's numbers, so only all of them together are stretches: until then
    they are bits on pages. `overflowed` says that there were more pages than `most`, and numbers were left
    out; numbers that follow one another fill few pages, whatever their order.
    """

    most: int = MOST_PAGES
    overflowed: bool = False
    _pages: dict[tuple[str, int], _Page] = field(default_factory=dict)

    def add(self, producer_id: str, number: int, at: datetime) -> None:
        """This method will take one number in."""
        place, bit = divmod(number, _PAGE)
        page = self._pages.get((producer_id, place))
        if page is None:
            if len(self._pages) >= self.most:
                self.overflowed = True
                return
            page = self._pages[producer_id, place] = _Page(bytearray(_PAGE // 8), at, at)
        page.bits[bit >> 3] |= 1 << (bit & 7)
        page.since, page.until = min(page.since, at), max(page.until, at)

    def stretches(self) -> Iterator[tuple[str, list[Stretch]]]:
        """This method will yield every producer with its stretches, in the order of their names."""
        for producer_id, keys in groupby(sorted(self._pages), key=itemgetter(0)):
            yield producer_id, union(chain.from_iterable(self._runs(key) for key in keys))

    def _runs(self, key: tuple[str, int]) -> Iterator[Stretch]:
        page, base = self._pages[key], key[1] * _PAGE
        # The lowest number first.
        bits = f"{int.from_bytes(page.bits, 'little'):0{_PAGE}b}"[::-1]
        for run in _RUNS(bits):
            yield Stretch(base + run.start(), base + run.end() - 1, page.since, page.until)
