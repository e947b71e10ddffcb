"""What an operator does before and after a run, with the product's own operations."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal

from sqlalchemy import text

from worker import db
from worker.audits.findings import Outcome
from worker.dev import seed
from worker.entrypoints import auditing, draining, pricing
from worker.ingest import dead_letters as letters
from worker.settings import Settings, load_settings
from worker.subscriptions import operations as subscriptions

_SUBSCRIBERS = 80


@contextmanager
def bound(environ: Mapping[str, str]) -> Iterator[Settings]:
    """This function will bind the product to these settings in this process while the block runs."""
    settings = load_settings(environ)
    db.configure(settings)
    try:
        yield settings
    finally:
        db.close_databases()


def populate(*, now: dt.datetime) -> None:
    """This function will add plans, and users with subscriptions of which some are due."""
    with db.platform_session() as session:
        seed.upsert_plans(session)
        seed.upsert_users(session, count=_SUBSCRIBERS, now=now)


def replay(settings: Settings, *, reason: str, now: dt.datetime) -> str:
    """This function will replay every open dead letter of a reason and say what was tried, if anything."""
    tried, refused = 0, 0
    after: tuple[dt.datetime, uuid.UUID] | None = None
    prices = pricing.load(settings)
    while True:
        with db.platform_session() as session:
            step = letters.replay(
                session,
                selection=letters.Selection(reason=reason),
                limits=draining.age_limits(settings),
                prices=prices,
                now=now,
                after=after,
            )
        tried, refused, after = tried + step.tried, refused + step.refused, step.after
        if after is None:
            return f"{tried} {reason}, {refused} refused again" if tried else ""


def audit_books(settings: Settings) -> str:
    """This function will audit the whole books, and say what was found or could not be looked at."""
    reports = auditing.audit_books(settings, full=True)
    found = [f"{one.check_id} {one.object}: {one.message}" for report in reports for one in report.findings]
    found += [
        f"{check.check_id}: inconclusive: {check.reason}"
        for report in reports
        for check in report.checks
        if check.outcome is Outcome.INCONCLUSIVE
    ]
    return "; ".join(found)


def reconcile(*, now: dt.datetime) -> str:
    """This function will reconcile every subscription, and say how many changes that made; '' for none."""
    count = text("SELECT count(*) FROM subscription_changes")
    with db.platform_session() as session:
        before: int = session.execute(count).scalar_one()
        subscriptions.reconcile(session, now=now, run_id=uuid.uuid4(), max_change_share=Decimal(1))
        changed: int = session.execute(count).scalar_one() - before
    return f"{changed} changes" if changed else ""
