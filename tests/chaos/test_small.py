"""The small run of every test run: twenty faults of most kinds, a fixed seed, and books that agree."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.invariants import INVARIANTS
from tests.chaos.world import REPOSITORY

SEED = 7


@pytest.mark.xdist_group("chaos")
@pytest.mark.timeout(280)
class TestSmallRun:
    def test_loses_and_doubles_nothing(self, tmp_path: Path) -> None:
        written = tmp_path / "report.json"
        command = ["--profile", "small", "--seed", str(SEED), "--json", str(written)]
        done = subprocess.run(
            [sys.executable, "-m", "tests.chaos", *command],
            cwd=REPOSITORY,
            env={
                "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
                "HOME": str(tmp_path),
                "LC_ALL": "C.UTF-8",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=270,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        report = json.loads(written.read_text())
        assert report["invariants"] == {check.__name__: [] for check in INVARIANTS}
        counts = report["counts"]
        assert counts["rows"] == counts["acknowledged"] == counts["emitted"] >= 20_000
        # The run was worth something: things did happen to it, and it did have bad input to refuse.
        assert counts["faults"] >= 14
        assert counts["duplicates"] > 0
        assert counts["open dead letters"] > 0
        assert counts["replayed"] > 0
        assert counts["snapshots"] > 3
