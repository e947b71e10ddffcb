"""Every role can do on every table what is declared for it, and nothing else."""

import uuid

import psycopg
import pytest
from psycopg import errors, sql

from tests.fixtures import rows
from tests.fixtures.databases import Clone, Databases
from worker.database_url import Database
from worker.models import policies
from worker.models.policies import Privilege, TableSecurity

LOGINS = {
    policies.WORKER: "worker",
    policies.AUDITOR: "auditor",
    policies.APP: "app",
    policies.TENANTS: "app",
}


def clone_of(databases: Databases, database: Database) -> Clone:
    """This function will pick one of a test's databases."""
    return databases.platform if database is Database.PLATFORM else databases.user_data


def keep_pattern(owner: rows.Connection, database: Database, each: TableSecurity, user: uuid.UUID) -> None:
    """This function will leave one row in a table, and in pattern_… a second one that can be inserted."""
    table, pattern = sql.Identifier(each.table), sql.Identifier(f"pattern_{each.table}")
    rows.add(owner, database, each.table, uuid.uuid4() if each.tenant_column == "id" else user)
    owner.execute(sql.SQL("CREATE TABLE {} AS SELECT * FROM {} LIMIT 1").format(pattern, table))
    owner.execute(sql.SQL("GRANT SELECT ON {} TO PUBLIC").format(pattern))
    owner.execute(sql.SQL("DELETE FROM {}").format(table))
    rows.add(owner, database, each.table, user)


def statement(each: TableSecurity, verb: Privilege, column: str) -> sql.Composed:
    """This function will write the plainest use of a privilege; each touches a row."""
    table, name = sql.Identifier(each.table), sql.Identifier(column)
    return {
        Privilege.SELECT: sql.SQL("SELECT {name} FROM {table} LIMIT 1"),
        Privilege.INSERT: sql.SQL("INSERT INTO {table} SELECT * FROM {pattern} LIMIT 1"),
        Privilege.UPDATE: sql.SQL("UPDATE {table} SET {name} = {name}"),
        Privilege.DELETE: sql.SQL("DELETE FROM {table}"),
    }[verb].format(table=table, name=name, pattern=sql.Identifier(f"pattern_{each.table}"))


class TestGroups:
    def test_no_group_logs_in_or_stands_above_row_security(self, databases: Databases) -> None:
        with psycopg.connect(databases.platform.url("auditor")) as connection:
            found = connection.execute(
                "SELECT rolname, rolcanlogin, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, "
                "rolreplication FROM pg_roles WHERE rolname = ANY(%s)",
                [list(policies.GROUP_ROLES)],
            ).fetchall()
        assert {row[0] for row in found} == set(policies.GROUP_ROLES)
        assert all(row[1:] == (False,) * 6 for row in found)

    @pytest.mark.parametrize("login", ["worker", "app", "auditor"])
    def test_becomes_a_tenant_without_having_a_tenants_rights(self, databases: Databases, login: str) -> None:
        with psycopg.connect(databases.user_data.url(login)) as connection:
            assert connection.execute("SELECT pg_has_role('authenticated_users', 'USAGE')").fetchone() == (
                False,
            )
            with pytest.raises(errors.InsufficientPrivilege), connection.transaction():
                connection.execute(
                    "INSERT INTO user_personas (user_id, persona_name) VALUES (%s, 'x')", [uuid.uuid4()]
                )
            connection.execute("SET LOCAL ROLE authenticated_users")
            connection.execute("SELECT * FROM user_personas")

    @pytest.mark.parametrize("login", ["worker", "app", "auditor"])
    @pytest.mark.parametrize("role", ["usage_owner", "postgres"])
    def test_nobody_becomes_more_than_a_tenant(self, databases: Databases, login: str, role: str) -> None:
        with (
            psycopg.connect(databases.platform.url(login)) as connection,
            pytest.raises(errors.InsufficientPrivilege),
        ):
            connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))

    def test_the_application_has_none_of_the_workers_rights(self, databases: Databases) -> None:
        with (
            psycopg.connect(databases.platform.url("app")) as connection,
            pytest.raises(errors.InsufficientPrivilege),
        ):
            connection.execute("SET ROLE usage_worker")

    @pytest.mark.parametrize("login", ["worker", "app", "auditor"])
    def test_only_the_owner_creates_tables(self, databases: Databases, login: str) -> None:
        for clone in (databases.platform, databases.user_data):
            with psycopg.connect(clone.url(login)) as connection, pytest.raises(errors.InsufficientPrivilege):
                connection.execute("CREATE TABLE public.mine (a int)")


