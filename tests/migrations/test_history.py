"""The shipped revisions: in order, numbered, frozen, and found wherever the package lives."""

import re
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

import worker
from worker.database_url import Database
from worker.db import _migrations
from worker.errors import ConfigurationError


@pytest.fixture(params=list(Database))
def database(request: pytest.FixtureRequest) -> Database:
    """Each of the two histories."""
    chosen: Database = request.param
    return chosen


def files(database: Database) -> list[Path]:
    """This function will list the revisions of a history in the order of their names."""
    return sorted(_migrations.versions_path(database).glob("*.py"))


class TestRevisions:
    def test_are_numbered_without_a_gap_and_follow_each_other(self, database: Database) -> None:
        found = files(database)
        assert found
        for number, path in enumerate(found, start=1):
            assert re.fullmatch(rf"{number:04}_[a-z0-9]+(_[a-z0-9]+)*\.py", path.name), path.name
            text = path.read_text(encoding="utf-8")
            before = f'"{number - 1:04}"' if number > 1 else "None"
            assert f'\nrevision = "{number:04}"\n' in text, path.name
            assert f"\ndown_revision: str | None = {before}\n" in text, path.name

    def test_have_one_head(self, database: Database) -> None:
        assert _migrations.head_of(database) == files(database)[-1].name[:4]

    def test_are_frozen(self, database: Database) -> None:
        # What a revision does must not change with the models of a later release.
        for path in files(database):
            imports = re.findall(r"^(?:from|import) (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert set(imports) <= {"__future__", "alembic", "sqlalchemy"}, path.name

    def test_alembic_ini_names_the_same_history(self, database: Database) -> None:
        ini = Path(worker.__file__).parent.parent / "alembic.ini"
        script = ScriptDirectory.from_config(Config(str(ini), ini_section=database.value))
        assert script.get_current_head() == _migrations.head_of(database)
        assert "://" not in ini.read_text(encoding="utf-8")


class TestMigrationsPath:
    def test_is_the_repositorys_folder_here(self) -> None:
        assert _migrations.migrations_path() == Path(worker.__file__).resolve().parent.parent / "migrations"

    def test_is_inside_the_package_in_an_installed_wheel(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        inside = tmp_path / "worker" / "migrations"
        inside.mkdir(parents=True)
        (inside / "env.py").touch()
        monkeypatch.setattr(worker, "__file__", str(tmp_path / "worker" / "__init__.py"))
        assert _migrations.migrations_path() == inside

    def test_says_what_to_do_when_there_is_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(worker, "__file__", str(tmp_path / "worker" / "__init__.py"))
        with pytest.raises(ConfigurationError, match="install usage-worker again"):
            _migrations.migrations_path()
