"""`python -m tests.sabotage [NAME ...]`: plants each bug in a copy and wants the suite to turn red."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.sabotage.bugs import BUGS, Bug

REPOSITORY = Path(__file__).resolve().parent.parent.parent
COPIED = ("worker", "producers", "migrations", "tests", "benchmarks", "docs", "pyproject.toml", "alembic.ini")
TESTS_FAILED = 1
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


class MisplacedBug(Exception):
    """The place that a bug names is not in its file exactly once: bring the bug up to date."""


def plant(bug: Bug, tree: Path) -> None:
    """This function will make the bug's changes in a copy of the tree."""
    for change in bug.changes:
        path = tree / change.file
        source = path.read_text(encoding="utf-8")
        if source.count(change.old) != 1:
            raise MisplacedBug(
                f"{bug.name}: {change.file} has {source.count(change.old)} places: {change.old!r}"
            )
        path.write_text(source.replace(change.old, change.new), encoding="utf-8")


def caught_by(bug: Bug, tree: Path) -> tuple[str | None, str]:
    """This function will run the bug's part of the suite; it returns the test that failed, and the output."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-n0",
            "-p",
            "no:cacheprovider",
            "--tb=line",
            *bug.tests,
        ],
        cwd=tree,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    failed = _FAILED.search(done.stdout)
    if done.returncode == TESTS_FAILED and failed is not None:
        return failed.group(1), done.stdout
    return None, done.stdout


def copy(tree: Path) -> None:
    """This function will copy what the suite needs."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".hypothesis")
    for name in COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=ignored)
        else:
            shutil.copy2(source, tree / name)


def main(arguments: list[str]) -> int:
    """This function will plant the named bugs, or all, one at a time; exit code 1 when one was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.sabotage", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; none: all")
    chosen_names = parser.parse_args(arguments).names
    chosen = [bug for bug in BUGS if not chosen_names or any(name in bug.name for name in chosen_names)]
    out = sys.stdout
    missed = 0
    for bug in chosen:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="usage-worker-sabotage-") as folder:
            tree = Path(folder)
            copy(tree)
            plant(bug, tree)
            test, output = caught_by(bug, tree)
        took = time.monotonic() - began
        if test is None:
            missed += 1
            out.write(f"MISSED  {bug.name}\n        {bug.breaks}\n{output[-2000:]}\n")
        else:
            out.write(f"caught  {bug.name}  ({took:.0f} s)\n        {bug.breaks}\n        by {test}\n")
        out.flush()
    out.write(f"{len(chosen) - missed} of {len(chosen)} planted bugs caught\n")
    return 1 if missed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
