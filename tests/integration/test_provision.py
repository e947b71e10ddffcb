"""`db init` on a PostgreSQL of its own: roles belong to the cluster, and a shared one has them already."""

import contextlib
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import psycopg
import pytest
from psycopg import sql

from worker.database_url import Database
from worker.db import _migrations, _provision
from worker.dev.servers import PostgresServer
from worker.errors import ConfigurationError, ServiceUnreachable
from worker.models import policies
from worker.settings import DatabaseSettings, load_database_settings

# Each process waits for a line, so that all of them begin at the same moment.
PROVISION = """
import sys
from worker.db import _provision
from worker.settings import load_database_settings
settings = load_database_settings()
print("ready", flush=True)
sys.stdin.readline()
_provision.provision(settings)
"""
PASSWORD = "only-for-this-test"  # noqa: S105  of logins that live as long as one test


@dataclass
class Cluster:
    """A PostgreSQL without a trace of us, and what a test made in it."""

    server: PostgresServer
    logins: list[str] = field(default_factory=list)
    databases: list[str] = field(default_factory=list)

    def superuser(self, database: str = "postgres") -> "psycopg.Connection[tuple[object, ...]]":
        """This function will connect as the administrator."""
        return psycopg.connect(self.server.url(database), autocommit=True)

    def run(self, *statements: str) -> None:
        """This function will do what an administrator is told to do."""
        with self.superuser() as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def login(self, kind: str, rights: str = "") -> str:
        """This function will create a login and return its name."""
        name = f"{kind}_{secrets.token_hex(4)}"
        self.run(f"CREATE ROLE {name} LOGIN {rights} PASSWORD '{PASSWORD}'")
        self.logins.append(name)
        return name

    def pair(self, owner: str) -> tuple[str, str]:
        """This function will create two empty databases that belong to a login."""
        names = (f"platform_{secrets.token_hex(4)}", f"user_data_{secrets.token_hex(4)}")
        self.run(*(f"CREATE DATABASE {name} OWNER {owner}" for name in names))
        self.databases.extend(names)
        return names

    def url(self, login: str, database: str) -> str:
        """This function will write a URL."""
        return f"postgresql://{login}:{PASSWORD}@127.0.0.1:{self.server.port}/{database}"

    def environ(self, owner: str, runtime: str, auditor: str) -> dict[str, str]:
        """This function will name two new databases and three logins the way an operator does."""
        found = {"PATH": "/usr/bin:/bin"}
        for prefix, name in zip(("PLATFORM", "USER_DATA"), self.pair(owner), strict=True):
            found[f"{prefix}_DATABASE_URL"] = self.url(runtime, name)
            found[f"{prefix}_DATABASE_OWNER_URL"] = self.url(owner, name)
            found[f"{prefix}_DATABASE_AUDIT_URL"] = self.url(auditor, name)
        return found

    def forget(self) -> None:
        """This function will take the cluster back to what it was."""
        with self.superuser() as connection:
            connection.execute("GRANT CONNECT ON DATABASE postgres TO PUBLIC")
            for name in self.databases:
                drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
                connection.execute(drop)
            for name in (*policies.GROUP_ROLES, *self.logins):
                connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(name)))
        self.logins.clear()
        self.databases.clear()


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One PostgreSQL for this module."""
    with PostgresServer(durable=False) as started:
        yield started


@pytest.fixture
def cluster(server: PostgresServer) -> Iterator[Cluster]:
    """It, without any role of ours."""
    found = Cluster(server)
    yield found
    found.forget()


@pytest.fixture
def environ(cluster: Cluster) -> dict[str, str]:
    """Three plain logins and two databases; the owner may create roles, as on a managed PostgreSQL."""
    return cluster.environ(
        cluster.login("owner", "CREATEROLE"), cluster.login("worker"), cluster.login("auditor")
    )


def assert_provisioned(settings: DatabaseSettings) -> None:
    """This function will check roles, heads and policies with the logins that were provisioned."""
    for database in Database:
        target = settings.database(database)
        assert _migrations.heads(target).at_head
        assert _migrations.heads(target, url=target.audit_url).at_head
        with psycopg.connect(target.url.libpq) as connection:
            connection.execute(
                sql.SQL("SELECT * FROM {}").format(sql.Identifier(policies.DECLARED[database][0].table))
            )
            connection.execute("CREATE TEMP TABLE staging (a int)")
            connection.execute("SET LOCAL ROLE authenticated_users")


def missing_statements(refused: ConfigurationError) -> dict[str, list[str]]:
    """This function will read the statements out of a refusal, under the words that say where to run them."""
    found: dict[str, list[str]] = {}
    for line in str(refused).splitlines():
        if line.startswith("-- "):
            found[line.removeprefix("-- ").partition(" of the server")[0]] = []
        elif line.endswith(";"):
            found[list(found)[-1]].append(line)
    return found


class TestProvision:
    def test_prepares_two_empty_databases(self, cluster: Cluster, environ: dict[str, str]) -> None:
        settings = load_database_settings(environ)
        report = _provision.provision(settings)
        assert report.revisions == {database: _migrations.head_of(database) for database in Database}
        assert len([each for each in report.done if "CREATE ROLE" in each]) == len(policies.GROUP_ROLES)
        assert_provisioned(settings)

    def test_again_changes_nothing(self, cluster: Cluster, environ: dict[str, str]) -> None:
        settings = load_database_settings(environ)
        _provision.provision(settings)
        for _ in range(2):
            assert _provision.provision(settings).done == []

    def test_gives_every_login_its_group_and_no_more(self, cluster: Cluster, environ: dict[str, str]) -> None:
        _provision.provision(load_database_settings(environ))
        with cluster.superuser() as connection:
            members = set(
                connection.execute(
                    "SELECT split_part(member.rolname, '_', 1), granted.rolname FROM pg_auth_members "
                    "JOIN pg_roles AS member ON member.oid = pg_auth_members.member "
                    "JOIN pg_roles AS granted ON granted.oid = pg_auth_members.roleid "
                    "WHERE member.rolname = ANY(%s) AND pg_auth_members.inherit_option",
                    [cluster.logins],
                ).fetchall()
            )
        assert members == {("owner", "usage_owner"), ("worker", "usage_worker"), ("auditor", "usage_auditor")}

    def test_works_with_nothing_but_a_superusers_url(self, cluster: Cluster) -> None:
        platform, user_data = cluster.pair("postgres")
        settings = load_database_settings(
            {
                "PLATFORM_DATABASE_URL": cluster.server.url(platform),
                "USER_DATA_DATABASE_URL": cluster.server.url(user_data),
            }
        )
        report = _provision.provision(settings)
        assert report.notes == []
        assert_provisioned(settings)
        assert _provision.provision(settings).done == []

    def test_works_with_one_plain_login_for_everything(self, cluster: Cluster) -> None:
        only = cluster.login("only", "CREATEROLE")
        settings = load_database_settings(cluster.environ(only, only, only))
        _provision.provision(settings)
        assert_provisioned(settings)

    def test_says_that_the_auditor_lacks_pg_monitor(self, cluster: Cluster, environ: dict[str, str]) -> None:
        report = _provision.provision(load_database_settings(environ))
        assert any('GRANT "pg_monitor" TO "usage_auditor"' in note for note in report.notes)
        cluster.run(f"GRANT pg_monitor TO {cluster.logins[0]} WITH ADMIN OPTION")
        report = _provision.provision(load_database_settings(environ))
        assert report.done == [f'{environ_database(environ)}: GRANT "pg_monitor" TO "usage_auditor"']
        assert report.notes == []

    def test_a_downgrade_leaves_the_roles(self, cluster: Cluster, environ: dict[str, str]) -> None:
        settings = load_database_settings(environ)
        _provision.provision(settings)
        for database in Database:
            _migrations.downgrade(settings.database(database), "base")
        with cluster.superuser() as connection:
            found = connection.execute(
                "SELECT count(*) FROM pg_roles WHERE rolname = ANY(%s)", [list(policies.GROUP_ROLES)]
            ).fetchone()
        assert found == (len(policies.GROUP_ROLES),)
        assert [each for each in _provision.provision(settings).done if "ROLE" in each] == []


def environ_database(environ: dict[str, str]) -> str:
    """This function will name the platform's database."""
    return environ["PLATFORM_DATABASE_URL"].rpartition("/")[2]


