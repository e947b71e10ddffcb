"""The list prices that genai-prices ships, as prices of ours: those of the release, never the network's.

A price is found by the names of both sides and by the event's time. An empty set of prices means free only
for open weights: of a hosted model it says that nobody has written the price down.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import cache, lru_cache
from importlib import metadata
from typing import Any, Final

from genai_prices.data_snapshot import DataSnapshot
from genai_prices.data_units import unit_data
from genai_prices.types import (
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)
from genai_prices.units import UnitDef, UnitRegistry

from worker.pricing import names
from worker.pricing.rules import Price, Rate, rates_in_order

RELEASE: Final = f"genai-prices {metadata.version('genai-prices')}"
_HOUR: Final = timedelta(hours=1)
_OPEN_WEIGHTS: Final = re.compile(
    r"(?:^|[/-])(?:gemma|llama|qwen|qwq|mistral-(?:7b|nemo|small)|mixtral|devstral|deepseek|deephermes|phi-|gpt-oss|"
    r"glm-|kimi-|nemotron|olmo|molmo|zephyr|hermes|mai-ds-r1|deepcoder|olympiccoder|internvl)"
)
# How a request was processed, and what the catalog calls it. Standard processing is the plain price.
STANDARD: Final = frozenset(("", "auto", "default", "standard", "on_demand"))
_CONTEXTS: Final[Mapping[str, tuple[dict[str, str], ...]]] = {
    "batch": ({"processing": "batch"},),
    "fast": ({"service_tier": "fast"}, {"speed": "fast"}),
}


@dataclass(frozen=True, slots=True)
class Listed:
    """A model of the catalog, with the provider whose prices it has."""

    provider: Provider
    model: ModelInfo

    def version_at(self, moment: datetime) -> str:
        """This function will name the price that holds at an aware moment."""
        return f"{RELEASE}/{self.provider.id}/{self.model.id}/{self._standard(moment)[1]}"

    def at(self, moment: datetime, service_tier: str = "") -> Price | None:
        """This function will return the price at an aware moment, None where none is known."""
        prices, version = self._standard(moment)[0], self.version_at(moment)
        if service_tier not in STANDARD:
            special = self._special(moment, service_tier)
            if special is None:
                return None
            prices, version = special, f"{version}/{service_tier}"
        return _price(version, prices, is_free=self._is_free, least_seconds=self._least_seconds)

    def changes_within(self, start: datetime) -> bool:
        """This function will say whether the price changes inside of the hour that begins at `start`."""
        begin = start.astimezone(UTC)
        return any(
            begin < begin.replace(hour=edge.hour, minute=edge.minute, second=edge.second) < begin + _HOUR
            for edge in self._times_of_day()
        )

    @property
    def _is_free(self) -> bool:
        return bool(_OPEN_WEIGHTS.search(self.model.id.lower()))

    @property
    def _least_seconds(self) -> int:
        # The catalog has this rule in its code and not in its data.
        return 10 if self.provider.id == "groq" and self.model.id.startswith("whisper-large-v3") else 0

    def _standard(self, moment: datetime) -> tuple[ModelPrice, str]:
        prices = self.model.prices
        if isinstance(prices, ModelPrice):
            return prices, "base"
        for conditional in reversed(prices):
            if conditional.constraint is None or conditional.constraint.active(moment):
                return conditional.prices, _since(conditional)
        return prices[0].prices, "base"

    def _special(self, moment: datetime, service_tier: str) -> ModelPrice | None:
        # A model that a provider borrows has its price, and the lender's tiers are not the borrower's.
        is_own = any(self.model is one for one in self.provider.models)
        variants = (self.model.price_variants or []) if is_own else []
        for context in _CONTEXTS.get(service_tier, ({"service_tier": service_tier},)):
            if any(
                variant.when.items() <= context.items()
                and (variant.constraint is None or variant.constraint.active(moment))
                for variant in variants
            ):
                return self.model.get_prices(moment, context)
        return None

    def _times_of_day(self) -> Iterator[time]:
        if not isinstance(self.model.prices, ModelPrice):
            for conditional in self.model.prices:
                if isinstance(conditional.constraint, TimeOfDateConstraint):
                    for edge in (conditional.constraint.start_time, conditional.constraint.end_time):
                        zoned = edge if edge.tzinfo is not None else edge.replace(tzinfo=UTC)
                        yield datetime.combine(date(1970, 1, 2), zoned).astimezone(UTC).timetz()


@lru_cache(maxsize=65_536)
def find(provider: str | None, model: str | None) -> Listed | None:
    """This function will return the catalog's entry for a model, by any spelling of its provider and name.

    Without a provider it is the one whose models are called like that.
    """
    for owner, name in names.spellings(provider, model):
        found = _find(owner, name) if name else None
        if found is not None:
            return found
    return None


def ancestors() -> Mapping[str, frozenset[str]]:
    """This function will say of each kind of usage which kinds include it."""
    return {kind: _registry().ancestor_usage_keys(kind) for kind in _registry().units}


def covered_by(kinds: frozenset[str]) -> frozenset[str]:
    """This function will return the kinds that are part of one of `kinds`."""
    return frozenset(kind for kind, wholes in ancestors().items() if not wholes.isdisjoint(kinds)) - kinds


@cache
def _snapshot() -> DataSnapshot:
    # Not the library's own: somebody in the process could replace that one by what the network says.
    from genai_prices.data import providers  # noqa: PLC0415  1.6 MB, for processes that price something

    return DataSnapshot(providers=providers, from_auto_update=False)


@cache
def _registry() -> UnitRegistry:
    return UnitRegistry(unit_data)


def _find(owner: str, name: str) -> Listed | None:
    providers = _snapshot().providers
    if owner:
        provider = next((one for one in providers if one.id == owner), None)
    else:
        provider = next(
            (one for one in providers if one.model_match is not None and one.model_match.is_match(name)), None
        )
    if provider is None:
        return None
    model = provider.find_model(name, all_providers=providers)
    return None if model is None else Listed(provider, model)


def _since(conditional: ConditionalPrice) -> str:
    constraint = conditional.constraint
    if isinstance(constraint, StartDateConstraint):
        return constraint.start_date.isoformat()
    if isinstance(constraint, TimeOfDateConstraint):
        return f"{constraint.start_time:%H:%M}-{constraint.end_time:%H:%M}"
    return "base"


def _price(version: str, prices: ModelPrice, *, is_free: bool, least_seconds: int) -> Price | None:
    stated: dict[str, Any] = {key: value for key, value in vars(prices).items() if value is not None}
    if not stated:
        if not is_free:
            return None
        stated = {"input_mtok": Decimal(0), "output_mtok": Decimal(0)}
    rates = [
        _rate(_registry().unit_for_price_key(key), value, least_seconds) for key, value in stated.items()
    ]
    kinds = frozenset(rate.kind for rate in rates)
    return Price(version, rates_in_order(rates, ancestors()), covered_by(kinds))


def _rate(unit: UnitDef, value: Decimal | TieredPrices, least_seconds: int) -> Rate:
    least = least_seconds if unit.dimensions.get("family") == "durations" else 0
    if isinstance(value, TieredPrices):
        tiers = tuple((tier.start, tier.price) for tier in value.tiers)
        return Rate(unit.usage_key, value.base, unit.per, tiers, least=least)
    return Rate(unit.usage_key, value, unit.per, least=least)
