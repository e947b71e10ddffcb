"""test_connections, get_database_info, init_databases: what they return, refuse and never do."""

import json
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from tests.fixtures.databases import Databases
from tests.integration.db.relay import Relay
from tests.integration.db.tenants import Bind
from worker import db
from worker.database_url import Database
from worker.dev import servers
from worker.errors import ConfigurationError, ServiceUnreachable

NOWHERE = "postgresql://app:S3cretWord@127.0.0.1:1/usage"


def everywhere(prefix: str, url: str) -> dict[str, str]:
    """All logins of one database by the same URL."""
    return {f"{prefix}_DATABASE_{kind}URL": url for kind in ("", "OWNER_", "AUDIT_")}


@pytest.fixture
def elsewhere(databases: Databases) -> Iterator[str]:
    """A URL of a database of the platform's name and login, on a server of its own."""
    with servers.PostgresServer(durable=False) as server:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("CREATE ROLE dev_worker LOGIN PASSWORD 'x'")
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(databases.platform.name)))
        yield server.url(databases.platform.name, username="dev_worker", password="x")  # noqa: S106 - a test's


class TestTestConnections:
    def test_reports_both(self, bind: Bind) -> None:
        settings = bind("worker")
        report = db.test_connections()
        assert list(report) == ["platform", "user_data"]
        for name, way in report.items():
            assert set(way) == {"url", "status", "latency_ms", "error", "pool_mode", "direct"}
            assert way["url"] == settings.database(Database(name)).url.redacted
            assert (way["status"], way["error"], way["pool_mode"], way["direct"]) == (
                "connected",
                None,
                "session",
                None,
            )
            assert way["latency_ms"] is not None
            assert way["latency_ms"] > 0
        json.dumps(report)

    def test_reports_the_way_around_the_pooler(self, bind: Bind, databases: Databases) -> None:
        bind(
            "worker",
            DB_POOL_MODE="transaction",
            PLATFORM_DATABASE_DIRECT_URL=databases.platform.url("worker"),
        )
        report = db.test_connections()
        direct = report["platform"]["direct"]
        assert direct is not None
        assert direct["status"] == "connected"
        assert report["user_data"]["pool_mode"] == "transaction"
        assert report["user_data"]["direct"] is None

    def test_reports_one_that_is_down_without_raising(self, bind: Bind) -> None:
        bind("worker", **everywhere("USER_DATA", NOWHERE))
        report = db.test_connections()
        assert report["platform"]["status"] == "connected"
        assert report["user_data"]["status"] == "unreachable"
        assert report["user_data"]["latency_ms"] is None
        assert "USER_DATA_DATABASE_URL: nothing listens there" in (report["user_data"]["error"] or "")
        assert "S3cretWord" not in json.dumps(report)

    def test_tells_a_wrong_password_from_a_server_that_is_down(
        self, bind: Bind, databases: Databases
    ) -> None:
        url = databases.platform.url("worker").replace("dev_worker:", "dev_worker:x")
        bind("worker", **everywhere("PLATFORM", url))
        assert db.test_connections()["platform"]["status"] == "misconfigured"

    def test_is_no_test_for_pytest(self) -> None:
        assert db.test_connections.__test__ is False  # type: ignore[attr-defined]  # pytest's mark


class TestGetDatabaseInfo:
    def test_describes_both(self, bind: Bind, databases: Databases) -> None:
        bind("worker", DB_POOL_SIZE=4, DB_MAX_OVERFLOW=1)
        info = db.get_database_info()
        assert list(info) == ["platform", "user_data"]
        for name, facts in info.items():
            clone = getattr(databases, name)
            assert facts["database"] == clone.name
            assert (facts["host"], facts["port"], facts["login"]) == (
                "127.0.0.1",
                clone.postgres.port,
                "dev_worker",
            )
            assert facts["server_version"].startswith("18")
            assert facts["size_bytes"] > 1_000_000
            assert facts["max_connections"] == 400
            assert facts["at_head"]
            assert facts["current_revision"] == facts["head_revision"]
            assert facts["pool"] == {"size": 4, "max_overflow": 1, "checked_out": 0, "idle": 1}
        text = json.dumps(info)
        assert databases.platform.postgres.passwords["worker"] not in text
        assert ":***@" in text

    def test_raises_when_one_is_down(self, bind: Bind) -> None:
        bind("worker", **everywhere("USER_DATA", NOWHERE))
        with pytest.raises(ServiceUnreachable, match="USER_DATA_DATABASE_URL"):
            db.get_database_info()


