"""What one reconciliation has decided and reported, and how much it may change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from worker.errors import PermanentError
from worker.subscriptions import queries, rules

NO_SHARE_BELOW: Final = 25
"""So many rows may always change: a share of a handful of rows says nothing about a runaway."""

SAMPLE: Final = 100
"""How many users a report names; its count is exact."""


class BlastRadiusExceeded(PermanentError):
    """The run would change more rows than it may: nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change, with the values before and after it as JSON words, why, and the facts that made it."""

    kind: str
    subscription_id: UUID | None
    user_id: UUID
    reason: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    evidence: Mapping[str, Any]

    def as_document(self) -> dict[str, Any]:
        """This method will give the change as a JSON object."""
        return {
            "kind": self.kind,
            "subscription_id": str(self.subscription_id) if self.subscription_id else None,
            "user_id": str(self.user_id),
            "reason": self.reason,
            "before": dict(self.before),
            "after": dict(self.after),
            "evidence": dict(self.evidence),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """Something that a person or a payment provider has to decide; nothing was changed for it."""

    reason: str
    user_id: UUID
    subscription_id: UUID | None = None
    detail: str = ""

    def as_document(self) -> dict[str, Any]:
        """This method will give the report as a JSON object."""
        return {
            "reason": self.reason,
            "user_id": str(self.user_id),
            "subscription_id": str(self.subscription_id) if self.subscription_id else None,
            "detail": self.detail,
        }


@dataclass(slots=True, kw_only=True)
class Reconciliation:
    """What one run did or, as a dry run, would do."""

    run_id: UUID
    now: datetime
    dry_run: bool
    examined_count: int = 0
    changes: list[Change] = field(default_factory=list)
    reported: list[Reported] = field(default_factory=list)
    refusal: str | None = None
    """Why a real run would write nothing of this; only a dry run gets here with one."""
    _reported_counts: Counter[str] = field(default_factory=Counter)

    @property
    def counts(self) -> dict[str, int]:
        """This property will be the counts by reason: small enough for a task's result."""
        by_reason = Counter(change.reason for change in self.changes)
        reported = {f"reported_{reason}": count for reason, count in self._reported_counts.items()}
        return {
            "examined": self.examined_count,
            "changes": len(self.changes),
            **dict(sorted(by_reason.items())),
            **dict(sorted(reported.items())),
        }

    def report(self, reported: Reported) -> None:
        """This method will add one report; beyond SAMPLE of a reason they are only counted."""
        self._reported_counts[reported.reason] += 1
        if self._reported_counts[reported.reason] <= SAMPLE:
            self.reported.append(reported)

    def report_affected(self, reason: str, affected: queries.Affected) -> None:
        """This method will add one report for each user that is named, and the exact count."""
        if affected.count:
            self._reported_counts[reason] += affected.count
            self.reported.extend(Reported(reason=reason, user_id=user_id) for user_id in affected.user_ids)

    def as_document(self) -> dict[str, Any]:
        """This method will give the whole run as a JSON object."""
        return {
            "run_id": str(self.run_id),
            "now": self.now.isoformat(),
            "dry_run": self.dry_run,
            "refusal": self.refusal,
            "counts": self.counts,
            "changes": [change.as_document() for change in self.changes],
            "reported": [reported.as_document() for reported in self.reported],
        }


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many rows of a table one run may change."""

    table: str
    row_count: int
    max_change_share: Decimal

    @property
    def most(self) -> int:
        """This property will be the largest number of rows that one run may change."""
        return max(NO_SHARE_BELOW, int(self.row_count * self.max_change_share))

    def refusal_of(self, changed_count: int) -> str | None:
        """This method will say why `changed_count` rows are too many, or None where they are not."""
        if changed_count <= self.most:
            return None
        return (
            f"the run would change more than {self.most} of the {self.row_count} rows of {self.table}; the"
            f" largest share is {self.max_change_share}: look at a dry run and at the clock, and raise the"
            " share for one run if the changes are right"
        )


def change_of(subscription: rules.Subscription, move: rules.Move) -> Change:
    """This function will be the change that records `move`."""
    return Change(
        kind="subscription",
        subscription_id=subscription.id,
        user_id=subscription.user_id,
        reason=move.reason.value,
        before=words(move.before),
        after=words(move.after),
        evidence=words(move.evidence),
    )


def change_of_mirror(mirror: queries.Mirror, *, followed: bool) -> Change:
    """This function will be the change that records a corrected `users.subscription_status`.

    `followed` tells a mirror that goes with a move of this run from one that had drifted before.
    """
    drift = "mirror_filled" if mirror.before is None else "mirror_drifted"
    return Change(
        kind="mirror",
        subscription_id=None,
        user_id=mirror.user_id,
        reason="mirror_followed" if followed else drift,
        before={"subscription_status": mirror.before},
        after={"subscription_status": mirror.after},
        evidence={},
    )


def words(values: Mapping[str, Any]) -> dict[str, Any]:
    """This function will write times and identifiers as JSON words."""

    def word(value: Any) -> Any:
        if isinstance(value, datetime):
            return value.isoformat()
        return str(value) if isinstance(value, UUID) else value

    return {name: word(value) for name, value in values.items()}
