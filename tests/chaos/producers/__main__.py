"""`python -m tests.chaos.producers --events 200000 --seed 7`: one run; exit 0 when all holds, else 1."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.chaos.producers import report
from tests.chaos.producers.books import Books, read_books
from tests.chaos.producers.checks import CHECKS
from tests.chaos.producers.plan import make_plan
from tests.chaos.producers.run import Evidence, Run
from tests.chaos.run import git_commit, stop_after

_EVENTS: Final = 200_000
_FAULTS: Final = 20
# What two processors do beside the servers and the worker.
_EVENTS_PER_SECOND: Final = 800
_AROUND_SECONDS: Final = 240.0
_GRACE_SECONDS: Final = 90.0


def main(arguments: Sequence[str]) -> int:
    """This function will make one run."""
    given = _parser().parse_args(arguments)
    seed = secrets.randbelow(2**31) if given.seed is None else given.seed
    seconds = given.seconds or max(10.0, given.events / _EVENTS_PER_SECOND)
    plan = make_plan(seed=seed, events=given.events, seconds=seconds, faults=given.faults)
    limit = given.limit or seconds + _AROUND_SECONDS
    backstop = stop_after(limit + _GRACE_SECONDS)
    commit = git_commit()
    _say(
        f"chaos of the producers: seed {seed}, commit {commit}: {given.events} events and "
        f"{len(plan.faults)} faults in {seconds:.0f} s; appendfsync always, "
        f"USAGE_DURABILITY={given.durability}\n"
    )
    run = Run(plan, limit=limit, durability=given.durability, keep=given.keep)
    judged: list[tuple[Books, dict[str, list[str]]]] = []

    def judge(evidence: Evidence) -> None:
        books = read_books(evidence)
        judged.append((books, {check.__name__: check(evidence, books) for check in CHECKS}))

    run.carry_out(judge)
    backstop.cancel()
    evidence = run.evidence
    books, broken = judged[0]
    _say(report.as_text(evidence, books, broken, commit=commit))
    if given.json is not None:
        document = report.as_document(evidence, books, broken, commit=commit)
        given.json.write_text(json.dumps(document, indent=2))
    return 0 if report.passed(evidence, broken) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.producers", description=__doc__)
    parser.add_argument("--events", type=int, default=_EVENTS)
    parser.add_argument("--seed", type=int, help="Which run; a new one by default.")
    parser.add_argument("--faults", type=int, default=_FAULTS, help="How many; the last one kills Valkey.")
    parser.add_argument("--seconds", type=float, help="For so long events are emitted.")
    parser.add_argument("--durability", choices=["server", "fsync"], default="server")
    parser.add_argument("--limit", type=float, help="Seconds after which the run is given up.")
    parser.add_argument("--json", type=Path, help="Write the report here as well.")
    parser.add_argument("--keep", type=Path, help="Keep the books and logs in this folder.")
    return parser


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
