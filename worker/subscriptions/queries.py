"""What the reconciliation reads, and what it left behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from worker.models.vocabulary import SubscriptionStatus
from worker.subscriptions import rules

_PLANS = text("SELECT id, name, price_cents, interval, active, features FROM subscription_plans")

_DUE = """
    SELECT id, user_id, plan_id, status, managed_by, anchor_day, timezone,
           current_period_start, current_period_end, cancel_at_period_end, pending_plan_id,
           trial_end, past_due_at, canceled_at, ended_at
      FROM user_subscriptions
     WHERE id > :after
       AND ended_at IS NULL
       AND (managed_by = :worker) = :ours
       AND (   (status IN ('active', 'past_due', 'trialing') AND current_period_end <= :now)
            OR (status = 'past_due')
            OR (status = 'trialing' AND (trial_end IS NULL OR trial_end <= :now)))
     ORDER BY id
     LIMIT :batch_size
"""
_DUE_UNLOCKED = text(_DUE)
# The lock makes it true that what is decided about is what will be written. Rows that a payment holds at this
# moment are left to the next run instead of being waited for.
_DUE_LOCKED = text(_DUE + " FOR UPDATE SKIP LOCKED")

_SIZES = text("""
    SELECT (SELECT count(*) FROM user_subscriptions WHERE ended_at IS NULL) AS live_subscription_count,
           (SELECT count(*) FROM users) AS user_count
""")

# `moved` stands for states that this run has decided, but not yet written.
_DRIFTED_MIRRORS = text("""
    WITH moved AS (
        SELECT *
          FROM unnest(CAST(:moved_ids AS uuid[]), CAST(:moved_statuses AS text[])) AS moved (id, status)
    ), standing AS (
        SELECT DISTINCT ON (subscription.user_id)
               subscription.user_id, coalesce(moved.status, subscription.status) AS status
          FROM user_subscriptions AS subscription LEFT JOIN moved USING (id)
         ORDER BY subscription.user_id,
                  array_position(CAST(:precedence AS text[]), coalesce(moved.status, subscription.status)),
                  subscription.current_period_end DESC, subscription.id
    )
    SELECT users.id AS user_id, users.subscription_status AS before, standing.status AS after
      FROM users LEFT JOIN standing ON standing.user_id = users.id
     WHERE users.subscription_status IS DISTINCT FROM standing.status
     ORDER BY users.id
""")

_WITHOUT_SUBSCRIPTION = text("""
    SELECT id AS user_id, count(*) OVER () AS total
      FROM users
     WHERE NOT EXISTS (SELECT FROM user_subscriptions WHERE user_subscriptions.user_id = users.id)
     ORDER BY id
     LIMIT :sample
""")

_SEVERAL_LIVE = text("""
    SELECT user_id, count(*) OVER () AS total
      FROM user_subscriptions
     WHERE ended_at IS NULL AND status IN ('trialing', 'active', 'past_due', 'unpaid', 'paused')
     GROUP BY user_id
    HAVING count(*) > 1
     ORDER BY user_id
     LIMIT :sample
""")

_ON_RETIRED_PLAN = text("""
    SELECT user_id, count(*) OVER () AS total
      FROM user_subscriptions AS subscription
      JOIN subscription_plans AS plan ON plan.id = subscription.plan_id
     WHERE subscription.ended_at IS NULL AND NOT plan.active
     ORDER BY user_id
     LIMIT :sample
""")

# Users are few beside their hours: the recursion takes one step through the primary key per user.
_USAGE_OF_STRANGERS = text("""
    WITH RECURSIVE spender AS (
        (SELECT user_id FROM usage_hourly ORDER BY user_id LIMIT 1)
        UNION ALL
        SELECT (SELECT user_id FROM usage_hourly WHERE user_id > spender.user_id ORDER BY user_id LIMIT 1)
          FROM spender
         WHERE spender.user_id IS NOT NULL
    )
    SELECT user_id, count(*) OVER () AS total
      FROM spender
     WHERE user_id IS NOT NULL AND NOT EXISTS (SELECT FROM users WHERE users.id = spender.user_id)
     ORDER BY user_id
     LIMIT :sample
