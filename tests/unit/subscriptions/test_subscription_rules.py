"""What becomes of a subscription: a table of cases."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.models.vocabulary import PlanInterval, SubscriptionStatus
from worker.subscriptions import periods, queries, rules
from worker.subscriptions.rules import Plan, Reason, Subscription

FREE = Plan(id=UUID(int=1), name="Free", price_cents=0)
PRO = Plan(id=UUID(int=2), name="Pro", price_cents=4900, features={"grace_days": 7})
RETIRED = Plan(id=UUID(int=3), name="Old", price_cents=900, active=False)
CATALOGUE = (FREE, PRO, RETIRED)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def plan(**features: Any) -> Plan:
    return dataclasses.replace(PRO, features=features)


def subscription(**values: Any) -> Subscription:
    defaults: dict[str, Any] = {
        "id": uuid4(),
        "user_id": uuid4(),
        "plan_id": PRO.id,
        "status": SubscriptionStatus.ACTIVE,
        "current_period_start": at("2026-01-15"),
        "current_period_end": at("2026-02-15"),
        "anchor_day": 15,
    }
    return Subscription(**{**defaults, **values})


def decide(
    before: Subscription, now: str, *, plan: Plan = PRO, catalogue: tuple[Plan, ...] = CATALOGUE
) -> tuple[list[Reason], Subscription]:
    moves = rules.decide(before, plan, at(now), catalogue=catalogue)
    after = before
    for move in moves:
        assert {name: getattr(after, name) for name in move.before} == move.before
        after = rules.applied(after, move)
    return [move.reason for move in moves], after


class TestWords:
    def test_of_the_rules_are_those_of_the_tables(self) -> None:
        assert set(queries.MIRROR_PRECEDENCE) == {status.value for status in SubscriptionStatus}
        assert {interval.value for interval in PlanInterval} == {*periods.MONTHS, *periods.DAYS}


class TestFreePlan:
    def test_renews_itself_at_its_boundary_and_not_before(self) -> None:
        free = subscription(plan_id=FREE.id)
        assert decide(free, "2026-02-14T23:59:59.999999", plan=FREE)[0] == []
        reasons, after = decide(free, "2026-02-15", plan=FREE)
        assert reasons == [Reason.RENEWED_FREE]
        assert (after.current_period_start, after.current_period_end) == (at("2026-02-15"), at("2026-03-15"))

    def test_catches_up_three_missed_periods_one_by_one(self) -> None:
        reasons, after = decide(subscription(plan_id=FREE.id), "2026-04-20", plan=FREE)
        assert reasons == [Reason.RENEWED_FREE] * 3
        assert (after.current_period_start, after.current_period_end) == (at("2026-04-15"), at("2026-05-15"))

    def test_catches_up_no_more_than_a_bounded_number(self) -> None:
        reasons, _ = decide(subscription(plan_id=FREE.id), "2126-01-01", plan=FREE)
        assert len(reasons) == rules.MAX_MOVES


class TestPaidPlan:
    def test_is_past_due_from_the_boundary_that_nobody_paid(self) -> None:
        reasons, after = decide(subscription(), "2026-02-16")
        assert reasons == [Reason.PAYMENT_MISSED]
        assert after.status is SubscriptionStatus.PAST_DUE
        assert after.past_due_at == at("2026-02-15")
        assert after.current_period_end == at("2026-03-15")

    def test_is_not_ended_by_the_run_that_marks_it(self) -> None:
        marked, after = decide(subscription(), "2026-06-01")
        assert marked == [Reason.PAYMENT_MISSED]
        ended, gone = decide(after, "2026-06-01")
        assert ended == [Reason.GRACE_OVER_CANCELED]
        assert gone.status is SubscriptionStatus.CANCELED
        assert gone.ended_at == gone.canceled_at == at("2026-02-22")

    def test_is_ended_at_once_without_any_grace(self) -> None:
        reasons, after = decide(subscription(), "2026-02-15", plan=plan(grace_days=0))
        assert reasons == [Reason.PAYMENT_MISSED, Reason.GRACE_OVER_CANCELED]
        assert after.ended_at == at("2026-02-15")

    def test_keeps_its_grace_to_the_last_moment(self) -> None:
        _, marked = decide(subscription(), "2026-02-15")
        assert decide(marked, "2026-02-21T23:59:59")[0] == []
        assert decide(marked, "2026-02-22")[0] == [Reason.GRACE_OVER_CANCELED]

    def test_counts_a_grace_longer_than_a_period_from_the_first_missed_boundary(self) -> None:
        long = plan(grace_days=45)
        _, marked = decide(subscription(), "2026-02-15", plan=long)
        reasons, still = decide(marked, "2026-03-20", plan=long)
        assert reasons == [Reason.STILL_UNPAID]
        assert still.past_due_at == at("2026-02-15")
        reasons, gone = decide(still, "2026-04-01", plan=long)
        assert reasons == [Reason.GRACE_OVER_CANCELED]
        assert gone.ended_at == at("2026-04-01")

    @pytest.mark.parametrize(
        ("after_grace", "reason", "status", "plan_id"),
        [
            ("cancel", Reason.GRACE_OVER_CANCELED, SubscriptionStatus.CANCELED, PRO.id),
            ("unpaid", Reason.GRACE_OVER_UNPAID, SubscriptionStatus.UNPAID, PRO.id),
            ("downgrade:Free", Reason.GRACE_OVER_DOWNGRADED, SubscriptionStatus.ACTIVE, FREE.id),
        ],
    )
    def test_ends_as_its_plan_says(
        self, after_grace: str, reason: Reason, status: SubscriptionStatus, plan_id: UUID
    ) -> None:
        past_due = subscription(status=SubscriptionStatus.PAST_DUE, past_due_at=at("2026-01-15"))
        reasons, after = decide(past_due, "2026-01-22", plan=plan(grace_days=7, after_grace=after_grace))
        assert (reasons, after.status, after.plan_id) == ([reason], status, plan_id)

    @pytest.mark.parametrize("name", ["Old", "Pro", "Nowhere"])
    def test_is_not_downgraded_to_a_retired_paid_or_unknown_plan(self, name: str) -> None:
        past_due = subscription(status=SubscriptionStatus.PAST_DUE, past_due_at=at("2026-01-15"))
        with pytest.raises(rules.IllegalMove, match="not an active free plan"):
            decide(past_due, "2026-01-30", plan=plan(after_grace=f"downgrade:{name}"))

    @pytest.mark.parametrize(
        "features",
        [
            {"grace_days": -1},
            {"grace_days": "7"},
            {"grace_days": True},
            {"after_grace": "sue"},
            {"after_grace": "downgrade:"},
        ],
    )
    def test_refuses_settings_that_mean_nothing(self, features: dict[str, Any]) -> None:
        past_due = subscription(status=SubscriptionStatus.PAST_DUE, past_due_at=at("2026-01-15"))
        with pytest.raises(rules.IllegalMove):
            decide(past_due, "2026-03-01", plan=plan(**features))


class TestScheduledCancel:
    @pytest.mark.parametrize("plan", [FREE, PRO])
    def test_ends_at_the_boundary_and_is_never_renewed(self, plan: Plan) -> None:
        leaving = subscription(plan_id=plan.id, cancel_at_period_end=True, canceled_at=at("2026-01-20"))
        assert decide(leaving, "2026-02-14", plan=plan)[0] == []
        reasons, after = decide(leaving, "2026-05-01", plan=plan)
        assert reasons == [Reason.CANCELED_AT_PERIOD_END]
        assert (after.status, after.ended_at) == (SubscriptionStatus.CANCELED, at("2026-02-15"))
        assert after.canceled_at == at("2026-01-20")

    def test_comes_before_a_pending_plan(self) -> None:
        leaving = subscription(cancel_at_period_end=True, pending_plan_id=FREE.id)
        reasons, after = decide(leaving, "2026-02-15")
        assert reasons == [Reason.CANCELED_AT_PERIOD_END]
        assert after.plan_id == PRO.id


class TestPendingPlan:
    def test_applies_at_the_first_missed_boundary(self) -> None:
        reasons, after = decide(subscription(pending_plan_id=FREE.id), "2026-03-20")
        assert reasons == [Reason.PLAN_CHANGED, Reason.RENEWED_FREE, Reason.RENEWED_FREE]
        assert (after.plan_id, after.pending_plan_id) == (FREE.id, None)

    @pytest.mark.parametrize("pending", [RETIRED.id, UUID(int=99)])
    def test_is_dropped_when_that_plan_is_retired_or_gone(self, pending: UUID) -> None:
        reasons, after = decide(subscription(pending_plan_id=pending), "2026-02-15")
        assert reasons == [Reason.PENDING_PLAN_DROPPED, Reason.PAYMENT_MISSED]
        assert after.plan_id == PRO.id


class TestTrial:
    trial_values: dict[str, Any] = {"status": SubscriptionStatus.TRIALING, "trial_end": at("2026-02-15")}  # noqa: RUF012 read only

    def test_pauses_where_nobody_left_a_way_to_pay(self) -> None:
        trial = subscription(**self.trial_values)
        assert decide(trial, "2026-02-14T23:59:59")[0] == []
        reasons, after = decide(trial, "2026-02-15")
        assert (reasons, after.status) == ([Reason.TRIAL_ENDED_PAUSED], SubscriptionStatus.PAUSED)
        assert decide(after, "2027-01-01")[0] == []

    def test_is_canceled_where_the_plan_says_so(self) -> None:
        reasons, after = decide(
            subscription(**self.trial_values), "2026-03-01", plan=plan(after_trial="cancel")
        )
        assert (reasons, after.ended_at) == ([Reason.TRIAL_ENDED_CANCELED], at("2026-02-15"))

    def test_of_a_free_plan_goes_on_as_active(self) -> None:
        trial = subscription(plan_id=FREE.id, **self.trial_values)
        reasons, after = decide(trial, "2026-02-15", plan=FREE)
        assert (reasons, after.status) == (
            [Reason.TRIAL_ENDED_FREE, Reason.RENEWED_FREE],
            SubscriptionStatus.ACTIVE,
        )

    def test_that_is_to_be_canceled_ends_with_the_trial(self) -> None:
        trial = subscription(
            cancel_at_period_end=True, **{**self.trial_values, "trial_end": at("2026-02-01")}
        )
        reasons, after = decide(trial, "2026-03-01")
        assert (reasons, after.ended_at) == ([Reason.CANCELED_AT_PERIOD_END], at("2026-02-01"))


class TestUnsettled:
    @pytest.mark.parametrize(
        "values",
        [
            {"status": SubscriptionStatus.TRIALING},
            {"status": SubscriptionStatus.PAST_DUE},
            {"status": SubscriptionStatus.TRIALING, "trial_end": at("2026-12-01")},
            {"plan_id": UUID(int=99)},
            {"plan_id": FREE.id, "timezone": "Mars/Olympus"},
        ],
    )
    def test_is_refused_instead_of_guessed(self, values: dict[str, Any]) -> None:
        with pytest.raises((rules.IllegalMove, periods.UnknownZone)):
            decide(subscription(**values), "2026-03-01")

    @pytest.mark.parametrize(
        "status",
        [
            SubscriptionStatus.INCOMPLETE,
            SubscriptionStatus.INCOMPLETE_EXPIRED,
            SubscriptionStatus.UNPAID,
            SubscriptionStatus.CANCELED,
            SubscriptionStatus.PAUSED,
        ],
    )
    def test_states_that_only_somebody_else_leaves_stay(self, status: SubscriptionStatus) -> None:
        assert decide(subscription(status=status), "2027-01-01")[0] == []


class TestProvider:
    def test_is_proposed_to_and_not_moved(self) -> None:
        moves = rules.decide(subscription(managed_by="stripe"), PRO, at("2026-03-01"), catalogue=CATALOGUE)
        assert [move.reason for move in moves] == [Reason.PAYMENT_MISSED]
        assert all(move.proposed for move in moves)


class TestDecide:
    @settings(max_examples=200, deadline=None)
    @given(
        status=st.sampled_from([SubscriptionStatus.ACTIVE, SubscriptionStatus.PAST_DUE]),
        free=st.booleans(),
        cancel=st.booleans(),
        pending=st.sampled_from([None, FREE.id, PRO.id, RETIRED.id]),
        grace=st.integers(0, 60),
        elapsed=st.integers(-40, 400),
    )
    def test_is_settled_after_two_runs_whatever_comes(
        self,
        status: SubscriptionStatus,
        free: bool,
        cancel: bool,
        pending: UUID | None,
        grace: int,
        elapsed: int,
    ) -> None:
        paid = plan(grace_days=grace)
        start = subscription(
            status=status,
            plan_id=FREE.id if free else PRO.id,
            cancel_at_period_end=cancel,
            pending_plan_id=pending,
            past_due_at=at("2026-01-20") if status is SubscriptionStatus.PAST_DUE else None,
        )
        now = start.current_period_end + timedelta(days=elapsed)
        catalogue = {known.id: known for known in (FREE, paid, RETIRED)}

        def run(before: Subscription) -> Subscription:
            for move in rules.decide(before, catalogue[before.plan_id], now, catalogue=catalogue.values()):
                before = rules.applied(before, move)
            return before

        once = run(start)
        twice = run(once)
        assert run(twice) == twice
        assert once.current_period_start < once.current_period_end
        if grace:
            marked = once.past_due_at is not None and start.past_due_at is None
            assert not (marked and once.ended_at is not None)
        if twice.ended_at is not None:
            assert twice.ended_at <= now
