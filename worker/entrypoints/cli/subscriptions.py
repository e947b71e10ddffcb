"""`usage-worker subscriptions`: the reconciliation by hand."""

from __future__ import annotations

import uuid
from datetime import datetime

import click

from worker import db
from worker.entrypoints import _exits
from worker.entrypoints._clock import utcnow
from worker.entrypoints.cli import _output
from worker.entrypoints.cli._options import MOMENT, settings
from worker.subscriptions import operations as subscriptions
from worker.subscriptions.reconcile import Reconciliation


@click.group()
def command() -> None:
    """Reconcile subscriptions: periods that ended, plans that changed, mirrors that drifted."""


@command.command()
@click.option("--dry-run", is_flag=True, help="Show what would change; write and lock nothing.")
@click.option("--now", type=MOMENT, help="Judge as of this moment (RFC 3339); default: the present.")
@_output.json_option
def reconcile(dry_run: bool, now: datetime | None, as_json: bool) -> int:
    """Move every subscription that is due, mirror it to its user and record why.

    The worker does the same on its schedule. A run that would change more than
    USAGE_RECONCILE_MAX_CHANGE_SHARE of the rows is refused and has written nothing (exit code 1).
    """
    bound = settings()
    with db.platform_session() as session:
        result = subscriptions.reconcile(
            session,
            now=now or utcnow(),
            run_id=uuid.uuid4(),
            dry_run=dry_run,
            max_change_share=bound.usage_reconcile_max_change_share,
        )
    if as_json:
        _output.write_json(result.as_document())
    else:
        _show(result)
    return _exits.FINDINGS if result.refusal else _exits.GOOD


def _show(result: Reconciliation) -> None:
    _output.write_table(
        "Would change" if result.dry_run else "Changed",
        ("subscription", "user", "kind", "reason", "before", "after"),
        [
            (one.subscription_id, one.user_id, one.kind, one.reason, one.before, one.after)
            for one in result.changes
        ],
    )
    _output.write_table(
        "Reported, not changed",
        ("reason", "user", "subscription", "detail"),
        [(one.reason, one.user_id, one.subscription_id, one.detail) for one in result.reported],
    )
    _output.write_table("Counts", ("what", "count"), list(result.counts.items()))
    if result.refusal:
        _output.say(f"A real run would be refused: {result.refusal}")
