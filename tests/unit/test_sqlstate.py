"""SQLSTATE → kind → what the caller does."""

import psycopg
import pytest
from psycopg import errors
from sqlalchemy.exc import DBAPIError, OperationalError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from worker.db import PoolExhausted, UserContextMissing
from worker.errors import ConfigurationError, ServiceUnreachable
from worker.sqlstate import SQLSTATES, FailureKind, kind_of, sqlstate_of

CASES = [
    (errors.UniqueViolation, FailureKind.DATA),
    (errors.NotNullViolation, FailureKind.DATA),
    (errors.CheckViolation, FailureKind.DATA),
    (errors.ForeignKeyViolation, FailureKind.DATA),
    (errors.NumericValueOutOfRange, FailureKind.DATA),
    (errors.StringDataRightTruncation, FailureKind.DATA),
    (errors.InvalidTextRepresentation, FailureKind.DATA),
    (errors.UntranslatableCharacter, FailureKind.DATA),
    (errors.ProgramLimitExceeded, FailureKind.DATA),
    (errors.RaiseException, FailureKind.DATA),
    (errors.TransactionIntegrityConstraintViolation, FailureKind.DATA),
    (errors.DeadlockDetected, FailureKind.TRANSIENT),
    (errors.SerializationFailure, FailureKind.TRANSIENT),
    (errors.LockNotAvailable, FailureKind.TRANSIENT),
    (errors.QueryCanceled, FailureKind.TRANSIENT),
    (errors.AdminShutdown, FailureKind.TRANSIENT),
    (errors.CannotConnectNow, FailureKind.TRANSIENT),
    (errors.DiskFull, FailureKind.TRANSIENT),
    (errors.OutOfMemory, FailureKind.TRANSIENT),
    (errors.TooManyConnections, FailureKind.TRANSIENT),
    (errors.ReadOnlySqlTransaction, FailureKind.TRANSIENT),
    (errors.IdleInTransactionSessionTimeout, FailureKind.TRANSIENT),
    (errors.ConnectionFailure, FailureKind.TRANSIENT),
    (errors.DataCorrupted, FailureKind.TRANSIENT),
    (errors.IoError, FailureKind.TRANSIENT),
    (errors.InsufficientPrivilege, FailureKind.CONFIGURATION),
    (errors.InvalidPassword, FailureKind.CONFIGURATION),
    (errors.InvalidCatalogName, FailureKind.CONFIGURATION),
    (errors.UndefinedTable, FailureKind.CONFIGURATION),
    (errors.UndefinedColumn, FailureKind.CONFIGURATION),
    (errors.InvalidSqlStatementName, FailureKind.CONFIGURATION),
    (errors.DuplicatePreparedStatement, FailureKind.CONFIGURATION),
    (errors.SyntaxError, FailureKind.BUG),
    (errors.CardinalityViolation, FailureKind.BUG),
    (errors.InFailedSqlTransaction, FailureKind.BUG),
    (errors.FeatureNotSupported, FailureKind.BUG),
]


def wrapped(orig: BaseException, *, lost: bool = False) -> DBAPIError:
    """The error as SQLAlchemy hands it on."""
    return OperationalError("SELECT 1", {}, orig, connection_invalidated=lost)


class TestKindOf:
    @pytest.mark.parametrize(("error", "kind"), CASES, ids=[case[0].__name__ for case in CASES])
    def test_knows(self, error: type[psycopg.Error], kind: FailureKind) -> None:
        for raised in (error("said"), wrapped(error("said"))):
            assert kind_of(raised) is kind
            assert sqlstate_of(raised) == error.sqlstate

    @pytest.mark.parametrize(
        "error",
        [
            wrapped(psycopg.OperationalError("server closed the connection unexpectedly"), lost=True),
            wrapped(psycopg.InterfaceError("the connection is closed"), lost=True),
            psycopg.OperationalError("consuming input failed"),
            PoolTimeout("QueuePool limit"),
            PoolExhausted("PLATFORM_DATABASE_URL", 2, 1, 0.5),
            ServiceUnreachable("PLATFORM_DATABASE_URL", "down", "start it"),
        ],
    )
    def test_a_lost_connection_is_transient(self, error: Exception) -> None:
        assert sqlstate_of(error) is None
        assert kind_of(error) is FailureKind.TRANSIENT

    @pytest.mark.parametrize(
        "error",
        [
            psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes"),
            StatementError("", "INSERT", {}, psycopg.DataError("NUL")),
            UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
            UserContextMissing(),
        ],
    )
    def test_what_can_never_be_sent_is_in_the_data(self, error: Exception) -> None:
        assert kind_of(error) is FailureKind.DATA

    def test_our_own_configuration_error_keeps_its_kind(self) -> None:
        assert kind_of(ConfigurationError("X: missing")) is FailureKind.CONFIGURATION

    @pytest.mark.parametrize(
        "error",
        [KeyError("x"), psycopg.ProgrammingError("cannot adapt type"), StatementError("", "", {}, None)],
    )
    def test_anything_else_is_a_bug(self, error: Exception) -> None:
        assert kind_of(error) is FailureKind.BUG


def states_of_postgresql() -> set[str]:
    """Every SQLSTATE that psycopg has a class for."""
    found = (getattr(error, "sqlstate", None) for error in vars(errors).values())
    return {state for state in found if isinstance(state, str)}


class TestTable:
    def test_every_state_of_postgresql_has_a_kind_that_was_chosen(self) -> None:
        # Classes of errors that only a wrong program can cause: BUG without being listed.
        unlisted = {"0B", "0F", "0L", "0P", "0Z", "09", "20", "21", "24", "27", "2B", "2D", "2F", "34"}
        unlisted |= {"38", "39", "3B", "02", "03", "10"}
        classes = {state[:2] for state in states_of_postgresql()}
        assert classes - unlisted <= {state[:2] for state in SQLSTATES}

    def test_every_listed_state_exists(self) -> None:
        assert {state for state in SQLSTATES if len(state) == 5} <= states_of_postgresql()

    def test_every_kind_says_what_to_do(self) -> None:
        assert len({kind.advice for kind in FailureKind}) == len(FailureKind)
