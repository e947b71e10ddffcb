"""Audits of row level security and of connections, on our two databases and on any other PostgreSQL.

The doors, as an entry point calls them:

``rls.audit(session, *, database, role=None, setting="app.current_user_id", tenant_column="user_id",
tables=(), public_read=(), run_id=None) -> findings.AuditReport``
    ``session`` is a ``Session`` or ``Connection`` (SQLAlchemy's or psycopg's) of a login that reads the
    catalog and may ``SET ROLE`` to ``role``; ``database`` is a label; "platform" and "user_data" also bring
    our declared policies into the comparison. The transaction becomes READ ONLY and is the caller's to end,
    so results are stored through another session. ``role=None`` judges the session's own user.

``pool.audit(session, *, database, declared_pool_mode="session", process_pool=None, fleet=None,
thresholds=pool.DEFAULT_THRESHOLDS, setting="app.current_user_id", fresh_session=None,
run_id=None) -> findings.AuditReport``
    ``process_pool`` is a ``pool.ProcessPool``, ``fleet`` a ``pool.Fleet`` (plain values); ``fresh_session``
    is a callable that gives a context manager with a new session of the same login.

``operations.record(session, report, now) -> operations.RecordedRun``
    Stores run and findings in the platform database and tells new, standing and gone findings apart.

``findings.as_document(run_id, reports) -> dict``
    The JSON document of ``usage-worker audit … --json``; ``report.as_document()`` for a single report;
    ``findings.exceeds(reports, fail_on=Severity.MEDIUM, strict=False) -> bool`` decides the exit code.

``queries.latest_runs(session)`` and ``queries.findings_of(session, run_id=…)`` read them back.
"""
