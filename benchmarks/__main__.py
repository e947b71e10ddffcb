"""`python -m benchmarks NAME [--rounds N] [--events N] [--json FILE]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import emit, ingest
from benchmarks.measure import Report, machine

BENCHMARKS: dict[str, Callable[[int, int], Report]] = {"emit": emit.run, "ingest": ingest.run}


def main(arguments: list[str]) -> int:
    """This function will run the named benchmark, print its table, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", choices=sorted(BENCHMARKS), help="which one; none lists them")
    parser.add_argument("--rounds", type=int, default=5, help="how often each case runs, in random order")
    parser.add_argument("--events", type=int, default=20_000, help="events per case and round")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    chosen = parser.parse_args(arguments)
    out = sys.stdout
    if chosen.name is None:
        for name, benchmark in sorted(BENCHMARKS.items()):
            out.write(f"  {name:8} {(sys.modules[benchmark.__module__].__doc__ or '').splitlines()[0]}\n")
        return 0
    report = BENCHMARKS[chosen.name](chosen.rounds, chosen.events)
    out.write(f"{machine()}; {chosen.rounds} rounds of {chosen.events} events, medians\n\n{report.table()}\n")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(report.figures(), indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
