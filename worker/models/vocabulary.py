"""The words that columns may hold. No SQLAlchemy here: the rules of a room use them as they are."""

from __future__ import annotations

import enum


class SubscriptionStatus(enum.StrEnum):
    """The eight states of a subscription, in Stripe's words."""

    INCOMPLETE = "incomplete"
    INCOMPLETE_EXPIRED = "incomplete_expired"
    TRIALING = "trialing"
    ACTIVE = "active"
    PAST_DUE = "past_due"
    UNPAID = "unpaid"
    CANCELED = "canceled"
    PAUSED = "paused"


class PlanInterval(enum.StrEnum):
    """How often a plan is paid."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"


class CostSource(enum.StrEnum):
    """Where cost_usd of a usage row came from."""

    REPORTED = "reported"
    COMPUTED = "computed"
    UNPRICED = "unpriced"


class PriceMatch(enum.StrEnum):
    """How an override names its models: one by its whole name, or all that begin alike."""

    EXACT = "exact"
    PREFIX = "prefix"


class EventStatus(enum.StrEnum):
    """How the metered call ended."""

    OK = "ok"
    ERROR = "error"


class Severity(enum.StrEnum):
    """How bad a finding is, from least to worst; `rank` orders them."""

    INFO = "info"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """This property will be 0 for the mildest."""
        return list(Severity).index(self)


class FindingState(enum.StrEnum):
    """Whether the run before knew the finding already."""

    NEW = "new"
    STANDING = "standing"


class NumbersSettled(enum.StrEnum):
    """Why the numbers of a producer, up to one of them, are no longer told apart."""

    BEFORE = "before"
    CAPPED = "capped"
    ACCEPTED = "accepted"
