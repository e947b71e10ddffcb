"""Which tables belong to tenants, by which column, and who is judged."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from worker.audits.findings import Finding
from worker.audits.rls_catalog import Catalog, Policy, Table
from worker.database_url import Database
from worker.models import policies
from worker.models.vocabulary import Severity

_SETTING_READ = re.compile(r"current_setting\(\s*'([^']+)'", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What one audit looks at."""

    database: str
    catalog: Catalog
    setting: str
    tenant_columns: Mapping[int, str | None]
    """By table oid; None where rows belong to a tenant through another table only."""
    missing_tables: Sequence[str]
    """Tables that were asked for by name, or are declared, and are not there."""
    public_read: frozenset[str]
    declared: Sequence[policies.TableSecurity]

    @property
    def tenant_tables(self) -> list[Table]:
        """This property will be the tables whose rows belong to tenants."""
        return [table for table in self.catalog.tables if table.oid in self.tenant_columns]

    @property
    def other_tables(self) -> list[Table]:
        """This property will be the tables that hold nobody's rows, such as plans."""
        return [table for table in self.catalog.tables if table.oid not in self.tenant_columns]

    def table(self, oid: int) -> Table | None:
        """This method will find a table by its oid."""
        return next((table for table in self.catalog.tables if table.oid == oid), None)


def scope_of(
    catalog: Catalog,
    *,
    database: str,
    setting: str,
    tenant_column: str,
    tables: Iterable[str],
    public_read: Iterable[str],
) -> Scope:
    """This function will find the tenants' tables.

    A table belongs to tenants when it has the tenant column, is declared so, is the table of the tenants
    themselves (`users.id` where the column is `user_id`), has row level security, or refers to such a table.
    `tables` (`name` or `schema.name`) narrows the view; none means all.
    """
    declared = declared_for(database)
    wanted = set(tables)
    by_name = {entry.table: entry.tenant_column for entry in declared}
    known = {name for table in catalog.tables for name in (table.name, table.label)}
    missing = sorted((wanted or {f"public.{name}" for name in by_name}) - known)

    columns: dict[int, str | None] = {}
    for table in catalog.tables:
        if table.schema == "public" and table.name in by_name:
            # Declared without a tenant: nobody's rows, whatever columns it has.
            column = by_name[table.name]
            if column is not None:
                columns[table.oid] = column if column in table.columns_by_name else None
        elif tenant_column in table.columns_by_name:
            columns[table.oid] = tenant_column
        elif table.rls or table.policies:
            columns[table.oid] = _column_of_policies(table, setting)
    _add_the_tenants_themselves(catalog, columns, tenant_column)
    _add_children(catalog, columns, exempt={t.oid for t in catalog.tables if by_name.get(t.name, "") is None})
    if wanted:
        shown = {t.oid for t in catalog.tables if t.name in wanted or t.label in wanted}
        columns = {oid: column for oid, column in columns.items() if oid in shown}
    return Scope(
        database=database,
        catalog=catalog,
        setting=setting,
        tenant_columns=columns,
        missing_tables=missing,
        public_read=frozenset(public_read),
        declared=[
            entry for entry in declared if not wanted or {entry.table, f"public.{entry.table}"} & wanted
        ],
    )


def declared_for(database: str) -> Sequence[policies.TableSecurity]:
    """This function will give what we declare for one of our own databases, and nothing for any other."""
    return policies.DECLARED[Database(database)] if database in set(Database) else ()


def settings_read_by(policy: Policy) -> set[str]:
    """This function will name the settings that a policy reads, itself or in a function that it calls."""
    return settings_read_in(policy, policy.using) | settings_read_in(policy, policy.checking)


def settings_read_in(policy: Policy, expression: str | None) -> set[str]:
    """This function will name the settings that one expression of a policy reads.

    Which functions belong to which expression is not known, so they count where it reads none itself.
    """
    if expression is None:
        return set()
    read = set(_SETTING_READ.findall(expression))
    return read or {name for source in policy.function_sources for name in _SETTING_READ.findall(source)}


def _column_of_policies(table: Table, setting: str) -> str | None:
    bound = {
        column
        for policy in table.policies
        if setting in settings_read_by(policy)
        for column in policy.columns
    }
    return bound.pop() if len(bound) == 1 else None


def _add_the_tenants_themselves(catalog: Catalog, columns: dict[int, str | None], tenant_column: str) -> None:
    name = tenant_column.removesuffix("_id")
    types = {
        table.columns_by_name[tenant_column].type
        for table in catalog.tables
        if tenant_column in table.columns_by_name
    }
    for table in catalog.tables:
        key = table.columns_by_name.get("id")
        # Known by policies that bind no column, or not known at all: the name of the table tells.
        if (
            name != tenant_column
            and table.name in (name, f"{name}s")
            and columns.get(table.oid) is None
            and key is not None
            and key.type in types
        ):
            columns[table.oid] = key.name


def _add_children(catalog: Catalog, columns: dict[int, str | None], *, exempt: set[int]) -> None:
    # Rows that refer to a tenant's row are that tenant's, at any depth.
    found = True
    while found:
        found = False
        for table in catalog.tables:
            if (
                table.oid not in columns
                and table.oid not in exempt
                and columns.keys() & set(table.referenced_oids)
            ):
                columns[table.oid] = None
                found = True


def finding(
    scope: Scope, name: str, severity: Severity, label: str, message: str, remediation: str
) -> Finding:
    """This function will make a finding of this audit; `name` is the check's, without its area."""
    return Finding(
        check_id=f"rls.{name}",
        severity=severity,
        database=scope.database,
        object=label,
        message=message,
        remediation=remediation,
    )
