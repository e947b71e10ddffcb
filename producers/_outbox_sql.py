"""The outbox's statements, and how they reach whatever connection the app has: by shape, without its driver.

Known are DB-API 2.0 connections and cursors (psycopg, psycopg2, pg8000, Django's), SQLAlchemy's Connection
and Session, and their asyncio faces, and asyncpg's Connection.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

DEFAULT_TABLE: Final = "usage_outbox"
# Of two apps that start at once, the second waits: CREATE TABLE IF NOT EXISTS alone would fail there.
_LOCK: Final = "SELECT pg_advisory_xact_lock(7526310932116139333)"

# One part of a table's name: lower case, so that it is the same table with quotes and without.
_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")


class OutsideTransaction(RuntimeError):
    """The connection is in no transaction, so that the event would be committed alone, whatever follows."""


class Statements(NamedTuple):
    """What the outbox says about one table."""

    table: str
    create: str
    add: str
    take: str
    remove: str
    refuse: str
    look: str


def statements(table: str) -> Statements:
    """This function will write the statements for `table`, which may name its schema, as in `app.outbox`.

    Raises ValueError for what is no such name.
    """
    parts = table.split(".")
    if len(parts) > 2 or not all(_NAME.fullmatch(part) for part in parts):
        raise ValueError(
            f"table is {table[:130]!r}; write a name, or schema.name, in lower case letters, digits and _, "
            f"as in {DEFAULT_TABLE}"
        )
    name = ".".join(f'"{part}"' for part in parts)
    # Every `name` below is a quoted identifier of the alphabet above; all values are parameters.
    return Statements(
        table=table,
        create=(
            f"CREATE TABLE IF NOT EXISTS {name} (\n"
            "    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,\n"
            "    event_id uuid NOT NULL,\n"
            "    data bytea NOT NULL CHECK (octet_length(data) BETWEEN 1 AND 262144),\n"
            "    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),\n"
            "    refused text\n"
            # Rows come and go: vacuum by their number, not by a share of a table that is mostly empty.
            ") WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000)"
        ),
        add=f"INSERT INTO {name} (event_id, data) VALUES (%s, %s)",  # noqa: S608 - an identifier, see above
        take=(
            f"SELECT id, event_id, data FROM {name} WHERE refused IS NULL"  # noqa: S608 - see above
            " ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED"
        ),
        remove=f"DELETE FROM {name} WHERE id = ANY(%s)",  # noqa: S608 - see above
        refuse=f"UPDATE {name} SET refused = %s WHERE id = %s",  # noqa: S608 - see above
        look=(
            "SELECT coalesce(refused, ''), count(*),"  # noqa: S608 - see above
            " extract(epoch FROM clock_timestamp() - min(created_at))::float8"
            f" FROM {name} GROUP BY 1 ORDER BY 1"
        ),
    )


def create(connection: Any, wanted: Statements) -> None:
    """This function will create the table in the connection's transaction, where it is not there yet."""
    target = _blocking(connection)
    for statement in (_LOCK, wanted.create):
        _execute(target, statement, ())


def insert(connection: Any, wanted: Statements, event_id: UUID, data: bytes) -> None:
    """This function will add one row in the connection's transaction."""
    target = _blocking(connection)
    _expect_transaction(target)
    _execute(target, wanted.add, (str(event_id), data))


async def insert_async(connection: Any, wanted: Statements, event_id: UUID, data: bytes) -> None:
    """This function will add one row in the transaction of a connection of asyncio."""
    target = connection
    if _is_session(target):
        target = target.connection()
        if not inspect.isawaitable(target):
            raise _mistaken("add_async", connection)
        target = await target
    if not _is_asyncpg(target) and callable(getattr(target, "acquire", None)):
        # A pool would run it on any connection, in a transaction that is over at once.
        raise _unknown(target)
    if not _is_asyncio(target):
        raise _mistaken("add_async", connection)
    _expect_transaction(target)
    if _is_asyncpg(target):
        await target.execute(_numbered(wanted.add), event_id, data)
        return
    await _execute(target, wanted.add, (str(event_id), data))


