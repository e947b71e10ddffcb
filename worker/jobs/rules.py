"""The arithmetic of job windows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOST_ATTEMPTS = 3


def window_start(now: datetime, *, period: timedelta) -> datetime:
    """This function will return the start of the half-open window of length `period` that holds `now`.

    Windows are counted from 1970 in UTC, so every process names the same one without asking another.
    """
    return EPOCH + ((now - EPOCH) // period) * period
