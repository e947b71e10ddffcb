"""What the books know of the numbers that emitters give their events."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa
from sqlalchemy import CheckConstraint, Index, String, text
from sqlalchemy.dialects.postgresql import ARRAY, INT8MULTIRANGE, Range
from sqlalchemy.orm import Mapped, mapped_column

from worker.models.platform_base import PlatformBase
from worker.models.types import FALSE, AwareDateTime, Instant, Tally, Words, not_negative, one_of
from worker.models.vocabulary import NumbersSettled

_NO_RANGES = text("'{}'::int8multirange")
_NO_TIMES = text("'{}'::timestamptz[]")
_NO_ENTRY = text("'0-0'")


class UsageProducer(PlatformBase):
    """Which of one producer's numbers arrived: everything in `received`, and what is settled.

    `seen_from` and `seen_to` have one time for each range: when its first and its last number were stored.
    Numbers up to `settled_upto` are no longer told apart, `settled_because` of what; `unnamed` of them
    are still missing. `missing` counts these and the holes below the highest number.
    """

    __tablename__ = "usage_producers"
    __table_args__ = (
        not_negative("missing", "settled_upto", "unnamed"),
        one_of("settled_because", NumbersSettled),
        Index(
            "ix_usage_producers_incomplete",
            "first_stored_at",
            "producer_id",
            postgresql_where=text("missing > 0"),
        ),
        Index(None, "last_stored_at"),
    )

    producer_id: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    received: Mapped[list[Range[int]]] = mapped_column(INT8MULTIRANGE, server_default=_NO_RANGES)
    seen_from: Mapped[list[dt.datetime]] = mapped_column(ARRAY(AwareDateTime), server_default=_NO_TIMES)
    seen_to: Mapped[list[dt.datetime]] = mapped_column(ARRAY(AwareDateTime), server_default=_NO_TIMES)
    missing: Mapped[Tally]
    settled_upto: Mapped[Tally]
    settled_because: Mapped[str | None] = mapped_column(String(16))
    settled_reason: Mapped[Words | None]
    unnamed: Mapped[Tally]
    unnamed_from: Mapped[Instant | None]
    first_stored_at: Mapped[Instant]
    last_stored_at: Mapped[Instant]


class UsageNumberPosition(PlatformBase):
    """How far the numbers of one shard were read: rows by time, entries by id.

    `unstored` is how many events the shard had counted by then that left no row. `begins_late` says that
    older rows were never read, and that their highest numbers are still to be taken.
    """

    __tablename__ = "usage_number_positions"
    __table_args__ = (
        CheckConstraint(text("shard >= 0"), name="shard_not_negative"),
        not_negative("unstored"),
    )

    shard: Mapped[int] = mapped_column(sa.SmallInteger, primary_key=True, autoincrement=False)
    read_at: Mapped[Instant]
    last_entry_id: Mapped[Words] = mapped_column(server_default=_NO_ENTRY)
    last_correction_id: Mapped[Words] = mapped_column(server_default=_NO_ENTRY)
    unstored: Mapped[Tally]
    begins_late: Mapped[bool] = mapped_column(server_default=FALSE)
