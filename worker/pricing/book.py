"""The price book: our own overrides first, then the catalog; always the price of the event's time.

An override is one row of `model_prices`. Of the rows with one key, the one that is in force at a moment is
the latest by `effective_from`, and among those with the same the one that was added last. A withdrawal is a
row like any other: from its time on there is no override under that key.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, Literal

from worker.pricing import catalog, names
from worker.pricing.rules import (
    CostPolicy,
    Price,
    Rate,
    rates_in_order,
)

Match = Literal["exact", "prefix"]
_HOUR: Final = timedelta(hours=1)
_MOST_CACHED: Final = 100_000
_MILLION: Final = 10**6


class NotConstant(enum.Enum):
    """The price changes inside of the hour: ask for it at the event's time."""

    NOT_CONSTANT = enum.auto()


NOT_CONSTANT: Final = NotConstant.NOT_CONSTANT


@dataclass(frozen=True, slots=True)
class LongContext:
    """Prices of the whole request from `threshold` input tokens on (`inclusive`) or above it."""

    threshold: int
    inclusive: bool
    prices: Mapping[str, Decimal]

    @property
    def start(self) -> int:
        """The largest request that still has the ordinary price."""
        return self.threshold - 1 if self.inclusive else self.threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """One row of `model_prices`; prices in US dollars per million tokens, or per one of a unit."""

    id: int
    provider: str
    model: str
    match: Match = "exact"
    service_tier: str = ""
    effective_from: datetime
    withdrawn: bool = False
    tokens: Mapping[str, Decimal] = field(default_factory=dict)
    units: Mapping[str, Decimal] = field(default_factory=dict)
    long_context: LongContext | None = None

    @property
    def key(self) -> tuple[str, str, Match, str]:
        """What rows replace one another under."""
        return self.provider, self.model, self.match, self.service_tier

    @property
    def version(self) -> str:
        """The name under which costs remember it."""
        return f"override {self.id}"

    def price(self) -> Price:
        """This function will return the price that the row states."""
        longer = self.long_context
        rates = [
            Rate(
                kind,
                price,
                _MILLION,
                ((longer.start, longer.prices[kind]),) if longer and kind in longer.prices else (),
            )
            for kind, price in self.tokens.items()
        ]
        rates += [Rate(unit, price, 1) for unit, price in self.units.items() if unit not in self.tokens]
        kinds = frozenset(rate.kind for rate in rates)
        return Price(self.version, rates_in_order(rates, catalog.ancestors()), catalog.covered_by(kinds))


class PriceBook:
    """Answers what a model's price was; it is made once and read often, and asks nobody."""

    __slots__ = ("_by_key", "_hours", "_latest", "_prefixes", "_prices")

    def __init__(self, overrides: Iterable[Override] = ()) -> None:
        by_key: dict[tuple[str, str, Match, str], list[Override]] = defaultdict(list)
        self._latest = 0
        for one in sorted(overrides, key=lambda row: (row.effective_from, row.id)):
            by_key[one.key].append(one)
            self._latest = max(self._latest, one.id)
        self._by_key = dict(by_key)
        self._prefixes = sorted({key for key in by_key if key[2] == "prefix"}, key=lambda key: -len(key[1]))
        self._hours: dict[tuple[str | None, str | None, datetime], Price | NotConstant | None] = {}
        self._prices: dict[object, Price | None] = {}

    @property
    def latest_override(self) -> int:
        """The number of the last row that is in the book, 0 for none: two books with the same are equal."""
        return self._latest

    def price_at(
        self, provider: str | None, model: str | None, at: datetime, *, service_tier: str = ""
    ) -> Price | None:
        """This function will return the price that held at an aware moment, None where none is known.

        A service tier that has no price of its own is unknown: it never has the standard price.
        """
        tier = "" if service_tier in catalog.STANDARD else service_tier
        for key in self._keys(provider, model, tier):
            row = _in_force(self._by_key[key], at)
            if row is not None and not row.withdrawn:
                return self._remember(row.id, row.price)
        listed = catalog.find(provider, model)
        if listed is None:
            return None
        return self._remember((listed.version_at(at), tier), lambda: listed.at(at, tier))

    def for_hour(
        self, provider: str | None, model: str | None, hour_start: datetime
    ) -> Price | NotConstant | None:
        """This function will return the standard price of all events in one UTC hour, from memory if it can.

        None: no price is known; NOT_CONSTANT: it changes within the hour.
        """
        key = (provider, model, hour_start)
        try:
            return self._hours[key]
        except KeyError:
            pass
        if len(self._hours) >= _MOST_CACHED:
            self._hours.clear()
        found = self._hours[key] = self._for_hour(provider, model, hour_start)
        return found

    def _for_hour(
        self, provider: str | None, model: str | None, hour_start: datetime
    ) -> Price | NotConstant | None:
        start, end = hour_start.astimezone(UTC), hour_start.astimezone(UTC) + _HOUR
        for key in self._keys(provider, model, ""):
            if any(start < row.effective_from < end for row in self._by_key[key]):
                return NOT_CONSTANT
        listed = catalog.find(provider, model)
        if listed is not None and listed.changes_within(start):
            return NOT_CONSTANT
        return self.price_at(provider, model, start)

    def _keys(self, provider: str | None, model: str | None, tier: str) -> list[tuple[str, str, Match, str]]:
        if not self._by_key:
            return []
        spelled = list(names.spellings(provider, model))
        if not spelled[-1][0]:
            listed = catalog.find(provider, model)
            if listed is not None:
                spelled += [(listed.provider.id, name) for _, name in spelled]
        exact: list[tuple[str, str, Match, str]] = [(owner, name, "exact", tier) for owner, name in spelled]
        begins: list[tuple[str, str, Match, str]] = [
            key
            for key in self._prefixes
            if key[3] == tier and any(key[0] == owner and name.startswith(key[1]) for owner, name in spelled)
        ]
        return [key for key in (*exact, *begins) if key in self._by_key]

    def _remember(self, key: object, make: Callable[[], Price | None]) -> Price | None:
        # Two threads of a drain ask; what one of them forgets the other has in hand.
        try:
            return self._prices[key]
        except KeyError:
            pass
        if len(self._prices) >= _MOST_CACHED:
            self._prices.clear()
        made = make()
        self._prices[key] = made
        return made


@dataclass(frozen=True, slots=True)
class Prices:
    """What ingest prices with: the book as it is now, and which of two costs counts."""

    book: PriceBook = field(default_factory=PriceBook)
    policy: CostPolicy = CostPolicy.REPORTED_FIRST


def _in_force(rows: list[Override], at: datetime) -> Override | None:
    found: Override | None = None
    for row in rows:
        if row.effective_from > at:
            break
        found = row
    return found
