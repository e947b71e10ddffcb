"""What the truth about policies means: which policy lets whom see or write which rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from psycopg import sql

from worker.audits import rls_scope
from worker.audits.findings import Finding
from worker.audits.rls_catalog import Policy, Table
from worker.audits.rls_truth import Clause, Context, Owner, Scene, Truth, applicable
from worker.models.vocabulary import Severity


@dataclass(frozen=True, slots=True)
class Verb:
    """What a statement does, and the policies' clauses that decide about it."""

    name: str
    command: str
    checks: bool
    privilege: str


READ: Final = Verb("SELECT", "r", False, "select")
CHANGE: Final = Verb("UPDATE", "w", False, "update")
REMOVE: Final = Verb("DELETE", "d", False, "delete")
ADD: Final = Verb("INSERT", "a", True, "insert")
GIVE: Final = Verb("UPDATE to", "w", True, "update")
VERBS: Final = (READ, CHANGE, REMOVE, ADD, GIVE)

CHECK_IDS: Final = (
    "rls.always_true",
    "rls.tautology",
    "rls.permissive_widening",
    "rls.fail_open",
    "rls.write_broader_than_read",
    "rls.check_looser",
    "rls.orphan_match",
    "rls.blank_text_tenant",
    "rls.context_name_drift",
    "rls.wrong_column",
    "rls.runtime_error",
)

