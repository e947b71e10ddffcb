"""docs/pricing.md says what the code does: its example is a file that is taken, its units have prices."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from worker.pricing import catalog, price_file
from worker.pricing.book import PriceBook
from worker.pricing.rules import CACHE_READ, INPUT

TEXT = (Path(__file__).parents[3] / "docs" / "pricing.md").read_text(encoding="utf-8")


def test_the_example_is_taken_whole() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    mini, sage, ended = price_file.read(yaml.safe_load(example))
    assert mini.override().tokens[INPUT] == Decimal("0.12")
    assert (sage.match, sage.units["images"]) == ("prefix", Decimal("0.04"))
    assert sage.long_context is not None
    assert ended.withdrawn
    book = PriceBook([mini.override(), sage.override(), ended.override()])
    price = book.price_at("openai", "gpt-4o-mini", mini.effective_from)
    assert price is not None
    assert CACHE_READ in price.kinds


def test_the_units_it_names_are_the_catalogs() -> None:
    section = TEXT.split("\n## Units\n")[1].split("\nCalls that")[0]
    named = set(re.findall(r"`([a-z][a-z0-9_]+)`", section)) - {"units", "cache_write_tokens"}
    assert named
    assert named - {price_file.UNKNOWN_USE} <= set(catalog.ancestors())


def test_usage_that_nobody_knows_gets_no_price() -> None:
    entry = {"provider": "openai", "model": "gpt-5", "from": "2026-01-01T00:00:00Z"}
    with pytest.raises(price_file.InvalidPrices, match=price_file.UNKNOWN_USE):
        price_file.read({"prices": [{**entry, "units": {price_file.UNKNOWN_USE: "0.01"}}]})
