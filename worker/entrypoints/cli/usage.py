"""`usage-worker usage`: what a user used."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, time
from decimal import Decimal

import click

from worker import db
from worker.entrypoints._clock import utcnow
from worker.entrypoints.cli import _output
from worker.entrypoints.cli._options import MOMENT, settings
from worker.rollups import queries as rollups

SUMS = ("events", "unpriced_events", "input_tokens", "output_tokens", "tokens_used", "cost_usd")


@click.group()
def command() -> None:
    """Show what a user used, from the hourly roll-ups."""


@command.command()
@click.argument("user", type=click.UUID)
@click.option("--from", "start", type=MOMENT, help="First moment; default: the first of this month, UTC.")
@click.option("--to", "end", type=MOMENT, help="First moment that no longer counts; default: now.")
@click.option("--by", type=click.Choice(["feature", "model", "day"]), default="feature", show_default=True)
@_output.json_option
def show(
    user: uuid.UUID, start: datetime | None, end: datetime | None, by: rollups.By, as_json: bool
) -> None:
    """Show events, tokens and cost of USER in a period, by feature, model or day (UTC).

    The cost sums what is priced; unpriced_events counts the rest.
    """
    settings()
    now = utcnow()
    end = end or now
    start = start or datetime.combine(end.date().replace(day=1), time(), UTC)
    if start >= end:
        raise click.UsageError(f"--from {start.isoformat()} is not before --to {end.isoformat()}")
    with db.platform_session() as session:
        rows = rollups.usage(session, user, start=start, end=end, by=by)
    total = {name: sum((getattr(row, name) for row in rows), Decimal(0)) for name in SUMS}
    if as_json:
        _output.write_json(
            {
                "user_id": user,
                "from": start,
                "to": end,
                "by": by,
                "usage": [{by: row.group, **{name: getattr(row, name) for name in SUMS}} for row in rows],
                "total": {name: value if name == "cost_usd" else int(value) for name, value in total.items()},
            }
        )
        return
    _output.write_table(
        f"Usage of {user} from {_output.cell(start)} to {_output.cell(end)} UTC",
        (by, *SUMS),
        [
            *((row.group or "-", *(getattr(row, name) for name in SUMS)) for row in rows),
            ("total", *(total[name] if name == "cost_usd" else int(total[name]) for name in SUMS)),
        ]
        if rows
        else [],
    )
