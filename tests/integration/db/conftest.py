"""Two tenants with a profile each, and worker.db bound to whatever settings a test wants."""

import uuid
from collections.abc import Iterator

import psycopg
import pytest

from tests.fixtures.databases import Databases
from tests.integration.db.tenants import Bind, Tenants
from worker import db
from worker.settings import DatabaseSettings, load_database_settings


@pytest.fixture
def tenants(databases: Databases) -> Tenants:
    """Rows are put there as the superuser, whom no policy binds."""
    both = Tenants(uuid.uuid4(), uuid.uuid4())
    with psycopg.connect(databases.user_data.url("superuser")) as connection:
        for user in (both.one, both.two):
            connection.execute(
                "INSERT INTO user_profiles (user_id, business_name) VALUES (%s, %s)", [user, str(user)]
            )
    with psycopg.connect(databases.platform.url("superuser")) as connection:
        for user in (both.one, both.two):
            connection.execute("INSERT INTO users (id, clerk_id) VALUES (%s, %s)", [user, str(user)])
    return both


@pytest.fixture
def bind(environ: dict[str, str], databases: Databases) -> Iterator[Bind]:
    """Binds worker.db as an application's login would be; keywords are further variables."""

    def bound(login: str = "app", **variables: object) -> DatabaseSettings:
        values = {
            **environ,
            "PLATFORM_DATABASE_URL": databases.platform.url(login),
            "USER_DATA_DATABASE_URL": databases.user_data.url(login),
            **{name: str(value) for name, value in variables.items()},
        }
        settings = load_database_settings(values)
        db.configure(settings)
        return settings

    yield bound
    db.close_databases()
