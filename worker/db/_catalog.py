"""Describes tables as PostgreSQL has them, so that two schemas can be compared to the last constraint."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from psycopg import Connection, sql
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from worker.database_url import Database
from worker.models.platform import PlatformBase
from worker.models.user_data import UserDataBase

METADATA = {Database.PLATFORM: PlatformBase.metadata, Database.USER_DATA: UserDataBase.metadata}

_TABLES = """
SELECT 'table ' || relation.relname, coalesce(array_to_string(relation.reloptions, ', '), '')
FROM pg_class AS relation
WHERE relation.relnamespace = %(schema)s::regnamespace AND relation.relkind IN ('r', 'p')
"""

_COLUMNS = """
SELECT 'column ' || relation.relname || '.' || attribute.attname,
       format_type(attribute.atttypid, attribute.atttypmod)
           || CASE WHEN attribute.attnotnull THEN ' NOT NULL' ELSE '' END
           || coalesce(' DEFAULT ' || pg_get_expr(value.adbin, value.adrelid), '')
FROM pg_class AS relation
JOIN pg_attribute AS attribute
    ON attribute.attrelid = relation.oid AND attribute.attnum > 0 AND NOT attribute.attisdropped
LEFT JOIN pg_attrdef AS value ON value.adrelid = relation.oid AND value.adnum = attribute.attnum
WHERE relation.relnamespace = %(schema)s::regnamespace AND relation.relkind IN ('r', 'p')
"""

# From PostgreSQL 18 on NOT NULL is a constraint too ('n'); the columns say it already.
_CONSTRAINTS = """
SELECT 'constraint ' || relation.relname || '.' || entry.conname, pg_get_constraintdef(entry.oid)
FROM pg_constraint AS entry JOIN pg_class AS relation ON relation.oid = entry.conrelid
WHERE relation.relnamespace = %(schema)s::regnamespace AND entry.contype <> 'n'
"""

_INDEXES = """
SELECT 'index ' || relation.relname || '.' || index_relation.relname,
       replace(pg_get_indexdef(entry.indexrelid), ' ON ' || %(schema)s || '.', ' ON ')
FROM pg_index AS entry
JOIN pg_class AS relation ON relation.oid = entry.indrelid
JOIN pg_class AS index_relation ON index_relation.oid = entry.indexrelid
WHERE relation.relnamespace = %(schema)s::regnamespace
"""


def describe(connection: Connection[Any], schema: str) -> dict[str, str]:
    """This function will describe every table, column, constraint and index of a schema.

    The keys name the object ("column users.email"), the values define it. The search path of the running
    transaction is set to the schema, so that definitions do not name it.
    """
    connection.execute(sql.SQL("SET LOCAL search_path TO {}").format(sql.Identifier(schema)))
    found: dict[str, str] = {}
    for query in (_TABLES, _COLUMNS, _CONSTRAINTS, _INDEXES):
        found.update(connection.execute(query, {"schema": schema}).fetchall())
    return found


def build(connection: Connection[Any], schema: str, database: Database) -> None:
    """This function will create a schema with the tables that the models declare, for a comparison."""
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    connection.execute(sql.SQL("SET LOCAL search_path TO {}").format(sql.Identifier(schema)))
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves the constructor untyped
    for table in METADATA[database].sorted_tables:
        connection.execute(str(CreateTable(table).compile(dialect=dialect)).encode())
        for index in table.indexes:
            connection.execute(str(CreateIndex(index).compile(dialect=dialect)).encode())


def compare(wanted: Mapping[str, str], found: Mapping[str, str], tables: Collection[str]) -> list[str]:
    """This function will list, in words, how what was found differs from what is wanted, for these tables."""
    differences = []
    for key in sorted(wanted.keys() | found.keys(), key=_order):
        if _table_of(key) not in tables or wanted.get(key) == found.get(key):
            continue
        if f"table {_table_of(key)}" not in found and not key.startswith("table "):
            continue
        if key not in found:
            differences.append(f"{key}: missing; it should be {wanted[key] or 'there'}")
        elif key not in wanted:
            differences.append(f"{key}: not declared; it is {found[key] or 'there'}")
        else:
            differences.append(f"{key}: it is {found[key] or 'plain'}, it should be {wanted[key] or 'plain'}")
    return differences


def _table_of(key: str) -> str:
    return key.split(" ", 1)[1].split(".", 1)[0]


def _order(key: str) -> tuple[str, int, str]:
    kinds = ("table", "column", "constraint", "index")
    return _table_of(key), kinds.index(key.split(" ", 1)[0]), key
