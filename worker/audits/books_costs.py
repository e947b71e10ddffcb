"""Whether what producers report is what prices say: both costs of a model side by side, over a window."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from worker.audits.books_queries import WINDOW, Ends
from worker.audits.findings import Finding
from worker.models.vocabulary import Severity

CHECK_IDS: Final = ("books.cost_divergence",)
DIVERGENCE_PERCENT: Final = Decimal(5)
_LEAST: Final = Decimal("0.01")
_REMEDIATION: Final = (
    "Look whether the provider changed a price, whether what producers report has a margin or a discount in"
    " it, and whether a price of your own is due: usage-worker prices list, prices apply (docs/pricing.md)."
)


@dataclass(frozen=True, slots=True)
class BothCosts:
    """What events of one model cost, as reported and as computed; only events that have both."""

    provider: str | None
    model: str | None
    events: int
    reported: Decimal
    computed: Decimal


# Corrections follow their targets. The window is the one that this run judges.
_BOTH: Final = text(
    """
    SELECT provider, model, count(*) AS events, sum(cost_reported_usd) AS reported,
           sum(cost_computed_usd) AS computed
      FROM {window} AND corrects IS NULL AND cost_reported_usd IS NOT NULL AND cost_computed_usd IS NOT NULL
     GROUP BY provider, model
    """.replace("{window}", WINDOW)
)


def both_costs(session: Session, ends: Ends) -> list[BothCosts]:
    """This function will sum up both costs of the rows that one shard stored in (since, cut_at], by model."""
    return [BothCosts(**row) for row in session.execute(_BOTH, asdict(ends)).mappings()]


def judge(sums: Iterable[BothCosts], *, percent: Decimal) -> list[Finding]:
    """This function will find the models whose costs differ by more than `percent` of the computed one.

    `sums` may hold a model more than once, one of each shard. Less than a cent is nobody's business.
    """
    events: dict[tuple[str, str], int] = {}
    reported: dict[tuple[str, str], Decimal] = {}
    computed: dict[tuple[str, str], Decimal] = {}
    for one in sums:
        key = one.provider or "", one.model or ""
        events[key] = events.get(key, 0) + one.events
        reported[key] = reported.get(key, Decimal(0)) + one.reported
        computed[key] = computed.get(key, Decimal(0)) + one.computed
    return [
        _finding(key, events[key], reported[key], computed[key])
        for key in sorted(events)
        if (difference := abs(reported[key] - computed[key])) >= _LEAST
        and difference * 100 > computed[key] * percent
    ]


def _finding(key: tuple[str, str], events: int, reported: Decimal, computed: Decimal) -> Finding:
    share = "" if not computed else f", {(reported - computed) * 100 / computed:+.1f} %"
    return Finding(
        check_id="books.cost_divergence",
        severity=Severity.MEDIUM,
        database="platform",
        object=" ".join(filter(None, key)) or "no model",
        message=(
            f"{events} events cost {reported:f} US dollars as reported and {computed:f} as computed{share}"
        ),
        remediation=_REMEDIATION,
    )
