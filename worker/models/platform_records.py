"""What the platform database records of its own work: audits, the seals of the books, runs of jobs."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid

import sqlalchemy as sa
from sqlalchemy import CheckConstraint, ForeignKey, Index, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from worker.models.platform_base import PlatformBase
from worker.models.types import (
    ZERO,
    Amount,
    AwareDateTime,
    Id,
    Instant,
    JsonObjectOrEmpty,
    Ref,
    Tally,
    Words,
    json_object,
    not_negative,
    one_of,
)
from worker.models.vocabulary import FindingState, Severity


class AuditRun(PlatformBase):
    """One run of one audit against one database."""

    __tablename__ = "audit_runs"
    __table_args__ = (json_object("counts"), Index(None, "kind", "database", "started_at"))

    id: Mapped[Id]
    kind: Mapped[str] = mapped_column(String(32))
    database: Mapped[str] = mapped_column(String(128))
    started_at: Mapped[Instant]
    finished_at: Mapped[Instant | None]
    outcome: Mapped[str | None] = mapped_column(String(32))
    counts: Mapped[JsonObjectOrEmpty]


class AuditFinding(PlatformBase):
    """What a run found. The fingerprint is the same from run to run, so new and standing are told apart."""

    __tablename__ = "audit_findings"
    __table_args__ = (
        UniqueConstraint("run_id", "fingerprint"),
        one_of("severity", Severity),
        one_of("state", FindingState),
        Index(None, "fingerprint", "last_seen_at"),
    )

    id: Mapped[Id]
    run_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("audit_runs.id", ondelete="CASCADE"))
    check_id: Mapped[str] = mapped_column(String(64))
    severity: Mapped[str] = mapped_column(String(16))
    database: Mapped[str] = mapped_column(String(128))
    object: Mapped[Words]
    message: Mapped[Words]
    remediation: Mapped[Words | None]
    fingerprint: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    first_seen_at: Mapped[Instant]
    last_seen_at: Mapped[Instant]


class JobRun(PlatformBase):
    """A periodic job's claim on one window: the primary key lets one of two beats win."""

    __tablename__ = "job_runs"
    __table_args__ = (not_negative("attempts"), json_object("counts"), Index(None, "window_start"))

    job: Mapped[str] = mapped_column(String(64), primary_key=True)
    window_start: Mapped[dt.datetime] = mapped_column(AwareDateTime, primary_key=True)
    started_at: Mapped[Instant]
    finished_at: Mapped[Instant | None]
    outcome: Mapped[str | None] = mapped_column(String(32))
    counts: Mapped[JsonObjectOrEmpty]
    attempts: Mapped[int] = mapped_column(sa.Integer, server_default=text("1"))


class UsageSeal(PlatformBase):
    """What the books proved of one shard's window (since, cut_at] of the log.

    The counters and positions are those of the cut; `row_count` to `content_xor` sum up the rows stored in
    the window, so that one that is deleted, added or changed later shows. `*_passed` are the entries that
    the streams ever had at or below the position. `accepted_reason` stands where an operator accepted a
    difference.
    """

    __tablename__ = "usage_seals"
    __table_args__ = (
        CheckConstraint(text("shard >= 0"), name="shard_not_negative"),
        CheckConstraint(text("since <= cut_at"), name="window_in_order"),
        Index(None, "verified_at"),
    )

    shard: Mapped[int] = mapped_column(sa.SmallInteger, primary_key=True, autoincrement=False)
    cut_at: Mapped[dt.datetime] = mapped_column(AwareDateTime, primary_key=True)
    since: Mapped[Instant]
    last_entry_id: Mapped[Words]
    last_correction_id: Mapped[Words]
    events_passed: Mapped[Tally]
    corrections_passed: Mapped[Tally]
    entries: Mapped[Tally]
    events: Mapped[Tally]
    accepted: Mapped[Tally]
    duplicates: Mapped[Tally]
    conflicts: Mapped[Tally]
    rejected: Mapped[Tally]
    recovered: Mapped[Tally]
    replayed: Mapped[Tally]
    row_count: Mapped[Tally]
    letter_count: Mapped[Tally]
    tokens_used: Mapped[decimal.Decimal] = mapped_column(sa.Numeric(38, 0), server_default=ZERO)
    cost_usd: Mapped[decimal.Decimal] = mapped_column(sa.Numeric(38, 12), server_default=ZERO)
    id_xor: Mapped[Ref]
    content_xor: Mapped[Amount]
    sealed_at: Mapped[Instant]
    verified_at: Mapped[Instant]
    accepted_reason: Mapped[Words | None]
