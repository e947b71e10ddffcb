"""Every check has its paragraph in docs/audits.md, and no paragraph is left of a check that is gone."""

from __future__ import annotations

import re
from pathlib import Path

from worker.audits import books, pool, rls

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "audits.md"


class TestDocument:
    def test_has_a_paragraph_for_each_check_and_for_nothing_else(self) -> None:
        sections = re.split(r"^### ", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
        paragraphs = {
            title.strip(): text.split("\n## ")[0].strip()
            for title, _, text in (section.partition("\n") for section in sections)
        }
        assert sorted(paragraphs) == sorted({*rls.CHECK_IDS, *pool.CHECK_IDS, *books.CHECK_IDS})
        assert [title for title, text in paragraphs.items() if len(text) < 40] == []
        assert len(sections) == len(paragraphs)
