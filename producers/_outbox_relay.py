"""The outbox's relay: rows become entries of the stream, and are deleted once those are acknowledged."""

import random
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from logging import getLogger
from typing import Any, Final, NamedTuple, Protocol, Self
from uuid import UUID

from producers import _outbox_sql as sql
from producers._config import EmitterConfig
from producers._delivery import Delivery, StreamUnavailable
from producers._fast import Encoded
from producers._stream import Decoded, decode

log = getLogger("producers.outbox")

# While the table is empty: an event waits for half of the first at best, and rest costs a query a second.
_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 1.0
_LONGEST_BACKOFF_SECONDS: Final = 10.0
# A relay that froze with rows in hand loses them to the others after this.
_LONGEST_SILENCE: Final = timedelta(seconds=60)
_GUARD: Final = (
    "SELECT set_config('idle_in_transaction_session_timeout',"
    f" '{int(_LONGEST_SILENCE.total_seconds() * 1000)}', true)"
)
# Wrong table, wrong rights, wrong schema, wrong password: waiting does not mend them.
_PERMANENT: Final = ("28", "3D", "3F", "42")


class Delivering(Protocol):
    """What sends: `producers._delivery.Delivery`."""

    def deliver(self, events: Sequence[Encoded]) -> None:
        """Returns once each event is safe, or raises StreamUnavailable with those that are not."""

    def close(self) -> None:
        """Ends the connections."""


class OutboxStatus(NamedTuple):
    """What stands in an outbox."""

    waiting: int
    refused: int
    oldest_seconds: float | None
    """The age of the oldest event that waits, by the database's clock; None where none does."""
    refusals: dict[str, int]
    """How many were refused with which reason."""


class Relay:
    """Takes committed rows of an outbox in order, sends them, and deletes what the stream has acknowledged.

    Any number may run side by side, on one machine or several: each row is locked by the one that has it. A
    relay that is killed between the sending and the deletion leaves its rows to the next, which sends them
    again under the same ids, so that they count once.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        config: EmitterConfig,
        *,
        table: str = sql.DEFAULT_TABLE,
        batch_size: int = 500,
        delivery: Delivering | None = None,
    ) -> None:
        """This function will prepare a relay; it connects with its first round.

        `connect` opens a DB-API connection to the app's database (`lambda: psycopg.connect(url)`), which then
        is the relay's own. Its login needs SELECT, DELETE and UPDATE (refused) on the table.
        """
        if not 1 <= batch_size <= 10_000:
            raise ValueError(f"batch_size is {batch_size}; it must be from 1 to 10000")
        self._connect = connect
        self._statements = sql.statements(table)
        self._batch_size = batch_size
        # Rows are safe where they are: a spool of this machine would only be a second place to look.
        self._delivery: Delivering = delivery or Delivery(replace(config, spool_dir=None))
        self._connection: Any = None

    def run_once(self) -> int:
        """This function will take one batch and return how many rows it settled: 0 when none can be had.

        Settled is what was sent and deleted, or refused and marked. Raises StreamUnavailable once what was
        acknowledged is deleted; the others stay. The driver's own errors pass through, and the next call
        connects again.
        """
        try:
            connection = self._open()
            sql.rows_of(connection, _GUARD)
            rows = sql.rows_of(connection, self._statements.take, (self._batch_size,))
            settled, trouble = self._settle(connection, rows)
            connection.commit()
        except BaseException:
            # Whatever it was, the rows go back, and this connection's state is not to be reasoned about.
            self._drop_connection()
            raise
        if trouble is not None:
            raise trouble
        return settled

    def run(
        self,
        stop: threading.Event,
        *,
        on_round: Callable[[int], None] = lambda settled: None,
        on_trouble: Callable[[Exception], None] = lambda error: None,
        errors: type[Exception] | tuple[type[Exception], ...] = (),
    ) -> None:
        """This function will relay until `stop` is set, and finish the batch in hand then.

        It looks again after 50 ms to 1 s where nothing waits. While the stream or the database is away, it
        tries again after up to 10 s; `errors` names the driver's exceptions (`psycopg.Error`). A database
        that refuses table, rights or login ends it: its exception passes through.
        """
        of_driver = (errors,) if isinstance(errors, type) else errors
        retried: tuple[type[Exception], ...] = (StreamUnavailable, OSError, *of_driver)
        pause, failures = _FIRST_PAUSE_SECONDS, 0
        while not stop.is_set():
            try:
                settled = self.run_once()
            except retried as error:
                if _is_permanent(error):
                    raise
                failures += 1
                log.warning("outbox relay: %s", _described(error))
                on_trouble(error)
                stop.wait(_backoff(failures))
                continue
            failures = 0
            on_round(settled)
            if settled:
                pause = _FIRST_PAUSE_SECONDS
                continue
            stop.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def close(self) -> None:
        """This function will close the connections to the database and the stream."""
        self._drop_connection()
        self._delivery.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _open(self) -> Any:
        if self._connection is None:
            connection = self._connect()
            self._connection = connection
            # Locks and deletion belong to one transaction, whatever `connect` was made for.
            if getattr(connection, "autocommit", False):
                connection.autocommit = False
        return self._connection

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # It may be broken already; the server rolls back what it had.
            with suppress(Exception):
                connection.close()

    def _settle(
        self, connection: Any, rows: Iterable[tuple[Any, ...]]
    ) -> tuple[int, StreamUnavailable | None]:
        """Sends the rows and deletes those that are acknowledged, in the transaction that locked them."""
        sendable: list[tuple[int, Encoded]] = []
        refused = 0
        for row_id, event_id, raw in rows:
            judged = _judged(bytes(raw))
            reason = _why_not(judged, event_id)
            if judged.event is None or reason is not None:
                sql.run(connection, self._statements.refuse, (reason, row_id))
                log.warning("outbox relay: row %s stays: %s", row_id, reason)
                refused += 1
                continue
            event = judged.event
            sendable.append((row_id, Encoded(event.event_id, event.user_text, bytes(raw), event)))
        unsent: set[UUID] = set()
        trouble: StreamUnavailable | None = None
        if sendable:
            try:
                self._delivery.deliver([made for _, made in sendable])
            except StreamUnavailable as error:
                trouble = error
                unsent = {event.event_id for event in error.events}
        sent = [row_id for row_id, made in sendable if made.event_id not in unsent]
        if sent:
            sql.run(connection, self._statements.remove, (sent,))
        return len(sent) + refused, trouble


def _judged(data: bytes) -> Decoded:
    """A row is sent as it stands, beside others in one frame: what is broken would harm its neighbours."""
    found = decode(data)
    if len(found) == 1 and found[0].reason == "not_a_correction":
        found = decode(data, correction=True)
    if len(found) != 1 or data.lstrip()[:1] == b"[":
        return Decoded(index=0, raw=data, reason="not_an_object", detail="a row holds one event, not a frame")
    return found[0]


def _why_not(judged: Decoded, event_id: object) -> str | None:
    if judged.event is None:
        return f"{judged.reason}: {judged.detail}"
    if str(judged.event.event_id) != str(event_id):
        return "invalid_event_id: the column event_id differs from the event's own"
    return None


def _is_permanent(error: Exception) -> bool:
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or ""
    return str(state)[:2] in _PERMANENT


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def _backoff(failures: int) -> float:
    """Doubling from a fifth of a second, and spread, so that many relays do not come back at once."""
    longest: float = min(0.2 * 2 ** min(failures, 10), _LONGEST_BACKOFF_SECONDS)
    return longest * (0.5 + random.random() / 2)  # noqa: S311 - spreads load, keeps no secret
