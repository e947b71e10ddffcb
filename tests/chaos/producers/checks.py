"""What has to be true at the end of a run, whatever was done to it. Each answers with what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any, Final

from tests.chaos.producers.books import Books, Timed
from tests.chaos.producers.plan import PRODUCERS, use
from tests.chaos.producers.run import Evidence

_SHOWN: Final = 12
# Words that a program writes only where it met what it did not expect.
_ALARMS: Final = ("Traceback", " ERROR ", " CRITICAL ", "not delivered", "cannot be replayed", "set aside")


def P1_no_loss(evidence: Evidence, books: Books) -> list[str]:
    """Every promised event is a row, under the id that emit returned."""
    ids = {row[0] for row in evidence.rows}
    return _some(
        f"{books.returned[key].event_id}: promised to {_who(key, books)}, no row"
        for key in sorted(books.promised)
        if books.returned[key].event_id not in ids
    )


def P2_no_invention(evidence: Evidence, books: Books) -> list[str]:
    """There is no row that nobody tried to emit, and none under another id than emit returned."""
    found = []
    for row in evidence.rows:
        key = (row[11], row[12])
        if key not in books.tried:
            found.append(f"row {row[0]}: event {key} was never emitted")
        elif key in books.returned and books.returned[key].event_id != row[0]:
            found.append(f"row {row[0]}: emit returned {books.returned[key].event_id} to {_who(key, books)}")
    return _some(found)


def P3_no_double(evidence: Evidence, books: Books) -> list[str]:
    """No event is two rows."""
    del books
    counted = Counter((row[11], row[12]) for row in evidence.rows)
    return _some(f"event {key}: {count} rows" for key, count in counted.items() if count > 1)


def P4_exact(evidence: Evidence, books: Books) -> list[str]:
    """Every row is its event in user, tokens and cost, and so are the sums, to the last digit."""
    seed = evidence.plan.seed
    found = []
    sums: dict[tuple[str, str], list[int]] = {}
    for row in evidence.rows:
        key = (row[11], row[12])
        if key not in books.tried:
            continue
        meant = use(seed, *key)
        expected = (
            str(meant.owner),
            meant.feature,
            meant.provider or "",
            meant.model or "",
            meant.input_tokens,
            meant.output_tokens,
            meant.input_tokens + meant.output_tokens,
            f"{meant.units // 10**12}.{meant.units % 10**12:012d}",
            "reported",
        )
        if row[1:10] != expected:
            found.append(f"row {row[0]}: {row[1:10]} instead of {expected}")
        total = sums.setdefault((str(meant.owner), meant.feature), [0, 0, 0, 0])
        for at, amount in enumerate((1, meant.input_tokens, meant.output_tokens, meant.units)):
            total[at] += amount
    stored = {
        (user, feature): [count, int(tokens), int(output), int(Decimal(cost).scaleb(12))]
        for user, feature, count, tokens, output, cost in evidence.sums
    }
    found += [
        f"{key}: {stored.get(key)} instead of {sums.get(key)} (events, input, output, 1e-12 dollars)"
        for key in sorted(stored.keys() | sums.keys())
        if stored.get(key) != sums.get(key)
    ]
    return _some(found)


def P5_time_is_that_of_the_call(evidence: Evidence, books: Books) -> list[str]:
    """`occurred_at` lies within the call of emit, however much later the event was sent."""
    found = []
    for row in evidence.rows:
        call = books.returned.get((row[11], row[12]))
        if call is not None and not call.wall_began - 1 <= row[10] <= call.wall_ended + 1:
            found.append(f"row {row[0]}: occurred at {row[10]}, emit {call.wall_began} to {call.wall_ended}")
    return _some(found)


def P6_rollups_equal(evidence: Evidence, books: Books) -> list[str]:
    """The roll-ups are the aggregation of the log."""
    del books
    return _some(evidence.differences)


def P7_duplicates_counted(evidence: Evidence, books: Books) -> list[str]:
    """What arrived twice was counted as such; what was counted as stored is the rows."""
    del books
    total: Counter[str] = Counter()
    for row in evidence.positions:
        for name in ("entries", "events", "accepted", "duplicates", "conflicts", "rejected"):
            total[name] += int(row[name])
    found = []
    if total["entries"] != evidence.entries_added:
        found.append(f"{evidence.entries_added} entries added, {total['entries']} counted")
    if total["events"] != total["accepted"] + total["duplicates"]:
        found.append(f"events that are neither accepted nor duplicates: {dict(total)}")
    if total["accepted"] != len(evidence.rows):
        found.append(f"{total['accepted']} events counted as stored, {len(evidence.rows)} rows")
    return found


def P8_no_dead_letters(evidence: Evidence, books: Books) -> list[str]:
    """Nothing that an emitter sent was refused by the worker."""
    del books
    return _some(evidence.dead_letters)


def P9_spool_empty(evidence: Evidence, books: Books) -> list[str]:
    """After the last `spool flush` the directory is empty: no segment, no position, nothing set aside."""
    del books
    return _some(evidence.spool_left)


def P10_nothing_refused(evidence: Evidence, books: Books) -> list[str]:
    """No emit raised, and a buffer's report names every event that it took as delivered."""
    found = list(books.raised)
    for accepted, delivered, failed, pid in books.reports:
        if failed or accepted != delivered or delivered != books.taken_by[pid]:
            found.append(
                f"a buffer took {books.taken_by[pid]} and reports {accepted} accepted, "
                f"{delivered} delivered, {failed} failed"
            )
    if not books.reports and not evidence.errors:
        found.append("no buffer reported")
    return _some(found)


