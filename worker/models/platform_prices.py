"""What the platform database keeps of prices: our own overrides, and every cost that was set anew."""

from __future__ import annotations

import decimal
import uuid

import sqlalchemy as sa
from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, String, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from worker.models.platform_base import PlatformBase
from worker.models.types import (
    FALSE,
    Id,
    Instant,
    JsonObject,
    JsonObjectOrEmpty,
    Money,
    Small,
    Stamp,
    Tally,
    Words,
    json_object,
    not_negative,
    one_of,
)
from worker.models.vocabulary import CostSource, PriceMatch

_EMPTY = text("''")
# US dollars per million tokens.
_PRICES = (
    "input_per_mtok",
    "output_per_mtok",
    "cache_read_per_mtok",
    "cache_write_per_mtok",
    "cache_write_1h_per_mtok",
    "reasoning_per_mtok",
)


class ModelPrice(PlatformBase):
    """A price of our own for a model, from a moment on. Rows are only ever added.

    Of the rows with one provider, model, match and service tier the latest `effective_from` holds, and of
    those with the same the highest `id`. `withdrawn` ends the override. '' stands for an absent provider or
    model, and for standard processing.
    """

    __tablename__ = "model_prices"
    __table_args__ = (
        not_negative(*_PRICES),
        CheckConstraint(
            text(" AND ".join(f"{name} <> 'NaN'" for name in _PRICES)), name="prices_are_numbers"
        ),
        CheckConstraint(text("isfinite(effective_from)"), name="effective_from_finite"),
        one_of("match", PriceMatch),
        json_object("units"),
        json_object("long_context"),
        Index(None, "provider", "model", "effective_from"),
    )

    id: Mapped[int] = mapped_column(sa.BigInteger, Identity(), primary_key=True)
    provider: Mapped[str] = mapped_column(String(128), server_default=_EMPTY)
    model: Mapped[str] = mapped_column(String(256), server_default=_EMPTY)
    match: Mapped[str] = mapped_column(String(16), server_default=text("'exact'"))
    service_tier: Mapped[str] = mapped_column(String(64), server_default=_EMPTY)
    effective_from: Mapped[Instant]
    withdrawn: Mapped[bool] = mapped_column(server_default=FALSE)
    input_per_mtok: Mapped[Money | None]
    output_per_mtok: Mapped[Money | None]
    cache_read_per_mtok: Mapped[Money | None]
    cache_write_per_mtok: Mapped[Money | None]
    cache_write_1h_per_mtok: Mapped[Money | None]
    reasoning_per_mtok: Mapped[Money | None]
    units: Mapped[JsonObjectOrEmpty]
    long_context: Mapped[JsonObject | None] = mapped_column(JSONB(none_as_null=True))
    source: Mapped[Words | None]
    note: Mapped[Words | None]
    applied_by: Mapped[Words]
    applied_at: Mapped[Stamp]


class UsageRepricing(PlatformBase):
    """One run that set costs anew: what it was asked, by whom, why, and what it came to.

    A run without `finished_at` ended before its time; what it had changed until then stands.
    """

    __tablename__ = "usage_repricings"
    __table_args__ = (not_negative("examined", "changed"), json_object("scope"), Index(None, "started_at"))

    id: Mapped[Id]
    started_at: Mapped[Instant]
    finished_at: Mapped[Instant | None]
    requested_by: Mapped[Words]
    reason: Mapped[Words]
    scope: Mapped[JsonObjectOrEmpty]
    policy: Mapped[str] = mapped_column(String(32))
    examined: Mapped[Tally]
    changed: Mapped[Tally]
    cost_change: Mapped[decimal.Decimal] = mapped_column(sa.Numeric(38, 12), server_default=text("0"))


class UsageRepricingEvent(PlatformBase):
    """What one run changed of one row of the log, before and after. Rows are only ever added.

    `stored_at` and `shard` are those of the row, so that the books know which window was touched.
    """

    __tablename__ = "usage_repricing_events"
    __table_args__ = (
        one_of("source_before", CostSource),
        one_of("source_after", CostSource),
        Index(None, "event_id"),
        Index(None, "shard", "repriced_at"),
    )

    run_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("usage_repricings.id", ondelete="RESTRICT"), primary_key=True
    )
    event_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    corrects: Mapped[uuid.UUID | None]
    cost_before: Mapped[Money | None]
    cost_after: Mapped[Money | None]
    computed_before: Mapped[Money | None]
    computed_after: Mapped[Money | None]
    source_before: Mapped[str] = mapped_column(String(16))
    source_after: Mapped[str] = mapped_column(String(16))
    version_before: Mapped[Words | None]
    version_after: Mapped[Words | None]
    shard: Mapped[Small]
    stored_at: Mapped[Instant]
    repriced_at: Mapped[Instant]
