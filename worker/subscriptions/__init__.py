"""Subscriptions: their state machine, the periodic reconciliation and its history.

The doors, as an entry point calls them:

``operations.reconcile(session, *, now, run_id, dry_run=False, batch_size=500,
max_change_share=Decimal("0.2")) -> reconcile.Reconciliation``
    One run over the platform database. Never commits. Raises ``reconcile.BlastRadiusExceeded`` before any
    write. ``Reconciliation.as_document()`` is JSON; ``Reconciliation.counts`` is small: a task's result.

``queries.history(session, *, user_id, limit=100) -> list[queries.RecordedChange]``
    What was changed for a user, newest first.

``rules.decide(subscription, plan, now, *, catalogue=()) -> list[rules.Move]``
    The pure decision.
"""
