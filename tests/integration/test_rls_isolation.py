"""Tenants see and change their own rows only, in every table that policies.py declares."""

import uuid
from dataclasses import dataclass

import psycopg
import pytest
from psycopg import errors, sql

from tests.fixtures import rows
from tests.fixtures.databases import Clone, Databases
from worker import db
from worker.database_url import Database
from worker.models import policies
from worker.models.policies import Privilege, TableSecurity
from worker.settings import Settings

EVERY = [(database, each) for database in Database for each in policies.DECLARED[database]]
TENANT = [pair for pair in EVERY if pair[1].tenant_column is not None]
READABLE = [pair for pair in TENANT if Privilege.SELECT in pair[1].tenant_privileges]
WRITABLE = [pair for pair in TENANT if Privilege.UPDATE in pair[1].tenant_privileges]
CLOSED = [pair for pair in EVERY if not pair[1].tenant_privileges]


@dataclass(frozen=True)
class Two:
    """Two tenants with rows in every table of theirs, and a way to connect."""

    alice: uuid.UUID
    bob: uuid.UUID
    clones: dict[Database, Clone]

    def connect(self, database: Database, login: str = "app") -> rows.Connection:
        """This function will connect to one database; leaving the block closes."""
        return psycopg.connect(self.clones[database].url(login))


@pytest.fixture
def two(databases: Databases) -> Two:
    """Alice has two rows in every tenant table (one in users), Bob has one."""
    both = Two(
        uuid.uuid4(),
        uuid.uuid4(),
        {Database.PLATFORM: databases.platform, Database.USER_DATA: databases.user_data},
    )
    for database in Database:
        with both.connect(database, "owner") as connection:
            connection.execute("SET ROLE usage_owner")
            for user in (both.alice, both.alice, both.bob):
                for each in policies.tenant_tables(database):
                    if each.tenant_column == "id":
                        rows.parent_of(connection, database, each.table, user)
                    else:
                        rows.add(connection, database, each.table, user)
    return both


def owners_seen(connection: rows.Connection, each: TableSecurity) -> list[uuid.UUID]:
    """This function will list whose rows a plain SELECT shows."""
    column, table = sql.Identifier(str(each.tenant_column)), sql.Identifier(each.table)
    return [
        row[0] for row in connection.execute(sql.SQL("SELECT {} FROM {}").format(column, table)).fetchall()
    ]


def names(each: TableSecurity) -> tuple[sql.Identifier, sql.Identifier]:
    """This function will quote the table and its tenant column."""
    return sql.Identifier(each.table), sql.Identifier(str(each.tenant_column))


class TestCoverage:
    def test_every_table_with_a_user_is_declared_as_a_tenant_table(self) -> None:
        for database in Database:
            declared = {each.table: each.tenant_column for each in policies.DECLARED[database]}
            assert declared.keys() == rows.METADATA[database].tables.keys()
            for name, table in rows.METADATA[database].tables.items():
                expected = "user_id" if "user_id" in table.columns else "id" if name == "users" else None
                assert declared[name] == expected, name

    def test_there_is_something_to_test(self) -> None:
        assert len(TENANT) == 10
        assert len(WRITABLE) == 4
        assert {each.table for _, each in CLOSED} == {
            "usage_dead_letters",
            "subscription_changes",
            "ingest_positions",
            "usage_seals",
            "usage_producers",
            "usage_number_positions",
            "usage_repricing_events",
            "usage_repricings",
            "model_prices",
            "audit_runs",
            "audit_findings",
            "job_runs",
        }


class TestReading:
    def test_shows_own_rows_only(self, two: Two, subtests: pytest.Subtests) -> None:
        for database, each in READABLE:
            with subtests.test(table=each.table), two.connect(database) as connection:
                rows.become_tenant(connection, two.alice)
                assert owners_seen(connection, each) == [two.alice] * (1 if each.tenant_column == "id" else 2)

    def test_shows_nothing_without_a_context(self, two: Two, subtests: pytest.Subtests) -> None:
        for database, each in READABLE:
            with subtests.test(table=each.table), two.connect(database) as connection:
                rows.become_tenant(connection, None)
                assert owners_seen(connection, each) == [], "the setting was never made"
                connection.rollback()
                rows.become_tenant(connection, two.alice)
                assert owners_seen(connection, each)
                connection.commit()
                rows.become_tenant(connection, None)
                assert owners_seen(connection, each) == [], "the setting of an ended transaction reads as ''"

    def test_shows_nothing_to_an_unknown_tenant(self, two: Two, subtests: pytest.Subtests) -> None:
        for database, each in READABLE:
            with subtests.test(table=each.table), two.connect(database) as connection:
                rows.become_tenant(connection, uuid.uuid4())
                assert owners_seen(connection, each) == []

    def test_the_applications_login_has_to_become_a_tenant(self, two: Two, subtests: pytest.Subtests) -> None:
        for database, each in EVERY:
            with subtests.test(table=each.table), two.connect(database) as connection:
                query = sql.SQL("SELECT 1 FROM {}").format(sql.Identifier(each.table))
                if any(grant.role == policies.APP for grant in each.grants):
                    connection.execute(query)
                else:
                    with pytest.raises(errors.InsufficientPrivilege):
                        connection.execute(query)

    def test_the_rest_is_closed_to_tenants(self, two: Two, subtests: pytest.Subtests) -> None:
        for database, each in CLOSED:
            with subtests.test(table=each.table), two.connect(database) as connection:
                rows.become_tenant(connection, two.alice)
                with pytest.raises(errors.InsufficientPrivilege):
                    connection.execute(sql.SQL("SELECT 1 FROM {}").format(sql.Identifier(each.table)))

    def test_plans_are_readable_by_all(self, two: Two) -> None:
        with two.connect(Database.PLATFORM) as connection:
            for user in (None, two.alice):
                rows.become_tenant(connection, user)
                # Alice's and Bob's subscriptions brought a plan each.
                assert len(connection.execute("SELECT id FROM subscription_plans").fetchall()) >= 2


