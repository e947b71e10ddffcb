"""Seeds: plans, users and content under the logins that an application has, as often as one likes."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import text

from tests.fixtures.databases import Databases
from worker import db
from worker.dev import seed
from worker.settings import Settings
from worker.subscriptions import operations as subscriptions

NOW = datetime(2026, 3, 10, 9, 30, tzinfo=UTC)
COUNT = 300


@pytest.fixture
def users(bound: Settings) -> list[seed.SeededUser]:
    del bound
    with db.platform_session() as session:
        seed.upsert_plans(session)
        return seed.upsert_users(session, count=COUNT, now=NOW)


class TestPlansAndUsers:
    def test_give_everybody_one_subscription_most_of_them_free(self, users: list[seed.SeededUser]) -> None:
        with db.platform_session() as session:
            found = session.execute(
                text(
                    "SELECT users.clerk_id, plan.name FROM users JOIN user_subscriptions AS subscription"
                    " ON subscription.user_id = users.id JOIN subscription_plans AS plan ON plan.id = plan_id"
                )
            ).all()
        assert sorted(row.clerk_id for row in found) == [user.clerk_id for user in users]
        shares = Counter(row.name for row in found)
        assert shares["Free"] > shares["Pro"] > shares["Enterprise"] > 0

    def test_change_nothing_when_they_run_again_later(self, users: list[seed.SeededUser]) -> None:
        def everything() -> list[object]:
            with db.platform_session() as session:
                return [
                    row
                    for table in ("users", "user_subscriptions", "subscription_plans")
                    for row in session.execute(text(f"SELECT * FROM {table} ORDER BY id")).all()  # noqa: S608 names above
                ]

        before = everything()
        with db.platform_session() as session:
            seed.upsert_plans(session)
            assert seed.upsert_users(session, count=COUNT, now=NOW.replace(month=6)) == users
        assert everything() == before

    def test_give_the_reconciliation_something_to_do_below_its_cap(
        self, users: list[seed.SeededUser]
    ) -> None:
        with db.platform_session() as session:
            result = subscriptions.reconcile(
                session, now=NOW, run_id=uuid4(), max_change_share=Decimal("0.2")
            )
        assert result.counts["renewed_free"] > 0
        assert result.counts["mirror_drifted"] > 0
        assert result.counts["changes"] < len(users) * 0.2
        assert result.reported == []


class TestContent:
    def test_belongs_to_its_tenant_alone(self, users: list[seed.SeededUser], databases: Databases) -> None:
        for user in users[:2]:
            for _ in range(2):
                with db.user_data_session(user_id=user.id) as session:
                    assert seed.upsert_content(session, user) == 6
        with psycopg.connect(databases.user_data.url("app")) as connection:
            connection.execute("SET ROLE authenticated_users")
            connection.execute("SELECT set_config('app.current_user_id', %s, true)", [str(users[0].id)])
            rows = connection.execute("SELECT user_id FROM user_content_assets").fetchall()
        assert rows == [(users[0].id,)] * 3
