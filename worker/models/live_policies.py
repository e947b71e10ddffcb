"""Compares the row-level security and the grants of a live database with the declared ones.

It reads the catalog only, so any login can ask; each difference carries the SQL that removes it. Alembic sees
none of this: after DISABLE ROW LEVEL SECURITY its comparison is still empty.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from psycopg import sql
from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from worker.database_url import Database
from worker.models import policies
from worker.models.policies import Grant, Policy, TableSecurity


class Problem(enum.StrEnum):
    """What is different."""

    TABLE_MISSING = "table_missing"
    OWNER = "owner"
    ROW_SECURITY = "row_security"
    FORCE = "force"
    POLICY_MISSING = "policy_missing"
    POLICY_ALTERED = "policy_altered"
    POLICY_MISPLACED = "policy_misplaced"
    POLICY_FOREIGN = "policy_foreign"
    GRANT_MISSING = "grant_missing"
    GRANT_EXCESS = "grant_excess"


@dataclass(frozen=True, slots=True)
class PolicyDifference:
    """One difference, and the statements that remove it; `ours` is False where somebody else made it."""

    database: Database
    table: str
    problem: Problem
    detail: str
    remediation: tuple[str, ...] = ()
    ours: bool = True


@dataclass(frozen=True, slots=True)
class _LiveTable:
    owner: str
    row_security: bool
    forced: bool


@dataclass(frozen=True, slots=True)
class _LivePolicy:
    name: str
    permissive: bool
    roles: frozenset[str]
    command: str
    using: str | None
    check: str | None


_Held = tuple[str, str, str]
"""Grantee, privilege, column ('' for the whole table)."""

_TABLES = text("""
SELECT relation.relname, owner.rolname, relation.relrowsecurity, relation.relforcerowsecurity
FROM pg_class AS relation
JOIN pg_roles AS owner ON owner.oid = relation.relowner
WHERE relation.relnamespace = 'public'::regnamespace AND relation.relkind IN ('r', 'p')
  AND relation.relname = ANY(:tables)
""")

_POLICIES = text("""
SELECT relation.relname, policy.polname, policy.polpermissive,
       ARRAY(
           SELECT coalesce(role.rolname, 'public')
           FROM unnest(policy.polroles) AS member (oid) LEFT JOIN pg_roles AS role ON role.oid = member.oid
       ),
       CASE policy.polcmd
           WHEN '*' THEN 'ALL' WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT'
           WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE'
       END,
       pg_get_expr(policy.polqual, policy.polrelid), pg_get_expr(policy.polwithcheck, policy.polrelid)