class TestWriting:
    def test_refuses_a_row_for_somebody_else(self, two: Two, subtests: pytest.Subtests) -> None:
        for database, each in WRITABLE:
            with subtests.test(table=each.table), two.connect(database) as connection:
                rows.become_tenant(connection, two.alice)
                rows.add(connection, database, each.table, two.alice)
                with pytest.raises(errors.InsufficientPrivilege, match="row-level security"):
                    rows.insert(connection, each.table, rows.values_for(database, each.table, two.bob))

    def test_refuses_to_give_a_row_away(self, two: Two, subtests: pytest.Subtests) -> None:
        for database, each in WRITABLE:
            with subtests.test(table=each.table), two.connect(database) as connection:
                rows.become_tenant(connection, two.alice)
                with pytest.raises(errors.InsufficientPrivilege, match="row-level security"):
                    connection.execute(sql.SQL("UPDATE {} SET {} = %s").format(*names(each)), [two.bob])

    def test_changes_own_rows_only(self, two: Two, subtests: pytest.Subtests) -> None:
        for database, each in WRITABLE:
            table, column = names(each)
            with subtests.test(table=each.table), two.connect(database) as connection:
                rows.become_tenant(connection, two.alice)
                touch = sql.SQL("UPDATE {} SET {} = {}").format(table, column, column)
                assert connection.execute(touch).rowcount == 2
                foreign = sql.SQL("DELETE FROM {} WHERE {} = %s").format(table, column)
                assert connection.execute(foreign, [two.bob]).rowcount == 0
                assert connection.execute(sql.SQL("DELETE FROM {}").format(table)).rowcount == 2
                rows.become_tenant(connection, two.bob)
                assert owners_seen(connection, each) == [two.bob]
                connection.rollback()

    def test_a_cursor_of_one_tenant_is_no_way_for_another(self, two: Two, subtests: pytest.Subtests) -> None:
        # WHERE CURRENT OF needs no right to read the row, so it asks the policies of UPDATE and DELETE alone.
        for database, each in WRITABLE:
            table, column = names(each)
            with subtests.test(table=each.table), two.connect(database) as connection:
                rows.become_tenant(connection, two.alice)
                connection.execute(sql.SQL("DECLARE probe CURSOR FOR SELECT * FROM {}").format(table))
                assert connection.execute("FETCH 1 FROM probe").fetchone() is not None
                rows.become_tenant(connection, two.bob)
                update = sql.SQL("UPDATE {} SET {} = %s WHERE CURRENT OF probe").format(table, column)
                assert connection.execute(update, [two.bob]).rowcount == 0
                delete = sql.SQL("DELETE FROM {} WHERE CURRENT OF probe").format(table)
                assert connection.execute(delete).rowcount == 0

    def test_the_platform_is_read_only_to_tenants(self, two: Two, subtests: pytest.Subtests) -> None:
        with two.connect(Database.PLATFORM) as connection:
            for each in policies.DECLARED[Database.PLATFORM]:
                table = sql.Identifier(each.table)
                column = sql.Identifier(rows.table_of(Database.PLATFORM, each.table).columns[0].name)
                statements = {
                    "insert": sql.SQL("INSERT INTO {} DEFAULT VALUES").format(table),
                    "update": sql.SQL("UPDATE {} SET {} = DEFAULT").format(table, column),
                    "delete": sql.SQL("DELETE FROM {}").format(table),
                    "truncate": sql.SQL("TRUNCATE {}").format(table),
                }
                for verb, statement in statements.items():
                    with (
                        subtests.test(table=each.table, verb=verb),
                        connection.transaction(force_rollback=True),
                    ):
                        rows.become_tenant(connection, two.alice)
                        with (
                            pytest.raises(errors.InsufficientPrivilege, match="permission denied"),
                            connection.transaction(),
                        ):
                            connection.execute(statement)

    def test_an_asset_cannot_hang_on_another_tenants_project(self, two: Two) -> None:
        with two.connect(Database.USER_DATA) as connection:
            rows.become_tenant(connection, two.alice)
            project = connection.execute("SELECT id FROM user_projects LIMIT 1").fetchall()[0][0]
            rows.become_tenant(connection, two.bob)
            values = rows.values_for(Database.USER_DATA, "user_content_assets", two.bob)
            with pytest.raises(errors.ForeignKeyViolation):
                rows.insert(connection, "user_content_assets", {**values, "project_id": project})


class TestContext:
    def test_is_gone_in_the_next_transaction_of_the_pooled_connection(
        self, two: Two, bound: Settings
    ) -> None:
        state = "SELECT pg_backend_pid(), current_user, current_setting('app.current_user_id', true)"
        with db.user_data_session(user_id=two.alice) as session:
            first = session.connection().exec_driver_sql(state).one()
            seen = session.connection().exec_driver_sql("SELECT DISTINCT user_id FROM user_projects").all()
        assert first[1:] == ("authenticated_users", str(two.alice))
        assert seen == [(two.alice,)]
        with db.engine_for(Database.USER_DATA).connect() as connection:
            second = connection.exec_driver_sql(state).one()
            connection.exec_driver_sql("SET LOCAL ROLE authenticated_users")
            assert connection.exec_driver_sql("SELECT * FROM user_projects").all() == []
        assert second[0] == first[0], "the test has to look at the same server connection"
        assert second[1] != "authenticated_users"
        assert second[2] in (None, "")
