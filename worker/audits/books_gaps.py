"""The books of numbers: which of the numbers that emitters gave their events never arrived.

A number arrived when a row of the log has it, or an event that left no row: one that came twice under one
id, or was put aside. Rows tell it themselves. The others are read from the stream, in windows in which the
counters say that there were some; what is not audited yet is never trimmed, so they are all there.

A hole is judged when a higher number was stored for a while, and every shard has drained what came by then:
until that time the missing ones may be on their way, in a buffer, a spool or another shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Final

from sqlalchemy.orm import Session

from worker.audits import books_gaps_queries as queries
from worker.audits import books_numbers as numbers
from worker.audits import findings
from worker.audits.books_checks import Window, finding
from worker.audits.books_gaps_queries import Reading
from worker.audits.books_numbers import Arrivals, Hole, Producer, Stretch
from worker.audits.books_queries import BEGINNING
from worker.audits.books_stream import BookStreams
from worker.audits.findings import CheckResult, Finding
from worker.entries import EntryId, RawEntry
from worker.ingest.numbers import numbers_in
from worker.ingest.rules import FIELD
from worker.models.vocabulary import NumbersSettled, Severity

CHECK_IDS: Final = ("books.missing_numbers", "books.numbers")
"""The checks that are answered here."""
GRACE: Final = timedelta(hours=1)
"""How long a number may arrive later than a higher one."""
KEPT: Final = timedelta(days=36)
"""How long a producer that is quiet is remembered: no event that is older than 35 days is accepted."""
MOST_PRODUCERS: Final = 100
MOST_RANGES: Final = 20
_TIMED_RANGES: Final = 5
# A shard that is behind by this much keeps the others' numbers from being judged, which has to be said.
_LATE: Final = timedelta(hours=1)
_BATCH: Final = 500

Numbered = tuple[str, Sequence[Stretch]]
Patient = Callable[[], AbstractContextManager[Session]]


@dataclass(slots=True, kw_only=True)
class Judged:
    """What became of the numbers in one run: answers, and plain figures for its record."""

    checks: Sequence[CheckResult]
    measurements: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Taken:
    """How far numbers were taken in, and what a full run found that should have been known."""

    shards: int
    upto: datetime | None = None
    latest: datetime | None = None
    producers: int = 0
    lacking: dict[str, int] = field(default_factory=dict)
    overflowed: bool = False


def drained_to(window: Window) -> datetime:
    """This function will return a time by which everything that a shard's streams took has been drained."""
    cut = window.cut
    behind = [
        position.received_at(now=cut.cut_at)
        for stream, position in zip(window.streams, (cut.events_at, cut.corrections_at), strict=True)
        if stream.above
    ]
    return min([cut.cut_at, *behind])


def audit(
    patient: Patient,
    streams: BookStreams,
    *,
    drained: Mapping[int, datetime],
    full: bool = False,
    accept: str | None = None,
    grace: timedelta = GRACE,
) -> Judged:
    """This function will take in the numbers of what was proved since the last run, and name those missing.

    Call it when every shard's window was judged; `drained` has `drained_to` of each. `patient` opens a
    session that commits at the end, of a login that may write seals. `full` counts the whole log again,
    what was stored before any number was counted included. `accept` is an operator's reason to give up what
    this run reports. Raises what is wrong with either server (TransientError, ConfigurationError).
    """
    with patient() as session:
        planned = queries.readings(session)
    # Read before the transaction: it would wait for the stream's server.
    arrivals = _arrivals(streams, planned)
    with patient() as session:
        queries.lock(session)
        taken = _take_in(session, planned, arrivals, full=full)
        return _judge(session, taken, drained, accept=accept, grace=grace)


