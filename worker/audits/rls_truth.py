"""What policies answer for rows that do not exist: each expression evaluated, no table read.

A policy's expression is evaluated on a made-up row, as the judged role, in a READ ONLY transaction: on a row
of a foreign tenant under the context of another tenant, of '' and of a setting that was never set, and on an
own row as the positive control.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import sql

from worker.audits.rls_catalog import Column, Policy, Table
from worker.errors import PermanentError


class Context(enum.StrEnum):
    """What the tenant setting holds while an expression is evaluated."""

    NEVER_SET = "never set"
    EMPTY = "''"
    OTHER_TENANT = "another tenant"
    OWNER = "its owner"


class Owner(enum.StrEnum):
    """Whose the made-up row is."""

    TENANT = "a tenant"
    NOBODY = "nobody (NULL)"
    BLANK = "blank ('')"


@dataclass(frozen=True, slots=True)
class Scene:
    """One row and one context. `flags` is the value of every boolean column."""

    context: Context
    owner: Owner
    flags: bool


@dataclass(frozen=True, slots=True)
class Clause:
    """One expression of one policy: what rows it shows (`using`) or what rows it lets in (`checking`)."""

    policy: str
    part: str


@dataclass(frozen=True, slots=True)
class Truth:
    """Where each clause is true, and where it raised an SQLSTATE instead."""

    true_in: Mapping[Clause, frozenset[Scene]]
    raised: Mapping[Clause, Mapping[Scene, str]]


class CannotEvaluate(PermanentError):
    """The expressions cannot be evaluated here, so nothing is known."""


_TENANTS: Final = {
    "uuid": (str(UUID(int=0xA11CE)), str(UUID(int=0xB0B))),
    "text": ("tenant-alice", "tenant-bob"),
    "number": ("21001", "21002"),
}
_TIMED_OUT: Final = {"57014", "55P03"}
# The made-up row lacks what a real one has (a system column, the row as a whole).
_ROW_IS_NOT_REAL: Final = {"42703", "42P01"}


def evaluate(
    connection: psycopg.Connection[Any], table: Table, *, role: str, setting: str, tenant_column: str | None
) -> Truth:
    """This function will evaluate the table's policies that apply to `role` in every scene.

    Raises CannotEvaluate where the login may not become the role, a statement ran out of time, or the tenant
    column is of a type that no made-up tenant has.
    """
    clauses = dict(_clauses(table))
    tenants = _tenants_of(table.columns_by_name[tenant_column]) if tenant_column else ("", "")
    true_in: dict[Clause, set[Scene]] = {clause: set() for clause in clauses}
    raised: dict[Clause, dict[Scene, str]] = {clause: {} for clause in clauses}
    for scene in _scenes(table, tenant_column):
        row = _row(table, scene, tenant_column, tenants[0])
        context = {Context.EMPTY: "", Context.OTHER_TENANT: tenants[1], Context.OWNER: tenants[0]}.get(
            scene.context
        )
        answers = {
            expression: _ask(
                connection, _statement(table, row, expression, scene, setting), role, setting, context
            )
            for expression in set(clauses.values())
        }
        for clause, expression in clauses.items():
            answer = answers[expression]
            if answer is True:
                true_in[clause].add(scene)
            elif isinstance(answer, str):
                raised[clause][scene] = answer
    return Truth({clause: frozenset(scenes) for clause, scenes in true_in.items()}, raised)


def applicable(table: Table) -> list[Policy]:
    """This function will give the policies that the judged role is under."""
    return [policy for policy in table.policies if policy.applies]


def _clauses(table: Table) -> Iterator[tuple[Clause, str]]:
    for policy in applicable(table):
        if policy.using is not None:
            yield Clause(policy.name, "using"), policy.using
        if policy.checking is not None:
            yield Clause(policy.name, "checking"), policy.checking


def _scenes(table: Table, tenant_column: str | None) -> Iterator[Scene]:
    # "Never set" comes first: once a setting was set in a session, it can only become '' again.
    flags = (False, True) if any(column.category == "B" for column in table.columns) else (False,)
    owners = [Owner.TENANT]
    if tenant_column is not None:
        column = table.columns_by_name[tenant_column]
        owners += [Owner.NOBODY] if not column.not_null else []
        owners += [Owner.BLANK] if column.category == "S" else []
    for context in Context:
        for owner in owners if context is not Context.OWNER else [Owner.TENANT]:
            yield from (Scene(context, owner, flag) for flag in flags)


def _statement(
    table: Table, row: sql.Composable, expression: str, scene: Scene, setting: str
) -> sql.Composed:
    if scene.context is Context.NEVER_SET:
        # In a pooled session the setting may have been set before; a name that nobody ever used was not.
        expression = expression.replace(f"'{setting}'", f"'{setting}_never_set'")
    return sql.SQL("SELECT ({}) IS TRUE FROM (SELECT {}) AS {}").format(
        _trusted(expression), row, sql.Identifier(table.name)
    )


def _row(table: Table, scene: Scene, tenant_column: str | None, tenant: str) -> sql.Composable:
    owner = {Owner.TENANT: tenant, Owner.BLANK: ""}.get(scene.owner)
    return sql.SQL(", ").join(
        sql.SQL("CAST({} AS {}) AS {}").format(
            sql.Literal(owner if column.name == tenant_column else _dummy(column, scene)),
            _trusted(column.type),
            sql.Identifier(column.name),
        )
        for column in table.columns
    )


def _dummy(column: Column, scene: Scene) -> str | None:
    if column.category == "B":
        return "true" if scene.flags else "false"
    if column.category == "S":
        return "x"
    if column.category == "N":
        return "1"
    if column.type == "uuid":
        return str(UUID(int=0xD0))
    return None


def _tenants_of(column: Column) -> Sequence[str]:
    kind = {"S": "text", "N": "number"}.get(column.category, column.type)
    if kind not in _TENANTS:
        raise CannotEvaluate(f"no tenant can be made up for a column of type {column.type}")
    return _TENANTS[kind]


def _ask(
    connection: psycopg.Connection[Any],
    statement: sql.Composed,
    role: str,
    setting: str,
    context: str | None,
) -> bool | str:
    # The savepoint is rolled back in any case: role and context never outlive the question.
    connection.execute("SAVEPOINT audit_question")
    try:
        connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role)))
    except psycopg.Error as error:
        connection.execute("ROLLBACK TO SAVEPOINT audit_question")
        raise CannotEvaluate(f"this login may not SET ROLE {role} ({error.sqlstate})") from error
    try:
        if context is not None:
            connection.execute("SELECT set_config(%s, %s, true)", [setting, context])
        row = connection.execute(statement).fetchone()
        return bool(row and row[0])
    except psycopg.Error as error:
        state = error.sqlstate or "08000"
        if state in _TIMED_OUT or state in _ROW_IS_NOT_REAL or state.startswith("08"):
            raise CannotEvaluate(f"an expression could not be evaluated (SQLSTATE {state})") from error
        return state
    finally:
        if not connection.broken:
            connection.execute("ROLLBACK TO SAVEPOINT audit_question")


def _trusted(text: str) -> sql.SQL:
    return sql.SQL(text)  # deparsed by the server itself from its catalog
