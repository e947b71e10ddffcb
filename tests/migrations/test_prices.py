"""Revision 0005 on a database in use: nothing is rewritten, rows stay, and an interrupted attempt goes on."""

from __future__ import annotations

import psycopg
import pytest

from tests.integration.test_audit_books_migration import INSERT
from worker.db import _migrations
from worker.settings import Settings

FILENODE = "SELECT pg_relation_filenode('platform_usage_logs')"
STATE = (
    "SELECT (SELECT convalidated FROM pg_constraint WHERE conname = 'ck_platform_usage_logs_units_object'),"
    " (SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_platform_usage_logs_unpriced'::regclass)"
)


@pytest.fixture
def before(settings: Settings) -> Settings:
    """A database of the revision before, with a row."""
    _migrations.downgrade(settings.platform, "0004")
    with psycopg.connect(settings.platform.url.libpq) as writer:
        writer.execute(INSERT)
    return settings


def asked(settings: Settings, statement: str) -> tuple[object, ...] | None:
    with psycopg.connect(settings.platform.audit_url.libpq) as looking:
        return looking.execute(statement.encode()).fetchone()


def test_keeps_the_rows_where_they_are_and_goes_back(before: Settings) -> None:
    node = asked(before, FILENODE)
    _migrations.migrate(before.platform)
    assert asked(before, STATE) == (True, True)
    assert asked(before, "SELECT count(*), count(units) FROM platform_usage_logs") == (1, 0)
    _migrations.downgrade(before.platform, "0004")
    assert asked(before, "SELECT count(*) FROM platform_usage_logs") == (1,)
    assert asked(before, FILENODE) == node


def test_goes_on_where_an_attempt_was_interrupted(before: Settings) -> None:
    with psycopg.connect(before.platform.owner_url.libpq, autocommit=True) as owner:
        owner.execute("SET ROLE usage_owner")
        owner.execute("ALTER TABLE platform_usage_logs ADD COLUMN units jsonb")
        owner.execute(
            "ALTER TABLE platform_usage_logs ADD CONSTRAINT ck_platform_usage_logs_units_object"
            " CHECK (jsonb_typeof(units) = 'object') NOT VALID"
        )
        owner.execute("CREATE INDEX ix_platform_usage_logs_unpriced ON platform_usage_logs (id)")
    _migrations.migrate(before.platform)
    assert asked(before, STATE) == (True, True)
    assert _migrations.heads(before.platform).at_head


def test_waits_for_a_writer_only_briefly(before: Settings) -> None:
    with psycopg.connect(before.platform.url.libpq) as writer:
        writer.execute(INSERT)
        with pytest.raises(Exception, match="lock"):
            _migrations.migrate(before.platform)
    _migrations.migrate(before.platform)
    assert asked(before, STATE) == (True, True)
    with psycopg.connect(before.platform.owner_url.libpq) as owner:
        assert owner.execute("SELECT count(*) FROM model_prices").fetchone() == (0,)
