"""setup_row_level_security() brings a live database back to the declared policies, and says what it did."""

import psycopg
import pytest

from tests.fixtures.databases import Clone, Databases
from worker import db
from worker.database_url import Database
from worker.db import Login, _security
from worker.errors import ConfigurationError
from worker.models import policies
from worker.models.live_policies import PolicyDifference, Problem, canonical, policy_differences
from worker.settings import Settings, load_settings

OWN = policies.tenant_expression("user_id")

ALTERED = {
    "force dropped": (
        "ALTER TABLE usage_hourly NO FORCE ROW LEVEL SECURITY",
        Problem.FORCE,
    ),
    "switched off": ("ALTER TABLE usage_hourly DISABLE ROW LEVEL SECURITY", Problem.ROW_SECURITY),
    "switched on where nobody could read": (
        "ALTER TABLE job_runs ENABLE ROW LEVEL SECURITY",
        Problem.ROW_SECURITY,
    ),
    "policy dropped": ("DROP POLICY worker_all ON usage_hourly", Problem.POLICY_MISSING),
    "opened to all": (
        "ALTER POLICY tenant_isolation ON usage_hourly USING (true)",
        Problem.POLICY_ALTERED,
    ),
    "opened by an alternative": (
        f"ALTER POLICY tenant_isolation ON usage_hourly USING ({OWN} OR user_id IS NOT NULL)",
        Problem.POLICY_ALTERED,
    ),
    "check opened": (
        "ALTER POLICY tenant_isolation ON usage_hourly WITH CHECK (true)",
        Problem.POLICY_ALTERED,
    ),
    "another setting": (
        "ALTER POLICY tenant_isolation ON usage_hourly USING "
        "(user_id = (select nullif(current_setting('app.user_id', true), '')::uuid))",
        Problem.POLICY_ALTERED,
    ),
    "another role": ("ALTER POLICY worker_all ON usage_hourly TO PUBLIC", Problem.POLICY_ALTERED),
    "another command": (
        "DROP POLICY tenant_isolation ON usage_hourly; CREATE POLICY tenant_isolation ON usage_hourly "
        f"FOR UPDATE TO authenticated_users USING ({OWN}) WITH CHECK ({OWN})",
        Problem.POLICY_ALTERED,
    ),
    "made restrictive": (
        "DROP POLICY tenant_isolation ON usage_hourly; CREATE POLICY tenant_isolation ON usage_hourly "
        f"AS RESTRICTIVE TO authenticated_users USING ({OWN}) WITH CHECK ({OWN})",
        Problem.POLICY_ALTERED,
    ),
    "one of ours in the wrong place": (
        "CREATE POLICY auditor_read ON users FOR SELECT TO usage_auditor USING (true)",
        Problem.POLICY_MISPLACED,
    ),
    "grant taken": ("REVOKE UPDATE ON usage_hourly FROM usage_worker", Problem.GRANT_MISSING),
    "grant added": ("GRANT INSERT ON usage_hourly TO authenticated_users", Problem.GRANT_EXCESS),
    "grant to everybody": ("GRANT SELECT ON usage_hourly TO PUBLIC", Problem.GRANT_EXCESS),
    "grant on a column": (
        "GRANT SELECT (raw) ON usage_dead_letters TO usage_auditor",
        Problem.GRANT_EXCESS,
    ),
    "grant to truncate": ("GRANT TRUNCATE ON usage_hourly TO usage_worker", Problem.GRANT_EXCESS),
    "version hidden": ("REVOKE SELECT ON alembic_version_platform FROM usage_app", Problem.GRANT_MISSING),
}


def by_hand(clone: Clone, statements: str) -> None:
    """This function will do what somebody did at the console."""
    with psycopg.connect(clone.url("owner")) as connection:
        connection.execute("SET ROLE usage_owner")
        connection.execute(statements.encode())


def differences(database: Database) -> list[PolicyDifference]:
    """This function will ask as the auditor, who holds no more than that."""
    with db.engine_for(database, Login.AUDIT).connect() as connection:
        return policy_differences(connection, database)


