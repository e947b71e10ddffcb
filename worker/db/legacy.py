"""The names of before there were two databases: aliases of the platform database that warn, nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Generator

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from worker import db
from worker.database_url import Database


def get_db() -> Generator[Session, None, None]:
    """Deprecated: this function will do what `worker.db.get_platform_db` does."""
    _warn("get_db", "get_platform_db")
    yield from db.get_platform_db()


def get_db_session() -> Session:
    """Deprecated: this function will open a Session that the caller closes; use `platform_session`."""
    _warn("get_db_session", "platform_session")
    return Session(db.engine_for(Database.PLATFORM))


def SessionLocal() -> Session:
    """Deprecated: this function will open a Session that the caller closes; use `platform_session`."""
    _warn("SessionLocal", "platform_session")
    return Session(db.engine_for(Database.PLATFORM))


def engine() -> Engine:
    """Deprecated: this function will return the platform's engine; use `engine_for`."""
    _warn("engine", "engine_for")
    return db.engine_for(Database.PLATFORM)


def init_database() -> None:
    """Deprecated: this function will do what `worker.db.init_databases` does."""
    _warn("init_database", "init_databases")
    db.init_databases()


def close_database() -> None:
    """Deprecated: this function will do what `worker.db.close_databases` does."""
    _warn("close_database", "close_databases")
    db.close_databases()


def _warn(name: str, successor: str) -> None:
    # 3: the line that called the alias.
    warnings.warn(f"{name} is deprecated: use worker.db.{successor}", DeprecationWarning, stacklevel=3)
