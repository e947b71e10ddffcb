"""Writing down what time has made of the subscriptions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TypeVar
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from worker.errors import PermanentError
from worker.subscriptions import queries, rules
from worker.subscriptions import reconcile as reconciling

_STORE = text("""
    UPDATE user_subscriptions AS subscription
       SET plan_id = moved.plan_id, status = moved.status, current_period_start = moved.current_period_start,
           current_period_end = moved.current_period_end, pending_plan_id = moved.pending_plan_id,
           past_due_at = moved.past_due_at, canceled_at = moved.canceled_at, ended_at = moved.ended_at,
           updated_at = :now
      FROM jsonb_to_recordset(CAST(:rows AS jsonb))
           AS moved (id uuid, plan_id uuid, status text, current_period_start timestamptz,
                     current_period_end timestamptz, pending_plan_id uuid, past_due_at timestamptz,
                     canceled_at timestamptz, ended_at timestamptz)
     WHERE subscription.id = moved.id
""")

# The old value in the condition makes it true that nobody else has written the mirror since it was read.
_STORE_MIRRORS = text("""
    UPDATE users
       SET subscription_status = drifted.after
      FROM unnest(CAST(:user_ids AS uuid[]), CAST(:befores AS text[]), CAST(:afters AS text[]))
           AS drifted (user_id, before, after)
     WHERE users.id = drifted.user_id AND users.subscription_status IS NOT DISTINCT FROM drifted.before
    RETURNING users.id
""")

_RECORD = text("""
    INSERT INTO subscription_changes
           (subscription_id, user_id, run_id, kind, before, after, reason, evidence, changed_at)
    SELECT subscription_id, user_id, :run_id, kind, before, after, reason, evidence, :now
      FROM jsonb_to_recordset(CAST(:rows AS jsonb))
           AS change (subscription_id uuid, user_id uuid, kind text, before jsonb, after jsonb, reason text,
                      evidence jsonb)
