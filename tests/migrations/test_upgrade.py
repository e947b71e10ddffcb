"""Up, down and up again, on a real server, as the owner's login."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from alembic import command

import worker
from tests.fixtures.databases import Databases
from worker import db
from worker.database_url import Database, DatabaseURL
from worker.db import Login, _catalog, _migrations
from worker.errors import ConfigurationError, TransientError
from worker.models import policies
from worker.models.live_policies import policy_differences
from worker.settings import Settings, load_settings

REPOSITORY = Path(worker.__file__).resolve().parent.parent
MIGRATE = (
    "from worker.database_url import Database; from worker.db import _migrations; "
    "from worker.settings import load_database_settings; "
    "_migrations.migrate(load_database_settings().database(Database.PLATFORM))"
)


@pytest.fixture(params=list(Database))
def database(request: pytest.FixtureRequest) -> Database:
    """Each of the two databases."""
    chosen: Database = request.param
    return chosen


def described(settings: Settings, database: Database) -> dict[str, str]:
    """This function will describe what stands in the schema public."""
    with psycopg.connect(settings.database(database).owner_url.libpq) as connection:
        return _catalog.describe(connection, "public")


def security_differences(database: Database) -> list[str]:
    """This function will compare the live policies of the bound database with the declared ones."""
    with db.engine_for(database, Login.AUDIT).connect() as connection:
        return [f"{each.table}: {each.detail}" for each in policy_differences(connection, database)]


@contextmanager
def migrator(environ: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """This function will start a migrator of the platform in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", MIGRATE],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


class TestUpgrade:
    def test_goes_up_down_and_up_again(self, bound: Settings, database: Database) -> None:
        target = bound.database(database)
        before = described(bound, database)
        assert _migrations.heads(target).at_head
        _migrations.downgrade(target, "base")
        version = policies.VERSION_TABLES[database]
        left = described(bound, database)
        assert {key for key in left if key.startswith("table ")} == {f"table {version}"}
        assert _migrations.heads(target).current is None
        with psycopg.connect(target.owner_url.libpq) as connection:
            roles = connection.execute(
                "SELECT count(*) FROM pg_roles WHERE rolname = ANY(%s)", [list(policies.GROUP_ROLES)]
            ).fetchone()
        assert roles == (len(policies.GROUP_ROLES),), "a downgrade never drops a role"
        _migrations.migrate(target)
        assert described(bound, database) == before
        assert security_differences(database) == []

    def test_goes_down_and_up_step_by_step(self, bound: Settings, database: Database) -> None:
        target = bound.database(database)
        steps = []
        while (current := _migrations.heads(target).current) is not None:
            steps.append(current)
            _migrations.downgrade(target, "-1")
        for revision in reversed(steps):
            _migrations.migrate(target, "+1")
            assert _migrations.heads(target).current == revision
        assert security_differences(database) == []

    def test_again_changes_nothing(self, bound: Settings, database: Database) -> None:
        before = described(bound, database)
        _migrations.migrate(bound.database(database))
        assert described(bound, database) == before

    def test_an_empty_database_has_no_revision(self, bound: Settings) -> None:
        empty = bound.platform.owner_url.with_database("postgres")
        assert _migrations.heads(bound.platform, url=empty).current is None
        assert not _migrations.heads(bound.platform, url=empty).at_head


class TestSchema:
    def test_models_and_migrations_build_the_same(self, bound: Settings, database: Database) -> None:
        with psycopg.connect(bound.database(database).owner_url.libpq) as connection:
            _catalog.build(connection, "from_models", database)
            models = _catalog.describe(connection, "from_models")
            migrated = _catalog.describe(connection, "public")
            connection.rollback()
        tables = {key.removeprefix("table ") for key in (models | migrated) if key.startswith("table ")}
        assert _catalog.compare(models, migrated, tables - {policies.VERSION_TABLES[database]}) == []

    def test_the_comparison_notices(self, settings: Settings, subtests: pytest.Subtests) -> None:
        tables = [each.table for each in policies.DECLARED[Database.PLATFORM]]
        with psycopg.connect(settings.platform.owner_url.libpq) as connection:
            before = _catalog.describe(connection, "public")
            for change in (
                "ALTER TABLE users ALTER email TYPE varchar(100)",
                "ALTER TABLE users ALTER created_at DROP NOT NULL",
                "ALTER TABLE users ALTER created_at DROP DEFAULT",
                "ALTER TABLE users DROP CONSTRAINT ck_users_subscription_status_known",
                "ALTER TABLE users DROP COLUMN email",
                "ALTER TABLE users ADD COLUMN age int",
                "DROP INDEX ix_user_subscriptions_live_period_end",
                "ALTER TABLE usage_hourly RESET (fillfactor)",
                "DROP TABLE job_runs",
            ):
                with subtests.test(change), connection.transaction(force_rollback=True):
                    connection.execute("SET LOCAL ROLE usage_owner")
                    connection.execute(change.encode())
                    assert len(_catalog.compare(before, _catalog.describe(connection, "public"), tables)) == 1

    def test_alembic_finds_nothing_to_do(self, bound: Settings, database: Database) -> None:
        command.check(_migrations._config(database, bound.database(database)))

    def test_policies_are_the_declared_ones(self, bound: Settings, database: Database) -> None:
        assert security_differences(database) == []

    def test_everything_belongs_to_the_owners_group(self, bound: Settings, database: Database) -> None:
        with psycopg.connect(bound.database(database).url.libpq) as connection:
            owners = connection.execute(
                "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class "
                "WHERE relnamespace = 'public'::regnamespace"
            ).fetchall()
        assert owners == [(policies.OWNER,)]