def _arrivals(streams: BookStreams, planned: Sequence[Reading]) -> Arrivals:
    arrivals = Arrivals()
    for one in planned:
        if one.cut_unstored == one.unstored:
            continue
        events, corrections = streams.keys(one.shard)
        for key, above, up_to in (
            (events, one.last_entry_id, one.cut_entry_id),
            (corrections, one.last_correction_id, one.cut_correction_id),
        ):
            for page in streams.entries(key, above=above, up_to=up_to):
                for producer_id, number, at in _numbers_of(page, latest=one.cut_at or BEGINNING):
                    arrivals.add(producer_id, number, at)
    return arrivals


def _numbers_of(page: Sequence[RawEntry], *, latest: datetime) -> Iterator[tuple[str, int, datetime]]:
    for entry_id, fields in page:
        # A producer may choose an id that is no time, or one to come.
        at = min(EntryId.parse(entry_id).received_at(now=latest), latest)
        for name, value in zip(fields[::2], fields[1::2], strict=False):
            if name == FIELD:
                for producer_id, number in numbers_in(value):
                    yield producer_id, number, at


def _take_in(session: Session, planned: Sequence[Reading], arrivals: Arrivals, *, full: bool) -> _Taken:
    cuts = [one.cut_at for one in planned if one.cut_at is not None]
    if not cuts or len(cuts) < len(planned):
        return _Taken(len(planned))
    taken = _Taken(len(planned), min(cuts), max(cuts), overflowed=arrivals.overflowed)
    # Another run took them in meanwhile: then there is nothing left to do but to judge.
    if queries.readings(session) == list(planned):
        _take_in_new(session, planned, arrivals, taken, upto=min(cuts))
    if full:
        for batch in _batches(queries.all_stretches(session, upto=min(cuts))):
            _recount(session, batch, taken)
    queries.prune(session, before=min(cuts) - KEPT)
    return taken


def _take_in_new(
    session: Session, planned: Sequence[Reading], arrivals: Arrivals, taken: _Taken, *, upto: datetime
) -> None:
    for one in planned:
        if one.begins_late:
            for before in _batches(
                (name, [highest]) for name, highest in queries.highest_before(session, one, age=KEPT)
            ):
                _begin_late(session, before)
    for batch in _batches(queries.stretches(session, planned, upto=upto)):
        taken.producers += _add(session, batch)
    for batch in _batches(arrivals.stretches()):
        _add(session, batch)
    for one in planned:
        queries.move(session, one, upto=upto)


def _batches(arrived: Iterable[Numbered]) -> Iterator[list[Numbered]]:
    source = iter(arrived)
    while batch := list(islice(source, _BATCH)):
        yield batch


def _add(session: Session, batch: Sequence[Numbered]) -> int:
    known = queries.producers(session, {name for name, _ in batch})
    for name, stretches in batch:
        before = known.get(name) or numbers.new_producer(name, stretches)
        known[name] = numbers.taken_in(before, stretches)
    queries.store(session, list(known.values()))
    return len(known)


def _begin_late(session: Session, batch: Sequence[Numbered]) -> None:
    known = queries.producers(session, {name for name, _ in batch})
    for name, stretches in batch:
        before = known.get(name) or numbers.new_producer(name, stretches)
        known[name] = numbers.counted_from_here(before, stretches[-1].high)
    queries.store(session, list(known.values()))


def _recount(session: Session, batch: Sequence[Numbered], taken: _Taken) -> None:
    known = queries.producers(session, {name for name, _ in batch})
    for name, stretches in batch:
        before = known.get(name)
        if before is None:
            known[name] = numbers.taken_in(numbers.new_producer(name, stretches), stretches)
            continue
        again = numbers.named_again(before)
        # What is settled was counted once, and one number more would seem to have come late.
        grown = numbers.taken_in(again, numbers.unsettled(again, stretches))
        if before.settled_because is not NumbersSettled.BEFORE and grown.settled_upto == again.settled_upto:
            found = _count(grown) - _count(again)
            if found:
                taken.lacking[name] = taken.lacking.get(name, 0) + found
        known[name] = grown
    queries.store(session, list(known.values()))


