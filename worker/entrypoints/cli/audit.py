"""`usage-worker audit`: the audits by hand."""

from __future__ import annotations

from collections.abc import Sequence

import click

from worker import db
from worker.audits import findings, rls
from worker.audits.findings import AuditReport, Outcome
from worker.database_url import Database, DatabaseURL, PoolMode
from worker.entrypoints import _exits, auditing
from worker.entrypoints._clock import utcnow
from worker.entrypoints.cli import _output
from worker.entrypoints.cli._options import settings
from worker.models import policies
from worker.models.vocabulary import Severity
from worker.settings import DatabaseSettings, DatabaseTarget

DATABASES = {
    "platform": (Database.PLATFORM,),
    "user-data": (Database.USER_DATA,),
    "both": tuple(Database),
}

database_option = click.option(
    "--database", type=click.Choice(list(DATABASES)), default="both", show_default=True, help="Which one."
)
fail_on_option = click.option(
    "--fail-on",
    type=click.Choice([severity.value for severity in Severity if severity is not Severity.INFO]),
    default=Severity.MEDIUM.value,
    show_default=True,
    help="Exit 1 for findings at this severity or above.",
)
strict_option = click.option("--strict", is_flag=True, help="Exit 1 also when a check could not look.")


@click.group()
def command() -> None:
    """Audit the books, the two databases, or any other PostgreSQL; exit code 1: there are findings."""


@command.command("rls")
@database_option
@fail_on_option
@strict_option
@_output.json_option
@click.option("--url", help="Audit this database instead of ours: a login that may SET ROLE to --role.")
@click.option("--role", help="With --url: the role that the application really uses; default: the login.")
@click.option(
    "--setting",
    default=policies.CONTEXT_SETTING,
    show_default=True,
    help="With --url: what names the tenant.",
)
@click.option(
    "--tenant-column", default="user_id", show_default=True, help="With --url: the tenant's column."
)
@click.option("--tables", help="With --url: only these, comma-separated.")
@click.option(
    "--public-read", multiple=True, metavar="SCHEMA.TABLE.POLICY", help="With --url: public on purpose."
)
def rls_command(
    database: str,
    fail_on: str,
    strict: bool,
    as_json: bool,
    url: str | None,
    role: str | None,
    setting: str,
    tenant_column: str,
    tables: str | None,
    public_read: tuple[str, ...],
) -> int:
    """Audit row-level security as tenants meet it. Everything that is tried is rolled back."""
    if url is None:
        if role or tables or public_read:
            raise click.UsageError("--role, --tables and --public-read go with --url")
        settings()
        reports = auditing.audit_rls(DATABASES[database])
        auditing.record(reports, now=utcnow())
    else:
        _bind_foreign(DatabaseURL.parse(url, variable="--url"))
        with db.platform_session() as session:
            report = rls.audit(
                session,
                database="url",
                role=role,
                setting=setting,
                tenant_column=tenant_column,
                tables=tuple(name.strip() for name in (tables or "").split(",") if name.strip()),
                public_read=public_read,
            )
            session.rollback()
        reports = [report]
    return _answer(reports, fail_on, strict, as_json)


@command.command("pool")
@database_option
@fail_on_option
@strict_option
@_output.json_option
def pool_command(database: str, fail_on: str, strict: bool, as_json: bool) -> int:
    """Audit connections: pools, the servers' sessions and locks, the fleet's claim, the pool mode."""
    reports = auditing.audit_pool(settings(), DATABASES[database])
    auditing.record(reports, now=utcnow())
    return _answer(reports, fail_on, strict, as_json)


@command.command("books")
@click.option("--full", is_flag=True, help="Verify every seal and compare the whole log: reads all of it.")
@click.option(
    "--accept",
    metavar="REASON",
    help="Seal windows that differ and give up missing numbers, with this reason: they cannot be mended.",
)
@fail_on_option
@strict_option
@_output.json_option
def books_command(full: bool, accept: str | None, fail_on: str, strict: bool, as_json: bool) -> int:
    """Audit the books: streams, counters, log, dead letters and roll-ups agree to the last digit."""
    if accept is not None and not accept.strip():
        raise click.UsageError("--accept takes a reason, which stays on record")
    reports = auditing.audit_books(settings(), full=full, accept=accept)
    auditing.record(reports, now=utcnow())
    return _answer(reports, fail_on, strict, as_json)


def _bind_foreign(url: DatabaseURL) -> None:
    """This process knows one database, the one to audit, by the same engines and time limits as ours."""
    target = DatabaseTarget(Database.PLATFORM, url, url, url, None, PoolMode.SESSION)
    db.configure(DatabaseSettings(platform=target, user_data=target))


def _answer(reports: Sequence[AuditReport], fail_on: str, strict: bool, as_json: bool) -> int:
    if as_json:
        _output.write_json(findings.as_document(reports[0].run_id, reports))
    else:
        _show(reports)
    found = findings.exceeds(reports, fail_on=Severity(fail_on), strict=strict)
    return _exits.FINDINGS if found else _exits.GOOD


def _show(reports: Sequence[AuditReport]) -> None:
    for report in reports:
        counts = ", ".join(f"{report.counts[outcome.value]} {outcome.value}" for outcome in Outcome)
        _output.write_table(
            f"{report.kind} of {report.database}: {counts}",
            ("severity", "check", "object", "what", "do"),
            [
                (one.severity.value, one.check_id, one.object, one.message, one.remediation)
                for one in report.findings
            ],
        )
        unsure = [check for check in report.checks if check.outcome is Outcome.INCONCLUSIVE]
        if unsure:
            _output.write_table(
                "Could not look", ("check", "reason"), [(one.check_id, one.reason) for one in unsure]
            )
