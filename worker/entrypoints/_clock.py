"""The one clock: everything below the entry points is given the time."""

from __future__ import annotations

from datetime import UTC, datetime


def utcnow() -> datetime:
    """This function will return the present as an aware UTC time."""
    return datetime.now(UTC)  # noqa: TID251 - the one place that may; everything else is given `now`
