"""docs/events.md says what the code does: every code, every mark, every field, every setting."""

import re
from pathlib import Path

from producers import UsageEvent
from producers._events import REASONS
from producers._metadata import MARKS

TEXT = (Path(__file__).parents[3] / "docs" / "events.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_column(title: str) -> list[str]:
    rows = [line for line in section(title).splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


class TestEventsDocument:
    def test_has_every_reason_code_in_order(self) -> None:
        assert first_column("Reason codes") == list(REASONS)

    def test_has_every_mark(self) -> None:
        assert first_column("Metadata") == sorted(MARKS)

    def test_has_every_field(self) -> None:
        assert set(first_column("Fields")) == {*UsageEvent.model_fields, "v"}

    def test_has_every_setting(self) -> None:
        source = Path(__file__).parents[3] / "producers" / "_config.py"
        read = set(re.findall(r'source\.get\("([A-Z_]+)"', source.read_text(encoding="utf-8")))
        assert set(first_column("Settings")) == read
