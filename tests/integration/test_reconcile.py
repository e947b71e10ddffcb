"""The reconciliation against a real database, under the worker's own login."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from tests.fixtures.databases import Databases
from worker import db
from worker.subscriptions import operations, queries, reconcile

NOW = datetime(2026, 4, 20, tzinfo=UTC)
START, END = datetime(2026, 1, 15, tzinfo=UTC), datetime(2026, 2, 15, tzinfo=UTC)

pytestmark = pytest.mark.usefixtures("bound")


def add_plan(
    session: Session, name: str, price_cents: int = 0, *, active: bool = True, **features: Any
) -> UUID:
    plan_id = uuid.uuid4()
    session.execute(
        text(
            "INSERT INTO subscription_plans (id, name, price_cents, interval, features, active)"
            " VALUES (:id, :name, :price_cents, 'month', CAST(:features AS jsonb), :active)"
        ),
        {
            "id": plan_id,
            "name": name,
            "price_cents": price_cents,
            "features": json.dumps(features),
            "active": active,
        },
    )
    return plan_id


def add_user(session: Session, status: str | None = None) -> UUID:
    user_id = uuid.uuid4()
    session.execute(
        text("INSERT INTO users (id, subscription_status) VALUES (:id, :status)"),
        {"id": user_id, "status": status},
    )
    return user_id


def subscribe(session: Session, user_id: UUID, plan_id: UUID, status: str = "active", **values: Any) -> UUID:
    row = {
        "id": uuid.uuid4(),
        "user_id": user_id,
        "plan_id": plan_id,
        "status": status,
        "anchor_day": 15,
        "current_period_start": START,
        "current_period_end": END,
        **values,
    }
    values_sql = ", ".join(f":{name}" for name in row)
    statement = f"INSERT INTO user_subscriptions ({', '.join(row)}) VALUES ({values_sql})"  # noqa: S608 own names
    session.execute(text(statement), row)
    return UUID(str(row["id"]))


def run(now: datetime = NOW, **values: Any) -> reconcile.Reconciliation:
    with db.platform_session() as session:
        return operations.reconcile(session, now=now, run_id=uuid.uuid4(), **values)


def row_of(table: str, row_id: UUID) -> dict[str, Any]:
    with db.platform_session() as session:
        statement = text(f"SELECT * FROM {table} WHERE id = :id")  # noqa: S608 names of this file
        return dict(session.execute(statement, {"id": row_id}).mappings().one())


def snapshot() -> list[Any]:
    with db.platform_session() as session:
        return [
            session.execute(text(statement)).all()
            for statement in (
                "SELECT * FROM user_subscriptions ORDER BY id",
                "SELECT * FROM users ORDER BY id",
                "SELECT * FROM subscription_changes ORDER BY id",
            )
        ]


class TestReconcile:
    def test_renews_marks_ends_and_mirrors_in_one_run(self) -> None:
        with db.platform_session() as session:
            free, pro = add_plan(session, "Free"), add_plan(session, "Pro", 4900, grace_days=7)
            renewed = subscribe(session, add_user(session, "active"), free)
            marked_user = add_user(session, "active")
            marked = subscribe(session, marked_user, pro)
            ended_user = add_user(session, "past_due")
            ended = subscribe(session, ended_user, pro, "past_due", past_due_at=START, current_period_end=NOW)
            leaving = subscribe(session, add_user(session, "active"), pro, cancel_at_period_end=True)
            trial = subscribe(session, add_user(session, "trialing"), pro, "trialing", trial_end=END)
        result = run()
        assert result.counts == {
            "examined": 5,
            "changes": 11,
            "canceled_at_period_end": 1,
            "grace_over_canceled": 1,
            "mirror_followed": 4,
            "payment_missed": 1,
            "renewed_free": 3,
            "trial_ended_paused": 1,
        }
        assert row_of("user_subscriptions", renewed)["current_period_end"] == datetime(
            2026, 5, 15, tzinfo=UTC
        )
        assert row_of("user_subscriptions", marked)["past_due_at"] == END
        assert row_of("users", marked_user)["subscription_status"] == "past_due"
        assert row_of("user_subscriptions", ended)["ended_at"] == START + timedelta(days=7)
        assert row_of("users", ended_user)["subscription_status"] == "canceled"
        assert row_of("user_subscriptions", leaving)["status"] == "canceled"
        assert row_of("user_subscriptions", trial)["status"] == "paused"

    def test_changes_nothing_when_it_is_run_again(self) -> None:
        with db.platform_session() as session:
            free, pro = add_plan(session, "Free"), add_plan(session, "Pro", 4900, grace_days=90)
            for plan_id in (free, pro, free):
                subscribe(session, add_user(session), plan_id)
        assert run().changes
        before = snapshot()
        assert run().changes == []
        assert snapshot() == before

    def test_ends_in_the_next_run_what_it_has_marked_in_this_one(self) -> None:
        with db.platform_session() as session:
            pro = add_plan(session, "Pro", 4900, grace_days=7)
            subscription_id = subscribe(session, add_user(session), pro)
        run()
        assert row_of("user_subscriptions", subscription_id)["status"] == "past_due"
        run()
        assert row_of("user_subscriptions", subscription_id)["status"] == "canceled"

    def test_writes_nothing_in_a_dry_run_and_says_the_same(self) -> None:
        with db.platform_session() as session:
            pro = add_plan(session, "Pro", 4900, grace_days=90)
            subscribe(session, add_user(session, "active"), pro)
            add_user(session, "active")
        before = snapshot()
        dry = run(dry_run=True)
        assert snapshot() == before
        wet = run()
        assert dry.counts == wet.counts
        assert sorted(change.reason for change in dry.changes) == [
            "mirror_drifted",
            "mirror_followed",
            "payment_missed",
            "still_unpaid",
            "still_unpaid",
        ]

    def test_writes_down_every_change_with_reason_and_evidence(self) -> None:
        with db.platform_session() as session:
            user_id = add_user(session, "active")
            subscription_id = subscribe(session, user_id, add_plan(session, "Pro", 4900, grace_days=90))
        result = run()
        with db.platform_session() as session:
            history = queries.history(session, user_id=user_id)
        assert {change.reason for change in history} == {"payment_missed", "mirror_followed"} | {
            "still_unpaid"
        }
        first = next(change for change in history if change.reason == "payment_missed")
        assert (first.subscription_id, first.run_id) == (subscription_id, result.run_id)
        assert first.before["status"] == "active"  # type: ignore[index]  # a move always has a before
        assert first.after["past_due_at"] == END.isoformat()  # type: ignore[index]  # and an after
        assert first.evidence["plan"] == "Pro"
        assert first.evidence["moment"] == END.isoformat()

    def test_goes_through_more_rows_than_one_batch(self) -> None:
        with db.platform_session() as session:
            free = add_plan(session, "Free")
            for _ in range(23):
                subscribe(
                    session,
                    add_user(session, "active"),
                    free,
                    current_period_start=END,
                    current_period_end=NOW,
                )
        assert run(batch_size=5).counts["renewed_free"] == 23

    def test_leaves_a_subscription_that_somebody_else_has_locked(self, databases: Databases) -> None:
        with db.platform_session() as session:
            free = add_plan(session, "Free")
            held = subscribe(session, add_user(session, "active"), free)
            other = subscribe(session, add_user(session, "active"), free)
        with psycopg.connect(databases.platform.url("worker")) as payment:
            payment.execute("SELECT FROM user_subscriptions WHERE id = %s FOR UPDATE", [held])
            assert {change.subscription_id for change in run().changes} == {other}
        assert {change.subscription_id for change in run().changes} == {held}


class TestMirror:
    @pytest.mark.parametrize(
        ("mirror", "status", "reason"),
        [
            ("canceled", "active", "mirror_drifted"),
            (None, "active", "mirror_filled"),
            ("active", "unpaid", "mirror_drifted"),
        ],
    )
    def test_that_drifted_is_repaired(self, mirror: str | None, status: str, reason: str) -> None:
        with db.platform_session() as session:
            user_id = add_user(session, mirror)
            subscribe(
                session,
                user_id,
                add_plan(session, "Free"),
                status,
                current_period_end=NOW + timedelta(days=1),
            )
        assert [change.reason for change in run().changes] == [reason]
        assert row_of("users", user_id)["subscription_status"] == status

    def test_of_a_user_without_any_subscription_is_emptied_and_reported(self) -> None:
        with db.platform_session() as session:
            user_id = add_user(session, "active")
        result = run()
        assert result.counts["mirror_drifted"] == 1
        assert result.counts["reported_user_without_subscription"] == 1
        assert [reported.user_id for reported in result.reported] == [user_id]
        assert row_of("users", user_id)["subscription_status"] is None

    def test_shows_the_best_of_several_subscriptions(self) -> None:
        later = NOW + timedelta(days=1)
        with db.platform_session() as session:
            user_id, free = add_user(session, "canceled"), add_plan(session, "Free")
            subscribe(session, user_id, free, "canceled", ended_at=END)
            subscribe(session, user_id, free, "active", current_period_end=later)
            subscribe(session, user_id, free, "paused", current_period_end=later)
        result = run()
        assert row_of("users", user_id)["subscription_status"] == "active"
        assert result.counts["reported_several_live_subscriptions"] == 1


class TestReports:
    def test_names_what_a_provider_manages_and_leaves_it(self) -> None:
        with db.platform_session() as session:
            pro = add_plan(session, "Pro", 4900)
            subscription_id = subscribe(session, add_user(session, "active"), pro, managed_by="stripe")
        result = run()
        assert result.changes == []
        assert [(one.reason, one.subscription_id) for one in result.reported] == [
            ("provider_managed", subscription_id)
        ]
        assert "payment_missed" in result.reported[0].detail

    def test_names_what_no_rule_settles_and_moves_the_others(self) -> None:
        with db.platform_session() as session:
            free = add_plan(session, "Free")
            odd = subscribe(session, add_user(session, "active"), free, timezone="Mars/Olympus")
            subscribe(session, add_user(session, "active"), free)
        result = run()
        assert result.counts["renewed_free"] == 3
        assert [(one.reason, one.subscription_id) for one in result.reported] == [("illegal_move", odd)]

    def test_names_retired_plans_and_spenders_that_are_no_users(self) -> None:
        stranger = uuid.uuid4()
        with db.platform_session() as session:
            old = add_plan(session, "Old", active=False)
            subscribe(session, add_user(session, "active"), old, current_period_end=NOW + timedelta(days=1))
            for hour in range(3):
                session.execute(
                    text(
                        "INSERT INTO usage_hourly (user_id, feature, provider, model, hour)"
                        " VALUES (:user_id, 'chat', '', '', :hour)"
                    ),
                    {"user_id": stranger, "hour": START + timedelta(hours=hour)},
                )
        counts = run().counts
        assert counts["reported_retired_plan"] == 1
        assert counts["reported_usage_of_unknown_user"] == 1

    def test_is_json_from_end_to_end(self) -> None:
        with db.platform_session() as session:
            subscribe(session, add_user(session), add_plan(session, "Pro", 4900, grace_days=90))
        document = json.loads(json.dumps(run().as_document()))
        assert set(document) == {"run_id", "now", "dry_run", "refusal", "counts", "changes", "reported"}


class TestBlastRadius:
    def test_stops_a_runaway_before_any_write(self) -> None:
        with db.platform_session() as session:
            pro = add_plan(session, "Pro", 4900, grace_days=90)
            for _ in range(40):
                subscribe(session, add_user(session, "active"), pro)
        before = snapshot()
        with pytest.raises(
            reconcile.BlastRadiusExceeded,
            match=r"the run would change more than .* rows of user_subscriptions",
        ):
            run(max_change_share=Decimal("0.5"), batch_size=7)
        assert snapshot() == before
        dry = run(dry_run=True, max_change_share=Decimal("0.5"))
        assert dry.counts["payment_missed"] == 40
        assert "user_subscriptions" in (dry.refusal or "")
        assert run(max_change_share=Decimal(1)).counts["payment_missed"] == 40

    def test_lets_every_free_plan_renew_at_once(self) -> None:
        with db.platform_session() as session:
            free = add_plan(session, "Free")
            for _ in range(40):
                subscribe(session, add_user(session, "active"), free)
        assert run(dry_run=True, max_change_share=Decimal("0.1")).refusal is None
        assert run(max_change_share=Decimal("0.1")).counts["renewed_free"] == 120

    def test_counts_overwritten_mirrors_and_not_filled_ones(self) -> None:
        with db.platform_session() as session:
            free = add_plan(session, "Free")
            users = [add_user(session, "active") for _ in range(30)]
            # A move that is allowed by itself is not made either when the mirrors are too many.
            subscribe(session, add_user(session, "active"), free)
        before = snapshot()
        with pytest.raises(reconcile.BlastRadiusExceeded, match="users"):
            run()
        assert snapshot() == before
        with db.platform_session() as session:
            session.execute(text("UPDATE users SET subscription_status = NULL"))
            for user_id in users:
                subscribe(session, user_id, free, current_period_end=NOW + timedelta(days=1))
        assert run().counts["mirror_filled"] == 30
