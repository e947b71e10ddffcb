"""The checks that the catalog alone answers: one small function for each way a table can be wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from psycopg import sql

from worker.audits.findings import Finding
from worker.audits.rls_catalog import Table
from worker.audits.rls_policies import VERBS, clause_of
from worker.audits.rls_scope import Scope, finding
from worker.audits.rls_truth import applicable
from worker.models.vocabulary import Severity

Check = Callable[[Scope], Iterator[Finding]]

MANY_ROWS: Final = 10_000
"""Above so many rows a missing index is felt."""


def expected_table_missing(scope: Scope) -> Iterator[Finding]:
    """A table that was named, or is ours, is not there: the audit may be looking at the wrong database."""
    for name in scope.missing_tables:
        yield finding(
            scope,
            "expected_table_missing",
            Severity.HIGH,
            name,
            "the table is not in this database",
            "-- check the URL, then run the migrations",
        )


def rls_disabled(scope: Scope) -> Iterator[Finding]:
    """A tenant table has no row level security and no policies: who reaches it reads everybody's rows."""
    for table in scope.tenant_tables:
        if not table.rls and not table.policies and not table.partition and _has_owner_column(scope, table):
            severity = Severity.CRITICAL if table.reachable else Severity.LOW
            why = (
                f"{scope.catalog.role.name} reaches every row" if table.reachable else "no tenant reaches it"
            )
            yield _on(scope, "rls_disabled", severity, table, f"no row level security; {why}", _ENABLE)


def policies_but_disabled(scope: Scope) -> Iterator[Finding]:
    """Policies stand on the table, but row level security is switched off, so none of them is used."""
    for table in scope.tenant_tables:
        if not table.rls and table.policies:
            yield _on(
                scope,
                "policies_but_disabled",
                Severity.CRITICAL,
                table,
                "row level security is disabled, its policies sleep",
                _ENABLE,
            )


def not_forced(scope: Scope) -> Iterator[Finding]:
    """Row level security is not forced, so the table's owner, and whoever inherits it, is not under it."""
    for table in scope.tenant_tables:
        if table.rls and not table.forced and not table.partition:
            yield _on(
                scope,
                "not_forced",
                Severity.MEDIUM,
                table,
                f"its owner {table.owner} sees every row",
                "ALTER TABLE {} FORCE ROW LEVEL SECURITY;",
            )


def no_applicable_policy(scope: Scope) -> Iterator[Finding]:
    """The role may read the table, but no policy shows it a row: tenants are locked out."""
    for table in scope.tenant_tables:
        if table.rls and "select" in table.privileges and "SELECT" not in _verbs_with_policy(table):
            yield _on(
                scope,
                "no_applicable_policy",
                Severity.HIGH,
                table,
                f"no permissive policy shows {scope.catalog.role.name} any row",
                "CREATE POLICY … ON {} TO …;",
            )


def verb_without_policy(scope: Scope) -> Iterator[Finding]:
    """The role holds a right to write that no policy lets it use: writes change 0 rows or are refused."""
    for table in scope.tenant_tables:
        covered = _verbs_with_policy(table)
        held = {verb.name for verb in VERBS if verb.privilege in table.privileges} - {"SELECT", "UPDATE to"}
        # Where nothing is covered at all, no_applicable_policy says it.
        if table.rls and held - covered and (covered or "select" not in table.privileges):
            verbs = ", ".join(sorted(held - covered))
            yield _on(
                scope,
                "verb_without_policy",
                Severity.MEDIUM,
                table,
                f"{scope.catalog.role.name} may {verbs}, but no policy lets it",
                f"REVOKE {verbs} ON {{}} FROM {_role(scope)}; -- or a policy for it",
            )


def indirect_child(scope: Scope) -> Iterator[Finding]:
    """Rows belong to tenants through a foreign key only, and the table has no row level security."""
    for table in scope.tenant_tables:
        if not _has_owner_column(scope, table) and not table.rls and not table.policies and table.reachable:
            yield _on(
                scope,
                "indirect_child",
                Severity.HIGH,
                table,
                f"it hangs on a tenant's table and {scope.catalog.role.name} reaches every row",
                _ENABLE,
            )


def partition_exposed(scope: Scope) -> Iterator[Finding]:
    """A partition can be reached directly, where the policies of its parent are not used."""
    for table in scope.catalog.tables:
        parents = [scope.table(oid) for oid in table.parent_oids]
        if table.reachable and not table.rls and any(parent and parent.rls for parent in parents):
            yield _on(
                scope,
                "partition_exposed",
                Severity.HIGH,
                table,
                f"{scope.catalog.role.name} reaches it past the policies of its parent",
                f"REVOKE ALL ON {{}} FROM {_role(scope)};",
            )


