"""What a price that came later makes of stored rows: arithmetic, and nothing that touches a server."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from worker.ingest import corrections, costs
from worker.ingest.corrections import Target
from worker.pricing.book import Prices
from worker.pricing.rules import choose_cost
from worker.rollups.rules import RollupKey, key_of

_NAMED_IDS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which events are looked at: those that occurred in [start, end); None is no filter.

    `unpriced_only` leaves alone what has a cost; otherwise computed costs are refreshed as well.
    """

    start: datetime | None = None
    end: datetime | None = None
    provider: str | None = None
    model: str | None = None
    unpriced_only: bool = True

    def told(self) -> dict[str, Any]:
        """This function will return the scope as it is recorded with a run."""
        return {
            "from": None if self.start is None else self.start.isoformat(),
            "to": None if self.end is None else self.end.isoformat(),
            "provider": self.provider,
            "model": self.model,
            "unpriced_only": self.unpriced_only,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the log as far as its cost hangs on it."""

    id: UUID
    user_id: UUID
    feature: str
    provider: str | None
    model: str | None
    input_tokens: int | None
    output_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    tokens_used: int
    units: Mapping[str, Decimal] | None
    service_tier: str | None
    cost_usd: Decimal | None
    cost_reported_usd: Decimal | None
    cost_computed_usd: Decimal | None
    cost_source: str
    price_version: str | None
    occurred_at: datetime
    stored_at: datetime
    shard: int
    corrects: UUID | None
    void: bool
    content: int

    @property
    def counts(self) -> int:
        """What the row adds to the number of events."""
        return -1 if self.void else int(self.corrects is None)

    @property
    def key(self) -> RollupKey:
        """The roll-up that the row is in."""
        return key_of(
            user_id=self.user_id,
            feature=self.feature,
            provider=self.provider,
            model=self.model,
            occurred_at=self.occurred_at,
        )


@dataclass(frozen=True, slots=True)
class Change:
    """A row, and what its cost becomes."""

    row: Row
    cost_usd: Decimal | None
    cost_computed_usd: Decimal | None
    cost_source: str
    price_version: str | None

    @property
    def cost_change(self) -> Decimal:
        """By how much the sums of costs change; an unknown cost is not in them."""
        return (self.cost_usd or Decimal(0)) - (self.row.cost_usd or Decimal(0))

    @property
    def unpriced_change(self) -> int:
        """By how much the number of events without a cost changes."""
        return self.row.counts * ((self.cost_usd is None) - (self.row.cost_usd is None))


def changes_of(
    rows: Iterable[Row], following: Iterable[Row], prices: Prices, *, unpriced_only: bool
) -> list[Change]:
    """This function will return what becomes of events and their corrections, in order.

    `following` are the corrections of `rows`, in the order in which they were applied. A cost that is known
    never becomes unknown. An event whose corrections state more than it would cost now is left as it is, with
    all of them.
    """
    by_target: dict[UUID | None, list[Row]] = defaultdict(list)
    for correction in following:
        by_target[correction.corrects].append(correction)
    found: list[Change] = []
    for row in rows:
        change = _change_of(row, prices, unpriced_only=unpriced_only)
        if change is None:
            continue
        followed = _follow(change, by_target[row.id])
        if followed is not None:
            found += change, *followed
    return found


def _change_of(row: Row, prices: Prices, *, unpriced_only: bool) -> Change | None:
    if row.corrects is not None or (unpriced_only and row.cost_usd is not None):
        return None
    tier = costs.service_tier({"service_tier": row.service_tier})
    price = prices.book.price_at(row.provider, row.model, row.occurred_at, service_tier=tier)
    computed = None if price is None else price.cost(costs.use_of(row))
    if price is None or computed is None:
        return None
    cost, source = choose_cost(row.cost_reported_usd, computed, prices.policy)
    if (cost, computed, source) == (row.cost_usd, row.cost_computed_usd, row.cost_source):
        return None
    return Change(row, cost, computed, source, price.version)


def _follow(change: Change, following: Sequence[Row]) -> list[Change] | None:
    """What the corrections of an event become; a void takes whatever is left."""
    row = change.row
    left = Target(
        user_id=row.user_id,
        feature=row.feature,
        provider=row.provider,
        model=row.model,
        price_version=change.price_version,
        is_correction=False,
        voided=False,
        tokens_used=row.tokens_used,
        cost=change.cost_usd,
        cost_source=change.cost_source,
        tokens={"tokens_used": row.tokens_used},
        cost_left=change.cost_usd,
    )
    found: list[Change] = []
    for one in following:
        if left.cost_left is None:
            return None
        stated = None if one.void else one.cost_reported_usd
        if one.void:
            cost: Decimal | None = -left.cost_left
        else:
            cost = stated if stated is not None else corrections.share_of(left, one.tokens_used)
        if cost is None or cost < -left.cost_left:
            return None
        source = "reported" if stated is not None else change.cost_source
        if (cost, source, change.price_version) != (one.cost_usd, one.cost_source, one.price_version):
            found.append(Change(one, cost, one.cost_computed_usd, source, change.price_version))
        tokens = (left.tokens["tokens_used"] or 0) + one.tokens_used
        left = replace(left, cost_left=left.cost_left + cost, tokens={"tokens_used": tokens})
    return found


@dataclass(slots=True)
class Tally:
    """What changes under one model: events and corrections, and the sum of the costs that are known."""

    provider: str | None
    model: str | None
    events: int = 0
    corrections: int = 0
    unpriced_before: int = 0
    unpriced_after: int = 0
    cost_before: Decimal = Decimal(0)
    cost_after: Decimal = Decimal(0)
    first_ids: list[UUID] = field(default_factory=list)

    def add(self, change: Change) -> None:
        """This function will take one more change in."""
        row = change.row
        if row.corrects is None:
            self.events += 1
            self.unpriced_before += row.cost_usd is None
            self.unpriced_after += change.cost_usd is None
            if len(self.first_ids) < _NAMED_IDS:
                self.first_ids.append(row.id)
        else:
            self.corrections += 1
        self.cost_before += row.cost_usd or Decimal(0)
        self.cost_after += change.cost_usd or Decimal(0)


@dataclass(slots=True)
class Repriced:
    """What a run came to, or would come to: rows looked at, rows changed, and both by model.

    `run_id` names the record of what was changed; None where nothing was.
    """

    examined: int = 0
    changed: int = 0
    is_finished: bool = True
    run_id: UUID | None = None
    models: dict[tuple[str | None, str | None], Tally] = field(default_factory=dict)

    def add(self, examined: int, changes: Sequence[Change]) -> None:
        """This function will count one batch."""
        self.examined += examined
        self.changed += len(changes)
        for change in changes:
            names = change.row.provider, change.row.model
            self.models.setdefault(names, Tally(*names)).add(change)

    @property
    def cost_change(self) -> Decimal:
        """By how much the sum of all costs changes."""
        return sum((one.cost_after - one.cost_before for one in self.models.values()), Decimal(0))
