"""Engines: what every connection is given, how pools end, and what a fork leaves behind."""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from tests.fixtures.databases import Databases
from tests.integration.db.tenants import Bind, Tenants
from worker import db
from worker.database_url import Database
from worker.db import _engines
from worker.sqlstate import FailureKind, kind_of

SHOW = text(
    "SELECT current_setting('statement_timeout'), current_setting('lock_timeout'), "
    "current_setting('idle_in_transaction_session_timeout'), current_setting('TimeZone'), "
    "current_setting('application_name')"
)
BACKEND = text("SELECT pg_backend_pid()")
MODES = pytest.mark.parametrize("mode", ["session", "transaction"])


@pytest.fixture(autouse=True)
def _as_found() -> None:
    db.set_application_role("app")
    _engines._process.worker_pool = False


class TestConnections:
    @MODES
    def test_have_timeouts_a_zone_and_a_name(self, mode: str, bind: Bind) -> None:
        bind(
            "worker",
            DB_POOL_MODE=mode,
            DB_STATEMENT_TIMEOUT_MS=5000,
            USAGE_LOCK_TIMEOUT_MS=2000,
            USAGE_IDLE_IN_TRANSACTION_TIMEOUT_MS=7000,
        )
        db.set_application_role("drain")
        with db.platform_session() as session:
            for _ in range(2):
                name = f"usage-worker:drain:{os.getpid()}"
                assert tuple(session.execute(SHOW).one()) == ("5s", "2s", "7s", "UTC", name)
                session.commit()

    @MODES
    def test_leave_a_pooler_nothing_that_is_set_for_the_session(self, mode: str, bind: Bind) -> None:
        bind("worker", DB_POOL_MODE=mode, DB_STATEMENT_TIMEOUT_MS=5000)
        with db.platform_session() as session:
            driver = session.connection().connection.dbapi_connection
            assert isinstance(driver, psycopg.Connection)
            session.commit()
            with db.engine_for(Database.PLATFORM).connect() as other:
                raw = other.connection.dbapi_connection
                assert isinstance(raw, psycopg.Connection)
                found = raw.execute("SHOW statement_timeout").fetchone()
        if mode == "transaction":
            assert found == ("0",)
            assert driver.prepare_threshold is None
        else:
            assert found == ("5s",)
            assert driver.prepare_threshold == 5

    def test_name_a_role_in_safe_letters(self, bind: Bind) -> None:
        bind("worker")
        db.set_application_role("a b/" + "c" * 100)
        with db.platform_session() as session:
            assert session.execute(SHOW).one()[4] == f"usage-worker:a_b_{'c' * 38}:{os.getpid()}"

    def test_end_a_statement_that_takes_too_long(self, bind: Bind) -> None:
        bind("worker", DB_STATEMENT_TIMEOUT_MS=100)
        with db.platform_session() as session:
            with pytest.raises(DBAPIError) as ended:
                session.execute(text("SELECT pg_sleep(10)"))
            session.rollback()
        assert kind_of(ended.value) is FailureKind.TRANSIENT

    def test_show_no_parameter_in_an_error(self, bind: Bind) -> None:
        bind("worker")
        with db.platform_session() as session:
            with pytest.raises(DBAPIError) as failed:
                session.execute(text("SELECT CAST(:a AS int), :b"), {"a": "one", "b": "S3cretWord"})
            session.rollback()
        assert 'invalid input syntax for type integer: "one"' in str(failed.value)
        assert "S3cretWord" not in str(failed.value)

    def test_are_replaced_when_the_server_ended_them(self, bind: Bind, databases: Databases) -> None:
        bind("worker", DB_POOL_SIZE=1, DB_MAX_OVERFLOW=0)
        with db.platform_session() as session:
            before = session.scalar(BACKEND)
        with psycopg.connect(databases.platform.url("superuser")) as connection:
            connection.execute("SELECT pg_terminate_backend(%s, 5000)", [before])
        with db.platform_session() as session:
            assert session.scalar(BACKEND) != before


