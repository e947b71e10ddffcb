"""Ratios are of the same round, slow moments are scaled out, and a goal is reached or it is not."""

from __future__ import annotations

from functools import partial

import pytest

from benchmarks.measure import CALIBRATION, WALL, Figure, Report, Sample, compare, percentile


def report(*figures: Figure, **samples: list[dict[str, float]]) -> Report:
    rows: dict[str, list[Sample]] = {
        name: [{CALIBRATION: 0.01, **sample} for sample in taken] for name, taken in samples.items()
    }
    return Report("copy", rows, figures)


class TestRatios:
    def test_are_of_the_same_round(self) -> None:
        taken = report(copy=[{WALL: 10.0}, {WALL: 30.0}], drain=[{WALL: 20.0}, {WALL: 60.0}])
        assert taken.ratios("drain") == [0.5, 0.5]
        assert taken.cases()["drain"]["ratio"] == 0.5
        assert taken.cases()["drain"]["events_per_second"] == 25_000

    def test_leave_out_that_the_machine_was_slow_at_one_of_the_two_moments(self) -> None:
        taken = report(copy=[{WALL: 10.0}], drain=[{WALL: 40.0, CALIBRATION: 0.02}])
        assert taken.ratios("drain") == [0.5]
        assert taken.ratios("drain", scaled=False) == [0.25]

    def test_do_not_scale_what_is_no_time_of_work(self) -> None:
        taken = report(
            copy=[{WALL: 10.0, "wal_bytes": 300.0, "latency_p99_ms": 8.0}],
            drain=[{WALL: 10.0, "wal_bytes": 360.0, "latency_p99_ms": 8.0, CALIBRATION: 0.02}],
        )
        assert taken.values("drain", "wal_bytes") == [360.0]
        assert taken.values("drain", "latency_p99_ms") == [8.0]


class TestFigure:
    FASTER = Figure(name="f", case="drain", reference="copy", least=0.5, aim=0.7)
    CHEAPER = Figure(
        name="c", case="drain", reference="copy", metric="wal_bytes", least=1.45, aim=1.3, higher=False
    )

    def test_of_speed_is_how_many_times_as_fast(self) -> None:
        taken = report(self.FASTER, copy=[{WALL: 6.0}], drain=[{WALL: 10.0}])
        assert taken.of(self.FASTER) == [pytest.approx(0.6)]
        assert taken.figure_rows()[0]["verdict"] == "reached"

    def test_of_cost_is_how_many_times_as_much(self) -> None:
        taken = report(self.CHEAPER, copy=[{"wal_bytes": 300.0}], drain=[{"wal_bytes": 360.0}])
        assert taken.of(self.CHEAPER) == [pytest.approx(1.2)]
        assert taken.figure_rows()[0]["verdict"] == "aim"

    @pytest.mark.parametrize(
        ("figure", "value", "verdict"),
        [
            (FASTER, 0.7, "aim"),
            (FASTER, 0.69, "reached"),
            (FASTER, 0.49, "missed"),
            (CHEAPER, 1.3, "aim"),
            (CHEAPER, 1.31, "reached"),
            (CHEAPER, 1.46, "missed"),
            (Figure(name="no goal", case="drain"), 1.0, ""),
        ],
    )
    def test_says_which_goal_is_reached(self, figure: Figure, value: float, verdict: str) -> None:
        assert figure.verdict(value) == verdict

    def test_that_was_not_measured_has_no_value(self) -> None:
        taken = report(self.FASTER, copy=[{WALL: 6.0}])
        assert not taken.has(self.FASTER)
        assert "value" not in taken.figure_rows()[0]


class TestCompare:
    def test_runs_every_case_once_per_round_in_an_order_that_changes(self) -> None:
        ran: list[str] = []

        def case(name: str) -> float:
            ran.append(name)
            return 1e-6

        names = ("a", "b", "c", "d")
        taken = compare({name: partial(case, name) for name in names}, reference="a", rounds=6)
        rounds = [tuple(ran[start : start + 4]) for start in range(0, len(ran), 4)]
        assert [sorted(order) for order in rounds] == [sorted(names)] * 6
        assert len(set(rounds)) > 1
        assert taken.values("b", scaled=False) == [pytest.approx(1.0)] * 6
        assert all(sample[CALIBRATION] > 0 for sample in taken.samples["a"])


def test_percentile_is_one_of_the_values() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert percentile(values, 0.5) == 51.0
    assert percentile(values, 0.99) == 100.0
    assert percentile([3.0], 0.99) == 3.0
