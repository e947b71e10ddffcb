"""The checks on the judged role, on the views around the tables, and on what was declared."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from psycopg import sql

from worker.audits.findings import Finding
from worker.audits.rls_catalog import Table, View
from worker.audits.rls_scope import Scope, finding
from worker.models import policies as declared_policies
from worker.models.vocabulary import Severity

Check = Callable[[Scope], Iterator[Finding]]

_COMMANDS: Final = {"*": "ALL", "r": "SELECT", "a": "INSERT", "w": "UPDATE", "d": "DELETE"}


def superuser(scope: Scope) -> Iterator[Finding]:
    """The role is a superuser: no policy binds it."""
    if scope.catalog.role.superuser:
        yield _on_role(
            scope, "superuser", Severity.CRITICAL, "it is a superuser, no policy binds it", "NOSUPERUSER"
        )


def bypassrls(scope: Scope) -> Iterator[Finding]:
    """The role has BYPASSRLS (as the default login of some providers has): no policy binds it."""
    if scope.catalog.role.bypassrls:
        yield _on_role(
            scope, "bypassrls", Severity.CRITICAL, "it has BYPASSRLS, no policy binds it", "NOBYPASSRLS"
        )


def dangerous_role(scope: Scope) -> Iterator[Finding]:
    """The role may create roles or read the write-ahead log, both below every policy."""
    role = scope.catalog.role
    if role.superuser:
        return
    if role.createrole:
        yield _on_role(scope, "dangerous_role", Severity.HIGH, "it may create roles", "NOCREATEROLE")
    elif role.replication:
        yield _on_role(
            scope, "dangerous_role", Severity.HIGH, "it may read the write-ahead log", "NOREPLICATION"
        )


def set_role_escape(scope: Scope) -> Iterator[Finding]:
    """The role can become one that no policy binds."""
    if scope.catalog.role.superuser:
        return
    for other in scope.catalog.reach:
        if other.superuser or other.bypassrls or other.owns_secured:
            what = (
                "a superuser" if other.superuser else "above policies" if other.bypassrls else "a table owner"
            )
            name = sql.Identifier(other.name).as_string(None)
            yield finding(
                scope,
                "set_role_escape",
                Severity.HIGH,
                other.name,
                f"{scope.catalog.role.name} can SET ROLE to {other.name}, which is {what}",
                f"REVOKE {name} FROM {sql.Identifier(scope.catalog.role.name).as_string(None)};",
            )


def default_setting(scope: Scope) -> Iterator[Finding]:
    """ALTER ROLE … SET or ALTER DATABASE … SET makes every session without a context somebody's."""
    for role, name in scope.catalog.default_settings:
        if name in (scope.setting, "row_security"):
            severity = Severity.CRITICAL if name == scope.setting else Severity.HIGH
            yield finding(
                scope,
                "default_setting",
                severity,
                role,
                f"{name} has a default for {role}",
                f"ALTER ROLE … RESET {name}; ALTER DATABASE … RESET {name};",
            )


def view_bypass(scope: Scope) -> Iterator[Finding]:
    """A view that the role reads runs as an owner whom the policies below it do not bind."""
    yield from _around(scope, "view_bypass", materialized=False)


def matview(scope: Scope) -> Iterator[Finding]:
    """A materialized view that the role reads holds rows of tenants, and no policy can stand on it."""
    yield from _around(scope, "matview", materialized=True)


def drift(scope: Scope) -> Iterator[Finding]:
    """Policies or privileges of our own tables are not what is declared."""
    ours = {table.name: table for table in scope.catalog.tables if table.schema == "public"}
    for entry in scope.declared:
        if entry.table in ours:
            yield from _policy_drift(scope, ours[entry.table], entry)
            yield from _grant_drift(scope, ours[entry.table], entry)


CHECKS: Final[Mapping[str, Check]] = {
    f"rls.{check.__name__}": check
    for check in (
        superuser,
        bypassrls,
        dangerous_role,
        set_role_escape,
        default_setting,
        view_bypass,
        matview,
        drift,
    )
}
"""Every check on roles and on what stands around the tables, by its id."""


def same_expression(live: str | None, declared: str | None) -> bool:
    """This function will say whether the server's spelling of an expression is the declared one.

    The server adds parentheses, casts and a column name of its own.
    """
    return _bare(live) == _bare(declared)


