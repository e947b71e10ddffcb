"""Tables and plots say what was measured, also where something was not."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import figures, show
from benchmarks.__main__ import BENCHMARKS
from benchmarks.measure import CALIBRATION, WALL, Figure, Report

ROOT = Path(__file__).resolve().parents[3]
REPORT = Report(
    "copy",
    {
        "copy": [{WALL: 5.0, "wal_bytes": 300.0, CALIBRATION: 0.01}],
        "drain <fast & exact>": [{WALL: 10.0, CALIBRATION: 0.01}],
    },
    (
        Figure(name="drain / copy", case="drain <fast & exact>", reference="copy", least=0.4, aim=0.8),
        Figure(name="elsewhere", case="another run", reference="copy", least=1.0, aim=2.0),
    ),
    {"copy": 40_000},
)


class TestTables:
    def test_have_a_line_per_case_and_per_figure(self) -> None:
        text = show.text(REPORT)
        assert "0.50 (0.50..0.50)" in text
        assert "reached" in text
        assert "40,000" in text

    def test_say_which_figure_was_not_measured(self) -> None:
        assert "not in this run" in next(
            line for line in show.text(REPORT).splitlines() if "elsewhere" in line
        )

    def test_keep_measures_of_different_kinds_apart(self) -> None:
        mixed = REPORT + Report("", {"lone events": [{"latency_p99_ms": 40.0, CALIBRATION: 0.01}]})
        rates, latencies, _figures = show.text(mixed).split("\n\n")
        assert "drain <fast" in rates
        assert "p99 ms" not in rates
        assert latencies.splitlines()[0].split() == ["case", "p99", "ms"]

    def test_are_well_formed_markdown(self) -> None:
        for table in show.markdown(REPORT).split("\n\n"):
            assert len({line.count("|") for line in table.splitlines()}) == 1


class TestPutInto:
    DOCUMENT = (
        "# Title\n<!-- bench a -->\nold\n<!-- end of a -->\ntext\n<!-- bench b -->\n<!-- end of b -->\n"
    )

    def test_replaces_one_block_and_nothing_else(self) -> None:
        once = show.put_into(self.DOCUMENT, "a", "new")
        assert once == self.DOCUMENT.replace("old\n", "\nnew\n\n")
        assert show.put_into(once, "a", "new") == once

    def test_refuses_a_document_without_the_marks(self) -> None:
        with pytest.raises(ValueError, match="bench c"):
            show.put_into(self.DOCUMENT, "c", "new")

    def test_finds_the_marks_of_every_benchmark_in_the_document(self) -> None:
        document = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
        for name in BENCHMARKS:
            assert "new" in show.put_into(document, name, "new")


class TestPlot:
    def test_is_well_formed_and_has_a_bar_per_case(self, tmp_path: Path) -> None:
        cases, goals = show.plot(REPORT, tmp_path, name="ingest")
        bars = ElementTree.fromstring(cases.read_text()).findall("{http://www.w3.org/2000/svg}rect")  # noqa: S314  our own file
        assert len(bars) == 1 + len(REPORT.samples)
        assert "share of the aim" in goals.read_text()

    def test_has_a_bar_for_a_goal_that_is_a_whole_number(self, tmp_path: Path) -> None:
        whole = Report(
            "copy", REPORT.samples, (Figure(name="whole", case="copy", reference="copy", least=1, aim=2),)
        )
        assert "whole" in show.plot(whole, tmp_path, name="ingest")[1].read_text()


class TestFigures:
    GOALS = (
        (0.50, 0.70),
        (0.38, 0.50),
        (0.40, 0.55),
        (0.80, 0.95),
        (40, 60),
        (70, 100),
        (8, 12),
        (3, 4),
        (1.0, 1.2),
        (0.40, 0.25),
        (1.45, 1.30),
        (0.60, 0.45),
        (1.0, 0.6),
    )

    def test_have_the_goals_that_were_set(self) -> None:
        found = {(one.least, one.aim) for one in figures.INGEST}
        assert found >= set(self.GOALS)
        assert {(one.least, one.aim) for one in figures.LATENCY} == {(60, 30), (200, 100), (150, 60)}
        assert [(one.least, one.aim) for one in figures.IDLE] == [(1.5, 0.5)]

    def test_are_harder_to_aim_for_than_to_reach(self) -> None:
        every = (*figures.INGEST, *figures.LATENCY, *figures.IDLE, *figures.GROWTH, *figures.MEMORY)
        for one in every:
            if one.least is not None and one.aim is not None:
                assert (one.aim > one.least) == one.higher, one.name
