"""A backup holds every row of every tenant, and a restore proves it."""

import datetime as dt
import json
import uuid
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.fixtures import rows
from tests.fixtures.databases import Databases
from worker.database_url import Database, DatabaseURL
from worker.db import _backup, _migrations, _programs
from worker.errors import ConfigurationError
from worker.models import policies
from worker.settings import Settings

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def fill(settings: Settings, tenants: int = 3) -> dict[Database, dict[str, int]]:
    """This function will add rows of several tenants to every tenant table; returns what each table holds."""
    counts = {}
    for database in Database:
        with psycopg.connect(settings.database(database).owner_url.libpq) as connection:
            connection.execute("SET ROLE usage_owner")
            for user in [uuid.uuid4() for _ in range(tenants)]:
                for each in policies.tenant_tables(database):
                    if each.tenant_column == "id":
                        rows.parent_of(connection, database, each.table, user)
                    else:
                        rows.add(connection, database, each.table, user)
        counts[database] = counted(settings, database)
    return counts


def counted(settings: Settings, database: Database) -> dict[str, int]:
    """This function will count the rows of every table as the owner."""
    found = {}
    with psycopg.connect(settings.database(database).owner_url.libpq) as connection:
        connection.execute("SET ROLE usage_owner")
        for each in policies.DECLARED[database]:
            query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(each.table))
            found[each.table] = int(connection.execute(query).fetchall()[0][0])
    return found


def empty(settings: Settings) -> None:
    """This function will bring both databases back to the day after `db init`."""
    for database in Database:
        _migrations.downgrade(settings.database(database), "base")
        _migrations.migrate(settings.database(database))


class TestBackup:
    def test_brings_back_every_row(self, settings: Settings, tmp_path: Path) -> None:
        before = fill(settings)
        manifest = _backup.backup(settings, tmp_path / "backup", now=NOW)
        assert {each.database: each.rows for each in manifest.databases} == before
        assert set(before[Database.USER_DATA].values()) == {3}
        empty(settings)
        assert set(counted(settings, Database.PLATFORM).values()) == {0}
        _backup.restore(settings, tmp_path / "backup")
        assert {database: counted(settings, database) for database in Database} == before
        for database in Database:
            assert _migrations.heads(settings.database(database)).at_head

    def test_is_readable_by_its_owner_alone(self, settings: Settings, tmp_path: Path) -> None:
        folder = tmp_path / "backup"
        _backup.backup(settings, folder, now=NOW)
        assert folder.stat().st_mode & 0o077 == 0
        assert all(path.stat().st_mode & 0o077 == 0 for path in folder.glob("*.dump"))
        written = (folder / "manifest.json").read_text()
        assert json.loads(written)["created_at"] == "2026-03-01T12:00:00+00:00"
        for url in (settings.platform.url, settings.platform.owner_url):
            assert str(url.sqlalchemy.password) not in written

    @pytest.mark.parametrize(
        "change",
        [
            "DROP POLICY owner_all ON user_personas",
            "ALTER POLICY owner_all ON user_personas USING (persona_name <> 'secret')",
            "CREATE POLICY fewer ON user_personas AS RESTRICTIVE USING (false)",
        ],
    )
    def test_refuses_to_leave_out_rows_that_the_owner_does_not_see(
        self, settings: Settings, databases: Databases, tmp_path: Path, change: str
    ) -> None:
        fill(settings)
        with psycopg.connect(databases.user_data.url("owner")) as owner:
            owner.execute("SET ROLE usage_owner")
            owner.execute(change.encode())
        with pytest.raises(ConfigurationError, match="does not see every row of user_personas"):
            _backup.backup(settings, tmp_path / "backup", now=NOW)
        assert not (tmp_path / "backup" / "manifest.json").exists()

    def test_refuses_a_folder_that_holds_something(self, settings: Settings, tmp_path: Path) -> None:
        (tmp_path / "backup").mkdir()
        (tmp_path / "backup" / "precious").touch()
        with pytest.raises(ConfigurationError, match="is not empty"):
            _backup.backup(settings, tmp_path / "backup", now=NOW)