def _count(producer: Producer) -> int:
    return sum(one.count for one in producer.stretches)


def _judge(
    session: Session,
    taken: _Taken,
    drained: Mapping[int, datetime],
    *,
    accept: str | None,
    grace: timedelta,
) -> Judged:
    missing, lacking = CHECK_IDS
    recounted = findings.answer(lacking, _lacking(taken.lacking))
    if taken.upto is None or taken.latest is None:
        unproved = findings.inconclusive(missing, "a shard's books were never proved")
        return Judged(checks=[unproved if taken.shards else findings.answer(missing, []), recounted])
    horizon = min([taken.upto, *drained.values()])
    until = horizon - grace
    found: list[Finding] = []
    given_up: list[Producer] = []
    others = waiting = count = 0
    for producer in queries.incomplete(session):
        holes, unnamed = producer.ripe(until), producer.ripe_unnamed(until)
        if not (holes or unnamed):
            waiting += 1
            continue
        count += unnamed + sum(hole.count for hole in holes)
        if len(found) < MOST_PRODUCERS:
            found.append(_missing(producer, holes, unnamed))
        else:
            others += 1
        if accept is not None:
            given_up.append(numbers.accepted(producer, until=until, reason=accept))
        if len(given_up) >= _BATCH:
            queries.store(session, given_up)
            given_up = []
    queries.store(session, given_up)
    late = taken.latest - horizon > _LATE
    if others:
        answer = findings.inconclusive(missing, f"{others} more producers are not listed", found)
    elif taken.overflowed:
        answer = findings.inconclusive(missing, "too many different numbers to hold", found)
    elif late and (waiting or taken.latest - taken.upto > _LATE):
        answer = findings.inconclusive(
            missing, f"a shard is behind: nothing after {horizon.isoformat()} can be judged", found
        )
    else:
        answer = findings.answer(missing, found)
    return Judged(
        checks=[answer, recounted],
        measurements={"producers": taken.producers, "missing_numbers": count},
    )


def _missing(producer: Producer, holes: Sequence[Hole], unnamed: int) -> Finding:
    count = unnamed + sum(hole.count for hole in holes)
    message = f"{count} of its numbers up to {producer.highest} never arrived"
    if holes:
        told = [
            _told(hole) + (f" ({_between(hole)})" if place < _TIMED_RANGES else "")
            for place, hole in enumerate(holes[:MOST_RANGES])
        ]
        message += f": {', '.join(told)}"
        if len(holes) > MOST_RANGES:
            message += f" and {len(holes) - MOST_RANGES} more ranges"
    if unnamed:
        message += (
            f"; more than {numbers.MOST_STRETCHES} ranges: of {unnamed} missing up to"
            f" {producer.settled_upto} it is no longer known which"
        )
    return finding(
        "books.missing_numbers",
        f"producer {producer.producer_id}",
        Severity.MEDIUM,
        message,
        "an emit raised StreamUnavailable and was not sent again, a buffer died with its process, or a spool"
        " is not flushed: usage-worker spool status there. What is sent now closes the gap. When nothing can"
        " be sent any more: usage-worker audit books --accept REASON",
    )


def _told(hole: Hole) -> str:
    return str(hole.low) if hole.count == 1 else f"{hole.low}-{hole.high}"


def _between(hole: Hole) -> str:
    before = hole.before.isoformat(timespec="seconds")
    if hole.after is None:
        return f"before {before}"
    return f"between {hole.after.isoformat(timespec='seconds')} and {before}"


def _lacking(found: Mapping[str, int]) -> Iterator[Finding]:
    for producer_id, count in islice(sorted(found.items()), MOST_PRODUCERS):
        yield finding(
            "books.numbers",
            f"producer {producer_id}",
            Severity.LOW,
            f"{count} numbers stand in the log that had not been counted as arrived; they are now",
            "find who changed usage_producers, or wrote rows with a time that is not their own",
        )
