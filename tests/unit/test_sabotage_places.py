"""Every planted bug still has its place: one whose place is gone would be missed by nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sabotage.bugs import BUGS, Bug

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_stands_where_it_says(bug: Bug) -> None:
    for change in bug.changes:
        source = (REPOSITORY / change.file).read_text(encoding="utf-8")
        assert source.count(change.old) == 1, change.file
    for path in bug.tests:
        assert (REPOSITORY / path).exists()
