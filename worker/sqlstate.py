"""One table: SQLSTATE → kind of failure → what the caller does next."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Final

import psycopg
from sqlalchemy import exc as sqlalchemy_errors

from worker.errors import ConfigurationError, PermanentError, TransientError


class FailureKind(enum.StrEnum):
    """What a failed statement tells its caller to do; `advice` says it in words."""

    DATA = "data"
    TRANSIENT = "transient"
    CONFIGURATION = "configuration"
    BUG = "bug"

    @property
    def advice(self) -> str:
        """This property will be the one sentence that says what the caller does next."""
        return _ADVICE[self]


_ADVICE: Final = {
    FailureKind.DATA: "The reason is in the data: bisect the batch, put the poison aside, keep the rest.",
    FailureKind.TRANSIENT: "The reason is the database itself: acknowledge nothing, back off, try again.",
    FailureKind.CONFIGURATION: "The reason is in the set-up: stop and tell the operator; again is useless.",
    FailureKind.BUG: "The statement itself is wrong: stop, keep the input, mend the program.",
}

_DATA, _TRANSIENT = FailureKind.DATA, FailureKind.TRANSIENT
_CONFIGURATION, _BUG = FailureKind.CONFIGURATION, FailureKind.BUG

# A five-character code wins over its two-character class.
SQLSTATES: Final[dict[str, FailureKind]] = {
    "08": _TRANSIENT,  # connection lost; 08P01 is also how PgBouncer reports query_wait_timeout
    "0A": _BUG,  # not supported: COPY FROM under RLS, a cached plan whose result type changed
    "22": _DATA,  # value out of range, NUL byte, invalid text, division by zero
    "22023": _CONFIGURATION,  # invalid parameter value: a role or setting that does not exist
    "23": _DATA,  # not null, unique, foreign key, check
    "25": _BUG,  # invalid transaction state
    "25006": _TRANSIENT,  # read-only: a standby after a failover, or a full disk on a managed host
    "25P03": _TRANSIENT,  # idle_in_transaction_session_timeout
    "25P04": _TRANSIENT,  # transaction_timeout
    "26": _CONFIGURATION,  # prepared statement is gone: a transaction pooler that was not declared
    "28": _CONFIGURATION,  # wrong password, login refused by pg_hba.conf
    "3D": _CONFIGURATION,  # no such database
    "3F": _CONFIGURATION,  # no such schema: not migrated
    "40": _TRANSIENT,  # serialization failure, deadlock
    "40002": _DATA,  # a deferred constraint refused the commit
    "42": _BUG,  # syntax error, ambiguous or wrongly typed name
    "42501": _CONFIGURATION,  # a grant, a role membership or a policy is missing
    "42703": _CONFIGURATION,  # undefined column: not migrated to head
    "42883": _CONFIGURATION,  # undefined function: not migrated to head
    "42704": _CONFIGURATION,  # undefined object (role, type): not provisioned
    "42P01": _CONFIGURATION,  # undefined table: not migrated
    "42P05": _CONFIGURATION,  # prepared statement exists already: an undeclared transaction pooler
    "44": _DATA,  # WITH CHECK OPTION of a view
    "53": _TRANSIENT,  # disk full, out of memory, too many connections
    "54": _DATA,  # program limit: a value too large for an index, too many columns
    "55": _TRANSIENT,  # object in use, lock not available (lock_timeout)
    "55P02": _CONFIGURATION,  # a parameter that cannot be changed now
    "57": _TRANSIENT,  # statement_timeout, cancel, shutdown, crash recovery
    "57P04": _CONFIGURATION,  # database dropped
    "58": _TRANSIENT,  # I/O error
    "72": _TRANSIENT,  # snapshot too old
    "F0": _CONFIGURATION,  # server configuration file
    "HV": _TRANSIENT,  # foreign server
    "P0": _BUG,  # PL/pgSQL
    "P0001": _DATA,  # RAISE EXCEPTION: a trigger refused this row
    "XX": _TRANSIENT,  # internal error, corrupted page: never the fault of one event
}


def kind_of(exc: BaseException) -> FailureKind:
    """This function will name the kind of a failed database call, from its SQLSTATE where there is one.

    It understands SQLAlchemy's and psycopg's errors, lost connections (which carry no SQLSTATE), a pool
    that ran dry, values that cannot be sent at all, and this project's own kinds. Anything else is a BUG.
    """
    state = sqlstate_of(exc)
    if state is not None:
        return SQLSTATES.get(state) or SQLSTATES.get(state[:2]) or FailureKind.BUG
    for error in _chain(exc):
        kind = _kind_without_state(error)
        if kind is not None:
            return kind
    return FailureKind.BUG


def sqlstate_of(exc: BaseException) -> str | None:
    """This function will return the five-character SQLSTATE of a failed call, None where there is none."""
    for error in _chain(exc):
        if isinstance(error, psycopg.Error) and error.sqlstate is not None:
            return error.sqlstate
    return None


def _chain(exc: BaseException) -> Iterator[BaseException]:
    """This function will yield the error and the driver's error that SQLAlchemy wrapped in it."""
    yield exc
    if isinstance(exc, sqlalchemy_errors.StatementError) and exc.orig is not None:
        yield exc.orig


def _kind_without_state(error: BaseException) -> FailureKind | None:
    if isinstance(error, sqlalchemy_errors.DBAPIError) and error.connection_invalidated:
        return FailureKind.TRANSIENT
    # OperationalError: the connection broke or was never made. InterfaceError: it was closed under us.
    if isinstance(
        error,
        (TransientError, sqlalchemy_errors.TimeoutError, psycopg.OperationalError, psycopg.InterfaceError),
    ):
        return FailureKind.TRANSIENT
    if isinstance(error, ConfigurationError):
        return FailureKind.CONFIGURATION
    # Refused by the driver before anything was sent: a NUL byte, a lone surrogate.
    if isinstance(error, (PermanentError, psycopg.DataError, UnicodeError)):
        return FailureKind.DATA
    return None
