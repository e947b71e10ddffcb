"""What the catalog says about tables, policies, views and one role: read once, judged elsewhere.

The statements run with an empty `search_path`, so that every name in a deparsed expression is qualified, and
name objects by oid; they read no table but those of `pg_catalog`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

# What a role may do to a table; a privilege on a single column counts, since it reaches every row.
_PRIVILEGES = """
    array_remove(ARRAY[
        CASE WHEN has_any_column_privilege(%(role)s::oid, c.oid, 'select') THEN 'select' END,
        CASE WHEN has_any_column_privilege(%(role)s::oid, c.oid, 'insert') THEN 'insert' END,
        CASE WHEN has_any_column_privilege(%(role)s::oid, c.oid, 'update') THEN 'update' END,
        CASE WHEN has_table_privilege(%(role)s::oid, c.oid, 'delete') THEN 'delete' END,
        CASE WHEN has_table_privilege(%(role)s::oid, c.oid, 'truncate') THEN 'truncate' END,
        CASE WHEN has_table_privilege(%(role)s::oid, c.oid, 'trigger') THEN 'trigger' END,
        CASE WHEN has_any_column_privilege(%(role)s::oid, c.oid, 'references') THEN 'references' END
    ], NULL)
"""

# Relations of the people who use the database: neither the system's nor an extension's.
_THEIR_OWN = """
    n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'
    AND NOT EXISTS (SELECT FROM pg_depend AS d
                     WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
"""

_ROLE = """
    SELECT oid, rolname AS name, rolsuper AS superuser, rolbypassrls AS bypassrls,
           rolcreaterole AS createrole, rolreplication AS replication
      FROM pg_roles WHERE rolname = %(name)s
"""

_ROLES_WITHIN_REACH = """
    SELECT rolname AS name, rolsuper AS superuser, rolbypassrls AS bypassrls,
           EXISTS (SELECT FROM pg_class WHERE relowner = pg_roles.oid AND relrowsecurity) AS owns_secured
      FROM pg_roles
     WHERE oid <> %(role)s AND pg_has_role(%(role)s::oid, oid, %(how)s)
     ORDER BY rolname
"""

_SETTINGS = """
    SELECT coalesce(r.rolname, 'every role') AS role, split_part(setting, '=', 1) AS name
      FROM pg_db_role_setting AS s LEFT JOIN pg_roles AS r ON r.oid = s.setrole, unnest(setconfig) AS setting
     WHERE s.setrole IN (0, %(role)s)
       AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
"""

_TABLES = f"""
    SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind = 'p' AS partitioned,
           c.relispartition AS partition, c.relrowsecurity AS rls, c.relforcerowsecurity AS forced,
           c.reltuples::float8 AS estimated_rows, o.rolname AS owner,
           pg_has_role(%(role)s::oid, c.relowner, 'USAGE') AS owner_rights,
           CASE WHEN has_schema_privilege(%(role)s::oid, n.oid, 'usage') THEN {_PRIVILEGES} ELSE '{{}}' END
             AS privileges,
           ARRAY(SELECT i.inhparent::bigint FROM pg_inherits AS i WHERE i.inhrelid = c.oid) AS parent_oids,
           ARRAY(SELECT DISTINCT k.confrelid::bigint FROM pg_constraint AS k
                  WHERE k.contype = 'f' AND k.conrelid = c.oid) AS referenced_oids,
           ARRAY(SELECT a.attname::text FROM pg_index AS i
                   JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                  WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL) AS leading_columns
      FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
      JOIN pg_roles AS o ON o.oid = c.relowner
     WHERE c.relkind IN ('r', 'p') AND {_THEIR_OWN}
     ORDER BY n.nspname, c.relname
"""  # noqa: S608  put together from the constants above, never from a value

_COLUMNS = f"""
    SELECT c.oid AS table_oid, a.attname AS name, a.attnotnull AS not_null,
           format_type(coalesce(nullif(t.typbasetype, 0), t.oid), NULL) AS type,
           t.typcategory::text AS category
      FROM pg_attribute AS a
      JOIN pg_class AS c ON c.oid = a.attrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
      JOIN pg_type AS t ON t.oid = a.atttypid
     WHERE c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped AND {_THEIR_OWN}
     ORDER BY c.oid, a.attnum
"""  # noqa: S608  put together from the constants above, never from a value

# A policy applies to a role that inherits one of its roles; role 0 in it stands for everybody.
_POLICIES = """
    SELECT p.polrelid AS table_oid, p.polname AS name, p.polcmd::text AS command,
           p.polpermissive AS permissive,
           pg_get_expr(p.polqual, p.polrelid) AS using, pg_get_expr(p.polwithcheck, p.polrelid) AS checking,
           ARRAY(SELECT CASE x WHEN 0 THEN 'public' ELSE pg_get_userbyid(x)::text END
                   FROM unnest(p.polroles) AS x ORDER BY 1) AS roles,
           EXISTS (SELECT FROM unnest(p.polroles) AS x
                    WHERE CASE x WHEN 0 THEN true ELSE pg_has_role(%(role)s::oid, x, 'USAGE') END) AS applies,
           ARRAY(SELECT a.attname::text FROM pg_depend AS d
                   JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                  WHERE d.classid = 'pg_policy'::regclass AND d.objid = p.oid
                    AND d.refclassid = 'pg_class'::regclass AND d.refobjid = p.polrelid AND d.refobjsubid > 0)
             AS columns,
           ARRAY(SELECT f.prosrc FROM pg_depend AS d JOIN pg_proc AS f ON f.oid = d.refobjid
                  WHERE d.classid = 'pg_policy'::regclass AND d.objid = p.oid
                    AND d.refclassid = 'pg_proc'::regclass) AS function_sources
      FROM pg_policy AS p
     ORDER BY p.polrelid, p.polname
"""

# For every view the relations it is made of: its rewrite rule depends on them.
_VIEWS = f"""
    SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind = 'm' AS materialized, o.rolname AS owner,
           o.rolsuper OR o.rolbypassrls AS owner_above_rls,
           coalesce((SELECT bool_or(option ILIKE 'security_invoker=%%' AND split_part(option, '=', 2)::bool)
                       FROM unnest(c.reloptions) AS option WHERE option ILIKE 'security_invoker=%%'), false)
             AS invoker,
           has_schema_privilege(%(role)s::oid, n.oid, 'usage')
             AND has_any_column_privilege(%(role)s::oid, c.oid, 'select') AS readable,
           ARRAY(SELECT DISTINCT d.refobjid::bigint FROM pg_rewrite AS r
                   JOIN pg_depend AS d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
                  WHERE r.ev_class = c.oid AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> c.oid)
             AS source_oids
      FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
      JOIN pg_roles AS o ON o.oid = c.relowner
     WHERE c.relkind IN ('v', 'm') AND {_THEIR_OWN}
     ORDER BY n.nspname, c.relname
"""  # noqa: S608  put together from the constants above, never from a value

# What a view's owner could read of a table that is under row level security.
_OPEN_TO_OWNER = """
    SELECT c.oid AS table_oid, o.rolname AS owner,
           (pg_has_role(o.oid, c.relowner, 'USAGE') AND NOT c.relforcerowsecurity)
           OR EXISTS (SELECT FROM pg_policy AS p, unnest(p.polroles) AS x
                       WHERE p.polrelid = c.oid AND p.polpermissive AND p.polcmd IN ('r', '*')
                         AND pg_get_expr(p.polqual, p.polrelid) = 'true'
                         AND CASE x WHEN 0 THEN true ELSE pg_has_role(o.oid, x, 'USAGE') END) AS exempt
      FROM pg_class AS c, pg_roles AS o
     WHERE c.relrowsecurity AND o.rolname = ANY(%(owners)s)
"""

_GRANTS = f"""
    SELECT c.relname AS table_name, coalesce(r.rolname, 'public') AS grantee,
           lower(x.privilege_type) AS privilege, NULL::text AS column_name
      FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace, aclexplode(c.relacl) AS x
      LEFT JOIN pg_roles AS r ON r.oid = x.grantee
     WHERE c.relkind IN ('r', 'p') AND n.nspname = 'public' AND x.grantee <> c.relowner AND {_THEIR_OWN}
    UNION ALL
    SELECT c.relname, coalesce(r.rolname, 'public'), lower(x.privilege_type), a.attname::text
      FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
      JOIN pg_attribute AS a ON a.attrelid = c.oid, aclexplode(a.attacl) AS x
      LEFT JOIN pg_roles AS r ON r.oid = x.grantee
     WHERE c.relkind IN ('r', 'p') AND n.nspname = 'public' AND x.grantee <> c.relowner AND {_THEIR_OWN}
"""  # noqa: S608  put together from the constants above, never from a value


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A role and the attributes that stand above row level security."""

    oid: int
    name: str
    superuser: bool
    bypassrls: bool
    createrole: bool
    replication: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """A role that the judged role can become."""

    name: str
    superuser: bool
    bypassrls: bool
    owns_secured: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column; `category` is pg_type's letter (B boolean, S string …), a domain shows its base type."""

    table_oid: int
    name: str
    type: str
    category: str
    not_null: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy with its deparsed expressions; `applies` says whether the judged role is under it."""

    table_oid: int
    name: str
    command: str
    permissive: bool
    using: str | None
    checking: str | None
    roles: Sequence[str]
    applies: bool
    columns: Sequence[str]
    function_sources: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table (or partition) and what the judged role may do to it."""

    oid: int
    schema: str
    name: str
    partitioned: bool
    partition: bool
    rls: bool
    forced: bool
    estimated_rows: float
    owner: str
    owner_rights: bool
    privileges: Sequence[str]
    parent_oids: Sequence[int]
    referenced_oids: Sequence[int]
    leading_columns: Sequence[str]
    columns: Sequence[Column] = ()
    policies: Sequence[Policy] = ()

    @property
    def label(self) -> str:
        """This property will be the name that findings carry: `schema.table`."""
        return f"{self.schema}.{self.name}"

    @property
    def identifier(self) -> str:
        """This property will be the name as SQL, quoted where it needs to be."""
        return sql.Identifier(self.schema, self.name).as_string(None)

    @property
    def reachable(self) -> bool:
        """This property will be true where the role can read or change some row."""
        return not {"select", "insert", "update", "delete"}.isdisjoint(self.privileges)

    @cached_property
    def columns_by_name(self) -> Mapping[str, Column]:
        """This property will be the columns by their names."""
        return {column.name: column for column in self.columns}


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A view or materialized view, and the relations that it reads."""

    oid: int
    schema: str
    name: str
    materialized: bool
    owner: str
    owner_above_rls: bool
    invoker: bool
    readable: bool
    source_oids: Sequence[int]

    @property
    def label(self) -> str:
        """This property will be the name that findings carry: `schema.view`."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """One snapshot of what the checks need."""

    role: Role
    reach: Sequence[Reach]
    default_settings: Sequence[tuple[str, str]]
    tables: Sequence[Table]
    views: Sequence[View]
    exempt_owners: frozenset[tuple[int, str]]
    """(table oid, owner name): row level security of the table does not stop that owner."""
    grants: Sequence[Mapping[str, Any]] = field(default=())


def read_role(connection: psycopg.Connection[Any], name: str) -> Role | None:
    """This function will read one role's attributes, or answer None where there is no such role."""
    rows = _rows(connection, _ROLE, name=name)
    return Role(**rows[0]) if rows else None


def read(connection: psycopg.Connection[Any], role: Role) -> Catalog:
    """This function will read the catalog as far as it concerns `role`. Needs no privilege of its own."""
    columns: dict[int, list[Column]] = {}
    for row in _rows(connection, _COLUMNS):
        columns.setdefault(row["table_oid"], []).append(Column(**row))
    policies: dict[int, list[Policy]] = {}
    for row in _rows(connection, _POLICIES, role=role.oid):
        policies.setdefault(row["table_oid"], []).append(Policy(**row))
    views = [View(**row) for row in _rows(connection, _VIEWS, role=role.oid)]
    open_to = _rows(connection, _OPEN_TO_OWNER, owners=sorted({view.owner for view in views}))
    how = "SET" if connection.info.server_version >= 160000 else "MEMBER"
    return Catalog(
        role=role,
        reach=[Reach(**row) for row in _rows(connection, _ROLES_WITHIN_REACH, role=role.oid, how=how)],
        default_settings=[(row["role"], row["name"]) for row in _rows(connection, _SETTINGS, role=role.oid)],
        tables=[
            Table(**row, columns=columns.get(row["oid"], ()), policies=policies.get(row["oid"], ()))
            for row in _rows(connection, _TABLES, role=role.oid)
        ],
        views=views,
        exempt_owners=frozenset((row["table_oid"], row["owner"]) for row in open_to if row["exempt"]),
        grants=_rows(connection, _GRANTS),
    )


def _rows(connection: psycopg.Connection[Any], statement: str, **values: Any) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        # Every statement is one of the constants above; what varies is bound.
        return cursor.execute(statement.encode(), values or None).fetchall()
