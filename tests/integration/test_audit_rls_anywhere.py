"""The audit of a database that is not ours: other roles, types, schemas and settings."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.fixtures.databases import Databases
from worker.audits import rls
from worker.audits.findings import AuditReport, Outcome


@dataclass(frozen=True)
class Elsewhere:
    """A schema of somebody else's, with an owner and a role that the application uses."""

    administrator: psycopg.Connection[Any]
    url: str
    schema: str
    owner: str
    role: str

    def run(self, statements: str, *, owner: bool = True) -> None:
        """`app`, `boss` and `s` stand for the role, the owner and the schema."""
        names = {"app": self.role, "boss": self.owner, "s": self.schema}
        for word, name in names.items():
            statements = statements.replace(f"<{word}>", sql.Identifier(name).as_string(None))
        if owner:
            statements = (
                sql.Identifier(self.owner).as_string(None).join(("SET ROLE ", f"; {statements}; RESET ROLE"))
            )
        self.administrator.execute(statements.encode())

    def audit(self, **values: Any) -> AuditReport:
        with psycopg.connect(self.url) as connection:
            report = rls.audit(
                connection, database="url", **{"role": self.role, "setting": "acme.tenant", **values}
            )
            connection.rollback()
        return report


SOUND = """
    CREATE TABLE <s>.invoices (tenant text NOT NULL, paid boolean NOT NULL, note text);
    CREATE INDEX ON <s>.invoices (tenant);
    ALTER TABLE <s>.invoices ENABLE ROW LEVEL SECURITY; ALTER TABLE <s>.invoices FORCE ROW LEVEL SECURITY;
    CREATE POLICY own ON <s>.invoices USING (tenant = nullif(current_setting('acme.tenant', true), ''));
    GRANT SELECT, INSERT, UPDATE, DELETE ON <s>.invoices TO <app>
"""


@pytest.fixture
def elsewhere(databases: Databases) -> Iterator[Elsewhere]:
    nonce = uuid.uuid4().hex[:8]
    url = databases.user_data.url("superuser")
    with psycopg.connect(url, autocommit=True) as administrator:
        there = Elsewhere(administrator, url, f"acme_{nonce}", f"boss_{nonce}", f"app_{nonce}")
        there.run(
            "CREATE ROLE <boss>; CREATE ROLE <app>; CREATE SCHEMA <s> AUTHORIZATION <boss>;"
            "GRANT USAGE ON SCHEMA <s> TO <app>",
            owner=False,
        )
        there.run(SOUND)
        yield there


def claims(report: AuditReport, schema: str) -> set[tuple[str, str]]:
    return {
        (finding.check_id, finding.object.removeprefix(f"{schema}."))
        for finding in report.findings
        if schema in finding.object
        or finding.check_id.startswith(("rls.superuser", "rls.bypass", "rls.dan", "rls.set"))
    }