class TestCommandLine:
    def test_alembic_runs_from_the_repositorys_ini(self, environ: dict[str, str], database: Database) -> None:
        target = load_settings(environ).database(database)
        _migrations.downgrade(target, "base")
        done = subprocess.run(
            [sys.executable, "-m", "alembic", "-n", database.value, "upgrade", "head"],
            cwd=REPOSITORY,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert _migrations.heads(target).at_head

    def test_prints_the_sql_for_an_administrator(
        self, settings: Settings, database: Database, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command.upgrade(_migrations._config(database, settings.database(database)), "head", sql=True)
        printed = capsys.readouterr().out
        assert printed.index("SET ROLE usage_owner") < printed.index("CREATE TABLE")
        assert "SET lock_timeout TO 5000" in printed
        assert "FORCE ROW LEVEL SECURITY" in printed


class TestOneAtATime:
    def test_two_wait_for_their_turn_and_migrate_once(
        self, environ: dict[str, str], settings: Settings
    ) -> None:
        target = settings.platform
        _migrations.downgrade(target, "base")
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name = ANY(%s) AND (query LIKE '%%advisory_lock%%' OR query = 'COMMIT')"
        )
        with psycopg.connect(target.owner_url.libpq, autocommit=True) as first:
            first.execute("SELECT pg_advisory_lock(%s)", [_migrations.MIGRATION_LOCK])
            with migrator(environ) as second, migrator(environ) as third:
                names = [f"usage-worker:migrate:{process.pid}" for process in (second, third)]
                deadline = time.monotonic() + 60
                while first.execute(waiting, [names]).fetchone() != (2,):
                    assert time.monotonic() < deadline, "they never came"
                    for process in (second, third):
                        assert process.poll() is None, process.communicate()[0]
                    time.sleep(0.05)
                time.sleep(0.3)
                assert _migrations.heads(target).current is None, "they did not wait"
                first.execute("SELECT pg_advisory_unlock(%s)", [_migrations.MIGRATION_LOCK])
                for process in (second, third):
                    output, _ = process.communicate(timeout=60)
                    assert process.returncode == 0, output
        assert _migrations.heads(target).at_head

    def test_gives_up_on_a_lock_rather_than_block_everybody(self, settings: Settings) -> None:
        target = settings.platform
        _migrations.downgrade(target, "0002")
        with psycopg.connect(target.url.libpq) as reader:
            reader.execute("SELECT count(*) FROM users")
            with pytest.raises(TransientError, match="lock timeout"):
                _migrations.downgrade(target, "base")
        current = _migrations.heads(target).current
        assert current == "0002", "a failed migration leaves the revision as it was"


class TestRefusal:
    def test_a_login_that_is_no_owner(self, environ: dict[str, str], databases: Databases) -> None:
        environ["PLATFORM_DATABASE_OWNER_URL"] = databases.platform.url("app")
        with pytest.raises(ConfigurationError, match="usage-worker db init"):
            _migrations.migrate(load_settings(environ).platform)

    def test_a_revision_that_does_not_exist(self, settings: Settings) -> None:
        with pytest.raises(ConfigurationError, match=r"platform: .*9999"):
            _migrations.migrate(settings.platform, "9999")

    def test_a_login_of_no_group_is_told_so(self, settings: Settings) -> None:
        with psycopg.connect(settings.platform.owner_url.libpq) as owner:
            owner.execute("SET ROLE usage_owner")
            owner.execute("REVOKE SELECT ON alembic_version_platform FROM usage_worker")
        with pytest.raises(ConfigurationError, match="may not read alembic_version_platform"):
            _migrations.heads(settings.platform)

    def test_a_transaction_pooler_without_a_way_around_it(self, environ: dict[str, str]) -> None:
        environ["DB_POOL_MODE"] = "transaction"
        with pytest.raises(ConfigurationError, match="PLATFORM_DATABASE_DIRECT_URL: missing"):
            _migrations.migrate(load_settings(environ).platform)

    def test_a_transaction_pooler_with_a_way_around_it(
        self, environ: dict[str, str], databases: Databases
    ) -> None:
        environ["DB_POOL_MODE"] = "transaction"
        environ["PLATFORM_DATABASE_DIRECT_URL"] = databases.platform.url("owner")
        _migrations.migrate(load_settings(environ).platform)

    def test_a_database_that_is_not_there(self, environ: dict[str, str], databases: Databases) -> None:
        url = DatabaseURL.parse(databases.platform.url("owner"), variable="X").with_database("nowhere")
        for kind in ("", "OWNER_", "AUDIT_"):
            environ[f"PLATFORM_DATABASE_{kind}URL"] = url.libpq
        with pytest.raises(ConfigurationError, match='CREATE DATABASE "nowhere" OWNER "dev_owner"'):
            _migrations.migrate(load_settings(environ).platform)
