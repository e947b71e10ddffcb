"""Tables of the platform: users, plans, subscriptions, usage, dead letters, audits, jobs.

Revision ID: 0001
Revises: nothing
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision: str | None = None
branch_labels = None
depends_on = None

# Alembic's own table stays when everything else goes down, and so does the right to read it: every process
# asks it how far the database has come.
UPGRADE = """
REVOKE ALL ON alembic_version_platform FROM PUBLIC;
GRANT SELECT ON alembic_version_platform TO usage_worker, usage_auditor, usage_app;

CREATE TABLE users (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    clerk_id varchar(255),
    email varchar(320),
    subscription_status varchar(32),
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_users PRIMARY KEY (id),
    CONSTRAINT uq_users_clerk_id UNIQUE (clerk_id),
    CONSTRAINT ck_users_subscription_status_known CHECK (
        subscription_status IN ('incomplete', 'incomplete_expired', 'trialing', 'active',
        'past_due', 'unpaid', 'canceled', 'paused')
    )
);

CREATE TABLE subscription_plans (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    name varchar(128) NOT NULL,
    price_cents bigint NOT NULL,
    currency char(3) DEFAULT 'USD' NOT NULL,
    interval varchar(16) NOT NULL,
    features jsonb DEFAULT '{}'::jsonb NOT NULL,
    active boolean DEFAULT true NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_subscription_plans PRIMARY KEY (id),
    CONSTRAINT uq_subscription_plans_name UNIQUE (name),
    CONSTRAINT ck_subscription_plans_not_negative CHECK (price_cents >= 0),
    CONSTRAINT ck_subscription_plans_currency_known CHECK (currency IN ('USD')),
    CONSTRAINT ck_subscription_plans_interval_known CHECK (
        interval IN ('day', 'week', 'month', 'year')
    ),
    CONSTRAINT ck_subscription_plans_features_object CHECK (jsonb_typeof(features) = 'object')
);

CREATE TABLE user_subscriptions (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    user_id uuid NOT NULL,
    plan_id uuid NOT NULL,
    status varchar(32) NOT NULL,
    managed_by varchar(64) DEFAULT 'worker' NOT NULL,
    anchor_day smallint NOT NULL,
    timezone varchar(64) DEFAULT 'UTC' NOT NULL,
    current_period_start timestamptz NOT NULL,
    current_period_end timestamptz NOT NULL,
    cancel_at_period_end boolean DEFAULT false NOT NULL,
    pending_plan_id uuid,
    trial_end timestamptz,
    past_due_at timestamptz,
    canceled_at timestamptz,
    ended_at timestamptz,
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_user_subscriptions PRIMARY KEY (id),
    CONSTRAINT ck_user_subscriptions_status_known CHECK (
        status IN ('incomplete', 'incomplete_expired', 'trialing', 'active', 'past_due', 'unpaid',
        'canceled', 'paused')
    ),
    CONSTRAINT ck_user_subscriptions_anchor_day_in_month CHECK (anchor_day BETWEEN 1 AND 31),
    CONSTRAINT ck_user_subscriptions_period_not_empty CHECK (current_period_start < current_period_end),
    CONSTRAINT fk_user_subscriptions_user_id_users FOREIGN KEY (user_id)
        REFERENCES users (id) ON DELETE RESTRICT,
    CONSTRAINT fk_user_subscriptions_plan_id_subscription_plans FOREIGN KEY (plan_id)
        REFERENCES subscription_plans (id) ON DELETE RESTRICT,
    CONSTRAINT fk_user_subscriptions_pending_plan_id_subscription_plans FOREIGN KEY (pending_plan_id)
        REFERENCES subscription_plans (id) ON DELETE RESTRICT
);
CREATE INDEX ix_user_subscriptions_live_period_end
    ON user_subscriptions (current_period_end, id) WHERE ended_at IS NULL;
CREATE INDEX ix_user_subscriptions_pending_plan_id
    ON user_subscriptions (pending_plan_id) WHERE pending_plan_id IS NOT NULL;
CREATE INDEX ix_user_subscriptions_plan_id ON user_subscriptions (plan_id);
CREATE INDEX ix_user_subscriptions_user_id_status ON user_subscriptions (user_id, status);

CREATE TABLE subscription_changes (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    subscription_id uuid,
    user_id uuid NOT NULL,
    run_id uuid,
    kind varchar(64) NOT NULL,
    before jsonb,
    after jsonb,
    reason text NOT NULL,
    evidence jsonb DEFAULT '{}'::jsonb NOT NULL,
    changed_at timestamptz NOT NULL,
    CONSTRAINT pk_subscription_changes PRIMARY KEY (id),
    CONSTRAINT fk_subscription_changes_subscription_id_user_subscriptions FOREIGN KEY (subscription_id)
        REFERENCES user_subscriptions (id) ON DELETE RESTRICT
);
CREATE INDEX ix_subscription_changes_run_id ON subscription_changes (run_id);
CREATE INDEX ix_subscription_changes_subscription_id_changed_at
    ON subscription_changes (subscription_id, changed_at);
