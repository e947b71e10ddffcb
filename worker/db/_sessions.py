"""Sessions, and the tenant's context on them: for one transaction at a time, for one Session at most."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Any, Final
from uuid import UUID

import psycopg
from sqlalchemy import Connection, event, text
from sqlalchemy import exc as sqlalchemy_errors
from sqlalchemy.orm import Session, SessionTransaction

from worker.database_url import Database
from worker.db._engines import Login, engine_for
from worker.errors import ConfigurationError, PermanentError
from worker.models import policies
from worker.sqlstate import sqlstate_of

TENANT_ROLE: Final = policies.TENANTS
TENANT_SETTING: Final = policies.CONTEXT_SETTING

_USER: Final = "usage_worker.user_id"
_SYSTEM: Final = "usage_worker.system"
# One statement, so one round trip: set_config('role', …, true) is SET LOCAL ROLE.
_SET_CONTEXT: Final = text(
    f"SELECT set_config('role', '{TENANT_ROLE}', true), set_config('{TENANT_SETTING}', :user_id, true)"
)


class UserContextMissing(PermanentError):
    """A user-data session was used without a user: call set_user_context(user_id, session) first."""


class UserContextRefused(PermanentError):
    """The user's context cannot be set on this Session."""


class UserDataSession(Session):
    """A Session on the user-data database that runs nothing before it knows whose rows it may see."""

    def get_bind(self, *args: Any, **kwargs: Any) -> Any:
        """This function will choose the engine; every query, flush and connection() asks for it first."""
        if not self.info.get(_SYSTEM) and _USER not in self.info:
            raise UserContextMissing
        return super().get_bind(*args, **kwargs)


def set_user_context(user_id: UUID | str, session: Session) -> None:
    """This function will confine the Session to one user: now, and again whenever it begins a transaction.

    Each transaction runs as the role `authenticated_users` with `app.current_user_id` set, both for that
    transaction alone, so nothing stays behind on the pooled connection. The Session keeps its user across
    commits and rollbacks and is refused another one, since its identity map still holds the first one's
    objects: open a new Session. Raises UserContextRefused for a value that is not a UUID, for another user,
    for a `system` session and inside a savepoint; ConfigurationError when the login may not take the role.
    """
    bind_user(user_id, session)
    if session.in_transaction():
        # The transaction may have begun before the hook was there, and begun it has with a connection.
        _apply(session.connection(), session)
    else:
        session.connection()


def bind_user(user_id: UUID | str, session: Session) -> None:
    """This function will do as `set_user_context`, but send nothing before the Session's first query."""
    user = _uuid(user_id)
    known = session.info.get(_USER)
    if known == user:
        return
    if known is not None:
        raise UserContextRefused(
            "This Session belongs to another user, whose objects it still holds: open a new Session."
        )
    if session.info.get(_SYSTEM):
        raise UserContextRefused("A session opened with system=True has no user: open one without it.")
    if session.in_nested_transaction():
        raise UserContextRefused(
            "A context set inside a savepoint ends with it: call set_user_context before begin_nested()."
        )
    session.info[_USER] = user
    event.listen(session, "after_begin", _at_begin)


@contextlib.contextmanager
def platform_session(*, login: Login = Login.RUNTIME) -> Iterator[Session]:
    """This function will open a Session on the platform database: commit at the end, rollback on an error."""
    with Session(engine_for(Database.PLATFORM, login)) as session:
        yield session
        session.commit()


@contextlib.contextmanager
def user_data_session(
    *, user_id: UUID | str | None = None, login: Login = Login.RUNTIME, system: bool = False
) -> Iterator[Session]:
    """This function will open a Session on the user-data database: commit at the end, rollback on an error.

    It sees the rows of `user_id`, or of the user that `set_user_context` names; without one, its first
    query or flush raises UserContextMissing. `system=True` is for maintenance and audits: no user, and
    whatever the login's own policies show.
    """
    with _user_data(login, system=system) as session:
        if user_id is not None:
            bind_user(user_id, session)
        yield session
        session.commit()


def get_platform_db() -> Generator[Session, None, None]:
    """This function will yield a Session on the platform database, usable as a FastAPI dependency.

    The caller commits. What was not committed is rolled back, also on an error; the Session is closed.
    """
    with Session(engine_for(Database.PLATFORM)) as session:
        yield session


def get_user_data_db() -> Generator[Session, None, None]:
    """This function will yield a Session on the user-data database, usable as a FastAPI dependency.

    Call `set_user_context(user_id, session)` before the first query: without it, that query raises
    UserContextMissing. The caller commits; what was not committed is rolled back.
    """
    with _user_data(Login.RUNTIME, system=False) as session:
        yield session


def _user_data(login: Login, *, system: bool) -> UserDataSession:
    return UserDataSession(engine_for(Database.USER_DATA, login), info={_SYSTEM: system})


def _uuid(user_id: UUID | str) -> UUID:
    if isinstance(user_id, UUID):
        return user_id
    try:
        return UUID(user_id)
    except (ValueError, AttributeError, TypeError):
        raise UserContextRefused("The user's id has to be a UUID.") from None


def _at_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    # A savepoint lies inside a transaction that has the context already.
    if not transaction.nested:
        _apply(connection, session)


def _apply(connection: Connection, session: Session) -> None:
    driver = connection.connection.dbapi_connection
    if driver is None or connection.dialect.detect_autocommit_setting(driver):
        # There the setting would be lost at once, and the login's own rights would decide what is seen.
        connection.invalidate()
        raise UserContextRefused("A user's context needs a transaction: AUTOCOMMIT has none.")
    try:
        connection.execute(_SET_CONTEXT, {"user_id": str(session.info[_USER])})
    except sqlalchemy_errors.DBAPIError as error:
        raise _refused_role(error, connection.engine.url.username) from error


def _refused_role(error: sqlalchemy_errors.DBAPIError, login: str | None) -> Exception:
    state = sqlstate_of(error)
    if state == psycopg.errors.InsufficientPrivilege.sqlstate:
        return ConfigurationError(
            f"The login {login} may not take the role {TENANT_ROLE}.\n"
            f'Next step: let an administrator run GRANT {policies.APP} TO "{login}" if it is an '
            "application's login, or run `usage-worker db init` if it is the worker's."
        )
    if state == psycopg.errors.InvalidParameterValue.sqlstate:
        return ConfigurationError(
            f"The role {TENANT_ROLE} does not exist on this server.\nNext step: run `usage-worker db init`."
        )
    return error
