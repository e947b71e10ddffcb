"""What commands write: JSON that every program reads, text that no terminal obeys."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import StrEnum

import pytest

from worker.entrypoints.cli import _output


class Colour(StrEnum):
    RED = "red"


@dataclass
class Answer:
    cost: Decimal
    at: datetime
    raw: bytes


class TestPlain:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (Decimal("0.000000000001"), "0.000000000001"),
            (Decimal("1E+3"), "1000"),
            (datetime(2026, 11, 21, 2, 3, tzinfo=UTC), "2026-11-21T02:03:00Z"),
            (
                datetime(2026, 11, 21, 2, 3, tzinfo=timezone(timedelta(hours=5, minutes=30))),
                "2026-11-21T02:03:00+05:30",
            ),
            (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
            (b"\x00\xff", "00ff"),
            (Colour.RED, "red"),
            ({1: (Decimal("0.1"), None)}, {"1": ["0.1", None]}),
            (
                Answer(Decimal("0.5"), datetime(2026, 1, 1, tzinfo=UTC), b"{"),
                {"cost": "0.5", "at": "2026-01-01T00:00:00Z", "raw": "7b"},
            ),
            (True, True),
            ("text", "text"),
        ],
    )
    def test_is_what_json_knows(self, value: object, expected: object) -> None:
        assert _output.plain(value) == expected

    def test_no_money_ever_becomes_a_float(self) -> None:
        assert isinstance(_output.plain([Decimal("0.1")])[0], str)


class TestPrintable:
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ("plain ü 漢", "plain ü 漢"),
            ("\x1b[31mred", "\\x1b[31mred"),
            ("a\r\nb\tc\x00", "a\\r\\nb\\tc\\x00"),
            ("\u202egnp.exe", "\\u202egnp.exe"),
            ("\x9b31m", "\\x9b31m"),
        ],
    )
    def test_escapes_whatever_moves_or_colours(self, words: str, expected: str) -> None:
        assert _output.printable(words) == expected


class TestWriteTable:
    def test_gives_a_pipe_whole_rows_and_takes_no_markup_from_data(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        long = "x" * 300
        _output.write_table("Things", ("name", "count"), [(long, 1234), ("[red]b[/red]", None)])
        written = capsys.readouterr().out
        assert long in written
        assert "[red]b[/red]" in written
        assert "1,234" in written

    def test_without_rows_says_so(self, capsys: pytest.CaptureFixture[str]) -> None:
        _output.write_table("Things", ("name",), [])
        assert capsys.readouterr().out == "Things: none\n"
