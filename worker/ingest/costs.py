"""What events cost, as prices say and as their producers do. Nothing here touches a server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Protocol

from worker.ingest.rules import Received
from worker.pricing.book import Prices
from worker.pricing.rules import TokenUse, choose_cost


class Used(Protocol):
    """What an event and its row in the log both say of what was used."""

    @property
    def input_tokens(self) -> int | None: ...
    @property
    def output_tokens(self) -> int | None: ...
    @property
    def cache_read_tokens(self) -> int | None: ...
    @property
    def cache_write_tokens(self) -> int | None: ...
    @property
    def reasoning_tokens(self) -> int | None: ...
    @property
    def tokens_used(self) -> int: ...
    @property
    def units(self) -> Mapping[str, Decimal] | None: ...


def price(events: Iterable[Received], prices: Prices) -> None:
    """This function will give each event that is still in question its cost, by the price of its time.

    Corrections have none of their own: they take their target's. An unknown cost is None, never 0.
    """
    for one in events:
        event = one.event
        if one.outcome is not None or event is None or event.corrects is not None:
            continue
        found = prices.book.price_at(
            event.provider, event.model, event.occurred_at, service_tier=service_tier(event.metadata)
        )
        computed = None if found is None else found.cost(use_of(event))
        one.cost_computed_usd = computed
        one.price_version = None if found is None or computed is None else found.version
        one.cost_usd, one.cost_source = choose_cost(event.cost_usd, computed, prices.policy)


def use_of(event: Used) -> TokenUse:
    """This function will return what an event, or its row, used, as prices look at it."""
    return TokenUse(
        event.input_tokens,
        event.output_tokens,
        event.cache_read_tokens,
        event.cache_write_tokens,
        event.reasoning_tokens,
        event.tokens_used,
        event.units or {},
    )


def service_tier(metadata: Mapping[str, Any] | None) -> str:
    """This function will return how the request was processed, '' for the standard way."""
    tier = None if metadata is None else metadata.get("service_tier")
    return tier.strip().lower() if isinstance(tier, str) else ""
