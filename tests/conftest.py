"""What every test can ask for; see tests/fixtures. Nothing here starts a server before a test needs it."""

import os

import pytest

pytest_plugins = ["tests.fixtures.servers", "tests.fixtures.databases", "tests.fixtures.processes"]

# A developer's shell may name real servers: no test may ever reach them.
_PREFIXES = ("PLATFORM_", "USER_DATA_", "REDIS_", "CELERY_", "LIMITS_", "DB_", "DATABASE_", "USAGE_", "PG")


def pytest_configure(config: pytest.Config) -> None:
    del config
    for name in list(os.environ):  # noqa: TID251 the one place that cleans the tests' environment
        if name.startswith(_PREFIXES) and not name.startswith(("USAGE_TEST_", "USAGE_REQUIRE_")):
            del os.environ[name]  # noqa: TID251 see above