""")

_HISTORY = text("""
    SELECT id, subscription_id, user_id, run_id, kind, before, after, reason, evidence, changed_at
      FROM subscription_changes
     WHERE user_id = :user_id
     ORDER BY changed_at DESC, id DESC
     LIMIT :limit
""")

MIRROR_PRECEDENCE = (
    "active",
    "trialing",
    "past_due",
    "unpaid",
    "paused",
    "incomplete",
    "canceled",
    "incomplete_expired",
)
"""Of several subscriptions the first of these states is the one that `users.subscription_status` shows."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """A user whose `subscription_status` says `before` and should say `after` (None: no subscription)."""

    user_id: UUID
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Affected:
    """Users that share a circumstance: how many there are, and the first of them."""

    count: int
    user_ids: tuple[UUID, ...]


@dataclass(frozen=True, slots=True)
class RecordedChange:
    """One row of `subscription_changes`."""

    id: UUID
    subscription_id: UUID | None
    user_id: UUID
    run_id: UUID | None
    kind: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    reason: str
    evidence: Mapping[str, Any]
    changed_at: datetime


def plans(session: Session) -> list[rules.Plan]:
    """This function will return every plan, also the retired ones."""
    return [rules.Plan(**row) for row in session.execute(_PLANS).mappings()]


def due_subscriptions(
    session: Session, *, now: datetime, after: UUID, batch_size: int, ours: bool, lock: bool
) -> list[rules.Subscription]:
    """This function will return the next subscriptions, by id, that a rule may move at `now`.

    `ours` chooses between those that this worker manages and those of a payment provider. With `lock` the
    rows stay locked until the transaction ends, and rows that somebody else has locked are left out.
    """
    rows = session.execute(
        _DUE_LOCKED if lock else _DUE_UNLOCKED,
        {"now": now, "after": after, "batch_size": batch_size, "ours": ours, "worker": rules.WORKER},
    ).mappings()
    return [rules.Subscription(**{**row, "status": SubscriptionStatus(row["status"])}) for row in rows]


def sizes(session: Session) -> tuple[int, int]:
    """This function will return how many subscriptions have not ended, and how many users there are."""
    row = session.execute(_SIZES).one()
    return int(row.live_subscription_count), int(row.user_count)


def drifted_mirrors(session: Session, *, moved: Mapping[UUID, str]) -> list[Mirror]:
    """This function will return the users whose mirror differs from their subscriptions, by id.

    `moved` holds the states (by subscription) that are decided, but not yet written.
    """
    parameters = {
        "moved_ids": list(moved),
        "moved_statuses": list(moved.values()),
        "precedence": list(MIRROR_PRECEDENCE),
    }
    return [Mirror(**row) for row in session.execute(_DRIFTED_MIRRORS, parameters).mappings()]


def users_without_subscription(session: Session, *, sample: int) -> Affected:
    """This function will return the users that have no subscription at all, not even an ended one."""
    return _affected(session.execute(_WITHOUT_SUBSCRIPTION, {"sample": sample}).mappings())


def users_with_several_live(session: Session, *, sample: int) -> Affected:
    """This function will return the users with more than one subscription that has not ended."""
    return _affected(session.execute(_SEVERAL_LIVE, {"sample": sample}).mappings())


def users_on_a_retired_plan(session: Session, *, sample: int) -> Affected:
    """This function will return the users whose live subscription is to a plan that is no longer offered."""
    return _affected(session.execute(_ON_RETIRED_PLAN, {"sample": sample}).mappings())


def spenders_that_are_no_users(session: Session, *, sample: int) -> Affected:
    """This function will return the user ids with usage that `users` does not know."""
    return _affected(session.execute(_USAGE_OF_STRANGERS, {"sample": sample}).mappings())


def history(session: Session, *, user_id: UUID, limit: int = 100) -> list[RecordedChange]:
    """This function will return what was changed for a user, newest first."""
    rows = session.execute(_HISTORY, {"user_id": user_id, "limit": limit}).mappings()
    return [RecordedChange(**row) for row in rows]


def _affected(rows: Iterable[Mapping[Any, Any]]) -> Affected:
    found = list(rows)
    return Affected(int(found[0]["total"]) if found else 0, tuple(row["user_id"] for row in found))
