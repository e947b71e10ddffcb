"""Rounds in which every case runs once, in random order, next to the case that the others are measured by."""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Case = Callable[[], float]
"""Runs once and returns seconds per event."""


@dataclass(frozen=True)
class Report:
    """What the cases of one benchmark took, per round, in seconds per event."""

    reference: str
    seconds: Mapping[str, list[float]]

    def ratios(self, name: str) -> list[float]:
        """This function will return, per round, how many times as fast as the reference a case was."""
        return [
            mine / other for mine, other in zip(self.seconds[self.reference], self.seconds[name], strict=True)
        ]

    def figures(self) -> dict[str, dict[str, float]]:
        """This function will return the medians: microseconds per event, events per second, and the ratio."""
        return {
            name: {
                "us_per_event": round(statistics.median(values) * 1e6, 2),
                "events_per_second": round(1 / statistics.median(values)),
                "ratio": round(statistics.median(self.ratios(name)), 3),
                "ratio_lowest": round(min(self.ratios(name)), 3),
                "ratio_highest": round(max(self.ratios(name)), 3),
            }
            for name, values in self.seconds.items()
        }

    def table(self) -> str:
        """This function will write the figures for people; ratios above 1 are faster than the reference."""
        lines = [f"{'case':44} {'us/event':>9} {'events/s':>9}  ratio (lowest..highest)"]
        lines += [
            f"{name:44} {row['us_per_event']:9.2f} {row['events_per_second']:9.0f}  "
            f"{row['ratio']:.2f} ({row['ratio_lowest']:.2f}..{row['ratio_highest']:.2f})"
            for name, row in self.figures().items()
        ]
        return "\n".join(lines)


def compare(cases: Mapping[str, Case], *, reference: str, rounds: int, seed: int = 1) -> Report:
    """This function will run every case once per round, in an order that changes from round to round."""
    generator = random.Random(seed)  # noqa: S311  an order, no secret
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        order = list(cases)
        generator.shuffle(order)
        for name in order:
            seconds[name].append(cases[name]())
    return Report(reference=reference, seconds=seconds)


def timed(work: Callable[[], object], *, events: int) -> float:
    """This function will return the seconds of wall time that `work` took per event."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) / events


def machine() -> str:
    """This function will name what the figures were measured on."""
    return f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}"