_LITERALLY_TRUE: Final = {"true", "(true)"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One table, what its policies answered, and in whose database."""

    database: str
    table: Table
    truth: Truth
    setting: str
    public_read: frozenset[str]
    has_tenant_column: bool = True


def findings(judged: Judged) -> Iterator[Finding]:
    """This function will answer everything that is wrong with the policies of one table."""
    for policy in applicable(judged.table):
        if policy.permissive:
            yield from _openings_of(judged, policy)
    if judged.has_tenant_column:
        yield from _context_name_drift(judged)
        yield from _locked_out(judged)


def clause_of(policy: Policy, verb: Verb) -> Clause | None:
    """This function will name the clause of `policy` that decides about `verb`, or None where it has none."""
    if policy.command not in (verb.command, "*"):
        return None
    if not verb.checks:
        return Clause(policy.name, "using") if policy.using is not None else None
    if policy.checking is not None:
        return Clause(policy.name, "checking")
    # Without WITH CHECK the USING clause checks too, but there is none for a policy that only inserts.
    return Clause(policy.name, "using") if policy.using is not None and policy.command != "a" else None


def admits(judged: Judged, verb: Verb, scene: Scene) -> list[Policy]:
    """This function will give the permissive policies that let `verb` pass in `scene`, if it passes."""
    passing = [policy for policy in _permissive(judged, verb) if _true(judged, policy, verb, scene)]
    restrictive = [policy for policy in applicable(judged.table) if not policy.permissive]
    floors = [policy for policy in restrictive if policy.command in (verb.command, "*")]
    return passing if all(_true(judged, policy, verb, scene) for policy in floors) else []


def _permissive(judged: Judged, verb: Verb) -> list[Policy]:
    return [
        policy
        for policy in applicable(judged.table)
        if policy.permissive
        and clause_of(policy, verb) is not None
        and not (verb is READ and f"{judged.table.label}.{policy.name}" in judged.public_read)
    ]


def _true(judged: Judged, policy: Policy, verb: Verb, scene: Scene) -> bool:
    clause = clause_of(policy, verb)
    return clause is not None and scene in judged.truth.true_in[clause]


def _held(judged: Judged) -> list[Verb]:
    return [verb for verb in VERBS if verb.privilege in judged.table.privileges]


def _scenes(judged: Judged) -> set[Scene]:
    found = set().union(*judged.truth.true_in.values()) if judged.truth.true_in else set()
    return {scene for scene in found if scene.context is not Context.OWNER}


def _opened(judged: Judged, policy: Policy, where: Callable[[Scene], bool]) -> list[Verb]:
    scenes = [scene for scene in _scenes(judged) if where(scene)]
    return [verb for verb in _held(judged) if any(policy in admits(judged, verb, scene) for scene in scenes)]


def _to_a_stranger(scene: Scene) -> bool:
    return scene.context is Context.OTHER_TENANT and scene.owner is Owner.TENANT


def _without_context(scene: Scene) -> bool:
    return scene.context in (Context.EMPTY, Context.NEVER_SET) and scene.owner is Owner.TENANT


def _openings_of(judged: Judged, policy: Policy) -> Iterator[Finding]:
    to_strangers = _opened(judged, policy, _to_a_stranger)
    rows = [verb for verb in to_strangers if not verb.checks]
    if rows:
        yield from _open_rows(judged, policy, rows)
    elif to_strangers:
        severity = Severity.CRITICAL if ADD in to_strangers else Severity.HIGH
        yield _finding(
            judged,
            policy,
            "check_looser",
            severity,
            f"WITH CHECK lets a tenant write rows that belong to another ({_names(to_strangers)})",
        )
    elif nobody := _opened(judged, policy, _without_context):
        yield _finding(
            judged,
            policy,
            "fail_open",
            Severity.CRITICAL,
            f"a session without a tenant reaches every tenant's rows ({_names(nobody)}): an empty or missing"
            f" {judged.setting} has to mean nobody",
        )
    elif orphans := _opened(judged, policy, lambda s: s.owner is Owner.NOBODY and s.context in _NOBODY):
        yield _finding(
            judged,
            policy,
            "orphan_match",
            Severity.HIGH,
            f"a session without a tenant reaches the rows that have no owner ({_names(orphans)})",
        )
    elif blanks := _opened(judged, policy, lambda s: s.owner is Owner.BLANK and s.context is Context.EMPTY):
        yield _finding(
            judged,
            policy,
            "blank_text_tenant",
            Severity.HIGH,
            f"a session with an empty context reaches the rows whose owner is '' ({_names(blanks)})",
        )


_NOBODY: Final = (Context.EMPTY, Context.NEVER_SET)


def _open_rows(judged: Judged, policy: Policy, verbs: Sequence[Verb]) -> Iterator[Finding]:
    critical = Severity.CRITICAL
    reached = f"a tenant reaches the rows of every other one ({_names(verbs)})"
    bound = [
        other.name
        for verb in verbs
        for other in _permissive(judged, verb)
        if other is not policy and not _opened(judged, other, _to_a_stranger)
    ]
    unconditional = all(
        any(policy in admits(judged, verb, scene) for verb in verbs) for scene in _every_stranger(judged)
    )
    if (policy.using or "") in _LITERALLY_TRUE:
        yield _finding(judged, policy, "always_true", critical, f"USING is always true: {reached}")
    elif unconditional and not bound:
        yield _finding(judged, policy, "tautology", critical, f"USING is true for every row: {reached}")
    if bound or ((policy.using or "") not in _LITERALLY_TRUE and not unconditional):
        beside = f" although {', '.join(sorted(set(bound)))} binds them" if bound else " that carry some mark"
        yield _finding(judged, policy, "permissive_widening", critical, reached + beside)
    if READ not in verbs and READ in _held(judged):
        yield _finding(
            judged,
            policy,
            "write_broader_than_read",
            critical,
            f"rows that a tenant cannot see can be changed or removed ({_names(verbs)})",
        )


def _every_stranger(judged: Judged) -> list[Scene]:
    flags = (False, True) if any(column.category == "B" for column in judged.table.columns) else (False,)
    return [Scene(Context.OTHER_TENANT, Owner.TENANT, flag) for flag in flags]


def _drifted_names(judged: Judged, policy: Policy) -> set[str]:
    read = [rls_scope.settings_read_in(policy, part) for part in (policy.using, policy.checking)]
    return set().union(*(names for names in read if judged.setting not in names))


def _context_name_drift(judged: Judged) -> Iterator[Finding]:
    for policy in applicable(judged.table):
        if names := _drifted_names(judged, policy):
            yield _finding(
                judged,
                policy,
                "context_name_drift",
                Severity.HIGH,
                f"the policy reads {', '.join(sorted(names))}, but the application sets {judged.setting}",
            )


def _locked_out(judged: Judged) -> Iterator[Finding]:
    policies = _permissive(judged, READ)
    if READ not in _held(judged) or not policies:
        return
    if any(_drifted_names(judged, policy) for policy in policies):
        return  # context_name_drift says it better
    own = [Scene(Context.OWNER, Owner.TENANT, flag) for flag in (False, True)]
    if any(admits(judged, READ, scene) for scene in own):
        return
    raised = [(policy, states) for policy in policies if (states := _raised_for_its_owner(judged, policy))]
    for policy, states in raised:
        yield _finding(
            judged,
            policy,
            "runtime_error",
            Severity.HIGH,
            f"under a tenant's context the policy raises SQLSTATE {', '.join(sorted(states))}",
        )
    if not raised:
        yield Finding(
            check_id="rls.wrong_column",
            severity=Severity.HIGH,
            database=judged.database,
            object=judged.table.label,
            message="a tenant does not see its own row: the policies compare something else with"
            f" {judged.setting}",
            remediation=f"-- compare the tenant column of {judged.table.identifier} with {judged.setting}",
        )


def _raised_for_its_owner(judged: Judged, policy: Policy) -> set[str]:
    clause = clause_of(policy, READ)
    raised = judged.truth.raised[clause] if clause is not None else {}
    return {state for scene, state in raised.items() if scene.context is Context.OWNER}


def _finding(judged: Judged, policy: Policy, name: str, severity: Severity, message: str) -> Finding:
    drop = sql.SQL("DROP POLICY {} ON {};").format(
        sql.Identifier(policy.name), sql.Identifier(judged.table.schema, judged.table.name)
    )
    return Finding(
        check_id=f"rls.{name}",
        severity=severity,
        database=judged.database,
        object=f"{judged.table.label}.{policy.name}",
        message=message,
        remediation=f"{drop.as_string(None)} -- then create it with the tenant's condition in both clauses",
    )


def _names(verbs: Iterable[Verb]) -> str:
    return ", ".join(verb.name for verb in verbs)
