"""FastAPI dependencies that confine a request to its user. FastAPI is the application's own dependency."""

from collections.abc import Callable, Generator
from typing import Annotated
from uuid import UUID

from fastapi import Depends
from sqlalchemy.orm import Session

from worker.db._sessions import bind_user, get_platform_db, get_user_data_db

UserDependency = Callable[..., object]
"""A dependency of the application, sync or async, that returns the id of the request's user."""

SessionDependency = Callable[..., Generator[Session, None, None]]


def user_data_db(current_user: UserDependency) -> SessionDependency:
    """This function will make a dependency: a Session on the user-data database, confined to the user.

    Use it once for the application: `UserDb = Annotated[Session, Depends(user_data_db(current_user))]`. The
    context is set once per request and holds in each of its transactions. The endpoint commits; what it did
    not commit is rolled back, also on an error, and no connection is taken before the first query.
    """
    return _confined(current_user, get_user_data_db)


def platform_db(current_user: UserDependency) -> SessionDependency:
    """This function will make the same for the platform database: the user's own usage and subscription."""
    return _confined(current_user, get_platform_db)


def _confined(current_user: UserDependency, get_db: SessionDependency) -> SessionDependency:
    # No postponed annotations in this module: FastAPI could not see `current_user` from outside.
    def session_of_the_user(
        user_id: Annotated[UUID | str, Depends(current_user)], session: Annotated[Session, Depends(get_db)]
    ) -> Generator[Session, None, None]:
        bind_user(user_id, session)
        yield session

    return session_of_the_user
