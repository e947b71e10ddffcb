"""Each way to break row level security, one at a time, on our databases as they are provisioned."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.fixtures.databases import Clone, Databases
from worker.audits import findings, rls
from worker.audits.findings import AuditReport, Outcome
from worker.models import policies
from worker.models.vocabulary import Severity

Administrator = psycopg.Connection[Any]

OWN = "user_id = (SELECT nullif(current_setting('app.current_user_id', true), '')::uuid)"
TABLE = "public.user_projects"
POLICY = f"{TABLE}.tenant_isolation"

BREAKAGES = {
    "disabled": (
        "ALTER TABLE user_projects DISABLE ROW LEVEL SECURITY",
        [("rls.policies_but_disabled", TABLE, "critical")],
    ),
    "disabled and without policies": (
        "ALTER TABLE user_projects DISABLE ROW LEVEL SECURITY; DROP POLICY tenant_isolation ON user_projects;"
        "DROP POLICY owner_all ON user_projects; DROP POLICY worker_all ON user_projects",
        [("rls.rls_disabled", TABLE, "critical")],
    ),
    "not forced": (
        "ALTER TABLE user_projects NO FORCE ROW LEVEL SECURITY",
        [("rls.not_forced", TABLE, "medium")],
    ),
    "policy dropped": (
        "DROP POLICY tenant_isolation ON user_projects",
        [("rls.no_applicable_policy", TABLE, "high"), ("rls.drift", POLICY, "high")],
    ),
    "policy for reading only": (
        f"DROP POLICY tenant_isolation ON user_projects; CREATE POLICY tenant_isolation ON user_projects"
        f" FOR SELECT TO authenticated_users USING ({OWN})",
        [("rls.verb_without_policy", TABLE, "medium"), ("rls.drift", POLICY, "high")],
    ),
    "policy true": (
        "ALTER POLICY tenant_isolation ON user_projects USING (true)",
        [("rls.always_true", POLICY, "critical")],
    ),
    "or true": (
        f"ALTER POLICY tenant_isolation ON user_projects USING ({OWN} OR true)",
        [("rls.tautology", POLICY, "critical")],
    ),
    "is not null": (
        "ALTER POLICY tenant_isolation ON user_projects USING (user_id IS NOT NULL)",
        [("rls.tautology", POLICY, "critical")],
    ),
    "compares the column with itself": (
        "ALTER POLICY tenant_isolation ON user_projects USING (user_id = user_projects.user_id)",
        [("rls.tautology", POLICY, "critical")],
    ),
    "a second policy opens it": (
        "CREATE POLICY support ON user_projects FOR SELECT USING (project_name IS NOT NULL)",
        [("rls.permissive_widening", f"{TABLE}.support", "critical")],
    ),
    "a second policy is always true": (
        "CREATE POLICY support ON user_projects TO authenticated_users USING (true)",
        [("rls.always_true", f"{TABLE}.support", "critical")],
    ),
    "wrong setting": (
        "ALTER POLICY tenant_isolation ON user_projects USING"
        " (user_id = nullif(current_setting('app.user', true), '')::uuid)",
        [("rls.context_name_drift", POLICY, "high")],
    ),
    "open without a context": (
        "ALTER POLICY tenant_isolation ON user_projects USING"
        " (user_id = coalesce(nullif(current_setting('app.current_user_id', true), '')::uuid, user_id))",
        [("rls.fail_open", POLICY, "critical")],
    ),
    "open where the context was never set": (
        "ALTER POLICY tenant_isolation ON user_projects USING"
        f" (current_setting('app.current_user_id', true) IS NULL OR {OWN})",
        [("rls.fail_open", POLICY, "critical")],
    ),
    "open where the context is empty": (
        "ALTER POLICY tenant_isolation ON user_projects USING"
        f" (current_setting('app.current_user_id', true) = '' OR {OWN})",
        [("rls.fail_open", POLICY, "critical")],
    ),
    "check true": (
        "ALTER POLICY tenant_isolation ON user_projects WITH CHECK (true)",
        [("rls.check_looser", POLICY, "critical")],
    ),
    "removal open": (
        "CREATE POLICY cleanup ON user_projects FOR DELETE TO authenticated_users USING (true)",
        [("rls.write_broader_than_read", f"{TABLE}.cleanup", "critical")],
    ),
    "wrong column": (
        "ALTER POLICY tenant_isolation ON user_projects USING"
        " (id = nullif(current_setting('app.current_user_id', true), '')::uuid)",
        [("rls.wrong_column", TABLE, "high")],
    ),
    "calls what the tenants may not call": (
        "CREATE FUNCTION mine(uuid) RETURNS boolean LANGUAGE sql STABLE AS $$ SELECT true $$;"
        "REVOKE EXECUTE ON FUNCTION mine(uuid) FROM PUBLIC;"
        "ALTER POLICY tenant_isolation ON user_projects USING (mine(user_id))",
        [("rls.runtime_error", POLICY, "high")],
    ),
    "rows without an owner": (
        "ALTER TABLE user_projects ALTER COLUMN user_id DROP NOT NULL;"
        f"ALTER POLICY tenant_isolation ON user_projects USING ({OWN} OR user_id IS NULL)",
        [("rls.orphan_match", POLICY, "high"), ("rls.tenant_column_nullable", TABLE, "low")],
    ),
    "truncate granted": (
        "GRANT TRUNCATE ON user_projects TO authenticated_users",
        [
            ("rls.beyond_rls_privilege", TABLE, "high"),
            ("rls.drift", f"{TABLE} to authenticated_users", "high"),
        ],
    ),
    "granted to everybody": (
        "GRANT SELECT ON user_projects TO PUBLIC",
        [("rls.drift", f"{TABLE} to public", "high")],
    ),
    "a new table without protection": (
        "CREATE TABLE drafts (id uuid PRIMARY KEY, user_id uuid NOT NULL); CREATE INDEX ON drafts (user_id);"
        "GRANT SELECT (id) ON drafts TO authenticated_users",
        [("rls.rls_disabled", "public.drafts", "critical")],
    ),
    "a new table that nobody reaches": (
        "CREATE TABLE drafts (id uuid PRIMARY KEY, user_id uuid NOT NULL); CREATE INDEX ON drafts (user_id)",
        [("rls.rls_disabled", "public.drafts", "low")],
    ),
    "a child without protection": (
        "CREATE TABLE notes (id uuid PRIMARY KEY, project_id uuid REFERENCES user_projects (id));"
        "GRANT SELECT ON notes TO authenticated_users",
        [("rls.indirect_child", "public.notes", "high")],
    ),
    "a table of nobody's that tenants change": (
        "CREATE TABLE prices (model text PRIMARY KEY); GRANT SELECT, UPDATE ON prices TO authenticated_users",
        [("rls.reference_table_writable", "public.prices", "medium")],
    ),
    "a partition on its own": (
        "CREATE TABLE visits (user_id uuid NOT NULL, day date) PARTITION BY RANGE (day);"
        "CREATE INDEX ON visits (user_id);"
        "ALTER TABLE visits ENABLE ROW LEVEL SECURITY; ALTER TABLE visits FORCE ROW LEVEL SECURITY;"
        f"CREATE POLICY own ON visits TO authenticated_users USING ({OWN});"
        "CREATE TABLE visits_now PARTITION OF visits DEFAULT;"
        "GRANT SELECT ON visits, visits_now TO authenticated_users",
        [("rls.partition_exposed", "public.visits_now", "high")],
    ),
    "index dropped": (
        "DROP INDEX ix_user_personas_user_id",
        [("rls.missing_tenant_index", "public.user_personas", "info")],
    ),
    "table dropped": (
        "DROP TABLE user_personas",
        [("rls.expected_table_missing", "public.user_personas", "high")],
    ),
    "a view as a superuser": (
        "CREATE VIEW every_project AS SELECT * FROM user_projects;"
        "GRANT SELECT ON every_project TO authenticated_users",
        [("rls.view_bypass", "public.every_project", "critical")],
    ),
    "a view as the owner, over a view that asks its reader": (
        "CREATE VIEW asking WITH (security_invoker = true) AS SELECT * FROM user_projects;"
        "CREATE VIEW answering AS SELECT * FROM asking;"
        "GRANT SELECT ON asking, answering TO authenticated_users;"
        "ALTER VIEW asking OWNER TO usage_owner; ALTER VIEW answering OWNER TO usage_owner",
        [("rls.view_bypass", "public.answering", "critical")],
    ),
    "a materialized view": (
        "CREATE MATERIALIZED VIEW totals AS SELECT user_id, count(*) FROM user_projects GROUP BY user_id;"
        "GRANT SELECT ON totals TO authenticated_users",
        [("rls.matview", "public.totals", "high")],
    ),
}


def audit(clone: Clone, database: str, *, login: str = "auditor", **values: Any) -> AuditReport:
    with psycopg.connect(clone.url(login)) as connection:
        report = rls.audit(connection, database=database, **{"role": policies.TENANTS, **values})
        connection.rollback()
    return report


@pytest.fixture
def administrator(databases: Databases) -> Iterator[Administrator]:
    """Somebody with every right, in the user-data database."""
    with psycopg.connect(databases.user_data.url("superuser"), autocommit=True) as connection:
        yield connection


class TestAsProvisioned:
    def test_passes_every_check_on_both_databases(self, databases: Databases) -> None:
        for report in (audit(databases.platform, "platform"), audit(databases.user_data, "user_data")):
            assert report.findings == []
            outcomes = {check.check_id: check.outcome for check in report.checks}
            assert outcomes == dict.fromkeys(rls.CHECK_IDS, Outcome.PASS)

    def test_judges_a_login_of_the_applications_like_the_tenants(self, databases: Databases) -> None:
        # What an application's login may do before it becomes a tenant: nothing on the tenants' tables.
        report = audit(databases.user_data, "user_data", login="app", role=None)
        assert report.findings == []


class TestBreakage:
    @pytest.mark.parametrize("name", BREAKAGES)
    def test_is_found_by_its_check_and_its_object(
        self, databases: Databases, administrator: Administrator, name: str
    ) -> None:
        statements, expected = BREAKAGES[name]
        administrator.execute(statements.encode())
        report = audit(databases.user_data, "user_data")
        found = {(one.check_id, one.object): one.severity for one in report.findings}
        outcomes = {check.check_id: check.outcome for check in report.checks}
        for check_id, label, severity in expected:
            assert found.get((check_id, label)) == Severity(severity), sorted(found)
            assert outcomes[check_id] is Outcome.FAIL
        # What is declared differs too wherever a policy or grant was touched; nothing else may be claimed.
        claimed = {check_id for check_id, _ in found} - {"rls.drift"}
        allowed = {check_id for check_id, _, _ in expected}
        assert claimed <= allowed | BESIDE.get(name, set())

    def test_is_gone_when_it_is_repaired(self, databases: Databases, administrator: Administrator) -> None:
        administrator.execute("ALTER TABLE user_projects NO FORCE ROW LEVEL SECURITY")
        assert audit(databases.user_data, "user_data").findings
        administrator.execute("ALTER TABLE user_projects FORCE ROW LEVEL SECURITY")
        assert audit(databases.user_data, "user_data").findings == []

    def test_by_a_default_for_every_session_is_found(
        self, databases: Databases, administrator: Administrator
    ) -> None:
        administrator.execute(
            sql.SQL("ALTER DATABASE {} SET app.current_user_id = {}").format(
                sql.Identifier(databases.user_data.name), sql.Literal(str(uuid.uuid4()))
            )
        )
        report = audit(databases.user_data, "user_data")
        assert [(one.check_id, one.object) for one in report.findings] == [
            ("rls.default_setting", "every role")
        ]

    def test_of_a_table_with_an_awkward_name_is_quoted(
        self, databases: Databases, administrator: Administrator
    ) -> None:
        name = 'Robert"); DROP TABLE user_projects;-- %s {0}'
        label = sql.Identifier(name)
        administrator.execute(
            sql.SQL(
                "CREATE TABLE {0} (user_id uuid NOT NULL, {0} boolean, flag boolean);"
                "CREATE INDEX ON {0} (user_id); GRANT SELECT ON {0} TO authenticated_users;"
                "ALTER TABLE {0} ENABLE ROW LEVEL SECURITY; ALTER TABLE {0} FORCE ROW LEVEL SECURITY;"
                "CREATE POLICY {0} ON {0} USING (flag)"
            ).format(label)
        )
        report = audit(databases.user_data, "user_data")
        found = {(one.check_id, one.object) for one in report.findings}
        assert ("rls.permissive_widening", f"public.{name}.{name}") in found
        remediation = next(one.remediation for one in report.findings if one.check_id.endswith("widening"))
        assert sql.Identifier("public", name).as_string(None) in remediation
        assert administrator.execute("SELECT to_regclass('user_projects') IS NOT NULL").fetchone() == (True,)


BESIDE = {
    # Facts of the same breakage that carry a name of their own.
    "a second policy is always true": {"rls.permissive_widening"},
    "removal open": {"rls.always_true", "rls.permissive_widening"},
}


class TestPublicRead:
    def test_spares_the_policy_that_is_named_and_its_reading_only(
        self, databases: Databases, administrator: Administrator
    ) -> None:
        administrator.execute("CREATE POLICY shared ON user_projects FOR SELECT USING (project_type = 'x')")
        named = f"{TABLE}.shared"
        claimed = {one.check_id for one in audit(databases.user_data, "other").findings}
        assert claimed == {"rls.permissive_widening"}
        assert audit(databases.user_data, "other", public_read=[named]).findings == []
        administrator.execute("DROP POLICY shared ON user_projects")
        administrator.execute("CREATE POLICY shared ON user_projects USING (project_type = 'x')")
        report = audit(databases.user_data, "other", public_read=[named])
        assert {one.check_id for one in report.findings} == {
            "rls.permissive_widening",
            "rls.write_broader_than_read",
        }


class TestWithFewerRights:
    def test_is_inconclusive_and_never_a_pass(
        self, databases: Databases, administrator: Administrator
    ) -> None:
        login, password = f"weak_{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
        administrator.execute(
            sql.SQL("CREATE ROLE {0} LOGIN PASSWORD {1}; GRANT CONNECT ON DATABASE {2} TO {0}").format(
                sql.Identifier(login), sql.Literal(password), sql.Identifier(databases.user_data.name)
            )
        )
        with psycopg.connect(databases.user_data.url("superuser"), user=login, password=password) as weak:
            report = rls.audit(weak, database="user_data", role=policies.TENANTS)
        outcomes = {check.check_id: check.outcome for check in report.checks}
        assert outcomes["rls.rls_disabled"] is Outcome.PASS
        assert outcomes["rls.tautology"] is Outcome.INCONCLUSIVE
        assert outcomes["rls.fail_open"] is Outcome.INCONCLUSIVE
        assert not findings.exceeds([report], fail_on=Severity.MEDIUM)
        assert findings.exceeds([report], fail_on=Severity.MEDIUM, strict=True)

    def test_of_a_role_that_is_not_there_is_inconclusive(self, databases: Databases) -> None:
        report = audit(databases.user_data, "user_data", role="nobody_of_that_name")
        assert {check.outcome for check in report.checks} == {Outcome.INCONCLUSIVE}
        assert len(report.checks) == len(rls.CHECK_IDS)


class TestHarmlessness:
    def test_writes_nothing_and_leaves_no_role_or_context(self, databases: Databases) -> None:
        with psycopg.connect(databases.user_data.url("auditor")) as connection:
            rls.audit(connection, database="user_data", role=policies.TENANTS)
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                connection.execute("CREATE TEMP TABLE written (id int)")
            connection.rollback()
            left = connection.execute(
                "SELECT current_user = session_user, current_setting('app.current_user_id', true)"
            ).fetchone()
        assert left is not None
        assert left[0] is True
        assert left[1] in (None, "")

    def test_names_no_literal_of_a_policy(self, databases: Databases, administrator: Administrator) -> None:
        administrator.execute(
            "ALTER POLICY tenant_isolation ON user_projects USING (project_name <> 's3cret-token')"
        )
        report = audit(databases.user_data, "user_data")
        assert report.findings
        assert "s3cret-token" not in json.dumps(report.as_document())

    def test_answers_in_the_documented_shape(
        self, databases: Databases, administrator: Administrator
    ) -> None:
        administrator.execute("ALTER TABLE user_projects DISABLE ROW LEVEL SECURITY")
        report = audit(databases.user_data, "user_data")
        document = json.loads(json.dumps(report.as_document()))
        assert list(document) == ["run_id", "checks", "findings"]
        assert {tuple(check) for check in document["checks"]} == {("check_id", "outcome", "reason")}
        assert {tuple(finding) for finding in document["findings"]} == {
            ("check_id", "severity", "database", "object", "message", "remediation", "fingerprint")
        }
