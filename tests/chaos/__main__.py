"""`python -m tests.chaos --events 1000000 --seed 7`: one run; exit 0 when all holds, else 1."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.chaos import report
from tests.chaos.plan import Fault, Profile, make_plan
from tests.chaos.run import Run, git_commit, stop_after

SEEDS: Final = Path(__file__).with_name("seeds.txt")
_EVENTS: Final = {Profile.SMALL: 20_000, Profile.FULL: 1_000_000, Profile.MATRIX: 60_000}
_LIMIT_SECONDS: Final = {Profile.SMALL: 170.0, Profile.FULL: 900.0, Profile.MATRIX: 900.0}
# What comes after the limit: programs are stopped, what they left is read.
_GRACE_SECONDS: Final = 90.0
_OWN_MOUNTS: Final = ["unshare", "--mount", "--propagation", "private"]


def main(arguments: Sequence[str]) -> int:
    """This function will make one run, and those of the stored seeds where that is asked for."""
    given = _parser().parse_args(arguments)
    if not given.inside and _may_mount():
        # Small disks are mounted where only this run sees them: they go when it does, however it ends.
        command = [*_OWN_MOUNTS, sys.executable, "-m", "tests.chaos", *arguments, "--inside"]
        os.execvp(command[0], command)  # noqa: S606  no shell is wanted
    profile = Profile(given.profile)
    seeds = [secrets.randbelow(2**31) if given.seed is None else given.seed]
    if given.regressions:
        seeds = stored_seeds()
    passed = True
    documents = []
    for seed in seeds:
        only = None if given.only is None else [Fault(name) for name in given.only.split(",")]
        plan = make_plan(seed=seed, events=given.events or _EVENTS[profile], profile=profile, only=only)
        limit = given.limit or _LIMIT_SECONDS[profile]
        backstop = stop_after(limit + _GRACE_SECONDS)
        commit = git_commit()
        _say(f"chaos: seed {seed}, commit {commit}: {len(plan.faults)} faults in {plan.seconds:.0f} s\n")
        if not given.inside:
            _say("chaos: mount is not permitted here: faults of full disks are skipped\n")
        result = Run(plan, limit=limit, may_mount=given.inside, keep_logs=given.logs).carry_out()
        backstop.cancel()
        _say(report.as_text(result, commit=commit))
        documents.append(report.as_document(result, commit=commit))
        passed = passed and result.passed
    if given.json is not None:
        given.json.write_text(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2))
    return 0 if passed else 1


def stored_seeds() -> list[int]:
    """This function will read the seeds that once failed: the first word of each line, remarks left out."""
    lines = (line.partition("#")[0].split() for line in SEEDS.read_text().splitlines())
    return [int(words[0]) for words in lines if words]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--events", type=int, help="How many; faults are in proportion, up to a million.")
    parser.add_argument("--seed", type=int, help="Which run; a new one by default.")
    parser.add_argument("--profile", choices=[one.value for one in Profile], default=Profile.FULL.value)
    parser.add_argument("--only", help=f"Only these faults: {', '.join(Fault)}.")
    parser.add_argument("--limit", type=float, help="Seconds after which the run is given up.")
    parser.add_argument("--regressions", action="store_true", help="Run the seeds of seeds.txt.")
    parser.add_argument("--json", type=Path, help="Write the report here as well.")
    parser.add_argument("--logs", type=Path, help="Keep the programs' logs in this folder.")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser


def _may_mount() -> bool:
    command = [*_OWN_MOUNTS, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