def tenant_column_nullable(scope: Scope) -> Iterator[Finding]:
    """Rows without an owner are possible in a table that tenants reach."""
    for table in scope.tenant_tables:
        column = table.columns_by_name.get(scope.tenant_columns[table.oid] or "")
        if column is not None and not column.not_null and table.reachable:
            name = sql.Identifier(column.name).as_string(None)
            yield _on(
                scope,
                "tenant_column_nullable",
                Severity.LOW,
                table,
                f"{column.name} may be NULL",
                f"ALTER TABLE {{}} ALTER COLUMN {name} SET NOT NULL;",
            )


def reference_table_writable(scope: Scope) -> Iterator[Finding]:
    """The role may change a table that is nobody's, such as the plans: prices could be tampered with."""
    for table in scope.other_tables:
        writes = sorted({"insert", "update", "delete"}.intersection(table.privileges))
        if writes and not table.rls:
            verbs = ", ".join(writes).upper()
            yield _on(
                scope,
                "reference_table_writable",
                Severity.MEDIUM,
                table,
                f"{scope.catalog.role.name} may {verbs}",
                f"REVOKE {verbs} ON {{}} FROM {_role(scope)};",
            )


def owner_exempt(scope: Scope) -> Iterator[Finding]:
    """The role has the owner's rights on a table that is not forced: no policy binds it."""
    for table in scope.tenant_tables:
        if table.owner_rights and table.rls and not table.forced:
            yield _on(
                scope,
                "owner_exempt",
                Severity.CRITICAL,
                table,
                f"{scope.catalog.role.name} has the rights of its owner {table.owner}",
                "ALTER TABLE {} FORCE ROW LEVEL SECURITY;",
            )


def owner_can_disable(scope: Scope) -> Iterator[Finding]:
    """The role has the owner's rights, so one statement of its own can switch the policies off."""
    role = scope.catalog.role
    for table in scope.tenant_tables:
        if table.owner_rights and table.rls and table.forced and not role.superuser:
            owner = sql.Identifier(table.owner).as_string(None)
            yield _on(
                scope,
                "owner_can_disable",
                Severity.MEDIUM,
                table,
                f"{role.name} has the rights of its owner {table.owner}",
                f"REVOKE {owner} FROM {_role(scope)}; -- or give {{}} to another owner",
            )


def beyond_rls_privilege(scope: Scope) -> Iterator[Finding]:
    """The role holds a privilege that policies do not govern: TRUNCATE, TRIGGER or REFERENCES."""
    for table in scope.tenant_tables:
        beyond = sorted({"truncate", "trigger", "references"}.intersection(table.privileges))
        if beyond and not scope.catalog.role.superuser and not table.owner_rights:
            severity = Severity.MEDIUM if beyond == ["references"] else Severity.HIGH
            verbs = ", ".join(beyond).upper()
            yield _on(
                scope,
                "beyond_rls_privilege",
                severity,
                table,
                f"{scope.catalog.role.name} holds {verbs}, which no policy governs",
                f"REVOKE {verbs} ON {{}} FROM {_role(scope)};",
            )


def missing_tenant_index(scope: Scope) -> Iterator[Finding]:
    """No index leads with the tenant column, so every statement of a tenant reads the whole table."""
    for table in scope.tenant_tables:
        column = scope.tenant_columns[table.oid]
        if column in table.columns_by_name and column not in table.leading_columns:
            many = table.estimated_rows > MANY_ROWS
            name = sql.Identifier(column or "").as_string(None)
            yield _on(
                scope,
                "missing_tenant_index",
                Severity.MEDIUM if many else Severity.INFO,
                table,
                f"no valid index without a condition leads with {column}",
                f"CREATE INDEX CONCURRENTLY ON {{}} ({name});",
            )


CHECKS: Final[Mapping[str, Check]] = {
    f"rls.{check.__name__}": check
    for check in (
        expected_table_missing,
        rls_disabled,
        policies_but_disabled,
        not_forced,
        no_applicable_policy,
        verb_without_policy,
        indirect_child,
        partition_exposed,
        tenant_column_nullable,
        reference_table_writable,
        owner_exempt,
        owner_can_disable,
        beyond_rls_privilege,
        missing_tenant_index,
    )
}
"""Every check on tables, by its id."""

_ENABLE: Final = "ALTER TABLE {0} ENABLE ROW LEVEL SECURITY; ALTER TABLE {0} FORCE ROW LEVEL SECURITY;"


def _has_owner_column(scope: Scope, table: Table) -> bool:
    return scope.tenant_columns[table.oid] is not None


def _verbs_with_policy(table: Table) -> set[str]:
    return {
        verb.name
        for verb in VERBS
        for policy in applicable(table)
        if policy.permissive and clause_of(policy, verb) is not None
    }


def _role(scope: Scope) -> str:
    return sql.Identifier(scope.catalog.role.name).as_string(None)


def _on(scope: Scope, name: str, severity: Severity, table: Table, message: str, remediation: str) -> Finding:
    return finding(scope, name, severity, table.label, message, remediation.format(table.identifier))