@contextlib.contextmanager
def db_init(environ: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """This function will start a process that is about to do what `db init` does."""
    with subprocess.Popen(
        [sys.executable, "-c", PROVISION],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def begin(*processes: "subprocess.Popen[str]") -> None:
    """This function will wait until all of them are ready and let them go at once."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[0]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


class TestAtOnce:
    @pytest.mark.parametrize("lock", ["in the maintenance database", "in each database, so in no common one"])
    def test_four_at_once(self, cluster: Cluster, lock: str) -> None:
        owner = cluster.login("owner", "CREATEROLE")
        worker, auditor = cluster.login("worker"), cluster.login("auditor")
        environs = [cluster.environ(owner, worker, auditor) for _ in range(4)]
        if "no common" in lock:
            cluster.run("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")
        with contextlib.ExitStack() as stack:
            running = [stack.enter_context(db_init(environ)) for environ in environs]
            begin(*running)
            for process in running:
                output, _ = process.communicate(timeout=120)
                assert process.returncode == 0, output
        for environ in environs:
            assert_provisioned(load_database_settings(environ))

    def test_waits_for_the_one_whose_turn_it_is(self, cluster: Cluster, environ: dict[str, str]) -> None:
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND datname = 'postgres'"
        with cluster.superuser() as first, db_init(environ) as second:
            first.execute("SELECT pg_advisory_lock(%s)", [_provision.ROLES_LOCK])
            begin(second)
            deadline = time.monotonic() + 30
            while first.execute(waiting, [f"usage-worker:admin:{second.pid}"]).fetchone() != (1,):
                assert time.monotonic() < deadline, "it never came"
                time.sleep(0.05)
            time.sleep(0.3)
            assert first.execute("SELECT to_regrole('usage_owner')").fetchone() == (None,), "it did not wait"
            first.execute("SELECT pg_advisory_unlock(%s)", [_provision.ROLES_LOCK])
            output, _ = second.communicate(timeout=60)
            assert second.returncode == 0, output
        assert_provisioned(load_database_settings(environ))

    def test_says_where_the_lock_is_without_the_maintenance_database(
        self, cluster: Cluster, environ: dict[str, str]
    ) -> None:
        cluster.run("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")
        report = _provision.provision(load_database_settings(environ))
        assert any("The maintenance database postgres cannot be reached" in note for note in report.notes)


class TestRefusal:
    def test_lists_what_an_administrator_has_to_run(self, cluster: Cluster) -> None:
        owner, worker, auditor = (cluster.login(kind) for kind in ("owner", "worker", "auditor"))
        settings = load_database_settings(cluster.environ(owner, worker, auditor))
        with pytest.raises(ConfigurationError, match="An administrator has to run") as refused:
            _provision.provision(settings)
        assert list(missing_statements(refused.value)) == ["in any database"]
        listed = missing_statements(refused.value)["in any database"]
        assert [each for each in listed if each.startswith("CREATE ROLE")] == [
            f'CREATE ROLE "{role}" NOLOGIN;' for role in policies.GROUP_ROLES
        ]
        assert f'GRANT "usage_worker" TO "{worker}" WITH INHERIT TRUE, SET TRUE;' in listed
        assert 'GRANT "authenticated_users" TO "usage_app" WITH INHERIT FALSE, SET TRUE;' in listed
        assert len(listed) == len(set(listed)), "both databases need the same roles, told once"
        assert "run `usage-worker db init` again" in str(refused.value)
        with psycopg.connect(settings.platform.owner_url.libpq) as connection:
            assert connection.execute("SELECT to_regclass('public.users')").fetchone() == (None,)
        cluster.run(*listed)
        # What is left needs the roles to exist, and a database's owner may do it.
        _provision.provision(settings)
        assert_provisioned(settings)

    def test_lists_the_rights_on_a_schema_of_somebody_else(self, cluster: Cluster) -> None:
        owner = cluster.login("owner", "CREATEROLE")
        environ = cluster.environ("postgres", cluster.login("worker"), cluster.login("auditor"))
        for prefix in ("PLATFORM", "USER_DATA"):
            name = environ[f"{prefix}_DATABASE_URL"].rpartition("/")[2]
            environ[f"{prefix}_DATABASE_OWNER_URL"] = cluster.url(owner, name)
        with pytest.raises(ConfigurationError) as refused:
            _provision.provision(load_database_settings(environ))
        assert missing_statements(refused.value) == {
            f"in the database {name}": ['GRANT CREATE ON SCHEMA public TO "usage_owner";']
            for name in cluster.databases
        }

    def test_a_missing_database_comes_with_the_statement(
        self, cluster: Cluster, environ: dict[str, str]
    ) -> None:
        for name in [name for name in environ if name.startswith("USER_DATA")]:
            environ[name] = environ[name].rpartition("/")[0] + "/nowhere"
        with pytest.raises(ConfigurationError, match="USER_DATA_DATABASE_OWNER_URL") as refused:
            _provision.provision(load_database_settings(environ))
        assert f'CREATE DATABASE "nowhere" OWNER "{cluster.logins[0]}"' in str(refused.value)
        assert PASSWORD not in str(refused.value)

    def test_a_wrong_password_names_the_variable(self, cluster: Cluster, environ: dict[str, str]) -> None:
        environ["PLATFORM_DATABASE_URL"] = environ["PLATFORM_DATABASE_URL"].replace(PASSWORD, "wrong")
        with pytest.raises(ConfigurationError, match="PLATFORM_DATABASE_URL"):
            _provision.provision(load_database_settings(environ))

    def test_nobody_listening_is_a_service_that_is_unreachable(self, environ: dict[str, str]) -> None:
        settings = load_database_settings(
            {name: value.replace(f":{port_of(value)}/", ":1/") for name, value in environ.items()}
        )
        with pytest.raises(ServiceUnreachable, match="PLATFORM_DATABASE_OWNER_URL"):
            _provision.provision(settings)

    def test_a_transaction_pooler_without_a_way_around_it(self, environ: dict[str, str]) -> None:
        settings = load_database_settings({**environ, "DB_POOL_MODE": "transaction"})
        with pytest.raises(ConfigurationError, match="PLATFORM_DATABASE_DIRECT_URL: missing"):
            _provision.provision(settings)


def port_of(url: str) -> str:
    """This function will cut the port out of a URL."""
    return url.rpartition(":")[2].partition("/")[0]
