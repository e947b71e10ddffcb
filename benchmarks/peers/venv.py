"""The environment of the compared systems, made at its first use from benchmarks/peers.lock.

It is apart from the product's: nothing of it may enter the product's lock file, and celery-batches needs an
older Celery. The lock file comes from `uv pip compile benchmarks/peers.in --universal --python-version 3.11
--generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header
--output-file benchmarks/peers.lock`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.child import ROOT

FOLDER = ROOT / ".venv-peers"
LOCK = ROOT / "benchmarks" / "peers.lock"


def python() -> Path:
    """This function will return the environment's interpreter, with the locked packages."""
    program, stamp = FOLDER / "bin" / "python", FOLDER / ".installed"
    locked = LOCK.read_text(encoding="utf-8")
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != locked:
        sys.stderr.write(f"installing the compared systems into {FOLDER.name} ...\n")
        uv = Path(sys.executable).parent / "uv"
        for command in (
            [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, FOLDER],
            [uv, "pip", "sync", "--quiet", "--python", program, "--require-hashes", LOCK],
        ):
            subprocess.run([str(part) for part in command], check=True)  # noqa: S603  our own commands
        stamp.write_text(locked, encoding="utf-8")
    return program
