"""The rules of the house that no linter knows."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for folder in ("producers", "worker", "migrations", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
MOST_LINES = 400
BANNED_NAMES = {"service.py", "utils.py", "helpers.py", "common.py", "manager.py", "base.py"}


class TestModules:
    def test_are_short_enough_to_read_at_one_sitting(self) -> None:
        too_long = {
            str(path.relative_to(ROOT)): lines
            for path in SOURCES
            if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
        }
        assert too_long == {}

    def test_say_what_they_hold_by_their_name(self) -> None:
        assert [path for path in SOURCES if path.name in BANNED_NAMES] == []

    def test_carry_no_unexplained_ignore(self) -> None:
        bare = re.compile(r"#\s*(type: ignore(?!\[)|noqa(?!:))")
        assert [str(path) for path in SOURCES if bare.search(path.read_text(encoding="utf-8"))] == []


class TestProducersImport:
    def test_loads_neither_celery_nor_sqlalchemy(self) -> None:
        script = (
            "import json, sys, producers; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
        )
        loaded = set(json.loads(subprocess.check_output([sys.executable, "-c", script], text=True)))
        foreign = {
            "celery",
            "kombu",
            "sqlalchemy",
            "psycopg",
            "alembic",
            "click",
            "rich",
            "structlog",
            "worker",
        }
        assert loaded & foreign == set()

    def test_face_is_sorted_and_complete(self) -> None:
        face = importlib.import_module("producers")
        assert list(face.__all__) == sorted(face.__all__)
        assert all(hasattr(face, name) for name in face.__all__)


class TestDistribution:
    def test_base_install_needs_redis_and_pydantic_only(self) -> None:
        requires = metadata.requires("usage-worker") or []
        base = {re.split(r"[<>=\[; ]", line)[0] for line in requires if "extra ==" not in line}
        assert base == {"pydantic", "redis"}

    def test_lock_file_pins_everything_with_hashes_and_names_no_index(self) -> None:
        text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
        assert "://" not in text
        assert "index-url" not in text
        requirements = [block for block in re.split(r"\n(?=\S)", text) if block and not block.startswith("#")]
        assert len(requirements) > 50
        assert [block.splitlines()[0] for block in requirements if "--hash=sha256:" not in block] == []
        assert [block.splitlines()[0] for block in requirements if "==" not in block.splitlines()[0]] == []


class TestCommands:
    @pytest.mark.parametrize("target", ["run", "test", "lint", "bench", "help"])
    def test_makefile_lists_each_target_in_its_help(self, target: str) -> None:
        text = subprocess.check_output(["make", "--no-print-directory", "help"], cwd=ROOT, text=True)
        assert re.search(rf"^\s+make {target}\b", text, re.MULTILINE)

    def test_ci_runs_what_the_readme_tells_people_to_run(self) -> None:
        script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
        assert "make lint" in script
        assert "make test" in script
