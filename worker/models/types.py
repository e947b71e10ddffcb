"""Column types and words that the models of both databases share.

Words (statuses, outcomes) are stored as text with a CHECK: a new word is one constraint away, a PostgreSQL
enum would need a migration that locks and cannot be undone.
"""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from sqlalchemy import BigInteger, CheckConstraint, DateTime, Dialect, Numeric, SmallInteger, Text, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import mapped_column
from sqlalchemy.types import TypeDecorator

NAMING_CONVENTION: Mapping[str, str] = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class NaiveTime(ValueError):
    """A time without an offset was about to be stored."""


class AwareDateTime(TypeDecorator[dt.datetime]):
    """timestamptz that refuses naive times on the way in and answers UTC on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        if value is not None and value.utcoffset() is None:
            raise NaiveTime(f"{value!r} has no offset: give an aware time, best in UTC")
        return value

    def process_result_value(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        return None if value is None else value.astimezone(dt.UTC)


def one_of(column: str, words: Iterable[str], *, name: str | None = None) -> CheckConstraint:
    """This function will make the CHECK that keeps a text column to the given words (NULL passes)."""
    listed = ", ".join(f"'{word}'" for word in words)
    return CheckConstraint(text(f"{column} IN ({listed})"), name=name or f"{column}_known")


def not_negative(*columns: str, unless: str | None = None) -> CheckConstraint:
    """This function will make one CHECK that no column is below zero, `unless` a condition holds."""
    condition = " AND ".join(f"{column} >= 0" for column in columns)
    return CheckConstraint(text(f"{unless} OR ({condition})" if unless else condition), name="not_negative")


def json_object(column: str) -> CheckConstraint:
    """This function will make the CHECK that a jsonb column holds an object (NULL passes)."""
    return CheckConstraint(text(f"jsonb_typeof({column}) = 'object'"), name=f"{column}_object")


NOW = text("now()")
NEW_ID = text("gen_random_uuid()")
EMPTY_OBJECT = text("'{}'::jsonb")
ZERO = text("0")
FALSE = text("false")

Id = Annotated[uuid.UUID, mapped_column(Uuid, primary_key=True, server_default=NEW_ID)]
"""Primary key that PostgreSQL fills in when the writer has none of its own."""
Ref = Annotated[uuid.UUID, mapped_column(Uuid)]
Instant = Annotated[dt.datetime, mapped_column(AwareDateTime)]
Stamp = Annotated[dt.datetime, mapped_column(AwareDateTime, server_default=NOW)]
"""A time that PostgreSQL fills in: the start of the writing transaction."""
Words = Annotated[str, mapped_column(Text)]
Small = Annotated[int, mapped_column(SmallInteger)]
Amount = Annotated[int, mapped_column(BigInteger)]
Tally = Annotated[int, mapped_column(BigInteger, server_default=ZERO)]
"""A counter that starts at 0."""
Money = Annotated[decimal.Decimal, mapped_column(Numeric(24, 12))]
"""US dollars with the twelve places of a single event."""
JsonObject = Annotated[dict[str, Any], mapped_column(JSONB(none_as_null=True))]
JsonObjectOrEmpty = Annotated[dict[str, Any], mapped_column(JSONB, server_default=EMPTY_OBJECT)]
