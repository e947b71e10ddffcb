"""The books of all producers put together, and every call judged by the clock."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.chaos.producers import emitting
from tests.chaos.producers.book import Call, read
from tests.chaos.producers.calibration import Clock, Interval, covered
from tests.chaos.producers.plan import CHILDREN, LANES, PARENT, PRODUCERS, Kind
from tests.chaos.producers.run import Evidence

BUDGET_MS: Final = 50.0
"""The product's default."""
DISK_SHARE_MS: Final = 30.0
"""What an fsync may take of it: on a disk that is slower, a call takes longer too (docs/spool.md)."""
# Calls that are faster need no excuse, and nothing is asked of the clocks for them.
_ORDINARY_MS: Final = 25.0
# What a fault set off may still be under way when it is over.
_AFTERMATH_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Timed:
    """One call of emit: how long it took, and how much of that the machine took, in ms."""

    producer: int
    call: Call
    took: float
    scheduler: float
    disk: float
    during: str
    fsyncs: tuple[float, ...] = ()
    """How long the fsyncs of its process took meanwhile, in ms; of those of a parent and its children."""

    @property
    def excess(self) -> float:
        """By how many ms it is over its budget; 0 or less: it is not."""
        return self.took - BUDGET_MS - self.scheduler - self.disk


@dataclass
class Books:
    """What the producers say."""

    tried: set[tuple[int, int]] = field(default_factory=set)
    returned: dict[tuple[int, int], Call] = field(default_factory=dict)
    promised: set[tuple[int, int]] = field(default_factory=set)
    """The events that have to be rows: what was returned, and of a buffer what was flushed."""
    raised: list[str] = field(default_factory=list)
    reports: list[tuple[int, ...]] = field(default_factory=list)
    taken_by: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    """Events that a process with a buffer took, by its id."""
    timed: list[Timed] = field(default_factory=list)
    loop_stalls: list[Timed] = field(default_factory=list)
    disk_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)


def read_books(evidence: Evidence) -> Books:
    """This function will read every book of a run."""
    books = Books()
    disk = Clock([evidence.folder / "disk"])
    books.disk_ms = [length / 1e6 for length in disk.all_lengths()]
    faults = [
        (Interval(one.began, one.ended + _AFTERMATH_NS), one.planned.hurt.value) for one in evidence.records
    ]
    for producer, kind in enumerate(PRODUCERS):
        clock = Clock([emitting.clock_path(evidence.folder, producer)])
        origin = PARENT if producer in CHILDREN else producer
        fsyncs = Clock([emitting.fsync_path(evidence.folder, origin)])
        books.late_ms += [length / 1e6 for length in clock.all_lengths()]
        for lane in range(LANES[kind]):
            found = read(emitting.book_path(evidence.folder, producer, lane))
            books.tried.update((producer, number) for number in found.tried)
            books.returned.update({(producer, call.number): call for call in found.calls})
            promised = found.safe if kind is Kind.BUFFERED else {call.number for call in found.calls}
            books.promised.update((producer, number) for number in promised)
            books.raised += [f"producer {producer}, event {n}: {said}" for n, said in found.raised.items()]
            if kind is Kind.BUFFERED:
                books.reports += found.reports
                for call in found.calls:
                    books.taken_by[call.pid] += 1
            for call in found.calls:
                books.timed.append(_timed(producer, call, clock, disk, fsyncs, faults))
        if kind is Kind.ASYNC:
            for stall in _stalls(emitting.loop_path(evidence.folder, producer)):
                call = Call(-1, "", stall.began, stall.ended, 0, 0, 0)
                books.loop_stalls.append(_timed(producer, call, clock, disk, fsyncs, faults))
    return books


def percentile(numbers: list[float], share: float) -> float:
    """This function will return the value below which `share` of the numbers are; 0 for none."""
    return sorted(numbers)[min(len(numbers) - 1, int(len(numbers) * share))] if numbers else 0.0


def _timed(
    producer: int, call: Call, clock: Clock, disk: Clock, fsyncs: Clock, faults: list[tuple[Interval, str]]
) -> Timed:
    took = (call.ended - call.began) / 1e6
    late = clock.taken(call.began, call.ended) / 1e6 if took > _ORDINARY_MS else 0.0
    mine = fsyncs.within(call.began, call.ended) if took > _ORDINARY_MS else []
    # Fsyncs that are as fast as the budget supposes excuse nothing, however many there are.
    seen = [*mine, *disk.within(call.began, call.ended)] if mine or took > _ORDINARY_MS else []
    slow = [one for one in seen if one.ended - one.began > DISK_SHARE_MS * 1e6]
    on_disk = covered(slow, call.began, call.ended) / 1e6
    during = next(
        (name for when, name in faults if when.began <= call.ended and call.began <= when.ended), "none"
    )
    return Timed(
        producer,
        call,
        took,
        late,
        max(0.0, on_disk - DISK_SHARE_MS),
        during,
        tuple((one.ended - one.began) / 1e6 for one in mine),
    )


def _stalls(path: Path) -> list[Interval]:
    if not path.exists():
        return []
    return [Interval(*map(int, line.split())) for line in path.read_text().split("\n")[:-1]]
