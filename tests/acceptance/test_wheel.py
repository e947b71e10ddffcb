"""The wheel, installed away from its sources, with the extra [worker] and without it."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import psycopg
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.fixtures.databases import Databases
from worker.dev import _processes
from worker.dev._processes import wait_until

ROOT = Path(__file__).resolve().parents[2]
USER = "0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11"
# What the base install brings: redis and pydantic, and what these need themselves.
BASE = ("redis", "pydantic")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = folder.glob("*.whl")
    return built


def _environment_with(wheel: Path, folder: Path, path_lines: list[str]) -> Path:
    """A fresh environment with the wheel and whatever the lines of its .pth file bring."""
    venv.create(folder, symlinks=True, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    python = folder / "bin" / "python"
    (site / "only-the-wheel-is-new.pth").write_text("\n".join(path_lines) + "\n", encoding="utf-8")
    installed = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index"),
            *("--no-deps", "--ignore-installed", "--disable-pip-version-check", str(wheel)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert installed.returncode == 0, installed.stdout + installed.stderr
    return folder / "bin"


def _run(
    program: Path, *arguments: str, env: Mapping[str, str], cwd: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *arguments], env=dict(env), cwd=cwd, capture_output=True, text=True, timeout=90, check=False
    )


class TestContents:
    def test_has_both_packages_the_migrations_and_nothing_else(self, wheel: Path) -> None:
        names = zipfile.ZipFile(wheel).namelist()
        assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"producers", "worker"}
        for needed in ("worker/migrations/env.py", "worker/entrypoints/tasks.py", "producers/_emitter.py"):
            assert needed in names
        assert [name for name in names if name.startswith("worker/migrations/platform/0001")]
        assert not [name for name in names if "__pycache__" in name or "tests/" in name]


@pytest.mark.timeout(180)
class TestWithTheExtra:
    def test_initialises_drains_and_emits_in_another_folder(
        self,
        wheel: Path,
        environ: dict[str, str],
        databases: Databases,
        guard: _processes.Guard,
        tmp_path: Path,
    ) -> None:
        # A .pth file runs none of those in the folder it adds, so this tree's editable install stays out.
        folder = _environment_with(wheel, tmp_path / "venv", [sysconfig.get_path("purelib")])
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        where = _run(
            folder / "python", "-c", "import worker; print(worker.__file__)", env=environ, cwd=elsewhere
        )
        assert where.stdout.startswith(str(tmp_path / "venv")), where.stdout + where.stderr

        with psycopg.connect(databases.platform.url("superuser")) as administrator:
            administrator.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public AUTHORIZATION dev_owner")
        made = _run(folder / "usage-worker", "db", "init", env=environ, cwd=elsewhere)
        assert made.returncode == 0, made.stderr
        worker = _processes.OwnedProcess(
            [folder / "python", "-m", "celery", "-A", "worker.app", "worker"],
            log=tmp_path / "worker.log",
            guard=guard,
            env=environ,
            cwd=elsewhere,
        )
        try:
            sent = _run(
                *(folder / "usage-worker", "emit", "--user", USER, "--feature", "chat", "--tokens", "7"),
                env=environ,
                cwd=elsewhere,
            )
            assert sent.returncode == 0, sent.stderr
            with psycopg.connect(databases.platform.url("worker"), autocommit=True) as platform:
                query = "SELECT tokens_used FROM platform_usage_logs"
                assert wait_until(lambda: platform.execute(query).fetchall() == [(7,)], timeout=30), (
                    worker.log.read_text()
                )
        finally:
            worker.stop()
        assert list(elsewhere.iterdir()) == []


class TestWithoutTheExtra:
    def test_the_script_names_it_and_producers_work(
        self, wheel: Path, environ: dict[str, str], tmp_path: Path
    ) -> None:
        folder = _environment_with(wheel, tmp_path / "venv", [])
        site = Path(
            sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv"), "platbase": str(tmp_path)})
        )
        for distribution in sorted(_closure(BASE)):
            _link(distribution, site)
        for arguments in (["status"], ["--help"], []):
            done = _run(folder / "usage-worker", *arguments, env=environ, cwd=tmp_path)
            assert done.returncode == 2
            assert 'pip install "usage-worker[worker]"' in done.stderr
            assert len(done.stderr.splitlines()) == 1, done.stderr
            assert done.stdout == ""
        as_module = _run(folder / "python", "-m", "worker", "status", env=environ, cwd=tmp_path)
        assert (as_module.returncode, "usage-worker[worker]" in as_module.stderr) == (2, True)
        script = (
            "from producers import Emitter\n"
            f"print(Emitter.from_env().emit(user_id='{USER}', feature='chat', tokens_used=7))"
        )
        emitted = _run(folder / "python", "-c", script, env=environ, cwd=tmp_path)
        assert emitted.returncode == 0, emitted.stderr


def _closure(names: tuple[str, ...]) -> set[str]:
    """These distributions and what they need, as pip would install them."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for requirement in metadata.requires(name) or []:
            parsed = Requirement(requirement)
            if parsed.marker is None or parsed.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(parsed.name))
    return found


def _link(name: str, site: Path) -> None:
    """Puts one installed distribution where the new environment looks."""
    installed = metadata.distribution(name)
    for top in {Path(str(file)).parts[0] for file in installed.files or []}:
        source = Path(str(installed.locate_file(top)))
        if top not in ("..", "__pycache__") and not (site / top).exists():
            (site / top).symlink_to(source)