class TestSetup:
    def test_three_times_changes_nothing(self, bound: Settings) -> None:
        for _ in range(3):
            assert _security.setup_row_level_security() == _security.SecurityReport((), ())

    def test_repairs_what_was_altered_by_hand(
        self, bound: Settings, databases: Databases, subtests: pytest.Subtests
    ) -> None:
        for name, (statements, problem) in ALTERED.items():
            with subtests.test(name):
                by_hand(databases.platform, statements)
                assert {each.problem for each in differences(Database.PLATFORM)} == {problem}
                report = _security.setup_row_level_security()
                assert {each.problem for each in report.repaired} == {problem}
                assert report.remaining == ()
                assert differences(Database.PLATFORM) == []
                assert _security.setup_row_level_security() == _security.SecurityReport((), ())

    def test_repairs_both_databases(self, bound: Settings, databases: Databases) -> None:
        by_hand(databases.platform, "DROP POLICY tenant_isolation ON users")
        by_hand(databases.user_data, "DROP POLICY tenant_isolation ON user_personas")
        repaired = _security.setup_row_level_security().repaired
        assert [(each.database, each.table) for each in repaired] == [
            (Database.PLATFORM, "users"),
            (Database.USER_DATA, "user_personas"),
        ]

    def test_every_tenant_table_is_watched(self, bound: Settings, subtests: pytest.Subtests) -> None:
        for database in Database:
            for each in policies.tenant_tables(database):
                with (
                    subtests.test(table=each.table),
                    db.engine_for(database, Login.OWNER).connect() as connection,
                ):
                    connection.exec_driver_sql("SET LOCAL ROLE usage_owner")
                    connection.exec_driver_sql(f"ALTER TABLE {each.table} NO FORCE ROW LEVEL SECURITY")
                    connection.exec_driver_sql(f"DROP POLICY tenant_isolation ON {each.table}")
                    found = {(one.table, one.problem) for one in policy_differences(connection, database)}
                    assert found == {(each.table, Problem.FORCE), (each.table, Problem.POLICY_MISSING)}

    def test_leaves_alone_and_reports_what_is_not_ours(self, bound: Settings, databases: Databases) -> None:
        by_hand(databases.platform, 'CREATE POLICY "By hand" ON users FOR SELECT TO PUBLIC USING (true)')
        report = _security.setup_row_level_security()
        assert report.repaired == ()
        assert [(each.problem, each.ours) for each in report.remaining] == [(Problem.POLICY_FOREIGN, False)]
        assert report.remaining[0].remediation == ('DROP POLICY "By hand" ON users',)

    def test_reports_a_table_that_changed_hands(self, bound: Settings, databases: Databases) -> None:
        with psycopg.connect(databases.platform.url("superuser")) as connection:
            connection.execute("ALTER TABLE job_runs OWNER TO postgres")
        found = differences(Database.PLATFORM)
        assert [(each.problem, each.ours) for each in found if each.problem is Problem.OWNER] == [
            (Problem.OWNER, False)
        ]

    def test_does_not_build_tables(self, bound: Settings, databases: Databases) -> None:
        by_hand(databases.platform, "DROP TABLE job_runs")
        with pytest.raises(ConfigurationError, match=r"job_runs not found.*usage-worker db init"):
            _security.setup_row_level_security()

    def test_needs_the_owners_login(self, environ: dict[str, str], databases: Databases) -> None:
        environ["PLATFORM_DATABASE_OWNER_URL"] = databases.platform.url("worker")
        db.configure(load_settings(environ))
        try:
            with pytest.raises(
                ConfigurationError, match="PLATFORM_DATABASE_OWNER_URL: this login may not become"
            ):
                _security.setup_row_level_security()
        finally:
            db.close_databases()


class TestCanonical:
    def test_is_one_form_of_what_was_written_and_what_postgresql_shows(self) -> None:
        shown = (
            "(user_id = ( SELECT (NULLIF(current_setting('app.current_user_id'::text, true), "
            "''::text))::uuid AS \"nullif\"))"
        )
        assert canonical(shown) == canonical(OWN)

    @pytest.mark.parametrize(
        "other",
        [
            f"{OWN} OR true",
            OWN.replace("app.current_user_id", "app.other"),
            OWN.replace("user_id =", "user_id <>"),
            OWN.replace(", true", ", false"),
            "true",
            None,
        ],
    )
    def test_tells_others_apart(self, other: str | None) -> None:
        assert canonical(other) != canonical(OWN)
