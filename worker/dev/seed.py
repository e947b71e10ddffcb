"""Plans, users, subscriptions and some content to look at; running it again changes nothing that is there."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from worker.models.platform import SubscriptionPlan, User, UserSubscription
from worker.models.user_data import UserContentAsset, UserPersona, UserProfile, UserProject
from worker.subscriptions import periods

_NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_DNS, "usage-worker.dev")
_THRESHOLDS: Final = [80, 90, 100]


def _limit(meter: str, amount: int | str, window: str, mode: str, **more: str) -> dict[str, Any]:
    return {
        "meter": meter,
        "amount": amount,
        "window": window,
        "mode": mode,
        "thresholds": _THRESHOLDS,
        **more,
    }


@dataclass(frozen=True, slots=True)
class PlanSeed:
    """One plan: its price in cents a month, its features, and how many of a hundred users have it."""

    name: str
    price_cents: int
    share: int
    features: dict[str, Any]

    @property
    def id(self) -> uuid.UUID:
        """The id that the plan has on every machine."""
        return uuid.uuid5(_NAMESPACE, f"plan/{self.name}")


PLANS: Final = (
    PlanSeed(
        "Free",
        0,
        70,
        {
            "limits": [
                _limit("tokens", 200_000, "billing_period", "block"),
                _limit("events", 100, "day", "block"),
            ]
        },
    ),
    PlanSeed(
        "Pro",
        2_900,
        25,
        {
            "limits": [
                _limit("tokens", 10_000_000, "billing_period", "notify"),
                _limit("cost_usd", "50.00", "billing_period", "block"),
                _limit("events", 500, "day", "notify", feature="image_studio"),
            ],
            "grace_days": 14,
            "after_grace": "downgrade:Free",
        },
    ),
    PlanSeed(
        "Enterprise",
        49_900,
        5,
        {
            "limits": [_limit("tokens", 500_000_000, "billing_period", "bill_overage")],
            "grace_days": 30,
            "after_grace": "unpaid",
        },
    ),
)
FREE, PRO, ENTERPRISE = PLANS


@dataclass(frozen=True, slots=True)
class SeededUser:
    """One customer as the traffic knows it."""

    id: uuid.UUID
    clerk_id: str


def users(count: int) -> list[SeededUser]:
    """This function will name the first `count` customers; they are the same on every machine."""
    return [
        SeededUser(uuid.uuid5(_NAMESPACE, f"user/{number}"), f"user_dev{number:05}")
        for number in range(count)
    ]


def upsert_plans(session: Session) -> int:
    """This function will write the three plans, over what was changed in them; returns how many."""
    rows = [
        {
            "id": plan.id,
            "name": plan.name,
            "price_cents": plan.price_cents,
            "currency": "USD",
            "interval": "month",
            "features": plan.features,
            "active": True,
        }
        for plan in PLANS
    ]
    statement = insert(SubscriptionPlan).values(rows)
    changed = {name: statement.excluded[name] for name in ("price_cents", "interval", "features", "active")}
    session.execute(statement.on_conflict_do_update(index_elements=["name"], set_=changed))
    return len(rows)


def upsert_users(session: Session, *, count: int, now: datetime) -> list[SeededUser]:
    """This function will write `count` users with one subscription each, skewed towards the free plan.

    Most are in order. A few give the first reconciliation something to do, well below its cap: free periods
    that are over, and mirrors that say something else than the subscription. Who exists stays as it is.
    """
    seeded = users(count)
    accounts, subscriptions = [], []
    for number, (user, subscription) in enumerate(zip(seeded, _subscriptions(seeded, now=now), strict=True)):
        drifted = number % 40 == 7
        accounts.append(
            {
                "id": user.id,
                "clerk_id": user.clerk_id,
                "email": f"{user.clerk_id}@example.com",
                "subscription_status": "canceled" if drifted else subscription["status"],
                "created_at": subscription["current_period_start"],
            }
        )
        subscriptions.append(subscription)
    session.execute(insert(User).values(accounts).on_conflict_do_nothing())
    session.execute(insert(UserSubscription).values(subscriptions).on_conflict_do_nothing())
    return seeded


def _subscriptions(seeded: Sequence[SeededUser], *, now: datetime) -> Iterator[dict[str, Any]]:
    """One row of user_subscriptions per user, from a fixed seed: the next run draws the same."""
    draw = random.Random(20)  # noqa: S311 sample data, no secret
    for number, user in enumerate(seeded):
        plan = draw.choices(PLANS, [one.share for one in PLANS])[0]
        timezone = draw.choice(["UTC", "Europe/Berlin", "America/New_York"])
        age = draw.randrange(1, 27) + (31 if plan is FREE and number % 25 == 3 else 0)
        midnight = now.astimezone(ZoneInfo(timezone)).replace(hour=0, minute=0, second=0, microsecond=0)
        start = midnight - timedelta(days=age)
        end = periods.next_boundary(
            start - timedelta(days=30), start, anchor_day=start.day, timezone=timezone, interval="month"
        )
        trial = plan is PRO and end > now and draw.random() < 0.1
        yield {
            "id": uuid.uuid5(_NAMESPACE, f"subscription/{number}"),
            "user_id": user.id,
            "plan_id": plan.id,
            "status": "trialing" if trial else "active",
            "managed_by": "stripe" if plan is not FREE and draw.random() < 0.3 else "worker",
            "anchor_day": start.day,
            "timezone": timezone,
            "current_period_start": start,
            "current_period_end": end,
            "cancel_at_period_end": plan is not FREE and draw.random() < 0.05,
            "trial_end": end if trial else None,
        }


def upsert_content(session: Session, user: SeededUser) -> int:
    """This function will write one tenant's profile, project, assets and persona, in its own session.

    The session has the tenant's context, so PostgreSQL itself keeps the rows to their owner. Returns how many
    rows the tenant has now from here.
    """
    project = uuid.uuid5(user.id, "project")
    topics = ("spring launch", "pricing page", "newsletter")
    session.execute(
        insert(UserProfile)
        .values(
            id=uuid.uuid5(user.id, "profile"),
            user_id=user.id,
            business_name=f"{user.clerk_id} Ltd.",
            content_goals={"posts_per_week": 3, "tone": "friendly"},
        )
        .on_conflict_do_nothing()
    )
    session.execute(
        insert(UserProject)
        .values(
            id=project,
            user_id=user.id,
            project_name="Website",
            project_type="blog",
            project_metadata={"language": "en"},
        )
        .on_conflict_do_nothing()
    )
    assets = [
        {
            "id": uuid.uuid5(user.id, f"asset/{topic}"),
            "user_id": user.id,
            "project_id": project,
            "asset_type": "blog_post",
            "content": f"Draft about our {topic}.",
            "seo_data": {"keywords": topic.split()},
        }
        for topic in topics
    ]
    session.execute(insert(UserContentAsset).values(assets).on_conflict_do_nothing())
    session.execute(
        insert(UserPersona)
        .values(
            id=uuid.uuid5(user.id, "persona"),
            user_id=user.id,
            persona_name="The Explainer",
            characteristics={"sentences": "short", "jargon": "none"},
        )
        .on_conflict_do_nothing()
    )
    return 3 + len(assets)
