"""The large tables are filled completely, and every layout is compared under a name of its own."""

from __future__ import annotations

import pytest

from benchmarks import growth, layouts


@pytest.mark.parametrize(("rows", "size"), [(10, 3), (9, 3), (1, 3), (0, 3)])
def test_chunks_cover_every_row_once(rows: int, size: int) -> None:
    covered = [row for first, last in growth.chunks(rows, size) for row in range(first, last + 1)]
    assert covered == list(range(1, rows + 1))


def test_layouts_are_compared_under_names_of_their_own() -> None:
    names = [one.name for one in layouts.figures_of(3_000_000)]
    assert len(names) == len(set(names)) == 9
