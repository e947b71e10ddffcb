"""Rounds in which every case runs once, in random order, next to the case that the others are measured by.

The same loop of plain Python is timed just before and just after each case. What a case took is scaled by
how slow the machine was at that moment, compared with the fastest moment of the run: on a shared machine two
seconds of the same work differ by more than most improvements.
"""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

WALL = "us"
"""Microseconds of wall time per event; what ratios to the reference are made of."""
CALIBRATION = "calibration"
_STEPS = 200_000

Sample = Mapping[str, float]
"""What one run of a case measured: `us` where it is about speed, `cpu_us`, `wal_bytes` and so on."""
Case = Callable[[], float | Sample]
"""Runs once and returns seconds of wall time per event, or a sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table of figures: a ratio of two cases, or a measure of one.

    Without `reference` it is the measure itself. `higher`: more is better; a ratio of times is then how many
    times as fast as the reference, else how many times as much. `least` and `aim` are the goals.
    """

    name: str
    case: str
    reference: str | None = None
    metric: str = WALL
    least: float | None = None
    aim: float | None = None
    higher: bool = True
    unit: str = ""

    def verdict(self, value: float) -> str:
        """This function will say which goal the value reaches: `aim`, `reached`, `missed`, or nothing."""
        for goal, word in ((self.aim, "aim"), (self.least, "reached")):
            if goal is not None and (value >= goal if self.higher else value <= goal):
                return word
        return "" if self.least is None else "missed"


@dataclass(frozen=True)
class Report:
    """What the cases of one benchmark measured, per round."""

    reference: str
    samples: Mapping[str, list[Sample]]
    figures: Sequence[Figure] = ()
    events: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __add__(self, other: Report) -> Report:
        """Both reports in one, under the settings of this one; the reference stays."""
        return Report(
            self.reference,
            {**self.samples, **other.samples},
            (*self.figures, *other.figures),
            {**self.events, **other.events},
            self.notes,
        )

    def values(self, case: str, metric: str = WALL, *, scaled: bool = True) -> list[float]:
        """This function will return one measure of a case per round; times are scaled by the calibration."""
        fastest = min(sample[CALIBRATION] for samples in self.samples.values() for sample in samples)
        return [
            sample[metric] * (fastest / sample[CALIBRATION] if scaled and is_time(metric) else 1.0)
            for sample in self.samples[case]
        ]

    def ratios(self, case: str, *, scaled: bool = True) -> list[float]:
        """This function will return, per round, how many times as fast as the reference a case was."""
        return [
            mine / other
            for mine, other in zip(
                self.values(self.reference, scaled=scaled), self.values(case, scaled=scaled), strict=True
            )
        ]

    def of(self, figure: Figure, *, scaled: bool = True) -> list[float]:
        """This function will return a figure per round."""
        mine = self.values(figure.case, figure.metric, scaled=scaled)
        if figure.reference is None:
            return mine
        other = self.values(figure.reference, figure.metric, scaled=scaled)
        pairs = zip(mine, other, strict=True)
        return [b / a if figure.higher else a / b for a, b in pairs]

    def has(self, figure: Figure) -> bool:
        """This function will say whether all that a figure needs was measured."""
        return all(
            name in self.samples and all(figure.metric in sample for sample in self.samples[name])
            for name in (figure.case, figure.reference or figure.case)
        )

    def cases(self) -> dict[str, dict[str, float]]:
        """This function will return the medians of each case, by measure, with the ratio to the reference."""
        found: dict[str, dict[str, float]] = {}
        for name, samples in self.samples.items():
            row = {
                metric: round(statistics.median(self.values(name, metric)), 3)
                for metric in samples[0]
                if metric != CALIBRATION and all(metric in sample for sample in samples)
            }
            if WALL in row:
                row["events_per_second"] = round(1e6 / statistics.median(self.values(name)))
                for label, scaled in (("ratio", True), ("raw_ratio", False)):
                    row[label] = round(statistics.median(self.ratios(name, scaled=scaled)), 4)
                row["ratio_lowest"] = round(min(self.ratios(name)), 4)
                row["ratio_highest"] = round(max(self.ratios(name)), 4)
            if name in self.events:
                row["events"] = self.events[name]
            found[name] = row
        return found

    def figure_rows(self) -> list[dict[str, object]]:
        """This function will return the figures with their goals, spread and verdict."""
        rows: list[dict[str, object]] = []
        for figure in self.figures:
            row: dict[str, object] = {
                "figure": figure.name,
                "unit": figure.unit,
                "at_least": figure.least,
                "aim": figure.aim,
                "higher_is_better": figure.higher,
            }
            if self.has(figure):
                values = self.of(figure)
                row |= {
                    "value": round(statistics.median(values), 4),
                    "lowest": round(min(values), 4),
                    "highest": round(max(values), 4),
                    "raw_value": round(statistics.median(self.of(figure, scaled=False)), 4),
                    "verdict": figure.verdict(statistics.median(values)),
                }
            rows.append(row)
        return rows

    def json(self) -> dict[str, object]:
        """This function will return everything, down to the single samples, for a file."""
        return {
            "machine": machine(),
            "notes": list(self.notes),
            "reference": self.reference,
            "cases": self.cases(),
            "figures": self.figure_rows(),
            "samples": {name: [dict(sample) for sample in rows] for name, rows in self.samples.items()},
        }


def is_time(metric: str) -> bool:
    """This function will say whether a measure is a time of work, which a slow moment makes longer."""
    return metric.endswith("us") and not metric.startswith("latency")


def compare(
    cases: Mapping[str, Case],
    *,
    reference: str,
    rounds: int,
    seed: int = 1,
    figures: Sequence[Figure] = (),
    events: Mapping[str, int] | None = None,
    notes: Sequence[str] = (),
    progress: Callable[[str], object] | None = None,
) -> Report:
    """This function will run every case once per round, in an order that changes from round to round."""
    generator = random.Random(seed)  # noqa: S311  an order, no secret
    samples: dict[str, list[Sample]] = {name: [] for name in cases}
    for number in range(rounds):
        order = list(cases)
        generator.shuffle(order)
        for name in order:
            before = calibrate()
            measured = cases[name]()
            after = calibrate()
            sample = {WALL: measured * 1e6} if isinstance(measured, float) else dict(measured)
            samples[name].append(sample | {CALIBRATION: (before + after) / 2})
            if progress is not None:
                metric, value = next(iter(sample.items()))
                progress(f"round {number + 1}/{rounds}: {name}: {metric} {value:.2f}")
    return Report(reference, samples, figures, dict(events or {}), notes)


def calibrate(times: int = 3) -> float:
    """This function will return the seconds that a fixed loop takes now: the best of a few short ones."""
    best = float("inf")
    for _ in range(times):
        began, total = time.perf_counter(), 0
        for number in range(_STEPS):
            total += number & 7
        best = min(best, time.perf_counter() - began)
    return best


def timed(work: Callable[[], object], *, events: int) -> float:
    """This function will return the seconds of wall time that `work` took per event."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) / events


def percentile(values: Sequence[float], share: float) -> float:
    """This function will return the value below which `share` (0 to 1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def machine() -> str:
    """This function will name what the figures were measured on."""
    return f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}"
