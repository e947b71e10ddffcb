"""What a login may not do: what is said then, and that it was only said, not half done."""

import time

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from tests.fixtures.databases import Databases
from tests.integration.db.tenants import Bind, Tenants
from worker import db
from worker.db import _migrations, _provision
from worker.errors import ConfigurationError
from worker.models.platform import User
from worker.models.user_data import UserProfile
from worker.settings import load_settings
from worker.sqlstate import FailureKind, kind_of

UNPREPARE = text("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$")


class TestMigrations:
    def test_db_init_lists_what_an_administrator_has_to_run(
        self, environ: dict[str, str], databases: Databases
    ) -> None:
        environ["PLATFORM_DATABASE_OWNER_URL"] = databases.platform.url("worker")
        with pytest.raises(ConfigurationError) as refused:
            _provision.provision(load_settings(environ))
        message = str(refused.value)
        assert message.startswith("The owner's login may not do everything. An administrator has to run:\n")
        assert 'GRANT "usage_owner" TO "dev_worker"' in message
        assert "usage-worker db init" in message

    def test_need_the_owners_login(self, environ: dict[str, str], databases: Databases) -> None:
        environ["PLATFORM_DATABASE_OWNER_URL"] = databases.platform.url("app")
        with pytest.raises(ConfigurationError, match="may not become usage_owner"):
            _migrations.migrate(load_settings(environ).platform)

    def test_need_a_way_around_a_transaction_pooler(self, environ: dict[str, str]) -> None:
        settings = load_settings({**environ, "DB_POOL_MODE": "transaction"})
        said = "PLATFORM_DATABASE_DIRECT_URL: missing, and .* cannot go through a pooler in transaction mode"
        with pytest.raises(ConfigurationError, match=said):
            _provision.provision(settings)
        with pytest.raises(ConfigurationError, match=said):
            _migrations.migrate(settings.platform)


class TestRows:
    def test_of_another_user_are_refused(self, bind: Bind, tenants: Tenants) -> None:
        bind()
        with db.user_data_session(user_id=tenants.one) as session:
            session.add(UserProfile(user_id=tenants.two))
            with pytest.raises(
                ProgrammingError, match="new row violates row-level security policy"
            ) as refused:
                session.flush()
            session.rollback()
        assert kind_of(refused.value) is FailureKind.CONFIGURATION

    def test_need_a_context_on_the_platform_too(self, bind: Bind, tenants: Tenants) -> None:
        bind()
        with db.platform_session() as session:
            with pytest.raises(ProgrammingError, match="permission denied for table"):
                session.scalars(select(User.id)).all()
            session.rollback()
            db.set_user_context(tenants.one, session)
            assert list(session.scalars(select(User.id))) == [tenants.one]


class TestTimeouts:
    def test_of_a_statement(self, bind: Bind) -> None:
        bind("worker", DB_STATEMENT_TIMEOUT_MS=50)
        with db.platform_session() as session:
            with pytest.raises(DBAPIError, match="canceling statement due to statement timeout") as ended:
                session.execute(text("SELECT pg_sleep(10)"))
            session.rollback()
        assert kind_of(ended.value) is FailureKind.TRANSIENT

    def test_of_a_lock(self, bind: Bind, tenants: Tenants) -> None:
        bind("worker", USAGE_LOCK_TIMEOUT_MS=50)
        row = text("SELECT 1 FROM users WHERE id = :id FOR UPDATE")
        with db.platform_session() as first, db.platform_session() as second:
            first.execute(row, {"id": tenants.one})
            with pytest.raises(DBAPIError, match="canceling statement due to lock timeout") as ended:
                second.execute(row, {"id": tenants.one})
            second.rollback()
        assert kind_of(ended.value) is FailureKind.TRANSIENT

    def test_of_a_transaction_left_open(self, bind: Bind) -> None:
        bind("worker", USAGE_IDLE_IN_TRANSACTION_TIMEOUT_MS=50)
        with db.platform_session() as session:
            session.execute(text("SELECT 1"))
            time.sleep(0.5)
            said = "terminating connection due to idle-in-transaction timeout"
            with pytest.raises(DBAPIError, match=said) as ended:
                session.execute(text("SELECT 1"))
            session.rollback()
            assert session.scalar(text("SELECT 1")) == 1
        assert kind_of(ended.value) is FailureKind.TRANSIENT


class TestPreparedStatements:
    """A transaction pooler hands the next transaction another connection: what was prepared is gone."""

    QUERY = text("SELECT 1 AS prepared")

    def test_disappear_where_the_pooler_was_not_declared(self, bind: Bind) -> None:
        bind("worker")
        with db.platform_session() as session:
            for _ in range(10):
                session.execute(self.QUERY)
            session.execute(UNPREPARE)
            with pytest.raises(DBAPIError, match=r"prepared statement \"\S+\" does not exist") as gone:
                session.execute(self.QUERY)
            session.rollback()
        assert kind_of(gone.value) is FailureKind.CONFIGURATION

    def test_are_not_used_where_it_was(self, bind: Bind) -> None:
        bind("worker", DB_POOL_MODE="transaction")
        with db.platform_session() as session:
            for _ in range(10):
                session.execute(self.QUERY)
            session.execute(UNPREPARE)
            assert session.scalar(self.QUERY) == 1