class TestElsewhere:
    def test_finds_nothing_wrong_with_a_sound_table_of_text_tenants(self, elsewhere: Elsewhere) -> None:
        report = elsewhere.audit(tenant_column="tenant")
        assert claims(report, elsewhere.schema) == set()
        outcomes = {check.check_id: check.outcome for check in report.checks}
        assert outcomes.pop("rls.drift") is Outcome.SKIPPED
        assert set(outcomes.values()) == {Outcome.PASS}

    @pytest.mark.parametrize(
        ("statements", "expected"),
        [
            (
                "ALTER POLICY own ON <s>.invoices USING (tenant = current_setting('acme.tenant', true))",
                {("rls.blank_text_tenant", "invoices.own")},
            ),
            (
                "ALTER POLICY own ON <s>.invoices USING"
                " (tenant LIKE current_setting('acme.tenant', true) || '%')",
                {("rls.fail_open", "invoices.own")},
            ),
            (
                "CREATE POLICY paid ON <s>.invoices FOR SELECT USING (paid)",
                {("rls.permissive_widening", "invoices.paid")},
            ),
            (
                "CREATE POLICY floor ON <s>.invoices AS RESTRICTIVE USING (tenant ="
                " current_setting('acme.tenant', true)); CREATE POLICY all_ ON <s>.invoices USING (true)",
                # The floor holds for every other tenant; for rows of '' it has the floor's own weakness.
                {("rls.blank_text_tenant", "invoices.all_")},
            ),
            (
                "CREATE POLICY staff ON <s>.invoices TO <boss> USING (true)",
                set(),
            ),
        ],
    )
    def test_reads_policies_as_the_server_does(
        self, elsewhere: Elsewhere, statements: str, expected: set[tuple[str, str]]
    ) -> None:
        elsewhere.run(statements)
        assert claims(elsewhere.audit(tenant_column="tenant"), elsewhere.schema) == expected

    def test_counts_a_policy_for_a_role_that_the_role_inherits(self, elsewhere: Elsewhere) -> None:
        elsewhere.run("CREATE POLICY staff ON <s>.invoices TO <boss> USING (true)")
        elsewhere.run("GRANT <boss> TO <app>", owner=False)
        found = claims(elsewhere.audit(tenant_column="tenant"), elsewhere.schema)
        assert ("rls.always_true", "invoices.staff") in found
        assert ("rls.owner_can_disable", "invoices") in found
        assert ("rls.set_role_escape", elsewhere.owner) in found

    @pytest.mark.parametrize(
        ("statement", "check_id"),
        [
            ("ALTER ROLE <app> SUPERUSER", "rls.superuser"),
            ("ALTER ROLE <app> BYPASSRLS", "rls.bypassrls"),
            ("ALTER ROLE <app> CREATEROLE", "rls.dangerous_role"),
            ("ALTER ROLE <app> REPLICATION", "rls.dangerous_role"),
        ],
    )
    def test_finds_a_role_that_no_policy_binds(
        self, elsewhere: Elsewhere, statement: str, check_id: str
    ) -> None:
        elsewhere.run(statement, owner=False)
        assert (check_id, elsewhere.role) in claims(elsewhere.audit(tenant_column="tenant"), elsewhere.schema)

    def test_finds_an_owner_that_is_not_bound(self, elsewhere: Elsewhere) -> None:
        elsewhere.run("ALTER TABLE <s>.invoices NO FORCE ROW LEVEL SECURITY")
        found = claims(elsewhere.audit(tenant_column="tenant", role=elsewhere.owner), elsewhere.schema)
        assert {("rls.owner_exempt", "invoices"), ("rls.not_forced", "invoices")} <= found

    @pytest.mark.parametrize("column_type", ["uuid", "integer", "bigint", "smallint", "varchar(40)"])
    def test_makes_up_tenants_of_every_usual_type(self, elsewhere: Elsewhere, column_type: str) -> None:
        elsewhere.run(
            f"CREATE TABLE <s>.things (owner_id {column_type} NOT NULL, flag boolean, j jsonb, e numeric);"
            "CREATE INDEX ON <s>.things (owner_id); ALTER TABLE <s>.things ENABLE ROW LEVEL SECURITY;"
            "ALTER TABLE <s>.things FORCE ROW LEVEL SECURITY;"
            "CREATE POLICY own ON <s>.things USING"
            f" (owner_id = nullif(current_setting('acme.tenant', true), '')::{column_type});"
            "GRANT SELECT ON <s>.things TO <app>"
        )
        report = elsewhere.audit(tenant_column="owner_id", tables=[f"{elsewhere.schema}.things"])
        assert report.findings == []
        assert all(check.complete for check in report.checks if check.outcome is not Outcome.SKIPPED)
        elsewhere.run("ALTER POLICY own ON <s>.things USING (owner_id IS NOT NULL)")
        report = elsewhere.audit(tenant_column="owner_id", tables=["things"])
        assert claims(report, elsewhere.schema) == {("rls.tautology", "things.own")}

    def test_says_that_it_cannot_make_up_a_tenant_of_an_odd_type(self, elsewhere: Elsewhere) -> None:
        elsewhere.run(
            "CREATE TABLE <s>.odd (owner_id point NOT NULL); GRANT SELECT ON <s>.odd TO <app>;"
            "ALTER TABLE <s>.odd ENABLE ROW LEVEL SECURITY; ALTER TABLE <s>.odd FORCE ROW LEVEL SECURITY;"
            "CREATE POLICY own ON <s>.odd USING (owner_id IS NOT NULL)"
        )
        report = elsewhere.audit(tenant_column="owner_id", tables=["odd"])
        outcomes = {check.check_id: check for check in report.checks}
        assert outcomes["rls.tautology"].outcome is Outcome.INCONCLUSIVE
        assert "type point" in outcomes["rls.tautology"].reason

    def test_finds_the_table_of_the_tenants_themselves(self, elsewhere: Elsewhere) -> None:
        elsewhere.run(
            "CREATE TABLE <s>.tenants (id text PRIMARY KEY);"
            "CREATE TABLE <s>.bills (tenant_id text NOT NULL);"
            "GRANT SELECT ON <s>.tenants TO <app>"
        )
        report = elsewhere.audit(tenant_column="tenant_id")
        assert ("rls.rls_disabled", "tenants") in claims(report, elsewhere.schema)

    def test_says_which_named_table_is_not_there(self, elsewhere: Elsewhere) -> None:
        report = elsewhere.audit(tables=["user_projects", "unheard_of"])
        missing = [one.object for one in report.findings if one.check_id == "rls.expected_table_missing"]
        assert missing == ["unheard_of"]