""")

_FIRST = UUID(int=0)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Decided:
    before: rules.Subscription
    after: rules.Subscription
    moves: Sequence[rules.Move]


def reconcile(
    session: Session,
    *,
    now: datetime,
    run_id: UUID,
    dry_run: bool = False,
    batch_size: int = 500,
    max_change_share: Decimal = Decimal("0.2"),
) -> reconciling.Reconciliation:
    """This function will move every subscription that is due at `now`, mirror it to its user and record why.

    Running it again changes nothing more, but for what a run leaves to the next one on purpose (see
    `rules.decide`). A run that would change more than `max_change_share` of the subscriptions, or overwrite
    more than that share of the mirrors, raises BlastRadiusExceeded and has written nothing; free plans that
    renew themselves and empty mirrors that are filled take nothing away and do not count. A dry run writes
    and locks nothing and names such a refusal in its result.
    """
    result = reconciling.Reconciliation(run_id=run_id, now=now, dry_run=dry_run)
    live_count, user_count = queries.sizes(session)
    catalogue = queries.plans(session)

    subscriptions = reconciling.Allowance("user_subscriptions", live_count, max_change_share)
    decided: list[_Decided] = []
    counted = 0
    for one in _decisions(session, result, catalogue, now=now, batch_size=batch_size, lock=not dry_run):
        decided.append(one)
        # Everybody's free plan may renew at the same moment, or after a long sleep: that is no runaway.
        counted += any(move.reason is not rules.Reason.RENEWED_FREE for move in one.moves)
        if not dry_run:
            # Refused at the first row too many: a runaway does not even fill the memory.
            _refuse(subscriptions.refusal_of(counted))

    moved = {one.after.id: one.after.status.value for one in decided}
    mirrors = queries.drifted_mirrors(session, moved=moved)
    followers = {one.after.user_id for one in decided}
    overwritten_count = sum(m.before is not None and m.user_id not in followers for m in mirrors)
    overwritten = reconciling.Allowance("users", user_count, max_change_share).refusal_of(overwritten_count)
    if dry_run:
        result.refusal = subscriptions.refusal_of(counted) or overwritten
    else:
        _refuse(overwritten)
        _store(session, decided, now=now, batch_size=batch_size)
        mirrors = _store_mirrors(session, mirrors)

    result.changes += [reconciling.change_of(one.before, move) for one in decided for move in one.moves]
    result.changes += [
        reconciling.change_of_mirror(mirror, followed=mirror.user_id in followers) for mirror in mirrors
    ]
    if not dry_run:
        _record(session, result, batch_size=batch_size)
    _report_circumstances(session, result)
    return result


def _decisions(
    session: Session,
    result: reconciling.Reconciliation,
    catalogue: Sequence[rules.Plan],
    *,
    now: datetime,
    batch_size: int,
    lock: bool,
) -> Iterator[_Decided]:
    plans = {plan.id: plan for plan in catalogue}
    for subscription in _due(session, now=now, batch_size=batch_size, ours=True, lock=lock):
        result.examined_count += 1
        moves = _moves(subscription, plans, now, result)
        after = subscription
        for move in moves:
            after = rules.applied(after, move)
        if moves:
            yield _Decided(subscription, after, moves)
        if len(moves) == rules.MAX_MOVES:
            result.report(_reported("moves_left", subscription, "the rest follows in the next run"))
    for subscription in _due(session, now=now, batch_size=batch_size, ours=False, lock=False):
        result.examined_count += 1
        proposed = [move.reason.value for move in _moves(subscription, plans, now, result)]
        if proposed:
            detail = f"{subscription.managed_by} has not said so yet: {', '.join(proposed)}"
            result.report(_reported("provider_managed", subscription, detail))


def _due(
    session: Session, *, now: datetime, batch_size: int, ours: bool, lock: bool
) -> Iterator[rules.Subscription]:
    after = _FIRST
    while batch := queries.due_subscriptions(
        session, now=now, after=after, batch_size=batch_size, ours=ours, lock=lock
    ):
        yield from batch
        after = batch[-1].id


def _moves(
    subscription: rules.Subscription,
    plans: dict[UUID, rules.Plan],
    now: datetime,
    result: reconciling.Reconciliation,
) -> list[rules.Move]:
    plan = plans.get(subscription.plan_id)
    if plan is None:
        result.report(_reported("unknown_plan", subscription, f"plan {subscription.plan_id}"))
        return []
    try:
        return rules.decide(subscription, plan, now, catalogue=plans.values())
    except PermanentError as error:
        # One odd subscription must not keep the others from being moved.
        result.report(_reported("illegal_move", subscription, str(error)))
        return []


def _refuse(refusal: str | None) -> None:
    if refusal is not None:
        raise reconciling.BlastRadiusExceeded(refusal)


def _store(session: Session, decided: Sequence[_Decided], *, now: datetime, batch_size: int) -> None:
    for batch in _batches(decided, batch_size):
        rows = [reconciling.words(dataclasses.asdict(one.after)) for one in batch]
        session.execute(_STORE, {"rows": json.dumps(rows), "now": now})


def _store_mirrors(session: Session, mirrors: Sequence[queries.Mirror]) -> list[queries.Mirror]:
    if not mirrors:
        return []
    parameters = {
        "user_ids": [mirror.user_id for mirror in mirrors],
        "befores": [mirror.before for mirror in mirrors],
        "afters": [mirror.after for mirror in mirrors],
    }
    stored = set(session.execute(_STORE_MIRRORS, parameters).scalars())
    return [mirror for mirror in mirrors if mirror.user_id in stored]


def _record(session: Session, result: reconciling.Reconciliation, *, batch_size: int) -> None:
    for batch in _batches(result.changes, batch_size):
        rows = json.dumps([change.as_document() for change in batch])
        session.execute(_RECORD, {"rows": rows, "run_id": result.run_id, "now": result.now})


def _batches(values: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _report_circumstances(session: Session, result: reconciling.Reconciliation) -> None:
    sample = reconciling.SAMPLE
    for reason, affected in (
        ("user_without_subscription", queries.users_without_subscription(session, sample=sample)),
        ("several_live_subscriptions", queries.users_with_several_live(session, sample=sample)),
        ("retired_plan", queries.users_on_a_retired_plan(session, sample=sample)),
        ("usage_of_unknown_user", queries.spenders_that_are_no_users(session, sample=sample)),
    ):
        result.report_affected(reason, affected)


def _reported(reason: str, subscription: rules.Subscription, detail: str) -> reconciling.Reported:
    return reconciling.Reported(
        reason=reason, user_id=subscription.user_id, subscription_id=subscription.id, detail=detail
    )
