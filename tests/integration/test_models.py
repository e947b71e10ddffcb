"""What the tables refuse, what goes with what when a row is deleted, and how values come back."""

import datetime as dt
import decimal
import uuid

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import errors
from sqlalchemy.exc import StatementError

from tests.fixtures import rows
from tests.fixtures.databases import Databases
from worker import db
from worker.database_url import Database
from worker.models.platform import PlatformUsageLog, SubscriptionChange, User
from worker.models.types import NaiveTime
from worker.models.vocabulary import CostSource, SubscriptionStatus
from worker.settings import Settings

OCCURRED = dt.datetime(2026, 3, 1, 13, 30, tzinfo=dt.timezone(dt.timedelta(hours=2)))


def usage(**changed: object) -> dict[str, object]:
    """This function will make the values of one sound usage row, with some of them changed."""
    found = rows.values_for(Database.PLATFORM, "platform_usage_logs", uuid.uuid4())
    return {**found, "tokens_used": 10, **changed}


class TestValues:
    def test_come_back_as_they_went_in(self, bound: Settings) -> None:
        user_id, event_id = uuid.uuid4(), uuid.uuid4()
        with db.platform_session() as session:
            session.add(User(id=user_id, subscription_status=SubscriptionStatus.PAST_DUE))
            session.add(
                PlatformUsageLog(
                    id=event_id,
                    user_id=user_id,
                    feature="chat",
                    tokens_used=10**9,
                    cost_usd=decimal.Decimal("0.000000000001"),
                    cost_source=CostSource.REPORTED,
                    payload_hash=bytes(16),
                    occurred_at=OCCURRED,
                    received_at=OCCURRED,
                    shard=0,
                    event_metadata=None,
                )
            )
        with db.platform_session() as session:
            user = session.get_one(User, user_id)
            assert user.subscription_status == "past_due"
            event = session.get_one(PlatformUsageLog, event_id)
            assert event.occurred_at == OCCURRED
            assert event.occurred_at.utcoffset() == dt.timedelta(0)
            assert event.cost_usd == decimal.Decimal("0.000000000001")
            empty = sa.select(PlatformUsageLog.id).where(PlatformUsageLog.event_metadata.is_(None))
            assert session.scalars(empty).all() == [event_id], "absent metadata is NULL, not JSON's null"

    def test_a_naive_time_is_refused(self, bound: Settings) -> None:
        with pytest.raises(StatementError) as refused, db.platform_session() as session:
            session.add(User(created_at=dt.datetime(2026, 3, 1)))  # noqa: DTZ001  the naive time under test
        assert isinstance(refused.value.orig, NaiveTime)