def fingerprint(databases: Databases) -> list[tuple[object, ...]]:
    """Everything that could have been created in either database, or changed."""
    found: list[tuple[object, ...]] = []
    for clone in (databases.platform, databases.user_data):
        with psycopg.connect(clone.url("superuser")) as connection:
            found += connection.execute(
                "SELECT relname, relkind, relowner, relacl::text, relrowsecurity, relforcerowsecurity "
                "FROM pg_class ORDER BY 1"
            ).fetchall()
            found += connection.execute("SELECT polname, polrelid::regclass::text FROM pg_policy").fetchall()
    return found


class TestInitDatabases:
    def test_proves_and_changes_nothing(self, bind: Bind, databases: Databases) -> None:
        bind("worker")
        before = fingerprint(databases)
        for _ in range(2):
            db.init_databases()
        assert fingerprint(databases) == before

    def test_works_for_an_applications_login(self, bind: Bind) -> None:
        bind("app")
        db.init_databases()

    def test_refuses_an_empty_database(self, bind: Bind, databases: Databases) -> None:
        name = f"empty_{databases.platform.name}"
        with psycopg.connect(databases.platform.url("superuser"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        url = databases.platform.url("worker").replace(databases.platform.name, name)
        bind("worker", **everywhere("PLATFORM", url))
        with pytest.raises(ConfigurationError) as refused:
            db.init_databases()
        assert str(refused.value).startswith(
            "PLATFORM_DATABASE_URL: the schema is at revision (none), and this release needs "
        )
        assert str(refused.value).endswith("Next step: run `usage-worker db init`.")

    def test_refuses_an_older_schema(self, bind: Bind, databases: Databases) -> None:
        with psycopg.connect(databases.user_data.url("superuser")) as connection:
            tables = connection.execute(
                "SELECT relname FROM pg_class WHERE relname LIKE '%version%' AND relkind = 'r' "
                "AND relnamespace = 'public'::regnamespace"
            ).fetchall()
            assert len(tables) == 1
            connection.execute(
                sql.SQL("UPDATE public.{} SET version_num = '0000'").format(sql.Identifier(tables[0][0]))
            )
        bind("worker")
        with pytest.raises(
            ConfigurationError, match="USER_DATA_DATABASE_URL: the schema is at revision 0000"
        ) as old:
            db.init_databases()
        assert str(old.value).endswith("Next step: run `usage-worker db migrate`.")

    def test_refuses_one_database_under_two_names(self, bind: Bind, databases: Databases) -> None:
        # A relay is to the server what a second DNS name is: no comparison of the URLs sees through it.
        port = databases.platform.postgres.port
        with Relay(port) as relay:
            url = databases.platform.url("worker").replace(f":{port}/", f":{relay.port}/")
            bind("worker", **everywhere("USER_DATA", url))
            # Its schema is not the user data's; that is not what the message must be about.
            with pytest.raises(ConfigurationError, match="both reach the same database, under two names"):
                db.init_databases()

    def test_refuses_a_direct_way_to_another_database(self, bind: Bind, elsewhere: str) -> None:
        bind("worker", PLATFORM_DATABASE_DIRECT_URL=elsewhere)
        with pytest.raises(
            ConfigurationError, match="PLATFORM_DATABASE_DIRECT_URL: reaches another database"
        ):
            db.init_databases()

    def test_names_the_one_that_is_down(self, bind: Bind) -> None:
        bind("worker", **everywhere("USER_DATA", NOWHERE))
        with pytest.raises(ServiceUnreachable, match="USER_DATA_DATABASE_URL: nothing listens there"):
            db.init_databases()