class TestEngineFor:
    def test_opens_one_engine_per_database_and_login(self, bind: Bind) -> None:
        bind("worker")
        engine = db.engine_for(Database.PLATFORM)
        assert engine is db.engine_for(Database.PLATFORM)
        others = {db.engine_for(Database.USER_DATA), db.engine_for(Database.PLATFORM, db.Login.OWNER)}
        assert engine not in others
        assert len(others) == 2

    def test_each_login_is_the_one_of_its_url(self, bind: Bind) -> None:
        bind("worker")
        for login, name in zip(db.Login, ("dev_worker", "dev_owner", "dev_auditor"), strict=True):
            with db.platform_session(login=login) as session:
                assert session.scalar(text("SELECT session_user")) == name

    def test_one_engine_for_many_threads(self, bind: Bind) -> None:
        bind("worker")
        found = []
        threads = [
            threading.Thread(target=lambda: found.append(db.engine_for(Database.PLATFORM))) for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(found) == 20
        assert len(set(found)) == 1

    def test_new_settings_close_what_was_open(self, bind: Bind, databases: Databases) -> None:
        bind("worker")
        with db.platform_session() as session:
            backend = session.scalar(BACKEND)
        bind("worker", DB_POOL_SIZE=3)
        assert pool_of(Database.PLATFORM).size() == 3
        with psycopg.connect(databases.platform.url("superuser"), autocommit=True) as connection:
            deadline = time.monotonic() + 10
            gone = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
            while connection.execute(gone, [backend]).fetchone() != (0,):
                assert time.monotonic() < deadline, "the old connection is still open"
                time.sleep(0.02)


def pool_of(database: Database) -> QueuePool:
    pool = db.engine_for(database).pool
    assert isinstance(pool, QueuePool)
    return pool


class TestPoolSize:
    def test_is_the_settings_in_a_threaded_process(self, bind: Bind) -> None:
        bind("worker", DB_POOL_SIZE=3, DB_MAX_OVERFLOW=1)
        assert (pool_of(Database.PLATFORM).size(), pool_of(Database.PLATFORM)._max_overflow) == (3, 1)

    def test_is_small_in_a_worker_child(self, bind: Bind) -> None:
        bind("worker", DB_POOL_SIZE=3, DB_MAX_OVERFLOW=1, USAGE_WORKER_POOL_SIZE=1, DB_POOL_TIMEOUT=0.1)
        db.use_worker_pool()
        assert (pool_of(Database.PLATFORM).size(), pool_of(Database.PLATFORM)._max_overflow) == (1, 0)
        with db.platform_session() as session:
            session.scalar(BACKEND)
            with pytest.raises(db.PoolExhausted) as exhausted, db.platform_session() as second:
                second.scalar(BACKEND)
        assert str(exhausted.value).startswith(
            "PLATFORM_DATABASE_URL: all 1 connections of this process are in use (USAGE_WORKER_POOL_SIZE=1), "
            "and none came back within DB_POOL_TIMEOUT=0.1 s."
        )


class TestPoolExhausted:
    def test_is_the_one_error_of_sixty_threads_on_three_connections(self, bind: Bind) -> None:
        bind("worker", DB_POOL_SIZE=2, DB_MAX_OVERFLOW=1, DB_POOL_TIMEOUT=0.5)
        outcomes: Counter[str] = Counter()
        messages: set[str] = set()
        release = threading.Event()
        holding = threading.Semaphore(0)

        def work() -> None:
            try:
                with db.platform_session() as session:
                    session.scalar(BACKEND)
                    holding.release()
                    release.wait(30)
                    outcomes["served"] += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, the test counts its name
                outcomes[type(error).__name__] += 1
                messages.add(str(error))

        threads = [threading.Thread(target=work) for _ in range(60)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            assert holding.acquire(timeout=30)
        deadline = time.monotonic() + 30
        while outcomes["PoolExhausted"] < 57 and time.monotonic() < deadline:
            time.sleep(0.05)
        release.set()
        for thread in threads:
            thread.join(30)
        assert outcomes == {"PoolExhausted": 57, "served": 3}
        assert messages == {
            "PLATFORM_DATABASE_URL: all 3 connections of this process are in use "
            "(DB_POOL_SIZE=2 + DB_MAX_OVERFLOW=1), and none came back within DB_POOL_TIMEOUT=0.5 s.\n"
            "Next step: close sessions sooner (no network call inside a transaction), or raise the pool "
            "where the server's max_connections allows it."
        }
        # Nothing leaked: all three places are free again, and the pool still works.
        assert pool_of(Database.PLATFORM).checkedout() == 0
        with db.platform_session() as session:
            assert session.scalar(BACKEND)

    def test_is_transient_and_says_so_after_the_pool_was_renewed(self, bind: Bind) -> None:
        bind("worker", DB_POOL_SIZE=1, DB_MAX_OVERFLOW=0, DB_POOL_TIMEOUT=0.1)
        db.engine_for(Database.PLATFORM).dispose()
        with db.platform_session() as session:
            session.scalar(BACKEND)
            with pytest.raises(db.PoolExhausted) as exhausted, db.platform_session() as second:
                second.scalar(BACKEND)
        assert kind_of(exhausted.value) is FailureKind.TRANSIENT
        assert (exhausted.value.size, exhausted.value.overflow, exhausted.value.timeout_seconds) == (
            1,
            0,
            0.1,
        )


class TestFork:
    def test_children_share_no_connection_with_their_parent(
        self, environ: dict[str, str], databases: Databases, tenants: Tenants
    ) -> None:
        program = Path(__file__).with_name("fork_program.py")
        done = subprocess.run(
            [sys.executable, "-X", "dev", str(program), str(tenants.one), str(tenants.two)],
            env={
                **environ,
                "USER_DATA_DATABASE_URL": databases.user_data.url("app"),
                "DB_POOL_SIZE": "1",
                "DB_MAX_OVERFLOW": "0",
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.stderr == ""
        assert done.stdout.splitlines() == [
            "parent: one backend before and after",
            "child: 200 answers right, backend of its own, also by the engine of its parent",
            "child: 200 answers right, backend of its own, also by the engine of its parent",
        ]
        assert done.returncode == 0
