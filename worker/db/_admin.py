"""One short-lived connection for provisioning, revisions and backup: outside every pool, closed at once."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Final

import psycopg
from psycopg import sql

from worker.database_url import DatabaseURL
from worker.db._failures import connection_failure
from worker.errors import ConfigurationError, ServiceUnreachable

CONNECT_TIMEOUT_SECONDS: Final = 10


@contextlib.contextmanager
def connect(url: DatabaseURL, *, autocommit: bool = False) -> Iterator[psycopg.Connection]:
    """This function will open a connection that commits when the block ends well, and close it.

    Raises ServiceUnreachable when nobody answers, ConfigurationError when the login or the database is wrong.
    """
    try:
        connection = psycopg.connect(
            url.libpq,
            autocommit=autocommit,
            prepare_threshold=None,
            application_name=f"usage-worker:admin:{os.getpid()}",
            connect_timeout=int(url.query("connect_timeout") or CONNECT_TIMEOUT_SECONDS),
        )
    except psycopg.Error as error:
        raise refused(error, url) from error
    with connection:
        yield connection


def refused(error: psycopg.Error, url: DatabaseURL) -> ConfigurationError | ServiceUnreachable:
    """This function will name a failed connection; a missing database comes with its CREATE."""
    if not re.search(r"database \"[^\"]*\" does not exist", str(error)):
        return connection_failure(error, url)
    create = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(url.database)).as_string()
    owner = sql.SQL(" OWNER {}").format(sql.Identifier(url.username)).as_string() if url.username else ""
    return ConfigurationError(
        f"{url.variable}: {url.redacted}: the database does not exist, and it is never created silently.\n"
        f"Next step: an administrator runs  {create}{owner};  then run `usage-worker db init` again."
    )
