"""The platform database: users, plans, subscriptions, and everything that usage becomes.

Lengths, NOT NULL, checks and delete rules are declared here and frozen in `migrations/platform`; a test
compares what both build, to the last constraint.
"""

from __future__ import annotations

import datetime as dt
import decimal
import uuid

import sqlalchemy as sa
from sqlalchemy import CheckConstraint, ForeignKey, Index, String, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from worker.models.platform_base import PlatformBase
from worker.models.platform_prices import ModelPrice, UsageRepricing, UsageRepricingEvent
from worker.models.platform_producers import UsageNumberPosition, UsageProducer
from worker.models.platform_records import AuditFinding, AuditRun, JobRun, UsageSeal
from worker.models.types import (
    FALSE,
    ZERO,
    Amount,
    AwareDateTime,
    Id,
    Instant,
    JsonObject,
    JsonObjectOrEmpty,
    Money,
    Ref,
    Small,
    Stamp,
    Tally,
    Words,
    json_object,
    not_negative,
    one_of,
)
from worker.models.vocabulary import (
    CostSource,
    EventStatus,
    PlanInterval,
    SubscriptionStatus,
)

__all__ = [
    "AuditFinding",
    "AuditRun",
    "IngestPosition",
    "JobRun",
    "ModelPrice",
    "PlatformBase",
    "PlatformUsageLog",
    "SubscriptionChange",
    "SubscriptionPlan",
    "UsageDeadLetter",
    "UsageHourly",
    "UsageNumberPosition",
    "UsageProducer",
    "UsageRepricing",
    "UsageRepricingEvent",
    "UsageSeal",
    "User",
    "UserSubscription",
]


class User(PlatformBase):
    """A customer. `subscription_status` mirrors the live subscription; NULL means there is none.

    `email` may be absent: an identity provider also signs people in by phone.
    """

    __tablename__ = "users"
    __table_args__ = (UniqueConstraint("clerk_id"), one_of("subscription_status", SubscriptionStatus))

    id: Mapped[Id]
    clerk_id: Mapped[str | None] = mapped_column(String(255))
    email: Mapped[str | None] = mapped_column(String(320))
    subscription_status: Mapped[str | None] = mapped_column(String(32))
    created_at: Mapped[Stamp]


class SubscriptionPlan(PlatformBase):
    """What can be subscribed to. A retired plan (`active` false) keeps its row: statements point at it."""

    __tablename__ = "subscription_plans"
    __table_args__ = (
        UniqueConstraint("name"),
        not_negative("price_cents"),
        one_of("currency", ["USD"]),
        one_of("interval", PlanInterval),
        json_object("features"),
    )

    id: Mapped[Id]
    name: Mapped[str] = mapped_column(String(128))
    price_cents: Mapped[Amount]
    currency: Mapped[str] = mapped_column(sa.CHAR(3), server_default=text("'USD'"))
    interval: Mapped[str] = mapped_column(String(16))
    features: Mapped[JsonObjectOrEmpty]
    active: Mapped[bool] = mapped_column(server_default=text("true"))
    created_at: Mapped[Stamp]


class UserSubscription(PlatformBase):
    """One subscription of one user; periods are half-open. Neither user nor plan can go while it stands."""

    __tablename__ = "user_subscriptions"
    __table_args__ = (
        one_of("status", SubscriptionStatus),
        CheckConstraint(text("anchor_day BETWEEN 1 AND 31"), name="anchor_day_in_month"),
        CheckConstraint(text("current_period_start < current_period_end"), name="period_not_empty"),
        Index(None, "user_id", "status"),
        Index(None, "plan_id"),
        Index(None, "pending_plan_id", postgresql_where=text("pending_plan_id IS NOT NULL")),
        # The reconciler's question: which live subscriptions have come to the end of their period?
        Index(
            "ix_user_subscriptions_live_period_end",
            "current_period_end",
            "id",
            postgresql_where=text("ended_at IS NULL"),
        ),
    )

    id: Mapped[Id]
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="RESTRICT"))
    plan_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("subscription_plans.id", ondelete="RESTRICT"))
    status: Mapped[str] = mapped_column(String(32))
    managed_by: Mapped[str] = mapped_column(String(64), server_default=text("'worker'"))
    anchor_day: Mapped[Small]
    timezone: Mapped[str] = mapped_column(String(64), server_default=text("'UTC'"))
    current_period_start: Mapped[Instant]
    current_period_end: Mapped[Instant]
    cancel_at_period_end: Mapped[bool] = mapped_column(server_default=FALSE)
    pending_plan_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("subscription_plans.id", ondelete="RESTRICT")
    )
    trial_end: Mapped[Instant | None]
    past_due_at: Mapped[Instant | None]
    canceled_at: Mapped[Instant | None]
    ended_at: Mapped[Instant | None]
    created_at: Mapped[Stamp]
    updated_at: Mapped[Stamp]