CREATE INDEX ix_subscription_changes_user_id_changed_at
    ON subscription_changes (user_id, changed_at);

CREATE TABLE platform_usage_logs (
    id uuid NOT NULL,
    user_id uuid NOT NULL,
    feature varchar(128) NOT NULL,
    provider varchar(128),
    model varchar(256),
    input_tokens bigint,
    output_tokens bigint,
    cache_read_tokens bigint,
    cache_write_tokens bigint,
    reasoning_tokens bigint,
    tokens_used bigint NOT NULL,
    cost_usd numeric(24, 12),
    cost_reported_usd numeric(24, 12),
    cost_computed_usd numeric(24, 12),
    cost_source varchar(16) NOT NULL,
    payload_hash bytea NOT NULL,
    price_version text,
    occurred_at timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    stored_at timestamptz DEFAULT now() NOT NULL,
    duration_ms bigint,
    status varchar(16),
    corrects uuid,
    void boolean DEFAULT false NOT NULL,
    hold_id text,
    producer_id text,
    seq bigint,
    shard smallint NOT NULL,
    metadata jsonb,
    CONSTRAINT pk_platform_usage_logs PRIMARY KEY (id),
    CONSTRAINT ck_platform_usage_logs_not_negative CHECK (
        corrects IS NOT NULL OR (input_tokens >= 0 AND output_tokens >= 0 AND cache_read_tokens >= 0
        AND cache_write_tokens >= 0 AND reasoning_tokens >= 0 AND tokens_used >= 0 AND cost_usd >= 0
        AND cost_reported_usd >= 0 AND cost_computed_usd >= 0 AND duration_ms >= 0)
    ),
    CONSTRAINT ck_platform_usage_logs_cost_is_a_number CHECK (
        cost_usd <> 'NaN' AND cost_reported_usd <> 'NaN' AND cost_computed_usd <> 'NaN'
    ),
    CONSTRAINT ck_platform_usage_logs_unpriced_has_no_cost CHECK (
        (cost_source = 'unpriced') = (cost_usd IS NULL)
    ),
    CONSTRAINT ck_platform_usage_logs_occurred_at_finite CHECK (isfinite(occurred_at)),
    CONSTRAINT ck_platform_usage_logs_payload_hash_length CHECK (octet_length(payload_hash) = 16),
    CONSTRAINT ck_platform_usage_logs_void_corrects CHECK (corrects IS NOT NULL OR NOT void),
    CONSTRAINT ck_platform_usage_logs_shard_not_negative CHECK (shard >= 0),
    CONSTRAINT ck_platform_usage_logs_cost_source_known CHECK (
        cost_source IN ('reported', 'computed', 'unpriced')
    ),
    CONSTRAINT ck_platform_usage_logs_status_known CHECK (status IN ('ok', 'error')),
    CONSTRAINT ck_platform_usage_logs_metadata_object CHECK (jsonb_typeof(metadata) = 'object')
);
CREATE INDEX ix_platform_usage_logs_corrects
    ON platform_usage_logs (corrects) WHERE corrects IS NOT NULL;
CREATE INDEX ix_platform_usage_logs_user_id_occurred_at
    ON platform_usage_logs (user_id, occurred_at);

CREATE TABLE usage_hourly (
    user_id uuid NOT NULL,
    feature varchar(128) NOT NULL,
    provider varchar(128) NOT NULL,
    model varchar(256) NOT NULL,
    hour timestamptz NOT NULL,
    events bigint DEFAULT 0 NOT NULL,
    unpriced_events bigint DEFAULT 0 NOT NULL,
    input_tokens bigint DEFAULT 0 NOT NULL,
    output_tokens bigint DEFAULT 0 NOT NULL,
    tokens_used bigint DEFAULT 0 NOT NULL,
    cost_usd numeric(38, 12) DEFAULT 0 NOT NULL,
    CONSTRAINT pk_usage_hourly PRIMARY KEY (user_id, feature, provider, model, hour),
    CONSTRAINT ck_usage_hourly_hour_is_full CHECK (hour = date_trunc('hour', hour, 'UTC'))
) WITH (fillfactor = 70);

CREATE TABLE ingest_positions (
    shard smallint NOT NULL,
    last_entry_id text DEFAULT '0-0' NOT NULL,
    last_correction_id text DEFAULT '0-0' NOT NULL,
    entries bigint DEFAULT 0 NOT NULL,
    events bigint DEFAULT 0 NOT NULL,
    accepted bigint DEFAULT 0 NOT NULL,
    duplicates bigint DEFAULT 0 NOT NULL,
    conflicts bigint DEFAULT 0 NOT NULL,
    rejected bigint DEFAULT 0 NOT NULL,
    recovered bigint DEFAULT 0 NOT NULL,
    replayed bigint DEFAULT 0 NOT NULL,
    epoch bigint DEFAULT 0 NOT NULL,
    holder text,
    lease_until timestamptz,
    updated_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_ingest_positions PRIMARY KEY (shard),
    CONSTRAINT ck_ingest_positions_shard_not_negative CHECK (shard >= 0),
    CONSTRAINT ck_ingest_positions_not_negative CHECK (
        entries >= 0 AND events >= 0 AND accepted >= 0 AND duplicates >= 0 AND conflicts >= 0 AND
        rejected >= 0 AND recovered >= 0 AND replayed >= 0 AND epoch >= 0
    )
) WITH (fillfactor = 70);