def _bare(expression: str | None) -> str | None:
    if expression is None:
        return None
    lower = re.sub(r"""::text| as "?nullif"?""", "", expression.lower())
    return re.sub(r"[\s()]", "", lower)


def _around(scope: Scope, name: str, *, materialized: bool) -> Iterator[Finding]:
    views = {view.oid: view for view in scope.catalog.views}
    for view in scope.catalog.views:
        if view.materialized is not materialized or not view.readable:
            continue
        shown = sorted({table.label for table in _shown_past_policies(scope, view, views, None, frozenset())})
        if shown:
            label = sql.Identifier(view.schema, view.name).as_string(None)
            role = sql.Identifier(scope.catalog.role.name).as_string(None)
            invoker = f"ALTER VIEW {label} SET (security_invoker = true);"
            yield finding(
                scope,
                name,
                Severity.HIGH if materialized else Severity.CRITICAL,
                view.label,
                f"it shows {', '.join(shown)} past their policies",
                f"REVOKE ALL ON {label} FROM {role};" if materialized else invoker,
            )


def _shown_past_policies(
    scope: Scope, view: View, views: Mapping[int, View], reader: str | None, seen: frozenset[int]
) -> Iterator[Table]:
    # `reader` is the owner as whom the tables below are read; None is the judged role itself.
    reader = reader if view.invoker else view.owner
    above = view.owner_above_rls and not view.invoker
    for oid in view.source_oids:
        table = scope.table(oid)
        below = views.get(oid)
        if below is not None and oid not in seen:
            yield from _shown_past_policies(scope, below, views, reader, seen | {view.oid})
        elif table is not None and oid in scope.tenant_columns and table.rls:
            if view.materialized or above or (reader and (oid, reader) in scope.catalog.exempt_owners):
                yield table


def _policy_drift(scope: Scope, table: Table, entry: declared_policies.TableSecurity) -> Iterator[Finding]:
    live = {policy.name: policy for policy in table.policies}
    declared = {policy.name: policy for policy in entry.policies}
    for name in sorted(live.keys() | declared.keys()):
        have, want = live.get(name), declared.get(name)
        if have is None:
            problem = "is declared and missing"
        elif want is None:
            problem = "is not declared"
        elif (
            have.permissive
            and list(have.roles) == [want.role]
            and _COMMANDS[have.command] == want.command
            and same_expression(have.using, want.using)
            and same_expression(have.checking, want.check)
        ):
            continue
        else:
            problem = "differs from what is declared"
        yield finding(
            scope,
            "drift",
            Severity.HIGH,
            f"{table.label}.{name}",
            f"the policy {problem}",
            "usage-worker db init",
        )


def _grant_drift(scope: Scope, table: Table, entry: declared_policies.TableSecurity) -> Iterator[Finding]:
    declared = {
        (grant.role, privilege.value.lower(), column)
        for grant in entry.grants
        for privilege in grant.privileges
        for column in (grant.columns or (None,))
    }
    live = {
        (grant["grantee"], grant["privilege"], grant["column_name"])
        for grant in scope.catalog.grants
        if grant["table_name"] == table.name
    }
    for grantee in sorted({grantee for grantee, _, _ in live ^ declared}):
        extra = sorted({privilege for who, privilege, _ in live - declared if who == grantee})
        lost = sorted({privilege for who, privilege, _ in declared - live if who == grantee})
        inside = grantee in {*declared_policies.GROUP_ROLES, "public"}
        texts = [f"holds {', '.join(extra)} beyond what is declared"] if extra else []
        texts += [f"lacks {', '.join(lost)}"] if lost else []
        # A role of the operator's own is under the policies like any other: worth a look, no alarm.
        severity = Severity.MEDIUM if not extra else Severity.HIGH if inside else Severity.LOW
        yield finding(
            scope,
            "drift",
            severity,
            f"{table.label} to {grantee}",
            f"{grantee} {' and '.join(texts)}",
            f"REVOKE ALL ON {table.identifier} FROM {_quoted(grantee)}; -- then usage-worker db init",
        )


def _quoted(role: str) -> str:
    return "PUBLIC" if role == "public" else sql.Identifier(role).as_string(None)


def _on_role(scope: Scope, name: str, severity: Severity, message: str, attribute: str) -> Finding:
    role = scope.catalog.role.name
    remediation = f"ALTER ROLE {sql.Identifier(role).as_string(None)} {attribute};"
    return finding(scope, name, severity, role, message, remediation)
