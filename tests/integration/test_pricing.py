"""Both costs of an event as it is stored: by the price of its time, by the policy, with units and tiers."""

from __future__ import annotations

import uuid
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from tests.integration.books_world import Books
from tests.integration.ingest_world import NOW, World, event
from tests.integration.pricing_world import apply, prices
from worker import db
from worker.pricing import operations, price_file, queries
from worker.pricing.book import Prices
from worker.pricing.price_file import InvalidPrices
from worker.settings import Settings

OURS = {"provider": "acme", "model": "sage-1", "cost_usd": None}


@pytest.fixture
def books(world: World, databases: Any, bound: Settings) -> Books:
    return Books(world, databases, bound.redis_url)


def stored(world: World, *sent: dict[str, Any]) -> list[Any]:
    for one in sent:
        world.add(one)
    world.drain()
    by_id = {str(row.id): row for row in world.rows()}
    return [by_id[one["event_id"]] for one in sent]


class TestCosts:
    def test_both_are_kept_with_the_version_and_the_reported_one_counts(self, world: World) -> None:
        (number,) = apply({"input": "1", "output": "4"})
        told, open_ = stored(world, event(**{**OURS, "cost_usd": "0.5"}), event(**OURS))
        assert (told.cost_usd, told.cost_source) == (Decimal("0.5"), "reported")
        assert told.cost_reported_usd == Decimal("0.5")
        assert told.cost_computed_usd == open_.cost_computed_usd == Decimal("0.002632")
        assert (open_.cost_usd, open_.cost_source) == (Decimal("0.002632"), "computed")
        assert open_.cost_reported_usd is None
        assert told.price_version == open_.price_version == f"override {number}"
        world.assert_books_hold()

    def test_an_unknown_price_is_null_and_counted(self, world: World) -> None:
        (row,) = stored(world, event(**OURS))
        assert (row.cost_usd, row.cost_computed_usd, row.cost_source, row.price_version) == (
            None,
            None,
            "unpriced",
            None,
        )
        (hour,) = world.rows("SELECT * FROM usage_hourly")
        assert (hour.unpriced_events, hour.cost_usd) == (1, 0)

    def test_the_event_decides_when(self, world: World) -> None:
        apply({"input": "1", "output": "4"}, {"input": "2", "output": "8", "from": "2026-03-01T12:15:00Z"})
        early, late = stored(
            world,
            event(**OURS, occurred_at="2026-03-01T12:14:59.999999Z"),
            event(**OURS, occurred_at="2026-03-01T13:15:00+01:00"),
        )
        assert (early.cost_usd, late.cost_usd) == (Decimal("0.002632"), Decimal("0.005264"))

    def test_a_service_tier_is_never_priced_as_the_standard(self, world: World) -> None:
        apply({"input": "1", "output": "4"}, {"input": "0.5", "output": "2", "service_tier": "batch"})
        batch, flex, standard = stored(
            world,
            event(**OURS, metadata={"service_tier": "batch"}),
            event(**OURS, metadata={"service_tier": "Flex"}),
            event(**OURS, metadata={"service_tier": "default", "x": 1}),
        )
        assert (batch.cost_usd, flex.cost_usd, standard.cost_usd) == (
            Decimal("0.001316"),
            None,
            Decimal("0.002632"),
        )


class TestUnits:
    def test_are_stored_priced_and_sealed(self, world: World, books: Books) -> None:
        apply({"input": "1", "output": "4", "units": {"images": "0.04"}})
        sent = event(**OURS, units={"images": 2, "audio_seconds": 0})
        bare = event(**{**OURS, "input_tokens": None, "output_tokens": None}, units={"images": "0.5"})
        strange = event(**OURS, units={"calls": 1})
        priced, alone, unknown = stored(world, sent, bare, strange)
        assert priced.units == {"images": 2, "audio_seconds": 0}
        assert priced.cost_usd == Decimal("0.082632")
        assert (alone.tokens_used, alone.cost_usd) == (0, Decimal("0.02"))
        assert unknown.cost_usd is None
        world.assert_books_hold()
        assert books.found() == {}
        (row,) = books.sabotage(
            "UPDATE platform_usage_logs SET units = '{\"images\": 3}' WHERE id = %(id)s RETURNING id",
            id=uuid.UUID(sent["event_id"]),
        )
        found = books.found(full=True)
        assert str(row[0]) in found["books.sealed"].message

    def test_are_part_of_what_an_event_is(self, world: World) -> None:
        sent = event(units={"images": 2})
        world.add([sent, {**sent, "units": {"images": "2.0"}}])
        world.add({**sent, "units": {"images": 3}})
        world.add({name: value for name, value in sent.items() if name != "units"})
        counts = world.drain()
        assert (counts["accepted"], counts["duplicates"], counts["conflicts"]) == (1, 1, 2)

    def test_a_bad_one_is_put_aside_alone(self, world: World) -> None:
        world.add([event(), event(units={"images": -1})])
        world.drain()
        (letter,) = world.letters()
        assert letter.reason == "invalid_units"
        assert len(world.rows()) == 1


