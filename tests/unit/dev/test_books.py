"""The final account: it agrees only when every kind agrees."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from worker.dev import _books
from worker.dev.traffic import Emitted

EMITTED = Emitted(events=100, duplicates=3, entries=9, dead_letters=Counter(conflict=1, not_json=2))
BOOKED = _books.Ledger(counted=100, rows=94, duplicates=3, dead_letters=Counter(conflict=1, not_json=2))


class TestCompare:
    def test_agrees_when_every_kind_does(self) -> None:
        assert [line.what for line in _books.compare(EMITTED, BOOKED) if not line.agrees] == []

    @pytest.mark.parametrize(
        ("changes", "differing"),
        [
            ({"rows": 93}, ["emitted = rows + duplicates + dead letters", "rows"]),
            ({"rows": 95}, ["emitted = rows + duplicates + dead letters", "rows"]),
            ({"rows": 93, "duplicates": 4}, ["rows", "duplicates"]),
            (
                {"dead_letters": Counter(conflict=1, not_json=1, too_old=1)},
                ["dead letters: not_json", "dead letters: too_old"],
            ),
        ],
    )
    def test_names_what_differs(self, changes: dict[str, object], differing: list[str]) -> None:
        booked = dataclasses.replace(BOOKED, **changes)  # type: ignore[arg-type]  # a table of cases
        assert [line.what for line in _books.compare(EMITTED, booked) if not line.agrees] == differing


class TestLedger:
    def test_counts_from_an_earlier_moment_on(self) -> None:
        later = _books.Ledger(150, 140, 4, Counter(conflict=3, not_json=2, too_old=1))
        assert later.since(BOOKED) == _books.Ledger(50, 46, 1, Counter(conflict=2, too_old=1))
