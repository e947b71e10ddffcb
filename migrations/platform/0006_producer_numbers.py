"""The numbers that emitters give their events: what arrived of each producer's, and how far they were read.

What was stored and sealed before this revision is not read again: each shard begins where its books are
proved, and a note says that the first run takes the highest number of each producer from what is older.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision: str | None = "0005"
branch_labels = None
depends_on = None

UPGRADE = """
CREATE TABLE usage_producers (
    producer_id text NOT NULL,
    received int8multirange DEFAULT '{}'::int8multirange NOT NULL,
    seen_from timestamptz[] DEFAULT '{}'::timestamptz[] NOT NULL,
    seen_to timestamptz[] DEFAULT '{}'::timestamptz[] NOT NULL,
    missing bigint DEFAULT 0 NOT NULL,
    settled_upto bigint DEFAULT 0 NOT NULL,
    settled_because varchar(16),
    settled_reason text,
    unnamed bigint DEFAULT 0 NOT NULL,
    unnamed_from timestamptz,
    first_stored_at timestamptz NOT NULL,
    last_stored_at timestamptz NOT NULL,
    CONSTRAINT pk_usage_producers PRIMARY KEY (producer_id),
    CONSTRAINT ck_usage_producers_not_negative CHECK (missing >= 0 AND settled_upto >= 0 AND unnamed >= 0),
    CONSTRAINT ck_usage_producers_settled_because_known CHECK (
        settled_because IN ('before', 'capped', 'accepted'))
);
CREATE INDEX ix_usage_producers_incomplete ON usage_producers (first_stored_at, producer_id)
    WHERE missing > 0;
CREATE INDEX ix_usage_producers_last_stored_at ON usage_producers (last_stored_at);

CREATE TABLE usage_number_positions (
    shard smallint NOT NULL,
    read_at timestamptz NOT NULL,
    last_entry_id text DEFAULT '0-0' NOT NULL,
    last_correction_id text DEFAULT '0-0' NOT NULL,
    unstored bigint DEFAULT 0 NOT NULL,
    begins_late boolean DEFAULT false NOT NULL,
    CONSTRAINT pk_usage_number_positions PRIMARY KEY (shard),
    CONSTRAINT ck_usage_number_positions_shard_not_negative CHECK (shard >= 0),
    CONSTRAINT ck_usage_number_positions_not_negative CHECK (unstored >= 0)
);
INSERT INTO usage_number_positions (shard, read_at, last_entry_id, last_correction_id, unstored, begins_late)
SELECT position.shard, position.audited_at, position.audited_entry_id, position.audited_correction_id,
       coalesce(seal.duplicates + seal.conflicts + seal.rejected, 0), true
  FROM ingest_positions AS position
  LEFT JOIN LATERAL (SELECT duplicates, conflicts, rejected FROM usage_seals
                      WHERE usage_seals.shard = position.shard ORDER BY cut_at DESC LIMIT 1) AS seal ON true
 WHERE position.audited_at IS NOT NULL;

REVOKE ALL ON usage_producers, usage_number_positions FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE, DELETE ON usage_producers, usage_number_positions TO usage_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON usage_producers, usage_number_positions TO usage_auditor;
"""

DOWNGRADE = """
DROP TABLE usage_number_positions;
DROP TABLE usage_producers;
"""


def upgrade() -> None:
    _run(UPGRADE)


def downgrade() -> None:
    _run(DOWNGRADE)


def _run(script: str) -> None:
    for statement in script.strip().removesuffix(";").split(";\n"):
        op.execute(statement)