class SubscriptionChange(PlatformBase):
    """One change that was made to a subscription or its mirror, with the reason. Rows are only ever added."""

    __tablename__ = "subscription_changes"
    __table_args__ = (
        Index(None, "user_id", "changed_at"),
        Index(None, "subscription_id", "changed_at"),
        Index(None, "run_id"),
    )

    id: Mapped[Id]
    subscription_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("user_subscriptions.id", ondelete="RESTRICT")
    )
    # No foreign key: the history outlives the user.
    user_id: Mapped[Ref]
    run_id: Mapped[uuid.UUID | None]
    kind: Mapped[str] = mapped_column(String(64))
    before: Mapped[JsonObject | None]
    after: Mapped[JsonObject | None]
    reason: Mapped[Words]
    evidence: Mapped[JsonObjectOrEmpty]
    changed_at: Mapped[Instant]


class PlatformUsageLog(PlatformBase):
    """One usage event, once. NULL stands for what is unknown: a split, a model, a cost.

    No foreign key to users: a deleted user has still spent the money.
    """

    __tablename__ = "platform_usage_logs"
    __table_args__ = (
        not_negative(
            "input_tokens",
            "output_tokens",
            "cache_read_tokens",
            "cache_write_tokens",
            "reasoning_tokens",
            "tokens_used",
            "cost_usd",
            "cost_reported_usd",
            "cost_computed_usd",
            "duration_ms",
            unless="corrects IS NOT NULL",
        ),
        # NaN is greater than every number to PostgreSQL, so the check above lets it pass.
        CheckConstraint(
            text("cost_usd <> 'NaN' AND cost_reported_usd <> 'NaN' AND cost_computed_usd <> 'NaN'"),
            name="cost_is_a_number",
        ),
        CheckConstraint(text("(cost_source = 'unpriced') = (cost_usd IS NULL)"), name="unpriced_has_no_cost"),
        CheckConstraint(text("isfinite(occurred_at)"), name="occurred_at_finite"),
        CheckConstraint(text("octet_length(payload_hash) = 16"), name="payload_hash_length"),
        CheckConstraint(text("corrects IS NOT NULL OR NOT void"), name="void_corrects"),
        CheckConstraint(text("shard >= 0"), name="shard_not_negative"),
        one_of("cost_source", CostSource),
        one_of("status", EventStatus),
        json_object("metadata"),
        json_object("units"),
        Index(None, "user_id", "occurred_at"),
        # What waits for a price.
        Index(
            "ix_platform_usage_logs_unpriced",
            "occurred_at",
            "id",
            postgresql_where=text("cost_usd IS NULL AND corrects IS NULL"),
        ),
        Index(None, "corrects", postgresql_where=text("corrects IS NOT NULL")),
        # Where the rows of a window of the books lie, and those of a range of hours.
        Index(None, "stored_at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
        Index(None, "occurred_at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    user_id: Mapped[Ref]
    feature: Mapped[str] = mapped_column(String(128))
    provider: Mapped[str | None] = mapped_column(String(128))
    model: Mapped[str | None] = mapped_column(String(256))
    input_tokens: Mapped[Amount | None]
    output_tokens: Mapped[Amount | None]
    cache_read_tokens: Mapped[Amount | None]
    cache_write_tokens: Mapped[Amount | None]
    reasoning_tokens: Mapped[Amount | None]
    tokens_used: Mapped[Amount]
    cost_usd: Mapped[Money | None]
    cost_reported_usd: Mapped[Money | None]
    cost_computed_usd: Mapped[Money | None]
    cost_source: Mapped[str] = mapped_column(String(16))
    payload_hash: Mapped[bytes] = mapped_column(sa.LargeBinary)
    price_version: Mapped[Words | None]
    occurred_at: Mapped[Instant]
    received_at: Mapped[Instant]
    stored_at: Mapped[Stamp]
    duration_ms: Mapped[Amount | None]
    status: Mapped[str | None] = mapped_column(String(16))
    corrects: Mapped[uuid.UUID | None]
    void: Mapped[bool] = mapped_column(server_default=FALSE)
    hold_id: Mapped[Words | None]
    producer_id: Mapped[Words | None]
    seq: Mapped[Amount | None]
    shard: Mapped[Small]
    # The class attribute `metadata` belongs to SQLAlchemy.
    event_metadata: Mapped[JsonObject | None] = mapped_column("metadata", JSONB(none_as_null=True))
    # What was used that is not tokens: quantities by name.
    units: Mapped[JsonObject | None] = mapped_column(JSONB(none_as_null=True))


class UsageHourly(PlatformBase):
    """What a user spent in one hour on one feature, provider and model. '' stands for an absent one.

    `cost_usd` sums the known costs, `unpriced_events` counts the others. An event carries at most 10^9 tokens
    of a kind, so a bigint sum holds nine billion of the largest events in one hour.
    """

    __tablename__ = "usage_hourly"
    __table_args__ = (
        CheckConstraint(text("hour = date_trunc('hour', hour, 'UTC')"), name="hour_is_full"),
        # Rows are updated in place by every batch of their hour: room on the page keeps that off the index.
        {"postgresql_with": {"fillfactor": 70}},
    )

    user_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    feature: Mapped[str] = mapped_column(String(128), primary_key=True)
    provider: Mapped[str] = mapped_column(String(128), primary_key=True)
    model: Mapped[str] = mapped_column(String(256), primary_key=True)
    hour: Mapped[dt.datetime] = mapped_column(AwareDateTime, primary_key=True)
    events: Mapped[Tally]
    unpriced_events: Mapped[Tally]
    input_tokens: Mapped[Tally]
    output_tokens: Mapped[Tally]
    tokens_used: Mapped[Tally]
    cost_usd: Mapped[decimal.Decimal] = mapped_column(sa.Numeric(38, 12), server_default=ZERO)


class IngestPosition(PlatformBase):
    """How far one shard has come, what it counted, and who may write it now.

    The lease stands here and not in Redis, so that a holder that lost it cannot commit: the transaction that
    moves the position checks the epoch in the same row.
    """

    __tablename__ = "ingest_positions"
    __table_args__ = (
        CheckConstraint(text("shard >= 0"), name="shard_not_negative"),
        not_negative(
            "entries",
            "events",
            "accepted",
            "duplicates",
            "conflicts",
            "rejected",
            "recovered",
            "replayed",
            "epoch",
        ),
        {"postgresql_with": {"fillfactor": 70}},
    )

    shard: Mapped[int] = mapped_column(sa.SmallInteger, primary_key=True, autoincrement=False)
    last_entry_id: Mapped[Words] = mapped_column(server_default=text("'0-0'"))
    last_correction_id: Mapped[Words] = mapped_column(server_default=text("'0-0'"))
    entries: Mapped[Tally]
    events: Mapped[Tally]
    accepted: Mapped[Tally]
    duplicates: Mapped[Tally]
    conflicts: Mapped[Tally]
    rejected: Mapped[Tally]
    recovered: Mapped[Tally]
    replayed: Mapped[Tally]
    epoch: Mapped[Tally]
    holder: Mapped[Words | None]
    lease_until: Mapped[Instant | None]
    updated_at: Mapped[Stamp]
    # Holders that vanished since a batch was last committed; from some number on, entries are taken singly.
    crashes: Mapped[Tally]
    careful_left: Mapped[Tally]
    suspect_id: Mapped[Words | None]
    suspect_deliveries: Mapped[Tally]
    # The lease that noted it: one that is given back has survived it.
    suspect_epoch: Mapped[int | None] = mapped_column(sa.BigInteger)
    paused_at: Mapped[Instant | None]
    paused_by: Mapped[Words | None]
    paused_reason: Mapped[Words | None]
    # The window in which refused events are counted, so that a flood of them pauses the shard.
    flood_since: Mapped[Instant | None]
    flood_events: Mapped[Tally]
    flood_refused: Mapped[Tally]
    # How far the books are proved: nothing above is ever trimmed from the streams.
    audited_entry_id: Mapped[Words] = mapped_column(server_default=text("'0-0'"))
    audited_correction_id: Mapped[Words] = mapped_column(server_default=text("'0-0'"))
    audited_at: Mapped[Instant | None]


class UsageDeadLetter(PlatformBase):
    """An event that was put aside, with its bytes as they came. `raw` is NULL only after an erasure."""

    __tablename__ = "usage_dead_letters"
    __table_args__ = (
        UniqueConstraint("stream", "shard", "stream_id", "entry_index"),
        CheckConstraint(text("octet_length(raw_sha256) = 32"), name="raw_sha256_length"),
        CheckConstraint(text("entry_index >= -1"), name="entry_index_from_minus_one"),
        CheckConstraint(text("shard >= 0"), name="shard_not_negative"),
        not_negative("replay_count"),
        Index(None, "user_id"),
        Index(None, "stored_at"),
        # What a new user, or a late target, sets free.
        Index(
            "ix_usage_dead_letters_waiting_clerk_id",
            "clerk_id",
            postgresql_where=text("reason = 'unknown_user' AND replayed_at IS NULL AND discarded_at IS NULL"),
        ),
        Index(
            "ix_usage_dead_letters_waiting_target_id",
            "target_id",
            postgresql_where=text(
                "reason = 'unknown_target' AND replayed_at IS NULL AND discarded_at IS NULL"
            ),
        ),
    )

    id: Mapped[Id]
    stream: Mapped[Words]
    stream_id: Mapped[Words]
    shard: Mapped[Small]
    entry_index: Mapped[int] = mapped_column(sa.Integer)
    raw: Mapped[bytes | None]
    raw_sha256: Mapped[bytes]
    reason: Mapped[str] = mapped_column(String(64))
    detail: Mapped[Words | None]
    event_id: Mapped[uuid.UUID | None]
    user_id: Mapped[uuid.UUID | None]
    clerk_id: Mapped[Words | None]
    target_id: Mapped[uuid.UUID | None]
    received_at: Mapped[Instant]
    # Read under the lock of the shard's row, so the order of these times is that of the commits.
    stored_at: Mapped[Instant] = mapped_column(server_default=text("clock_timestamp()"))
    replayed_at: Mapped[Instant | None]
    discarded_at: Mapped[Instant | None]
    corrected_raw: Mapped[bytes | None]
    replay_count: Mapped[int] = mapped_column(sa.Integer, server_default=ZERO)
