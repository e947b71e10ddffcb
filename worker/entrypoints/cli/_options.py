"""Option types that several commands share, and the settings that they read."""

from __future__ import annotations

from datetime import UTC, date, datetime, time

import click

from worker import db, log
from worker.settings import Settings, load_settings


class Moment(click.ParamType[datetime]):
    """A time in RFC 3339 with its offset, or a date, which is its first moment in UTC."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """This function will return an aware UTC time, or refuse a value that names no single moment."""
        if isinstance(value, datetime):
            return value
        words = str(value)
        try:
            if len(words) == len("2026-11-21"):
                return datetime.combine(date.fromisoformat(words), time(), UTC)
            moment = datetime.fromisoformat(words)
        except ValueError:
            self.fail(f"{words!r} is no time; write 2026-11-21 or 2026-11-21T08:30:00Z", param, ctx)
        if moment.tzinfo is None:
            self.fail(f"{words!r} has no offset; write {words}Z for UTC", param, ctx)
        return moment.astimezone(UTC)


MOMENT = Moment()


def settings() -> Settings:
    """This function will read the settings, bind worker.db to them and send logs to stderr."""
    loaded = load_settings()
    db.configure(loaded)
    db.set_application_role("cli")
    log.configure_logging(environment=loaded.environment, level="WARNING")
    return loaded
