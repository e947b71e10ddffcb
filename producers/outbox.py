"""Events in the same database transaction as the app's own write, and the relay that sends them.

An app that stores something and then emits an event can die between the two. With an outbox, the event is a
row of the app's own PostgreSQL: rolled back with the rest, or committed with it and then sent.
"""

from typing import Any, Final, Unpack
from uuid import UUID

from producers import _outbox_sql as sql
from producers._events import UsageEvent
from producers._fast import Encoded, encoded
from producers._making import Usage, event_of
from producers._outbox_relay import OutboxStatus, Relay
from producers._outbox_sql import OutsideTransaction

__all__ = ["DDL", "Outbox", "OutboxStatus", "OutsideTransaction", "Relay", "create_table", "ddl", "status"]


def ddl(table: str = sql.DEFAULT_TABLE) -> str:
    """This function will return the statement that creates the table, for the app's own migrations."""
    return f"{sql.statements(table).create};\n"


DDL: Final = ddl()
"""Creates the table under its usual name, `usage_outbox`."""


def create_table(connection: Any, table: str = sql.DEFAULT_TABLE) -> None:
    """This function will create the table where it is not there yet; the caller commits.

    An app with migrations puts `ddl()` into one of them instead.
    """
    sql.create(connection, sql.statements(table))


def status(connection: Any, table: str = sql.DEFAULT_TABLE) -> OutboxStatus:
    """This function will count what stands in the outbox, through a DB-API connection."""
    refusals: dict[str, int] = {}
    waiting, oldest = 0, None
    for reason, count, age_seconds in sql.rows_of(connection, sql.statements(table).look):
        if reason:
            code = str(reason).partition(":")[0]
            refusals[code] = refusals.get(code, 0) + int(count)
        else:
            waiting, oldest = int(count), float(age_seconds)
    return OutboxStatus(waiting, sum(refusals.values()), oldest, refusals)


class Outbox:
    """Writes events into the table `usage_outbox` in the caller's transaction; a Relay sends them later.

    It needs no REDIS_URL and opens no connection: one per process is enough, and threads may share it.
    """

    def __init__(self, table: str = sql.DEFAULT_TABLE) -> None:
        """This function will prepare an outbox; raises ValueError for what is no table's name."""
        self._statements = sql.statements(table)

    def add(self, connection: Any, **usage: Unpack[Usage]) -> UUID:
        """This function will write one event in the connection's transaction and return its id.

        The arguments are those of `Emitter.emit`, and id and time are settled here. `connection` is what the
        app's own write goes through: a connection or cursor of psycopg or any other DB-API driver, Django's
        connection, or SQLAlchemy's Connection or Session. Raises InvalidEvent before anything is written.
        """
        made = _made(usage)
        sql.insert(connection, self._statements, made.event_id, made.data)
        return made.event_id

    def add_event(self, connection: Any, event: UsageEvent) -> UUID:
        """This function will write an event that was made before; a correction goes this way too."""
        made = encoded(event)
        sql.insert(connection, self._statements, made.event_id, made.data)
        return made.event_id

    async def add_async(self, connection: Any, **usage: Unpack[Usage]) -> UUID:
        """This function will do what `add` does, through a connection of asyncio.

        That is psycopg's AsyncConnection or AsyncCursor, SQLAlchemy's AsyncConnection or AsyncSession, or
        asyncpg's Connection.
        """
        made = _made(usage)
        await sql.insert_async(connection, self._statements, made.event_id, made.data)
        return made.event_id


def _made(usage: Usage) -> Encoded:
    # Not numbered: the number of a transaction that is rolled back would look like an event that got lost.
    return encoded(event_of(usage))