class TestRestore:
    def test_replaces_rows_only_when_forced(self, settings: Settings, tmp_path: Path) -> None:
        before = fill(settings)
        _backup.backup(settings, tmp_path / "backup", now=NOW)
        fill(settings)
        with pytest.raises(_backup.NotEmpty, match="--force"):
            _backup.restore(settings, tmp_path / "backup")
        assert counted(settings, Database.USER_DATA) != before[Database.USER_DATA]
        _backup.restore(settings, tmp_path / "backup", force=True)
        assert {database: counted(settings, database) for database in Database} == before

    def test_refuses_tables_that_the_backup_does_not_know(
        self, settings: Settings, databases: Databases, tmp_path: Path
    ) -> None:
        _backup.backup(settings, tmp_path / "backup", now=NOW)
        with psycopg.connect(databases.user_data.url("owner")) as owner:
            owner.execute("SET ROLE usage_owner")
            owner.execute("CREATE TABLE later (a int)")
        with pytest.raises(_backup.NotEmpty, match="later"):
            _backup.restore(settings, tmp_path / "backup", force=True)

    def test_refuses_a_damaged_file(self, settings: Settings, tmp_path: Path) -> None:
        _backup.backup(settings, tmp_path / "backup", now=NOW)
        dump = tmp_path / "backup" / "platform.dump"
        dump.write_bytes(dump.read_bytes()[:-1])
        with pytest.raises(ConfigurationError, match="missing or damaged"):
            _backup.restore(settings, tmp_path / "backup")

    def test_refuses_what_is_no_backup(self, settings: Settings, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="is no backup"):
            _backup.restore(settings, tmp_path)

    def test_refuses_a_newer_releases_backup(self, settings: Settings, tmp_path: Path) -> None:
        folder = tmp_path / "backup"
        _backup.backup(settings, folder, now=NOW)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["databases"][0]["revision"] = "9999"
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ConfigurationError, match="revision 9999, which this release does not know"):
            _backup.restore(settings, folder)

    def test_notices_rows_that_are_not_there(self, settings: Settings, tmp_path: Path) -> None:
        fill(settings)
        folder = tmp_path / "backup"
        _backup.backup(settings, folder, now=NOW)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["databases"][0]["rows"]["users"] += 1
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(_backup.RowsDiffer, match="users has 3 of 4"):
            _backup.restore(settings, folder, force=True)

    def test_a_failed_restore_leaves_the_database_as_it_was(
        self, settings: Settings, databases: Databases, tmp_path: Path
    ) -> None:
        fill(settings)
        _backup.backup(settings, tmp_path / "backup", now=NOW)
        before = counted(settings, Database.PLATFORM)
        with psycopg.connect(databases.platform.url("owner")) as owner:
            owner.execute("SET ROLE usage_owner")
            owner.execute("CREATE VIEW in_the_way AS SELECT * FROM users")
        with pytest.raises(_programs.ProgramFailed, match="in_the_way"):
            _backup.restore(settings, tmp_path / "backup", force=True)
        assert counted(settings, Database.PLATFORM) == before


class TestPrograms:
    def test_are_not_older_than_the_server(self) -> None:
        with pytest.raises(ConfigurationError, match="pg_dump 99 or newer is needed"):
            _programs.find("pg_dump", server_version=990000)

    def test_an_unknown_one_says_what_to_install(self) -> None:
        with pytest.raises(ConfigurationError, match=r"none is installed.*usage-worker\[embedded\]"):
            _programs.find("pg_nothing", server_version=180000)

    def test_take_the_password_from_a_file(self) -> None:
        url = DatabaseURL.parse("postgresql://me:p%3As%5C%40@h/db?sslmode=require", variable="X")
        with _programs.connection_options(url) as [option]:
            path = Path(option.partition("passfile=")[2].partition("&")[0])
            assert path.read_text() == "*:*:*:*:p\\:s\\\\@\n"
            assert path.stat().st_mode & 0o077 == 0
            assert "p%3As" not in option
            assert "sslmode=require" in option
        assert not path.exists()
