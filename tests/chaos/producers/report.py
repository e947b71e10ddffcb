"""How a run is told: the timeline, the table of times, and each invariant."""

from __future__ import annotations

from typing import Any

from tests.chaos.producers.books import BUDGET_MS, Books, Timed, percentile
from tests.chaos.producers.plan import PRODUCERS, Hurt, Kind
from tests.chaos.producers.run import Evidence, Record


def as_text(evidence: Evidence, books: Books, broken: dict[str, list[str]], *, commit: str) -> str:
    """This function will write the whole report."""
    plan = evidence.plan
    counts = ", ".join(f"{name} {count}" for name, count in counted(evidence, books).items())
    late, disk = books.late_ms, books.disk_ms
    lines = [
        f"chaos of the producers: seed {plan.seed}, {plan.events} events, commit {commit}",
        "",
        *_timeline(evidence),
        "",
        *_table(books),
        "",
        f"the machine: a thread that sleeps 1 ms was woken late (over 0.5 ms) {len(late)} times, p99 of "
        f"these {percentile(late, 0.99):.1f}, longest {max(late, default=0):.1f} ms; small files beside it "
        f"over 10 ms: {len(disk)}, longest {max(disk, default=0):.1f} ms",
        f"counts: {counts}",
        "seconds until: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in evidence.seconds.items()),
        "",
    ]
    for name, wrong in broken.items():
        lines += [f"{'FAILED' if wrong else 'ok':7}{name}", *(f"         {text}" for text in wrong)]
    lines += [f"ERROR of the run: {error}" for error in evidence.errors]
    verdict = "PASS" if passed(evidence, broken) else f"FAIL: run again with --seed {plan.seed}"
    return "\n".join([*lines, "", verdict, ""])


def passed(evidence: Evidence, broken: dict[str, list[str]]) -> bool:
    """This function will say whether every invariant holds and the run itself did what it should."""
    return not evidence.errors and not any(broken.values())


def as_document(
    evidence: Evidence, books: Books, broken: dict[str, list[str]], *, commit: str
) -> dict[str, Any]:
    """This function will return the same for programs."""
    return {
        "seed": evidence.plan.seed,
        "events": evidence.plan.events,
        "commit": commit,
        "passed": passed(evidence, broken),
        "counts": counted(evidence, books),
        "invariants": broken,
        "errors": evidence.errors,
        "timeline": _timeline(evidence),
        "times": [_figures(kind, during, some) for kind, during, some in _groups(books)],
        "seconds": {name: round(seconds, 1) for name, seconds in evidence.seconds.items()},
    }


def counted(evidence: Evidence, books: Books) -> dict[str, int]:
    """This function will count what was emitted, promised, stored and done."""
    total = {
        name: sum(int(row[name]) for row in evidence.positions)
        for name in ("entries", "events", "duplicates")
    }
    return {
        "emitted": len(books.tried),
        "returned": len(books.returned),
        "promised": len(books.promised),
        "rows": len(evidence.rows),
        **total,
        "faults": len(evidence.records),
        "producers killed": evidence.kills,
        "left for spool flush": evidence.left_for_flush,
        "over 50 ms": sum(one.took > BUDGET_MS for one in books.timed),
        "over budget": sum(one.excess > 0 for one in books.timed),
    }


def _timeline(evidence: Evidence) -> list[str]:
    lines = [(record.began, _line(evidence, record)) for record in evidence.records]
    lines += [(at, f"{(at - evidence.began) / 1e9:7.1f}  note       {text}") for at, text in evidence.notes]
    return ["   time  valkey is", *(text for _, text in sorted(lines))]


def _line(evidence: Evidence, record: Record) -> str:
    at = (record.began - evidence.began) / 1e9
    return f"{at:7.1f}  {record.planned.hurt:10} {'; '.join(record.said)}"


def _table(books: Books) -> list[str]:
    columns = f"{'calls':>7} {'p50':>8} {'p99':>8} {'max':>8}   over 50 ms, of these over budget"
    lines = [f"{'emit, ms':19} {'fault':10} {columns}"]
    for kind, during, some in _groups(books):
        one = _figures(kind, during, some)
        lines.append(
            f"{kind:19} {during:10} {one['calls']:7} {one['p50']:8.3f} {one['p99']:8.3f} {one['max']:8.3f}   "
            f"{one['over_50_ms']:6} {one['over_budget']:6}"
        )
    return lines


def _groups(books: Books) -> list[tuple[str, str, list[Timed]]]:
    found = []
    for kind in Kind:
        mine = [one for one in books.timed if PRODUCERS[one.producer] is kind]
        for during in ("none", *(hurt.value for hurt in Hurt)):
            some = [one for one in mine if one.during == during]
            if some:
                found.append((kind.value, during, some))
    return found


def _figures(kind: str, during: str, some: list[Timed]) -> dict[str, Any]:
    took = [one.took for one in some]
    return {
        "emitter": kind,
        "fault": during,
        "calls": len(some),
        "p50": round(percentile(took, 0.5), 4),
        "p99": round(percentile(took, 0.99), 4),
        "max": round(max(took), 4),
        "over_50_ms": sum(one > BUDGET_MS for one in took),
        "over_budget": sum(one.excess > 0 for one in some),
    }