class TestBook:
    def test_is_kept_until_a_price_comes(self, world: World) -> None:
        del world
        with db.platform_session() as session:
            book = queries.load_book(session)
            assert queries.load_book(session, known=book) is book
        apply({"input": "0.123456789012", "output": "4", "units": {"images": "0.04"}})
        with db.platform_session() as session:
            newer = queries.load_book(session, known=book)
        assert newer is not book
        price = newer.price_at("acme", "sage-1", NOW)
        assert price is not None
        assert price.scaled(10**6, 0) == 123_456_789_012
        assert Prices().book.price_at("acme", "sage-1", NOW) is None

    def test_everything_of_a_row_comes_back(self, world: World) -> None:
        del world
        entry = {
            "match": "prefix",
            "service_tier": "Batch",
            "from": "2026-02-01T01:00:00+01:00",
            "input": "1",
            "output": "4",
            "cache_read": "0.1",
            "cache_write": "1.25",
            "cache_write_1h": "2",
            "reasoning": "5",
            "units": {"images": "0.000000000001"},
            "long_context": {"threshold": 200_000, "inclusive": True, "input": "2", "reasoning": "10"},
        }
        apply(entry)
        (row,) = prices().book._by_key[("acme", "sage-1", "prefix", "batch")]
        (read,) = price_file.read({"prices": [{"provider": "acme", "model": "sage-1", **entry}]})
        assert replace(row, id=0) == read.override()


class TestApply:
    def test_again_adds_nothing_and_another_one_follows(self, world: World) -> None:
        (first,) = apply({"input": "1", "output": "4"})
        assert apply({"input": "1.0", "output": "4", "note": "the same"}) == [None]
        (second,) = apply({"input": "2", "output": "8"})
        assert first is not None
        assert second == first + 1
        rows = world.rows("SELECT input_per_mtok, applied_by FROM model_prices ORDER BY id")
        assert [(row.input_per_mtok, row.applied_by) for row in rows] == [(1, "test"), (2, "test")]

    def test_says_what_it_replaces_and_what_the_price_was(self, world: World) -> None:
        del world
        (number,) = apply({"input": "1", "output": "4"})
        read = price_file.read(
            {
                "prices": [
                    {"provider": "acme", "model": "sage-1", "from": "2026-01-01T00:00:00Z", "input": "2"},
                    {"provider": "x_ai", "model": "Grok-4", "from": "2026-01-01T00:00:00Z", "input": "2"},
                ]
            }
        )
        with db.platform_session() as session:
            ours, grok = operations.plan(queries.overrides(session), read)
        assert ours.replaced is not None
        assert ours.replaced.id == number
        assert (grok.row.provider, grok.row.model, grok.replaced) == ("x-ai", "grok-4", None)
        assert grok.before is not None
        assert "x-ai/grok-4" in grok.before.version

    @pytest.mark.parametrize(
        "entry",
        [
            {"input": "-1"},
            {"input": "NaN"},
            {"input": "1.0000000000001"},
            {"input": "1", "from": "2026-01-01T00:00:00"},
            {"input": "1", "from": "2026-01-01"},
            {},
            {"withdrawn": True, "input": "1"},
            {"input": "1", "colour": "blue"},
            {"units": {"Two Words": "1"}},
            {"input": "1", "long_context": {"threshold": 1000, "output": "2"}},
            {"input": "1", "match": "regex"},
        ],
        ids=str,
    )
    def test_a_wrong_entry_refuses_the_whole_file(self, entry: dict[str, Any]) -> None:
        good = {"provider": "acme", "model": "sage-1", "from": "2026-01-01T00:00:00Z"}
        with pytest.raises(InvalidPrices):
            price_file.read({"prices": [{**good, "input": "1"}, {**good, "model": "sage-2", **entry}]})

    def test_two_prices_of_one_moment_are_ambiguous(self) -> None:
        one = {"provider": "x_ai", "model": "m", "from": "2026-01-01T00:00:00Z", "input": "1"}
        with pytest.raises(InvalidPrices, match="two prices"):
            price_file.read(
                {"prices": [one, {**one, "provider": "x-ai", "from": "2026-01-01T01:00:00+01:00"}]}
            )


class TestDivergence:
    def test_is_reported_and_the_books_are_sealed_all_the_same(self, world: World, books: Books) -> None:
        apply({"input": "1000", "output": "1000"})
        computed = Decimal("1.267")
        stored(world, event(**{**OURS, "cost_usd": str(computed * Decimal("1.06"))}))
        found = books.found()
        assert set(found) == {"books.cost_divergence"}
        assert found["books.cost_divergence"].object == "acme sage-1"
        assert "+6.0 %" in found["books.cost_divergence"].message
        assert len(books.seals()) == 1

    @pytest.mark.parametrize(("factor", "dollars"), [("1.05", "1000"), ("0.95", "1000"), ("1.5", "1")])
    def test_within_the_share_or_below_a_cent_is_nothing(
        self, world: World, books: Books, factor: str, dollars: str
    ) -> None:
        apply({"input": dollars, "output": dollars})
        cost = Decimal("0.001267") * Decimal(dollars) * Decimal(factor)
        stored(world, event(**{**OURS, "cost_usd": format(cost, "f")}))
        assert books.found() == {}
