"""How a run is told: for people, and as JSON."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.chaos.monitor import Record
from tests.chaos.run import Result


def timeline(result: Result) -> list[str]:
    """This function will write a line for each fault and each remark, in order."""
    lines = [(record.began, _line(record)) for record in result.monitor.records]
    lines += [(at, f"{at:7.1f}  {'note':34} {text}") for at, text in result.monitor.notes]
    return [
        "   time  fault                              recovered  what",
        *(text for _, text in sorted(lines)),
    ]


def _line(record: Record) -> str:
    seconds = record.recovery_seconds
    recovered = "-" if record.problem else "never" if seconds is None else f"{seconds:.1f} s"
    what = f"NOT DONE: {record.problem}" if record.problem else record.target
    return f"{record.began:7.1f}  {record.planned.what:34} {recovered:>9}  {what}"


def counts(result: Result) -> dict[str, int]:
    """This function will count what was sent, what was stored and what was done."""
    evidence = result.evidence
    total: Counter[str] = Counter()
    for row in evidence.positions:
        for name in ("entries", "events", "accepted", "duplicates", "conflicts", "rejected", "replayed"):
            total[name] += int(row[name])
    done = [record for record in result.monitor.records if not record.problem]
    return {
        "emitted": len(evidence.emitted),
        "acknowledged": sum(one.acknowledged for one in evidence.emitted.values()),
        "rows": evidence.row_count,
        "dead letters": len(evidence.letters),
        "open dead letters": sum(letter.is_open for letter in evidence.letters),
        **total,
        "snapshots": result.monitor.samples.taken,
        "faults": len(done),
        "faults not done": len(result.monitor.records) - len(done),
    }


def recoveries(result: Result) -> dict[str, dict[str, float]]:
    """This function will sum up the recovery times in seconds, by kind of fault."""
    kinds: dict[str, list[float]] = {}
    for record in result.monitor.records:
        if record.recovery_seconds is not None and not record.problem:
            kinds.setdefault(record.planned.fault, []).append(record.recovery_seconds)
    return {
        kind: {
            "count": len(some),
            "median": round(sorted(some)[len(some) // 2], 1),
            "longest": round(max(some), 1),
        }
        for kind, some in sorted(kinds.items())
    }


def as_text(result: Result, *, commit: str) -> str:
    """This function will write the whole report."""
    plan = result.plan
    lines = [
        f"chaos: seed {plan.seed}, {plan.events} events, profile {plan.profile}, commit {commit}",
        "",
        *timeline(result),
        "",
        "recovery, seconds: " + "; ".join(_kind(name, one) for name, one in recoveries(result).items()),
        "counts: " + ", ".join(f"{name} {count}" for name, count in counts(result).items()),
        "seconds until: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in result.seconds.items()),
    ]
    if result.exits:
        lines.append(f"ended by themselves: {result.exits}")
    lines += ["", *(_invariant(name, wrong) for name, wrong in result.broken.items())]
    lines += [f"ERROR of the run: {error}" for error in result.errors]
    verdict = "PASS" if result.passed else f"FAIL: run again with --seed {plan.seed}"
    return "\n".join([*lines, "", verdict, ""])


def _kind(name: str, one: dict[str, float]) -> str:
    return f"{name} {one['count']:.0f}x median {one['median']} longest {one['longest']}"


def _invariant(name: str, wrong: list[str]) -> str:
    return "\n".join([f"{'FAIL' if wrong else 'ok':5}{name}", *(f"       {text}" for text in wrong)])


def as_document(result: Result, *, commit: str) -> dict[str, Any]:
    """This function will return the same for programs."""
    return {
        "seed": result.plan.seed,
        "events": result.plan.events,
        "profile": result.plan.profile.value,
        "commit": commit,
        "passed": result.passed,
        "counts": counts(result),
        "recovery_seconds": recoveries(result),
        "seconds": {name: round(seconds, 1) for name, seconds in result.seconds.items()},
        "invariants": result.broken,
        "errors": result.errors,
        "exits": result.exits,
        "timeline": [
            {
                "began": round(record.began, 2),
                "ended": None if record.ended is None else round(record.ended, 2),
                "fault": record.planned.what,
                "target": record.target,
                "recovery_seconds": record.recovery_seconds,
                "not_done": record.problem,
            }
            for record in result.monitor.records
        ],
    }