def P11_budget(evidence: Evidence, books: Books) -> list[str]:
    """No emit took longer than its budget and what the machine took from it meanwhile."""
    return _some(_over(evidence, sorted(books.timed, key=lambda one: -one.excess)))


def P12_loop_not_held_up(evidence: Evidence, books: Books) -> list[str]:
    """No event loop was held up for longer than that."""
    return _some(_over(evidence, sorted(books.loop_stalls, key=lambda one: -one.excess)))


def P13_no_alarm(evidence: Evidence, books: Books) -> list[str]:
    """No producer wrote of an error in its log, or of events that it gave up."""
    del books
    return _some(
        f"{name}: {line[:200]}"
        for name, text in evidence.logs.items()
        for line in text.splitlines()
        if any(word in line for word in _ALARMS)
    )


def P14_worth_something(evidence: Evidence, books: Books) -> list[str]:
    """Everything was emitted, every fault and every kill happened, and the flush had something to send."""
    found = []
    if len(books.tried) != evidence.plan.events:
        found.append(f"{len(books.tried)} events of {evidence.plan.events} were emitted")
    if len(evidence.records) != len(evidence.plan.faults):
        found.append(f"{len(evidence.records)} faults of {len(evidence.plan.faults)}")
    kills = sum(one.kill is not None for one in evidence.plan.faults)
    if evidence.kills != kills:
        found.append(f"{evidence.kills} producers were killed, not {kills}")
    if evidence.left_for_flush <= 0:
        found.append(f"{evidence.left_for_flush} events in the spool when all had ended")
    return found


CHECKS: Final[tuple[Callable[[Evidence, Books], list[str]], ...]] = (
    P1_no_loss,
    P2_no_invention,
    P3_no_double,
    P4_exact,
    P5_time_is_that_of_the_call,
    P6_rollups_equal,
    P7_duplicates_counted,
    P8_no_dead_letters,
    P9_spool_empty,
    P10_nothing_refused,
    P11_budget,
    P12_loop_not_held_up,
    P13_no_alarm,
    P14_worth_something,
)


def _over(evidence: Evidence, slowest_first: Iterable[Timed]) -> Iterable[str]:
    for one in slowest_first:
        if one.excess <= 0:
            return
        at = (one.call.began - evidence.began) / 1e9
        yield (
            f"{at:7.2f} s: producer {one.producer} ({PRODUCERS[one.producer]}) took {one.took:.1f} ms, "
            f"the scheduler {one.scheduler:.1f} and the disk {one.disk:.1f} of these; fault: {one.during}; "
            f"fsyncs meanwhile: {', '.join(f'{took:.0f}' for took in one.fsyncs)}"
        )


def _who(key: tuple[int, int], books: Books) -> str:
    producer, number = key
    return f"producer {producer} ({PRODUCERS[producer]}), event {number}, process {books.returned[key].pid}"


def _some(found: Iterable[Any]) -> list[str]:
    everything = [str(one) for one in found]
    rest = len(everything) - _SHOWN
    return everything[:_SHOWN] + ([f"and {rest} more"] if rest > 0 else [])
