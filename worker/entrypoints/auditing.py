"""Running the audits on our two databases: the task and the command are the same calls."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime

from sqlalchemy.orm import Session

from producers import _stream
from worker import db
from worker.audits import books, pool, rls
from worker.audits import operations as audits
from worker.audits.findings import AuditReport
from worker.database_url import Database
from worker.entrypoints import schedule, streams
from worker.entrypoints._clock import utcnow
from worker.models import policies
from worker.settings import Settings

BOTH = tuple(Database)
# A child connects as the worker and, for an audit, as the auditor.
LOGINS = 2


def session_of(database: Database) -> AbstractContextManager[Session]:
    """This function will open a session of the audits' login on one of the two databases."""
    if database is Database.PLATFORM:
        return db.platform_session(login=db.Login.AUDIT)
    return db.user_data_session(login=db.Login.AUDIT, system=True)


def audit_rls(databases: Sequence[Database] = BOTH) -> list[AuditReport]:
    """This function will audit row-level security as tenants meet it; whatever it does is rolled back."""
    reports = []
    for database in databases:
        with _read_only(session_of(database)) as session:
            reports.append(rls.audit(session, database=database.value, role=policies.TENANTS))
    return reports


def audit_pool(settings: Settings, databases: Sequence[Database] = BOTH) -> list[AuditReport]:
    """This function will audit this process's pool, the server's sessions and the fleet's claim on them."""
    known = db.get_database_info()
    reports = []
    for database in databases:
        own = known[database.value]["pool"]
        with _read_only(session_of(database)) as session:
            report = pool.audit(
                session,
                database=database.value,
                declared_pool_mode=settings.database(database).pool_mode.value,
                process_pool=pool.ProcessPool(
                    size=own["size"], max_overflow=own["max_overflow"], checked_out=own["checked_out"]
                ),
                fleet=fleet(settings),
                fresh_session=_opener(database),
            )
        reports.append(report)
    return reports


def audit_books(settings: Settings, *, full: bool = False, accept: str | None = None) -> list[AuditReport]:
    """This function will audit the books and seal what agrees; see `worker.audits.books.audit`."""

    def keys(shard: int) -> tuple[str, str]:
        name = settings.usage_stream
        return _stream.stream_key(name, shard), _stream.correction_key(name, shard)

    with streams.stream_client(settings) as client:
        return [
            books.audit(
                lambda: session_of(Database.PLATFORM),
                books.BookStreams(client, keys=keys),
                clock=utcnow,
                full=full,
                accept=accept,
                divergence_percent=settings.usage_cost_divergence_percent,
            )
        ]


def fleet(settings: Settings) -> pool.Fleet:
    """This function will say what one worker host may open to the server: its children times their pools."""
    shared = settings.platform.url.same_server_as(settings.user_data.url)
    return pool.Fleet(
        processes=schedule.default_concurrency(settings),
        pool_size=settings.usage_worker_pool_size,
        max_overflow=0,
        pools=LOGINS * (len(BOTH) if shared else 1),
    )


def record(reports: Sequence[AuditReport], *, now: datetime) -> dict[str, object]:
    """This function will store the runs in the platform database and return their counts, added up."""
    counts: dict[str, int] = {}
    for report in reports:
        with db.platform_session() as session:
            audits.record(session, report, now)
        for name, count in report.counts.items():
            counts[name] = counts.get(name, 0) + count
    return dict(counts)


@contextlib.contextmanager
def _read_only(opened: AbstractContextManager[Session]) -> Iterator[Session]:
    with opened as session:
        yield session
        session.rollback()


def _opener(database: Database) -> Callable[[], AbstractContextManager[Session]]:
    return lambda: session_of(database)
