"""The table of real usage objects: what each means in tokens and units, and its cost to twelve places."""

import json
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from producers.integrations import usage_of
from producers.testing import RecordingEmitter
from tests.unit.producers.integrations import (
    usage_objects_anthropic,
    usage_objects_google,
    usage_objects_openai,
    usage_objects_others,
)
from tests.unit.producers.integrations.usage_objects import PRICE_PAGES, Case
from worker.pricing import catalog
from worker.pricing.book import PriceBook
from worker.pricing.rules import TokenUse

USER = "7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11"
CASES = [
    *usage_objects_openai.CASES,
    *usage_objects_anthropic.CASES,
    *usage_objects_google.CASES,
    *usage_objects_others.CASES,
]
_FIELDS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")

each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def found(case: Case) -> dict[str, Any]:
    usage = usage_of(case.body, provider=case.provider, model=case.model)
    assert usage is not None
    return usage


def as_attributes(value: object) -> Any:
    """What an SDK would make of it."""
    if isinstance(value, dict):
        return SimpleNamespace(**{name: as_attributes(member) for name, member in value.items()})
    return [as_attributes(member) for member in value] if isinstance(value, list) else value


def test_there_are_enough() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(case.source for case in CASES)
    assert sum("constructed" in case.source for case in CASES) <= 12
    assert catalog.RELEASE == "genai-prices 0.2.3"


@each
def test_tokens(case: Case) -> None:
    usage = found(case)
    counts = (case.given, case.made, case.read, case.write, case.reasoning)
    assert tuple(usage.get(name) for name in _FIELDS) == counts
    units = {name: Decimal(quantity) for name, quantity in usage.get("units", {}).items()}
    assert units == {name: Decimal(quantity) for name, quantity in case.units.items()}
    assert usage.get("metadata", {}).get("service_tier", "") == case.tier
    assert usage.get("cost_usd") == case.reported


@each
def test_objects_mappings_and_text_are_read_alike(case: Case) -> None:
    usage = found(case)
    text = json.dumps(case.body)
    assert usage_of(text, provider=case.provider, model=case.model) == usage
    assert usage_of(text.encode(), provider=case.provider, model=case.model) == usage
    if "key" not in case.body:  # of Gemini's batches there is no object of an SDK
        assert usage_of(as_attributes(case.body), provider=case.provider, model=case.model) == usage


@each
def test_each_is_an_event(case: Case) -> None:
    emitter = RecordingEmitter()
    emitter.emit(user_id=USER, feature="table", **found(case))
    [event] = emitter.events
    assert event.tokens_used == (case.given or 0) + (case.made or 0)


@each
def test_cost(case: Case) -> None:
    usage = found(case)
    tier = usage.get("metadata", {}).get("service_tier", "")
    price = PriceBook().price_at(usage.get("provider"), usage.get("model"), case.at, service_tier=tier)
    if case.price is None:
        assert price is None
        assert case.cost is None
        return
    assert price is not None
    assert price.version == f"{catalog.RELEASE}/{case.price}"
    assert case.price.partition("/")[0] in PRICE_PAGES
    use = TokenUse(
        **{name: usage.get(name) for name in _FIELDS},
        tokens_used=(case.given or 0) + (case.made or 0),
        units={name: Decimal(quantity) for name, quantity in usage.get("units", {}).items()},
    )
    cost = price.cost(use)
    assert cost == case.dollars
    assert cost is not None
    assert cost.as_tuple().exponent == -12


def test_providers_charge_what_the_table_says() -> None:
    both = [case for case in CASES if case.reported is not None and case.dollars]
    agreeing = [
        case for case in both if abs(Decimal(case.reported or 0) - (case.dollars or 0)) < Decimal("1e-5")
    ]
    assert len(agreeing) >= 2
