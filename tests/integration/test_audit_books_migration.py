"""Revision 0004 on a database in use: its indexes are built beside the writers, and again if need be."""

from __future__ import annotations

import threading
import time

import psycopg
import pytest

from worker.db import _migrations
from worker.dev._processes import wait_until
from worker.settings import Settings

INSERT = (
    "INSERT INTO platform_usage_logs (id, user_id, feature, tokens_used, cost_source, payload_hash,"
    " occurred_at, received_at, shard) VALUES (gen_random_uuid(), gen_random_uuid(), 'x', 1, 'unpriced',"
    " decode(repeat('00', 16), 'hex'), now(), now(), 0)"
)
INDEXES = (
    "SELECT pg_get_indexdef(indexrelid), indisvalid FROM pg_index"
    " WHERE indexrelid::regclass::text IN ('ix_platform_usage_logs_stored_at',"
    " 'ix_platform_usage_logs_occurred_at') ORDER BY 1"
)
BUILDING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND query LIKE 'CREATE INDEX CONCURRENTLY%' AND wait_event_type = 'Lock'"
)
BUILT = [
    (
        f"CREATE INDEX ix_platform_usage_logs_{column} ON public.platform_usage_logs"
        f" USING brin ({column}) WITH (autosummarize='on')",
        True,
    )
    for column in ("occurred_at", "stored_at")
]


@pytest.fixture
def before(settings: Settings) -> Settings:
    """A database of the revision before."""
    _migrations.downgrade(settings.platform, "0003")
    return settings


def test_waits_for_a_writer_and_blocks_none(before: Settings) -> None:
    target = before.platform
    # The auditor sees what others do.
    with psycopg.connect(target.audit_url.libpq, autocommit=True) as looking:
        with psycopg.connect(target.url.libpq) as writer:
            writer.execute(INSERT)
            migrating = threading.Thread(target=_migrations.migrate, args=[target])
            migrating.start()
            assert wait_until(lambda: looking.execute(BUILDING).fetchone() == (1,), timeout=30)
            # Longer than a migration waits for a lock that others would queue behind.
            time.sleep(5.5)
            assert migrating.is_alive()
            with psycopg.connect(target.url.libpq, autocommit=True) as other:
                other.execute("SET lock_timeout TO '1s'")
                other.execute(INSERT)
        migrating.join()
        assert looking.execute(INDEXES).fetchall() == BUILT
    assert _migrations.heads(target).at_head


def test_builds_anew_what_an_interrupted_attempt_left_behind(before: Settings) -> None:
    with psycopg.connect(before.platform.owner_url.libpq, autocommit=True) as owner:
        owner.execute("SET ROLE usage_owner")
        owner.execute("CREATE INDEX ix_platform_usage_logs_stored_at ON platform_usage_logs (stored_at)")
    _migrations.migrate(before.platform)
    with psycopg.connect(before.platform.url.libpq) as looking:
        assert looking.execute(INDEXES).fetchall() == BUILT