CREATE TABLE usage_dead_letters (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    stream text NOT NULL,
    stream_id text NOT NULL,
    shard smallint NOT NULL,
    entry_index integer NOT NULL,
    raw bytea,
    raw_sha256 BYTEA NOT NULL,
    reason varchar(64) NOT NULL,
    detail text,
    event_id uuid,
    user_id uuid,
    clerk_id text,
    target_id uuid,
    received_at timestamptz NOT NULL,
    stored_at timestamptz DEFAULT now() NOT NULL,
    replayed_at timestamptz,
    discarded_at timestamptz,
    corrected_raw bytea,
    replay_count integer DEFAULT 0 NOT NULL,
    CONSTRAINT pk_usage_dead_letters PRIMARY KEY (id),
    CONSTRAINT uq_usage_dead_letters_stream_shard_stream_id_entry_index
        UNIQUE (stream, shard, stream_id, entry_index),
    CONSTRAINT ck_usage_dead_letters_raw_sha256_length CHECK (octet_length(raw_sha256) = 32),
    CONSTRAINT ck_usage_dead_letters_entry_index_from_minus_one CHECK (entry_index >= -1),
    CONSTRAINT ck_usage_dead_letters_shard_not_negative CHECK (shard >= 0),
    CONSTRAINT ck_usage_dead_letters_not_negative CHECK (replay_count >= 0)
);
CREATE INDEX ix_usage_dead_letters_stored_at ON usage_dead_letters (stored_at);
CREATE INDEX ix_usage_dead_letters_user_id ON usage_dead_letters (user_id);
CREATE INDEX ix_usage_dead_letters_waiting_clerk_id
    ON usage_dead_letters (clerk_id)
    WHERE reason = 'unknown_user' AND replayed_at IS NULL AND discarded_at IS NULL;
CREATE INDEX ix_usage_dead_letters_waiting_target_id
    ON usage_dead_letters (target_id)
    WHERE reason = 'unknown_target' AND replayed_at IS NULL AND discarded_at IS NULL;

CREATE TABLE audit_runs (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    kind varchar(32) NOT NULL,
    database varchar(128) NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    outcome varchar(32),
    counts jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT pk_audit_runs PRIMARY KEY (id),
    CONSTRAINT ck_audit_runs_counts_object CHECK (jsonb_typeof(counts) = 'object')
);
CREATE INDEX ix_audit_runs_kind_database_started_at ON audit_runs (kind, database, started_at);

CREATE TABLE audit_findings (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    run_id uuid NOT NULL,
    check_id varchar(64) NOT NULL,
    severity varchar(16) NOT NULL,
    database varchar(128) NOT NULL,
    object text NOT NULL,
    message text NOT NULL,
    remediation text,
    fingerprint varchar(64) NOT NULL,
    state varchar(16) NOT NULL,
    first_seen_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    CONSTRAINT pk_audit_findings PRIMARY KEY (id),
    CONSTRAINT uq_audit_findings_run_id_fingerprint UNIQUE (run_id, fingerprint),
    CONSTRAINT ck_audit_findings_severity_known CHECK (
        severity IN ('info', 'low', 'medium', 'high', 'critical')
    ),
    CONSTRAINT ck_audit_findings_state_known CHECK (state IN ('new', 'standing')),
    CONSTRAINT fk_audit_findings_run_id_audit_runs FOREIGN KEY (run_id)
        REFERENCES audit_runs (id) ON DELETE CASCADE
);
CREATE INDEX ix_audit_findings_fingerprint_last_seen_at
    ON audit_findings (fingerprint, last_seen_at);

CREATE TABLE job_runs (
    job varchar(64) NOT NULL,
    window_start timestamptz NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    outcome varchar(32),
    counts jsonb DEFAULT '{}'::jsonb NOT NULL,
    attempts integer DEFAULT 1 NOT NULL,
    CONSTRAINT pk_job_runs PRIMARY KEY (job, window_start),
    CONSTRAINT ck_job_runs_not_negative CHECK (attempts >= 0),
    CONSTRAINT ck_job_runs_counts_object CHECK (jsonb_typeof(counts) = 'object')
);
CREATE INDEX ix_job_runs_window_start ON job_runs (window_start);
"""

DOWNGRADE = """
DROP TABLE job_runs;
DROP TABLE audit_findings;
DROP TABLE audit_runs;
DROP TABLE usage_dead_letters;
DROP TABLE ingest_positions;
DROP TABLE usage_hourly;
DROP TABLE platform_usage_logs;
DROP TABLE subscription_changes;
DROP TABLE user_subscriptions;
DROP TABLE subscription_plans;
DROP TABLE users;
"""


def upgrade() -> None:
    for statement in UPGRADE.strip().removesuffix(";").split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWNGRADE.strip().removesuffix(";").split(";\n"):
        op.execute(statement)