class TestChecks:
    @pytest.mark.parametrize(
        ("changed", "constraint"),
        [
            ({"tokens_used": -1}, "not_negative"),
            ({"input_tokens": -1}, "not_negative"),
            ({"cost_usd": decimal.Decimal("-1"), "cost_source": "reported"}, "not_negative"),
            ({"cost_usd": decimal.Decimal("NaN"), "cost_source": "reported"}, "cost_is_a_number"),
            ({"cost_reported_usd": decimal.Decimal("NaN")}, "cost_is_a_number"),
            ({"cost_source": "reported"}, "unpriced_has_no_cost"),
            ({"cost_usd": 0}, "unpriced_has_no_cost"),
            ({"cost_source": "guessed"}, "cost_source_known"),
            ({"status": "maybe"}, "status_known"),
            ({"occurred_at": "infinity"}, "occurred_at_finite"),
            ({"payload_hash": bytes(15)}, "payload_hash_length"),
            ({"void": True}, "void_corrects"),
            ({"shard": -1}, "shard_not_negative"),
            ({"metadata": "[]"}, "metadata_object"),
        ],
    )
    def test_a_usage_row_is_refused(
        self, databases: Databases, changed: dict[str, object], constraint: str
    ) -> None:
        with psycopg.connect(databases.platform.url("worker")) as connection:
            with pytest.raises(errors.CheckViolation) as refused:
                rows.insert(connection, "platform_usage_logs", usage(**changed))
            assert refused.value.diag.constraint_name == f"ck_platform_usage_logs_{constraint}"

    def test_a_correction_may_be_negative(self, databases: Databases) -> None:
        with psycopg.connect(databases.platform.url("worker")) as connection:
            rows.insert(
                connection,
                "platform_usage_logs",
                usage(tokens_used=-10, corrects=uuid.uuid4(), void=True, cost_usd=-1, cost_source="reported"),
            )

    def test_an_event_counts_once(self, databases: Databases) -> None:
        values = usage()
        with psycopg.connect(databases.platform.url("worker")) as connection:
            rows.insert(connection, "platform_usage_logs", values)
            with pytest.raises(errors.UniqueViolation):
                rows.insert(connection, "platform_usage_logs", {**values, "user_id": uuid.uuid4()})

    @pytest.mark.parametrize(
        ("table", "changed", "constraint"),
        [
            ("subscription_plans", {"currency": "EUR"}, "ck_subscription_plans_currency_known"),
            ("subscription_plans", {"price_cents": -1}, "ck_subscription_plans_not_negative"),
            ("subscription_plans", {"interval": "decade"}, "ck_subscription_plans_interval_known"),
            ("users", {"subscription_status": "happy"}, "ck_users_subscription_status_known"),
            ("usage_hourly", {"hour": OCCURRED}, "ck_usage_hourly_hour_is_full"),
            ("usage_dead_letters", {"raw_sha256": b""}, "ck_usage_dead_letters_raw_sha256_length"),
            ("usage_dead_letters", {"entry_index": -2}, "ck_usage_dead_letters_entry_index_from_minus_one"),
        ],
    )
    def test_a_row_is_refused(
        self, databases: Databases, table: str, changed: dict[str, object], constraint: str
    ) -> None:
        values = rows.values_for(Database.PLATFORM, table, uuid.uuid4())
        with psycopg.connect(databases.platform.url("worker")) as connection:
            with pytest.raises(errors.CheckViolation) as refused:
                rows.insert(connection, table, {**values, **changed})
            assert refused.value.diag.constraint_name == constraint


class TestDeleteRules:
    def test_neither_user_nor_plan_goes_while_a_subscription_stands(self, databases: Databases) -> None:
        user = uuid.uuid4()
        with psycopg.connect(databases.platform.url("owner")) as owner:
            owner.execute("SET ROLE usage_owner")
            rows.add(owner, Database.PLATFORM, "user_subscriptions", user)
            for table in ("users", "subscription_plans"):
                with pytest.raises(errors.IntegrityError), owner.transaction():
                    owner.execute(f"DELETE FROM {table}".encode())  # noqa: S608  a name from the line above

    def test_usage_and_history_outlive_the_user(self, bound: Settings, databases: Databases) -> None:
        user = uuid.uuid4()
        with db.platform_session() as session:
            session.add(User(id=user))
            session.add(SubscriptionChange(user_id=user, kind="mirror", reason="x", changed_at=OCCURRED))
        with psycopg.connect(databases.platform.url("owner")) as owner:
            owner.execute("SET ROLE usage_owner")
            rows.insert(owner, "platform_usage_logs", usage(user_id=user))
            owner.execute("DELETE FROM users")
            assert owner.execute("SELECT count(*) FROM platform_usage_logs").fetchone() == (1,)
            assert owner.execute("SELECT count(*) FROM subscription_changes").fetchone() == (1,)

    def test_assets_go_with_their_project_and_stand_without_one(self, databases: Databases) -> None:
        user = uuid.uuid4()
        with psycopg.connect(databases.user_data.url("app")) as connection:
            rows.become_tenant(connection, user)
            rows.add(connection, Database.USER_DATA, "user_content_assets", user)
            loose = rows.values_for(Database.USER_DATA, "user_content_assets", user)
            rows.insert(connection, "user_content_assets", {**loose, "asset_type": "loose"})
            connection.execute("DELETE FROM user_projects")
            left = connection.execute("SELECT asset_type FROM user_content_assets").fetchall()
        assert left == [("loose",)]

    def test_a_subscription_needs_a_user_that_exists(self, databases: Databases) -> None:
        with psycopg.connect(databases.platform.url("worker")) as connection:
            values = rows.values_for(Database.PLATFORM, "user_subscriptions", uuid.uuid4())
            with pytest.raises(errors.ForeignKeyViolation):
                rows.insert(connection, "user_subscriptions", values)