class TestTables:
    @pytest.mark.parametrize("role", LOGINS)
    @pytest.mark.parametrize("database", list(Database))
    def test_does_what_is_declared_and_nothing_else(
        self, databases: Databases, subtests: pytest.Subtests, database: Database, role: str
    ) -> None:
        user, clone = uuid.uuid4(), clone_of(databases, database)
        with psycopg.connect(clone.url("owner")) as owner:
            owner.execute("SET ROLE usage_owner")
            for each in policies.DECLARED[database]:
                keep_pattern(owner, database, each, user)
        with psycopg.connect(clone.url(LOGINS[role])) as connection:
            for each in policies.DECLARED[database]:
                held = {
                    verb: grant.columns
                    for grant in each.grants
                    if grant.role == role
                    for verb in grant.privileges
                }
                if role == policies.TENANTS:
                    rows.become_tenant(connection, user)
                for verb in (Privilege.INSERT, Privilege.SELECT, Privilege.UPDATE, Privilege.DELETE):
                    with subtests.test(table=each.table, verb=verb):
                        columns = held.get(verb) or [rows.table_of(database, each.table).columns[0].name]
                        wanted = statement(each, verb, columns[0])
                        with connection.transaction(force_rollback=True):
                            if verb in held:
                                assert connection.execute(wanted).rowcount >= 1
                            else:
                                with pytest.raises(errors.InsufficientPrivilege), connection.transaction():
                                    connection.execute(wanted)
                connection.rollback()

    def test_nobody_empties_a_table_at_once(self, databases: Databases, subtests: pytest.Subtests) -> None:
        for database in Database:
            for login in ("worker", "app", "auditor"):
                with psycopg.connect(clone_of(databases, database).url(login)) as connection:
                    for each in policies.DECLARED[database]:
                        with subtests.test(login=login, table=each.table):
                            found = connection.execute(
                                "SELECT has_table_privilege(%(t)s, 'TRUNCATE')"
                                " OR has_table_privilege(%(t)s, 'TRIGGER')"
                                " OR has_table_privilege(%(t)s, 'REFERENCES')",
                                {"t": each.table},
                            ).fetchone()
                            assert found == (False,)


class TestWorker:
    def test_never_changes_what_was_used_or_reported(self, databases: Databases) -> None:
        with psycopg.connect(databases.platform.url("worker")) as connection:
            rows.add(connection, Database.PLATFORM, "platform_usage_logs", uuid.uuid4())
            for change in (
                "UPDATE platform_usage_logs SET tokens_used = 0",
                "UPDATE platform_usage_logs SET cost_reported_usd = 0",
                "UPDATE model_prices SET input_per_mtok = 0",
                "DELETE FROM platform_usage_logs",
            ):
                with pytest.raises(errors.InsufficientPrivilege), connection.transaction():
                    connection.execute(change)

    def test_sees_every_tenant_and_copies_through_a_temporary_table(self, databases: Databases) -> None:
        with psycopg.connect(databases.platform.url("worker")) as connection:
            with (
                pytest.raises(errors.FeatureNotSupported, match="COPY FROM not supported"),
                connection.transaction(),
                connection.cursor().copy("COPY users (email) FROM STDIN") as copy,
            ):
                copy.write_row(["a@example.com"])
            connection.execute("CREATE TEMP TABLE staging (email text) ON COMMIT DROP")
            with connection.cursor().copy("COPY staging FROM STDIN") as copy:
                for name in ("a", "b", "c"):
                    copy.write_row([f"{name}@example.com"])
            connection.execute("INSERT INTO users (email) SELECT email FROM staging")
            assert connection.execute("SELECT count(*) FROM users").fetchone() == (3,)


class TestAuditor:
    def test_counts_dead_letters_without_reading_them(self, databases: Databases) -> None:
        with psycopg.connect(databases.platform.url("worker")) as connection:
            rows.add(connection, Database.PLATFORM, "usage_dead_letters", uuid.uuid4())
        with psycopg.connect(databases.platform.url("auditor")) as connection:
            counted = connection.execute(
                "SELECT reason, count(*) FROM usage_dead_letters GROUP BY reason"
            ).fetchall()
            assert [row[1] for row in counted] == [1]
            for secret in ("raw", "corrected_raw", "detail", "clerk_id"):
                query = sql.SQL("SELECT {} FROM usage_dead_letters").format(sql.Identifier(secret))
                with pytest.raises(errors.InsufficientPrivilege), connection.transaction():
                    connection.execute(query)

    def test_reads_the_revision_of_both_databases(self, databases: Databases) -> None:
        for database in Database:
            table = sql.Identifier(policies.VERSION_TABLES[database])
            for login in ("auditor", "worker", "app"):
                with psycopg.connect(clone_of(databases, database).url(login)) as connection:
                    assert connection.execute(sql.SQL("SELECT version_num FROM {}").format(table)).fetchone()