def rows_of(connection: Any, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """This function will run a statement on a DB-API connection and return its rows as plain tuples."""
    cursor = connection.cursor()
    try:
        cursor.execute(*_arguments(statement, values))
        found = cursor.fetchall()
    finally:
        cursor.close()
    # A connection may have been told to make dicts of its rows.
    return [tuple(row.values()) if isinstance(row, Mapping) else tuple(row) for row in found]


def run(connection: Any, statement: str, values: Sequence[object] = ()) -> None:
    """This function will run a statement without rows on a DB-API connection."""
    cursor = connection.cursor()
    try:
        cursor.execute(*_arguments(statement, values))
    finally:
        cursor.close()


def _blocking(connection: Any) -> Any:
    """The connection below a session; refuses those of asyncio before anything is sent."""
    target = connection.connection() if _is_session(connection) else connection
    if inspect.iscoroutine(target):
        target.close()
    if inspect.isawaitable(target) or _is_asyncio(target):
        raise _mistaken("add", connection)
    return target


def _execute(target: Any, statement: str, values: Sequence[object]) -> Any:
    """Hands the statement on; what it returns is to be awaited where the connection is asyncio's."""
    if hasattr(target, "exec_driver_sql"):
        style = getattr(target.dialect, "paramstyle", "pyformat")
        words = _numbered(statement) if style == "numeric_dollar" else statement
        return target.exec_driver_sql(*_arguments(words, values))
    # A connection's own `execute` is no part of DB-API; its cursor's is.
    if callable(getattr(target, "cursor", None)) and not _is_asyncio(target):
        return run(target, statement, values)
    if callable(getattr(target, "execute", None)):
        return target.execute(*_arguments(statement, values))
    raise _unknown(target)


def _arguments(statement: str, values: Sequence[object]) -> tuple[Any, ...]:
    """Without values there is no second argument: some drivers would look for placeholders then."""
    return (statement, tuple(values)) if values else (statement,)


def _expect_transaction(target: Any) -> None:
    """Refuses a connection that says of itself that it is in no transaction and begins none."""
    if hasattr(target, "exec_driver_sql"):
        return  # SQLAlchemy begins one by itself
    own = getattr(target, "connection", None)
    connection = target if hasattr(target, "autocommit") or own is None else own
    if callable(getattr(target, "is_in_transaction", None)):
        alone = not target.is_in_transaction()  # asyncpg
    elif hasattr(target, "in_atomic_block"):
        alone = not target.in_atomic_block and target.get_autocommit()  # Django
    else:
        # psycopg and psycopg2; 0 is libpq's PQTRANS_IDLE. Others do not tell.
        status = getattr(getattr(connection, "info", None), "transaction_status", None)
        alone = getattr(connection, "autocommit", False) is True and status == 0
    if alone:
        raise OutsideTransaction(
            "the connection is in autocommit and in no transaction, so the event would be sent even if the "
            "app's own write fails: begin one around both (psycopg: with connection.transaction(); Django: "
            "with transaction.atomic(); asyncpg: async with connection.transaction())"
        )


def _is_session(target: Any) -> bool:
    """SQLAlchemy's sessions have a method `connection`; a cursor's `connection` is the connection itself."""
    # Asked of the type: on an instance, the attribute may be a property that raises.
    return all(callable(getattr(type(target), name, None)) for name in ("connection", "get_bind"))


def _is_asyncpg(target: Any) -> bool:
    """Its Connection, also one that a pool has lent; not the pool, which has transactions of its own."""
    ours = any(kind.__module__.partition(".")[0] == "asyncpg" for kind in type(target).__mro__)
    return ours and callable(getattr(target, "is_in_transaction", None))


def _is_asyncio(target: Any) -> bool:
    methods = [getattr(target, name, None) for name in ("execute", "exec_driver_sql")]
    return _is_asyncpg(target) or any(inspect.iscoroutinefunction(method) for method in methods)


def _mistaken(called: str, connection: Any) -> TypeError:
    other = "await add_async(…)" if called == "add" else "add(…)"
    kind = f"{type(connection).__module__}.{type(connection).__name__}"
    return TypeError(f"{called}() cannot use a {kind}; with this one, call {other}")


def _unknown(target: Any) -> TypeError:
    return TypeError(
        f"found {type(target).__name__}; expected a connection or cursor of PostgreSQL (DB-API 2.0, "
        "SQLAlchemy, psycopg or asyncpg) whose transaction also has the app's own write"
    )


def _numbered(statement: str) -> str:
    """The same statement with `$1` in place of the first `%s`, and so on."""
    first, *others = statement.split("%s")
    return first + "".join(f"${place}{piece}" for place, piece in enumerate(others, start=1))
