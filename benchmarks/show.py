"""A report for people: plain text, Markdown for the documents, and bars as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.measure import WALL, Report

_BAR = 18
_LABEL, _WIDTH = 330, 760
_COLOURS = {"aim": "#2f7d4f", "reached": "#7da35c", "missed": "#b5533c"}
# Measures of a case that have a column, where any case of the report has them.
_COLUMNS = (
    ("events", "events", "{:,.0f}"),
    ("us", "us/event", "{:.2f}"),
    ("events_per_second", "events/s", "{:,.0f}"),
    ("ratio", "ratio (lowest..highest)", ""),
    ("cpu_us", "CPU us", "{:.1f}"),
    ("wal_bytes", "WAL B", "{:.0f}"),
    ("wal_image_bytes", "WAL images B", "{:.0f}"),
    ("p50_us", "p50 us", "{:.0f}"),
    ("p99_us", "p99 us", "{:.0f}"),
    ("p50_ratio", "p50 / XADD", "{:.2f}"),
    ("p99_ratio", "p99 / XADD", "{:.2f}"),
    ("latency_p50_ms", "p50 ms", "{:.1f}"),
    ("latency_p99_ms", "p99 ms", "{:.1f}"),
    ("latency_highest_ms", "highest ms", "{:.1f}"),
    ("sent_per_second", "sent/s", "{:,.0f}"),
    ("core_percent", "worker %", "{:.2f}"),
    ("valkey_percent", "Valkey %", "{:.2f}"),
    ("postgres_percent", "PostgreSQL %", "{:.2f}"),
    ("rss_first_mb", "memory at first MB", "{:.0f}"),
    ("rss_highest_mb", "highest MB", "{:.0f}"),
    ("rss_last_mb", "at last MB", "{:.0f}"),
    ("index_bytes", "index B/row", "{:.0f}"),
    ("table_bytes", "table B/row", "{:.0f}"),
)
_FIGURE_HEAD = ("figure", "at least", "aim", "measured (lowest..highest)", "goal")


def text(report: Report) -> str:
    """This function will write both tables in columns."""
    return "\n\n".join(_columns(head, rows) for head, rows in _tables(report))


def markdown(report: Report) -> str:
    """This function will write both tables as Markdown, as docs/performance.md has them."""
    parts = []
    for head, rows in _tables(report):
        lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def put_into(document: str, name: str, block: str) -> str:
    """This function will replace what stands between the two marks of a benchmark in a document.

    Raises ValueError where the document has no such marks.
    """
    begin, end = f"<!-- bench {name} -->\n", f"<!-- end of {name} -->"
    before, _, rest = document.partition(begin)
    _, closed, after = rest.partition(end)
    if not closed:
        raise ValueError(f"the document needs the lines {begin.strip()} and {end}")
    return f"{before}{begin}\n{block.strip()}\n\n{end}{after}"


def plot(report: Report, folder: Path, *, name: str) -> list[Path]:
    """This function will write the cases' ratios, and the figures against their goals, as SVG files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    cases = [(label, row["ratio"], "#3b6ea5") for label, row in report.cases().items() if "ratio" in row]
    figures = []
    for row in report.figure_rows():
        value, aim = row.get("value"), row["aim"]
        if isinstance(value, int | float) and isinstance(aim, int | float):
            share = value / aim if row["higher_is_better"] else aim / max(value, 1e-9)
            figures.append((str(row["figure"]), share, _COLOURS.get(str(row["verdict"]), "#888888")))
    for suffix, title, bars in (
        ("", f"{name}: how fast, {report.reference} = 1", cases),
        ("-goals", f"{name}: share of the aim that is reached (1 = the aim; longer is better)", figures),
    ):
        if bars:
            path = folder / f"{name}{suffix}.svg"
            path.write_text(bars_svg(title, bars), encoding="utf-8")
            written.append(path)
    return written


def bars_svg(title: str, bars: Sequence[tuple[str, float, str]]) -> str:
    """This function will draw one bar per (label, value, colour), the value written behind it.

    Where values differ by more than a factor of 50 the lengths are logarithmic, and the title says so.
    """
    values = [max(value, 1e-9) for _, value, _ in bars]
    longest, shortest = max(values), min(values)
    logarithmic = longest > 50 * shortest
    if logarithmic:
        title += " (logarithmic)"
    height = 40 + len(bars) * (_BAR + 8)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        'font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="8" y="20" font-size="13" font-weight="bold">{escape(title)}</text>',
    ]
    for number, (label, value, colour) in enumerate(bars):
        top = 34 + number * (_BAR + 8)
        share = value / longest
        if logarithmic:
            share = math.log(max(value, 1e-9) / shortest * 2) / math.log(longest / shortest * 2)
        width = max(1.0, share * (_WIDTH - _LABEL - 70))
        parts += [
            f'<text x="{_LABEL - 6}" y="{top + 13}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{_LABEL}" y="{top}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>',
            f'<text x="{_LABEL + width + 5:.1f}" y="{top + 13}">{number_text(value)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def number_text(value: float) -> str:
    """This function will write a number with as many places as it deserves."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def _tables(report: Report) -> list[tuple[Sequence[str], list[list[str]]]]:
    tables: list[tuple[Sequence[str], list[list[str]]]] = []
    alike: dict[str, dict[str, dict[str, float]]] = {}
    for name, row in report.cases().items():
        # Rates stand together; cases that measure something else have tables of their own.
        kinds = (WALL, *(column[0] for column in _COLUMNS[1:]))
        kind = next((metric for metric in kinds if metric in row), WALL)
        alike.setdefault(kind, {})[name] = row
    for found in alike.values():
        columns = [column for column in _COLUMNS if any(column[0] in row for row in found.values())]
        cases = [
            [name, *(_cell(row, metric, form) for metric, _, form in columns)] for name, row in found.items()
        ]
        tables.append((("case", *(title for _, title, _ in columns)), cases))
    figures = [_figure(row) for row in report.figure_rows()]
    if figures:
        tables.append((_FIGURE_HEAD, figures))
    return tables


def _figure(row: dict[str, Any]) -> list[str]:
    sign, unit = ("" if row["higher_is_better"] else "<= "), row["unit"]
    measured = "not in this run"
    if "value" in row:
        measured = f"{number_text(row['value'])}{unit}"
        measured += f" ({number_text(row['lowest'])}..{number_text(row['highest'])})"
    goals = ["" if row[key] is None else f"{sign}{row[key]:g}{unit}" for key in ("at_least", "aim")]
    return [row["figure"], *goals, measured, row.get("verdict", "")]


def _cell(row: dict[str, float], metric: str, form: str) -> str:
    if metric not in row:
        return ""
    if metric != "ratio":
        return form.format(row[metric])
    lowest, highest = number_text(row["ratio_lowest"]), number_text(row["ratio_highest"])
    return f"{number_text(row['ratio'])} ({lowest}..{highest})"


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