FROM pg_policy AS policy
JOIN pg_class AS relation ON relation.oid = policy.polrelid
WHERE relation.relnamespace = 'public'::regnamespace AND relation.relname = ANY(:tables)
""")

_GRANTS = text("""
SELECT held.relname, coalesce(role.rolname, 'public'), held.privilege_type, held.column_name
FROM (
    SELECT relation.relname, '' AS column_name, entry.grantee, entry.privilege_type
    FROM pg_class AS relation, aclexplode(relation.relacl) AS entry
    WHERE relation.relnamespace = 'public'::regnamespace AND relation.relname = ANY(:tables)
    UNION ALL
    SELECT relation.relname, attribute.attname, entry.grantee, entry.privilege_type
    FROM pg_class AS relation
    JOIN pg_attribute AS attribute ON attribute.attrelid = relation.oid AND NOT attribute.attisdropped,
        aclexplode(attribute.attacl) AS entry
    WHERE relation.relnamespace = 'public'::regnamespace AND relation.relname = ANY(:tables)
) AS held
LEFT JOIN pg_roles AS role ON role.oid = held.grantee
WHERE held.grantee = 0 OR role.rolname = ANY(:roles)
""")

_COMPARED_ROLES = sorted(set(policies.GROUP_ROLES) - {policies.OWNER})
_OUR_POLICIES = frozenset(
    policy.name for tables in policies.DECLARED.values() for table in tables for policy in table.policies
)


def policy_differences(session: Session | Connection, database: Database) -> list[PolicyDifference]:
    """This function will list where the live security of a database departs from the declared one.

    Policies that somebody else added to a table of ours are listed too, with `ours` False: they may open it.
    """
    declared = [*policies.DECLARED[database], _version_table(database)]
    names = {"tables": [table.table for table in declared]}
    tables = {row[0]: _LiveTable(*row[1:]) for row in session.execute(_TABLES, names)}
    found: dict[str, list[_LivePolicy]] = {}
    for table, name, permissive, roles, *rest in session.execute(_POLICIES, names):
        found.setdefault(table, []).append(_LivePolicy(name, permissive, frozenset(roles), *rest))
    grants: dict[str, set[_Held]] = {}
    for table, role, privilege, column in session.execute(_GRANTS, {**names, "roles": _COMPARED_ROLES}):
        grants.setdefault(table, set()).add((role, privilege, column))
    differences: list[PolicyDifference] = []
    for security in declared:
        live = tables.get(security.table)
        if live is None:
            problem = PolicyDifference(
                database, security.table, Problem.TABLE_MISSING, "the table is not there: migrate first"
            )
            differences.append(problem)
            continue
        differences += _table_differences(database, security, live)
        differences += _differences_of_policies(database, security, found.get(security.table, []))
        differences += _grant_differences(database, security, grants.get(security.table, set()))
    return differences


def create_policy(table: str, policy: Policy) -> str:
    """This function will write the statement that creates a declared policy."""
    check = "" if policy.check is None else f" WITH CHECK ({policy.check})"
    return (
        f"CREATE POLICY {_quote(policy.name)} ON {_quote(table)} FOR {policy.command} "
        f"TO {_quote(policy.role)} USING ({policy.using}){check}"
    )


def canonical(expression: str | None) -> str | None:
    """This function will bring a policy's expression, as written or as PostgreSQL shows it, to one form.

    PostgreSQL adds casts to text, an alias, brackets and capitals. Brackets may be dropped because what is
    declared joins nothing with AND or OR: an expression that does is different by these very words.
    """
    if expression is None:
        return None
    plain = re.sub(r'::text\b|\bas "?nullif"?', "", expression.lower())
    return re.sub(r"[\s()]", "", plain)


def _quote(name: str) -> str:
    return sql.Identifier(name).as_string() if not re.fullmatch("[a-z_][a-z0-9_]*", name) else name


def _version_table(database: Database) -> TableSecurity:
    readers = tuple(Grant(role, policies.READ) for role in policies.VERSION_READERS)
    return TableSecurity(policies.VERSION_TABLES[database], None, readers)


def _table_differences(
    database: Database, security: TableSecurity, live: _LiveTable
) -> Iterator[PolicyDifference]:
    table = _quote(security.table)
    wanted = security.tenant_column is not None
    if live.owner != policies.OWNER:
        # Only a superuser, or a member of both roles, may give a table away.
        yield PolicyDifference(
            database,
            security.table,
            Problem.OWNER,
            f"belongs to {live.owner}, not to {policies.OWNER}",
            (f"ALTER TABLE {table} OWNER TO {_quote(policies.OWNER)}",),
            ours=False,
        )
    if live.row_security != wanted:
        verb = "ENABLE" if wanted else "DISABLE"
        yield PolicyDifference(
            database,
            security.table,
            Problem.ROW_SECURITY,
            f"row-level security is {'off' if wanted else 'on'}",
            (f"ALTER TABLE {table} {verb} ROW LEVEL SECURITY",),
        )
    if live.forced != wanted:
        verb = "FORCE" if wanted else "NO FORCE"
        yield PolicyDifference(
            database,
            security.table,
            Problem.FORCE,
            f"row-level security is {'not ' if wanted else ''}forced",
            (f"ALTER TABLE {table} {verb} ROW LEVEL SECURITY",),
        )


def _differences_of_policies(
    database: Database, security: TableSecurity, found: Iterable[_LivePolicy]
) -> Iterator[PolicyDifference]:
    declared: Mapping[str, Policy] = {policy.name: policy for policy in security.policies}
    live = {policy.name: policy for policy in found}
    for name, policy in declared.items():
        create = create_policy(security.table, policy)
        if name not in live:
            yield PolicyDifference(
                database, security.table, Problem.POLICY_MISSING, f"policy {name} is missing", (create,)
            )
            continue
        wrong = list(_departures(policy, live[name]))
        if wrong:
            yield PolicyDifference(
                database,
                security.table,
                Problem.POLICY_ALTERED,
                f"policy {name}: {'; '.join(wrong)}",
                (_drop_policy(security.table, name), create),
            )
    for name in sorted(live.keys() - declared.keys()):
        ours = name in _OUR_POLICIES
        yield PolicyDifference(
            database,
            security.table,
            Problem.POLICY_MISPLACED if ours else Problem.POLICY_FOREIGN,
            f"policy {name} is not declared for this table",
            (_drop_policy(security.table, name),),
            ours=ours,
        )


def _departures(declared: Policy, live: _LivePolicy) -> Iterator[str]:
    if not live.permissive:
        yield "it is restrictive"
    if live.roles != {declared.role}:
        yield f"it is for {', '.join(sorted(live.roles))}, not for {declared.role}"
    if live.command != declared.command:
        yield f"it is FOR {live.command}, not FOR {declared.command}"
    if canonical(live.using) != canonical(declared.using):
        yield f"USING is {live.using}"
    if canonical(live.check) != canonical(declared.check):
        yield f"WITH CHECK is {live.check}"


def _grant_differences(
    database: Database, security: TableSecurity, live: set[_Held]
) -> Iterator[PolicyDifference]:
    wanted = {
        (grant.role, privilege.value, column)
        for grant in security.grants
        for privilege in grant.privileges
        for column in (grant.columns or ("",))
    }
    for role, privilege, column in sorted(wanted - live):
        yield _grant_difference(database, security.table, role, privilege, column, missing=True)
    for role, privilege, column in sorted(live - wanted):
        yield _grant_difference(database, security.table, role, privilege, column, missing=False)


def _grant_difference(
    database: Database, table: str, role: str, privilege: str, column: str, *, missing: bool
) -> PolicyDifference:
    what = f"{privilege} ({_quote(column)})" if column else privilege
    who = "PUBLIC" if role == "public" else _quote(role)
    verb, direction = ("GRANT", "TO") if missing else ("REVOKE", "FROM")
    return PolicyDifference(
        database,
        table,
        Problem.GRANT_MISSING if missing else Problem.GRANT_EXCESS,
        f"{who} {'has not' if missing else 'has'} {what}",
        (f"{verb} {what} ON {_quote(table)} {direction} {who}",),
    )


def _drop_policy(table: str, name: str) -> str:
    return f"DROP POLICY {_quote(name)} ON {_quote(table)}"
