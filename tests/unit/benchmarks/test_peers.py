"""The compared systems are pinned, and no part of the product."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.memory import flatness
from benchmarks.peers import venv

ROOT = Path(__file__).resolve().parents[3]


class TestLock:
    def test_pins_everything_with_hashes_and_names_no_index(self) -> None:
        text = venv.LOCK.read_text(encoding="utf-8")
        assert "://" not in text
        blocks = [block for block in re.split(r"\n(?=\S)", text) if block and not block.startswith("#")]
        assert [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block] == []
        assert [block.splitlines()[0] for block in blocks if "==" not in block.splitlines()[0]] == []

    def test_has_what_the_product_has_not(self) -> None:
        product = (ROOT / "requirements.lock").read_text(encoding="utf-8")
        peers = venv.LOCK.read_text(encoding="utf-8")
        for name in ("celery-batches", "dramatiq", "openmeter", "posthog", "procrastinate"):
            assert re.search(rf"^{name}==", peers, re.MULTILINE)
            assert not re.search(rf"^{name}==", product, re.MULTILINE)


class TestFlatness:
    def test_sees_growth_behind_the_first_quarter(self) -> None:
        steady = flatness([60.0, 90.0, 100.0, 101.0, 100.0, 101.0, 100.0, 100.0])
        assert steady["rss_growth"] < 1.05
        assert steady["rss_highest_mb"] == 101.0
        assert flatness([60.0, 90.0, 100.0, 110.0, 120.0, 130.0, 140.0, 150.0])["rss_growth"] > 1.3

    def test_takes_a_run_of_one_second(self) -> None:
        assert flatness([80.0])["rss_growth"] == 1.0
