"""`python -m benchmarks NAME`: measures, and prints what it measured."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import emit, growth, ingest, layouts, live, memory, show
from benchmarks.measure import Report, machine


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One name: what it runs, and how often and how much unless the arguments say otherwise."""

    run: Callable[[int, int], Report]
    rounds: int
    events: int
    about: str


def _first_line(module: object) -> str:
    return (getattr(module, "__doc__", None) or "").splitlines()[0]


BENCHMARKS: dict[str, Benchmark] = {
    "emit": Benchmark(emit.run, 5, 20_000, _first_line(emit)),
    "growth": Benchmark(growth.run, 7, 40_000, _first_line(growth)),
    "idle": Benchmark(live.idle, 3, 2_000, "What a worker with beat costs at rest."),
    "ingest": Benchmark(ingest.run, 5, 80_000, _first_line(ingest)),
    "latency": Benchmark(
        live.latency, 5, live.LONE_COUNT, "How long from emit to commit, with a real worker."
    ),
    "layouts": Benchmark(layouts.run, 5, 10_000_000, _first_line(layouts)),
    "memory": Benchmark(memory.run, 1, 1_000_000, _first_line(memory)),
}


def main(arguments: list[str]) -> int:
    """This function will run the named benchmark, print its tables, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", choices=sorted(BENCHMARKS), help="which one; none lists them")
    parser.add_argument("--rounds", type=int, help="how often each case runs, in random order")
    parser.add_argument("--events", type=int, help="events per round of the drain's own cases")
    parser.add_argument("--json", type=Path, help="write figures and samples here as well")
    parser.add_argument("--markdown", action="store_true", help="tables as docs/performance.md has them")
    parser.add_argument("--document", type=Path, help="put the Markdown between the marks of this document")
    parser.add_argument("--plot", type=Path, help="write bars as SVG into this folder")
    chosen = parser.parse_args(arguments)
    out = sys.stdout
    if chosen.name is None:
        for name, benchmark in sorted(BENCHMARKS.items()):
            out.write(f"  {name:8} {benchmark.about}\n")
        return 0
    benchmark, began = BENCHMARKS[chosen.name], time.monotonic()
    rounds, events = chosen.rounds or benchmark.rounds, chosen.events or benchmark.events
    report = benchmark.run(rounds, events)
    head = f"{machine()}; medians of {rounds} rounds, scaled by the calibration loop"
    tables = show.markdown(report) if chosen.markdown else show.text(report)
    out.write("\n".join([head, *report.notes, "", tables, "", f"{time.monotonic() - began:.0f} s", ""]))
    if chosen.document is not None:
        block = "\n\n".join([". ".join([head, *report.notes]) + ".", show.markdown(report)])
        document = chosen.document.read_text(encoding="utf-8")
        chosen.document.write_text(show.put_into(document, chosen.name, block), encoding="utf-8")
    if chosen.json is not None:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(report.json(), indent=2) + "\n", encoding="utf-8")
    if chosen.plot is not None:
        for path in show.plot(report, chosen.plot, name=chosen.name):
            out.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
