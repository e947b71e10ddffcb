"""What becomes of a subscription as time passes: a pure function of (subscription, plan, now)."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from worker.errors import PermanentError
from worker.models.vocabulary import SubscriptionStatus
from worker.subscriptions import periods

WORKER: Final = "worker"
"""The value of `managed_by` for subscriptions that this worker moves; any other value names a provider."""

DEFAULT_GRACE_DAYS: Final = 14
DEFAULT_AFTER_GRACE: Final = "cancel"
DEFAULT_AFTER_TRIAL: Final = "pause"
DOWNGRADE: Final = "downgrade:"
MAX_MOVES: Final = 240
"""How many moves one subscription makes in one run; what is left over follows in the next run."""


class Reason(enum.StrEnum):
    """Why a move is made; stored with every change."""

    RENEWED_FREE = "renewed_free"
    PAYMENT_MISSED = "payment_missed"
    STILL_UNPAID = "still_unpaid"
    GRACE_OVER_CANCELED = "grace_over_canceled"
    GRACE_OVER_UNPAID = "grace_over_unpaid"
    GRACE_OVER_DOWNGRADED = "grace_over_downgraded"
    CANCELED_AT_PERIOD_END = "canceled_at_period_end"
    PLAN_CHANGED = "plan_changed"
    PENDING_PLAN_DROPPED = "pending_plan_dropped"
    TRIAL_ENDED_FREE = "trial_ended_free"
    TRIAL_ENDED_PAUSED = "trial_ended_paused"
    TRIAL_ENDED_CANCELED = "trial_ended_canceled"


class IllegalMove(PermanentError):
    """No rule settles what this subscription becomes: it stays as it is and is reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The part of a plan that decides about time; `features` is the plan's own JSON object."""

    id: UUID
    name: str
    price_cents: int
    interval: str = "month"
    active: bool = True
    features: Mapping[str, Any] = field(default_factory=dict)

    @property
    def free(self) -> bool:
        """This property will be true for a plan that asks for no payment."""
        return self.price_cents == 0

    @property
    def grace(self) -> timedelta:
        """This property will be the time between `past_due_at` and the end: `grace_days` of 24 hours each."""
        days = self.features.get("grace_days", DEFAULT_GRACE_DAYS)
        if isinstance(days, bool) or not isinstance(days, int) or not 0 <= days <= 3650:
            raise IllegalMove(f"plan {self.name!r}: grace_days must be a whole number from 0 to 3650")
        return timedelta(days=days)

    @property
    def after_grace(self) -> str:
        """This property will be `cancel`, `unpaid` or `downgrade:PLAN`."""
        word = str(self.features.get("after_grace", DEFAULT_AFTER_GRACE))
        if word in ("cancel", "unpaid") or (word.startswith(DOWNGRADE) and word != DOWNGRADE):
            return word
        raise IllegalMove(f"plan {self.name!r}: after_grace must be cancel, unpaid or downgrade:PLAN")

    @property
    def after_trial(self) -> str:
        """This property will be what a trial without a payment method becomes: `pause` or `cancel`."""
        word = str(self.features.get("after_trial", DEFAULT_AFTER_TRIAL))
        if word in ("pause", "cancel"):
            return word
        raise IllegalMove(f"plan {self.name!r}: after_trial must be pause or cancel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """One row of `user_subscriptions` as the rules see it; every time is aware."""

    id: UUID
    user_id: UUID
    plan_id: UUID
    status: SubscriptionStatus
    current_period_start: datetime
    current_period_end: datetime
    anchor_day: int
    timezone: str = "UTC"
    managed_by: str = WORKER
    cancel_at_period_end: bool = False
    pending_plan_id: UUID | None = None
    trial_end: datetime | None = None
    past_due_at: datetime | None = None
    canceled_at: datetime | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One step from one state to the next: the fields that change, why, and the facts that made it.

    `proposed` marks a step that somebody else has to make, since a provider manages the subscription.
    """

    reason: Reason
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    evidence: Mapping[str, Any]
    proposed: bool = False


def decide(
    subscription: Subscription, plan: Plan, now: datetime, *, catalogue: Iterable[Plan] = ()
) -> list[Move]:
    """This function will answer the moves that are due at `now`, in the order of their moments.

    Periods, trial and grace are half-open: what ends at `now` has ended. Missed periods are caught up one by
    one. A subscription marked `past_due` here is not ended here, unless its grace is 0: who was not warned
    keeps the service until the next run. `catalogue` holds the plans that a pending change or a downgrade may
    name. Raises IllegalMove for a state that no rule settles, and periods.UnknownZone or UnknownInterval.
    """
    plans = {known.id: known for known in (*catalogue, plan)}
    current, moves = subscription, list[Move]()
    while len(moves) < MAX_MOVES:
        move = _next_move(current, plans, now, marked_before=subscription.past_due_at)
        if move is None:
            break
        current = applied(current, move)
        moves.append(replace(move, proposed=subscription.managed_by != WORKER))
    return moves


def applied(subscription: Subscription, move: Move) -> Subscription:
    """This function will be the subscription after `move`."""
    return replace(subscription, **move.after)


def is_due(subscription: Subscription, plan: Plan, now: datetime) -> bool:
    """This function will say whether any moment that `decide` acts on has come."""
    return any(moment <= now for moment, _ in _moments(subscription, plan))


class _Event(enum.IntEnum):
    """What can happen to a subscription; of two at the same moment the smaller number comes first."""

    SCHEDULED_CANCEL = 0
    GRACE_END = 1
    PENDING_PLAN = 2
    TRIAL_END = 3
    BOUNDARY = 4


def _moments(subscription: Subscription, plan: Plan) -> list[tuple[datetime, _Event]]:
    moments: list[tuple[datetime, _Event]] = []
    if subscription.status not in (
        SubscriptionStatus.ACTIVE,
        SubscriptionStatus.PAST_DUE,
        SubscriptionStatus.TRIALING,
    ):
        return moments
    period_end = subscription.current_period_end
    moments.append((period_end, _Event.BOUNDARY))
    if subscription.pending_plan_id is not None:
        moments.append((period_end, _Event.PENDING_PLAN))
    if subscription.cancel_at_period_end:
        moments.append((period_end, _Event.SCHEDULED_CANCEL))
    if subscription.status is SubscriptionStatus.PAST_DUE:
        if subscription.past_due_at is None:
            raise IllegalMove("the subscription is past_due, but past_due_at is empty: since when?")
        moments.append((subscription.past_due_at + plan.grace, _Event.GRACE_END))
    if subscription.status is SubscriptionStatus.TRIALING:
        if subscription.trial_end is None:
            raise IllegalMove("the subscription is trialing, but trial_end is empty: until when?")
        moments.append((subscription.trial_end, _Event.TRIAL_END))
        if subscription.cancel_at_period_end:
            moments.append((subscription.trial_end, _Event.SCHEDULED_CANCEL))
    return moments


def _next_move(
    subscription: Subscription, plans: Mapping[UUID, Plan], now: datetime, *, marked_before: datetime | None
) -> Move | None:
    plan = plans.get(subscription.plan_id)
    if plan is None:
        raise IllegalMove(f"plan {subscription.plan_id} is not known")
    moment, event = min(_moments(subscription, plan), default=(now, None))
    if event is None or moment > now:
        return None
    if event is _Event.SCHEDULED_CANCEL:
        return _move(
            subscription, plan, Reason.CANCELED_AT_PERIOD_END, moment, now, _ended(subscription, moment)
        )
    if event is _Event.GRACE_END:
        marked_in_this_run = subscription.past_due_at != marked_before
        if marked_in_this_run and plan.grace:
            return None
        return _after_grace(subscription, plan, plans, moment, now)
    if event is _Event.PENDING_PLAN:
        return _pending_plan(subscription, plan, plans, moment, now)
    if event is _Event.TRIAL_END:
        return _after_trial(subscription, plan, moment, now)
    return _boundary(subscription, plan, moment, now)


def _boundary(subscription: Subscription, plan: Plan, moment: datetime, now: datetime) -> Move:
    after: dict[str, Any] = {
        "current_period_start": moment,
        "current_period_end": periods.next_boundary(
            subscription.current_period_start,
            moment,
            anchor_day=subscription.anchor_day,
            timezone=subscription.timezone,
            interval=plan.interval,
        ),
    }
    if subscription.status is SubscriptionStatus.PAST_DUE:
        # The first missed boundary stays the one that the grace is counted from.
        return _move(subscription, plan, Reason.STILL_UNPAID, moment, now, after)
    if plan.free:
        return _move(subscription, plan, Reason.RENEWED_FREE, moment, now, after)
    if subscription.status is SubscriptionStatus.TRIALING:
        raise IllegalMove("the period of a paid plan ends before its trial: correct one of them")
    after |= {"status": SubscriptionStatus.PAST_DUE, "past_due_at": moment}
    return _move(subscription, plan, Reason.PAYMENT_MISSED, moment, now, after)


def _after_grace(
    subscription: Subscription, plan: Plan, plans: Mapping[UUID, Plan], moment: datetime, now: datetime
) -> Move:
    if plan.after_grace == "cancel":
        return _move(
            subscription, plan, Reason.GRACE_OVER_CANCELED, moment, now, _ended(subscription, moment)
        )
    if plan.after_grace == "unpaid":
        return _move(
            subscription, plan, Reason.GRACE_OVER_UNPAID, moment, now, {"status": SubscriptionStatus.UNPAID}
        )
    name = plan.after_grace.removeprefix(DOWNGRADE)
    target = next((known for known in plans.values() if known.name == name), None)
    if target is None or not target.active or not target.free:
        raise IllegalMove(f"plan {plan.name!r} downgrades to {name!r}, which is not an active free plan")
    after = {
        "status": SubscriptionStatus.ACTIVE,
        "plan_id": target.id,
        "past_due_at": None,
        "pending_plan_id": None,
    }
    return _move(subscription, plan, Reason.GRACE_OVER_DOWNGRADED, moment, now, after)


def _pending_plan(
    subscription: Subscription, plan: Plan, plans: Mapping[UUID, Plan], moment: datetime, now: datetime
) -> Move:
    target = plans.get(subscription.pending_plan_id) if subscription.pending_plan_id else None
    if target is None or not target.active:
        why = "missing" if target is None else "retired"
        return _move(
            subscription,
            plan,
            Reason.PENDING_PLAN_DROPPED,
            moment,
            now,
            {"pending_plan_id": None},
            because=why,
        )
    after = {"plan_id": target.id, "pending_plan_id": None}
    return _move(subscription, plan, Reason.PLAN_CHANGED, moment, now, after, new_plan=target.name)


def _after_trial(subscription: Subscription, plan: Plan, moment: datetime, now: datetime) -> Move:
    if plan.free:
        return _move(
            subscription, plan, Reason.TRIAL_ENDED_FREE, moment, now, {"status": SubscriptionStatus.ACTIVE}
        )
    # A payment would have made the subscription active before: here nobody has left a way to pay.
    if plan.after_trial == "pause":
        return _move(
            subscription, plan, Reason.TRIAL_ENDED_PAUSED, moment, now, {"status": SubscriptionStatus.PAUSED}
        )
    return _move(subscription, plan, Reason.TRIAL_ENDED_CANCELED, moment, now, _ended(subscription, moment))


def _ended(subscription: Subscription, moment: datetime) -> dict[str, Any]:
    # Who canceled in advance did so earlier than the subscription ended.
    return {
        "status": SubscriptionStatus.CANCELED,
        "canceled_at": subscription.canceled_at or moment,
        "ended_at": moment,
        "pending_plan_id": None,
    }


def _move(
    subscription: Subscription,
    plan: Plan,
    reason: Reason,
    moment: datetime,
    now: datetime,
    after: Mapping[str, Any],
    **evidence: str,
) -> Move:
    changed = {name: value for name, value in after.items() if getattr(subscription, name) != value}
    return Move(
        reason=reason,
        before={name: getattr(subscription, name) for name in changed},
        after=changed,
        evidence={"moment": moment.isoformat(), "decided_at": now.isoformat(), "plan": plan.name, **evidence},
    )
