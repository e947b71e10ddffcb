"""A shard's row also says who crashed on it, whether it is paused, and how far the books are proved.

Adding columns with a constant default rewrites nothing and holds the lock for an instant.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision: str | None = "0002"
branch_labels = None
depends_on = None

UPGRADE = """
ALTER TABLE ingest_positions
    ADD COLUMN crashes bigint DEFAULT 0 NOT NULL,
    ADD COLUMN careful_left bigint DEFAULT 0 NOT NULL,
    ADD COLUMN suspect_id text,
    ADD COLUMN suspect_deliveries bigint DEFAULT 0 NOT NULL,
    ADD COLUMN suspect_epoch bigint,
    ADD COLUMN paused_at timestamptz,
    ADD COLUMN paused_by text,
    ADD COLUMN paused_reason text,
    ADD COLUMN flood_since timestamptz,
    ADD COLUMN flood_events bigint DEFAULT 0 NOT NULL,
    ADD COLUMN flood_refused bigint DEFAULT 0 NOT NULL,
    ADD COLUMN audited_entry_id text DEFAULT '0-0' NOT NULL,
    ADD COLUMN audited_correction_id text DEFAULT '0-0' NOT NULL,
    ADD COLUMN audited_at timestamptz
"""

DOWNGRADE = """
ALTER TABLE ingest_positions
    DROP COLUMN crashes,
    DROP COLUMN careful_left,
    DROP COLUMN suspect_id,
    DROP COLUMN suspect_deliveries,
    DROP COLUMN suspect_epoch,
    DROP COLUMN paused_at,
    DROP COLUMN paused_by,
    DROP COLUMN paused_reason,
    DROP COLUMN flood_since,
    DROP COLUMN flood_events,
    DROP COLUMN flood_refused,
    DROP COLUMN audited_entry_id,
    DROP COLUMN audited_correction_id,
    DROP COLUMN audited_at
"""


def upgrade() -> None:
    op.execute(UPGRADE)


def downgrade() -> None:
    op.execute(DOWNGRADE)
