"""Seals of the books: what was proved of each window of the log, and the indexes that make a window cheap.

A dead letter's time is now read when it is written, under the lock of its shard's row, and not when its
transaction began: whoever holds that lock sees every letter with an earlier time.

The indexes are built CONCURRENTLY, outside of a transaction, so that nobody waits for them; what an
interrupted attempt left behind is dropped first.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision: str | None = "0003"
branch_labels = None
depends_on = None

UPGRADE = """
CREATE TABLE usage_seals (
    shard smallint NOT NULL,
    cut_at timestamptz NOT NULL,
    since timestamptz NOT NULL,
    last_entry_id text NOT NULL,
    last_correction_id text NOT NULL,
    events_passed bigint DEFAULT 0 NOT NULL,
    corrections_passed bigint DEFAULT 0 NOT NULL,
    entries bigint DEFAULT 0 NOT NULL,
    events bigint DEFAULT 0 NOT NULL,
    accepted bigint DEFAULT 0 NOT NULL,
    duplicates bigint DEFAULT 0 NOT NULL,
    conflicts bigint DEFAULT 0 NOT NULL,
    rejected bigint DEFAULT 0 NOT NULL,
    recovered bigint DEFAULT 0 NOT NULL,
    replayed bigint DEFAULT 0 NOT NULL,
    row_count bigint DEFAULT 0 NOT NULL,
    letter_count bigint DEFAULT 0 NOT NULL,
    tokens_used numeric(38, 0) DEFAULT 0 NOT NULL,
    cost_usd numeric(38, 12) DEFAULT 0 NOT NULL,
    id_xor uuid NOT NULL,
    content_xor bigint NOT NULL,
    sealed_at timestamptz NOT NULL,
    verified_at timestamptz NOT NULL,
    accepted_reason text,
    CONSTRAINT pk_usage_seals PRIMARY KEY (shard, cut_at),
    CONSTRAINT ck_usage_seals_shard_not_negative CHECK (shard >= 0),
    CONSTRAINT ck_usage_seals_window_in_order CHECK (since <= cut_at)
);
CREATE INDEX ix_usage_seals_verified_at ON usage_seals (verified_at);

REVOKE ALL ON usage_seals FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE, DELETE ON usage_seals TO usage_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON usage_seals TO usage_auditor;
GRANT UPDATE (audited_entry_id, audited_correction_id, audited_at) ON ingest_positions TO usage_auditor;

ALTER TABLE usage_dead_letters ALTER COLUMN stored_at SET DEFAULT clock_timestamp();
"""

DOWNGRADE = """
ALTER TABLE usage_dead_letters ALTER COLUMN stored_at SET DEFAULT now();
REVOKE UPDATE (audited_entry_id, audited_correction_id, audited_at) ON ingest_positions FROM usage_auditor;
DROP TABLE usage_seals;
"""

# Waiting for older transactions blocks nobody here, and a large table takes its time.
PATIENCE = """
SELECT set_config('usage_migration.lock_timeout', current_setting('lock_timeout'), false);
SELECT set_config('usage_migration.statement_timeout', current_setting('statement_timeout'), false);
SET lock_timeout TO '30min';
SET statement_timeout TO 0;
"""
IMPATIENCE = """
SELECT set_config('lock_timeout', current_setting('usage_migration.lock_timeout'), false);
SELECT set_config('statement_timeout', current_setting('usage_migration.statement_timeout'), false);
"""

# Rows are stored in the order of their time, and events mostly arrive in the order of theirs: a summary per
# block range says where to look, costs an insert next to nothing, and stays a few pages small.
INDEXES_UP = """
DROP INDEX CONCURRENTLY IF EXISTS ix_platform_usage_logs_stored_at;
CREATE INDEX CONCURRENTLY ix_platform_usage_logs_stored_at
    ON platform_usage_logs USING brin (stored_at) WITH (autosummarize = on);
DROP INDEX CONCURRENTLY IF EXISTS ix_platform_usage_logs_occurred_at;
CREATE INDEX CONCURRENTLY ix_platform_usage_logs_occurred_at
    ON platform_usage_logs USING brin (occurred_at) WITH (autosummarize = on);
"""

INDEXES_DOWN = """
DROP INDEX CONCURRENTLY IF EXISTS ix_platform_usage_logs_occurred_at;
DROP INDEX CONCURRENTLY IF EXISTS ix_platform_usage_logs_stored_at;
"""


def upgrade() -> None:
    _outside(INDEXES_UP)
    _run(UPGRADE)


def downgrade() -> None:
    _run(DOWNGRADE)
    _outside(INDEXES_DOWN)


def _outside(script: str) -> None:
    with op.get_context().autocommit_block():
        for part in (PATIENCE, script, IMPATIENCE):
            _run(part)


def _run(script: str) -> None:
    for statement in script.strip().removesuffix(";").split(";\n"):
        op.execute(statement)
