"""The price book: the price of the event's time, from our own rows or from the catalog; every known trap."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any

import pytest
from genai_prices import types as catalog_types
from genai_prices.data import providers
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.pricing import catalog
from worker.pricing.book import NOT_CONSTANT, LongContext, Override, PriceBook
from worker.pricing.rules import CACHE_READ, INPUT, OUTPUT, Price, TokenUse

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
CATALOG = PriceBook()


def row(number: int, **fields: Any) -> Override:
    standard: dict[str, Any] = {
        "id": number,
        "provider": "openai",
        "model": "gpt-4o-mini",
        "effective_from": datetime(2026, 1, 1, tzinfo=UTC),
        "tokens": {INPUT: Decimal(number), OUTPUT: Decimal(number)},
    }
    return Override(**{**standard, **fields})


def version(found: Price | None) -> str | None:
    return None if found is None else found.version.partition("/")[2] or found.version


def known(found: object) -> Price:
    assert isinstance(found, Price)
    return found


def use(inputs: int, outputs: int, **fields: Any) -> TokenUse:
    return TokenUse(inputs, outputs, tokens_used=inputs + outputs, **fields)


class TestTheEventsTime:
    @pytest.mark.parametrize(
        ("at", "since", "dollars"),
        [
            ("2025-06-09T23:59:59.999999+00:00", "base", 10),
            ("2025-06-10T00:00:00+00:00", "2025-06-10", 2),
            ("2025-06-10T01:59:59+02:00", "base", 10),
            ("2025-06-10T02:00:00+02:00", "2025-06-10", 2),
            ("2025-06-09T19:00:00-05:00", "2025-06-10", 2),
        ],
    )
    def test_decides_and_its_offset_counts(self, at: str, since: str, dollars: int) -> None:
        found = known(CATALOG.price_at("openai", "o3", datetime.fromisoformat(at)))
        assert version(found) == f"openai/o3/{since}"
        assert found.cost(use(10**6, 0)) == dollars

    def test_a_price_of_some_hours_of_the_day(self) -> None:
        day = datetime(2026, 11, 1, tzinfo=UTC)
        assert version(CATALOG.price_at("deepseek", "deepseek-chat", day.replace(minute=29))) == (
            "deepseek/deepseek-chat/base"
        )
        peak = "deepseek/deepseek-chat/00:30-16:30"
        assert version(CATALOG.price_at("deepseek", "deepseek-chat", day.replace(minute=30))) == peak
        assert CATALOG.for_hour("deepseek", "deepseek-chat", day) is NOT_CONSTANT
        assert version(known(CATALOG.for_hour("deepseek", "deepseek-chat", day.replace(hour=1)))) == peak
        assert CATALOG.for_hour("deepseek", "deepseek-chat", day.replace(hour=16)) is NOT_CONSTANT

    @given(
        st.sampled_from(["deepseek-chat", "deepseek-v4-pro", "o3", "gpt-4o-mini", "nobody"]),
        st.datetimes(datetime(2025, 1, 1), datetime(2026, 12, 31), timezones=st.just(UTC)),  # noqa: DTZ001
    )
    def test_the_price_of_an_hour_is_that_of_each_moment_in_it(self, model: str, at: datetime) -> None:
        rows = [
            row(n, model=model, provider="", effective_from=at + timedelta(minutes=n - 45)) for n in (30, 60)
        ]
        for book in (CATALOG, PriceBook(rows)):
            found = book.for_hour(None, model, at.replace(minute=0, second=0, microsecond=0))
            if found is not NOT_CONSTANT:
                assert version(found) == version(book.price_at(None, model, at))

    def test_the_same_hour_is_the_same_object(self) -> None:
        assert CATALOG.for_hour("openai", "o3", NOW) is CATALOG.for_hour("openai", "o3", NOW)


class TestNames:
    @pytest.mark.parametrize(
        ("provider", "model", "listed"),
        [
            ("x_ai", "grok-4", "x-ai/grok-4-0709"),
            ("gcp.gen_ai", "gemini-2.5-flash", "google/gemini-2.5-flash"),
            ("google", "models/gemini-2.5-flash", "google/gemini-2.5-flash"),
            (
                "fireworks_ai",
                "accounts/fireworks/models/llama-v3p1-8b-instruct",
                "fireworks/llama-v3p1-8b-instruct",
            ),
            ("azure.ai.openai", "gpt-4o", "azure/gpt-4o"),
            ("litellm", "anthropic/claude-sonnet-4-5", "anthropic/claude-sonnet-4-5"),
            ("litellm", "gpt-4o", "openai/gpt-4o"),
            (
                None,
                "bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0",
                "aws/regional.anthropic.claude-sonnet-4-5-20250929-v1:0",
            ),
            (None, "gpt-4o-mini", "openai/gpt-4o-mini"),
            (None, "claude-sonnet-4-5", "anthropic/claude-sonnet-4-5"),
            ("openai", "gpt-4o-mini-2024-07-18", "openai/gpt-4o-mini"),
            ("openai", "ft:gpt-4o-mini-2024-07-18:acme::x", "openai/ft:gpt-4o-mini"),
        ],
    )
    def test_are_found_in_any_spelling(self, provider: str | None, model: str, listed: str) -> None:
        found = known(CATALOG.price_at(provider, model, NOW))
        assert found.version.startswith(f"{catalog.RELEASE}/{listed}/")

    @pytest.mark.parametrize(
        ("provider", "model"),
        [
            ("my-openai", "gpt-4o"),
            ("openai", "my-gpt-4o"),
            ("openai", None),
            (None, None),
            ("", ""),
            ("acme", "sage-1"),
            ("ollama", "llama3"),
            (None, "us.anthropic.claude-sonnet-4-5-20250929-v1:0"),
            (None, "my-claude"),
        ],
    )
    def test_what_merely_resembles_has_no_price(self, provider: str | None, model: str | None) -> None:
        assert CATALOG.price_at(provider, model, NOW) is None
        assert CATALOG.for_hour(provider, model, NOW) is None

    @pytest.mark.parametrize(
        ("model", "dollars"),
        [
            ("global.anthropic.claude-sonnet-4-5-20250929-v1:0", "3"),
            ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "3.3"),
            ("eu.anthropic.claude-sonnet-4-5-20250929-v1:0", "3.3"),
            ("anthropic.claude-sonnet-4-5-20250929-v1:0", "3.3"),
        ],
    )
    def test_bedrocks_regions_have_their_premium(self, model: str, dollars: str) -> None:
        assert known(CATALOG.price_at("aws.bedrock", model, NOW)).cost(use(10**6, 0)) == Decimal(dollars)


class TestUnknownAndFree:
    @pytest.mark.parametrize(
        ("provider", "model"), [("github-copilot", "gpt-4o"), ("openai", "omni-moderation-latest")]
    )
    def test_an_empty_set_of_a_hosted_model_is_unknown(self, provider: str, model: str) -> None:
        assert CATALOG.price_at(provider, model, NOW) is None

    @pytest.mark.parametrize(
        ("provider", "model"), [("google", "gemma-3-27b-it"), ("openrouter", "qwen/qwq-32b:free")]
    )
    def test_an_empty_set_of_open_weights_is_free(self, provider: str, model: str) -> None:
        assert known(CATALOG.price_at(provider, model, NOW)).cost(use(10**6, 10**6)) == 0

    def test_closed_models_are_not_free_because_a_router_gave_them_away(self) -> None:
        assert CATALOG.price_at("openrouter", "google/gemini-2.0-flash-exp:free", NOW) is None


class TestTiers:
    def test_long_context_of_the_catalog(self) -> None:
        found = known(CATALOG.price_at("google", "gemini-2.5-pro", NOW))
        assert found.cost(use(200_000, 1000)) == (200_000 * Decimal("1.25") + 1000 * 10) / 10**6
        assert found.cost(use(200_001, 1000)) == (200_001 * Decimal("2.5") + 1000 * 15) / 10**6

    @pytest.mark.parametrize(("inclusive", "long_at"), [(True, 1000), (False, 1001)])
    def test_at_or_above_is_stated(self, inclusive: bool, long_at: int) -> None:
        longer = LongContext(1000, inclusive, {INPUT: Decimal(5), OUTPUT: Decimal(7)})
        found = row(1, long_context=longer).price()
        assert found.cost(use(long_at - 1, 1)) == Decimal(long_at) / 10**6
        assert found.cost(use(long_at, 1)) == Decimal(long_at * 5 + 7) / 10**6

    def test_a_service_tier_has_its_own_price_or_none(self) -> None:
        standard = known(CATALOG.price_at("openai", "gpt-5.4", NOW, service_tier="default"))
        batch = known(CATALOG.price_at("openai", "gpt-5.4", NOW, service_tier="batch"))
        assert batch.version == f"{standard.version}/batch"
        assert batch.cost(use(1000, 0)) != standard.cost(use(1000, 0))
        assert CATALOG.price_at("openai", "gpt-5.4", NOW, service_tier="moonlight") is None
        assert CATALOG.price_at("deepseek", "deepseek-chat", NOW, service_tier="flex") is None

    def test_a_borrowed_model_does_not_bring_its_lenders_tiers(self) -> None:
        assert CATALOG.price_at("azure.ai.openai", "claude-fable-5", NOW) is not None
        assert CATALOG.price_at("anthropic", "claude-fable-5", NOW, service_tier="batch") is not None
        assert CATALOG.price_at("azure.ai.openai", "claude-fable-5", NOW, service_tier="batch") is None

    def test_ours_for_a_service_tier(self) -> None:
        book = PriceBook([row(1), row(2, service_tier="batch")])
        assert version(book.price_at("openai", "gpt-4o-mini", NOW)) == "override 1"
        assert version(book.price_at("openai", "gpt-4o-mini", NOW, service_tier="batch")) == "override 2"

    def test_cache_writes_of_an_hour(self) -> None:
        found = known(CATALOG.price_at("anthropic", "claude-sonnet-4-5", NOW))
        five_minutes = use(1000, 0, cache_write_tokens=1000)
        hour = use(1000, 0, cache_write_tokens=1000, units={"cache_write_1h_tokens": Decimal(1000)})
        assert found.cost(five_minutes) == Decimal("0.00375")
        assert found.cost(hour) == Decimal("0.006")

    def test_seconds_of_audio(self) -> None:
        whisper = known(CATALOG.price_at("openai", "whisper-1", NOW))
        assert whisper.cost(TokenUse(units={"audio_seconds": Decimal("90.5")})) == Decimal("0.00905")
        groq = known(CATALOG.price_at("groq", "whisper-large-v3", NOW))
        assert groq.cost(TokenUse(units={"audio_seconds": Decimal(1)})) == Decimal("0.000308333333")


class TestOverrides:
    def test_win_over_the_catalog_from_their_time_on(self) -> None:
        book = PriceBook([row(1)])
        start = datetime(2026, 1, 1, tzinfo=UTC)
        assert version(book.price_at("openai", "gpt-4o-mini", start)) == "override 1"
        before = start - timedelta(microseconds=1)
        assert version(book.price_at("openai", "gpt-4o-mini", before)) == "openai/gpt-4o-mini/base"

    def test_the_later_number_wins_at_one_moment_and_the_later_moment_over_both(self) -> None:
        march = datetime(2026, 3, 1, tzinfo=UTC)
        book = PriceBook([row(3), row(2, effective_from=march), row(1)])
        assert version(book.price_at("openai", "gpt-4o-mini", march - timedelta(days=1))) == "override 3"
        assert version(book.price_at("openai", "gpt-4o-mini", march)) == "override 2"
        assert book.latest_override == 3

    def test_a_withdrawal_is_a_row_too(self) -> None:
        march = datetime(2026, 3, 1, tzinfo=UTC)
        book = PriceBook([row(1), row(2, effective_from=march, withdrawn=True, tokens={})])
        assert version(book.price_at("openai", "gpt-4o-mini", march)) == "openai/gpt-4o-mini/base"
        assert version(book.price_at("openai", "gpt-4o-mini", march - timedelta(days=1))) == "override 1"

    def test_exact_before_the_longest_prefix(self) -> None:
        book = PriceBook(
            [
                row(1, model="gpt-", match="prefix"),
                row(2, model="gpt-4o", match="prefix"),
                row(3, model="gpt-4o-mini"),
            ]
        )
        found = {
            name: version(book.price_at("openai", name, NOW)) for name in ("gpt-5", "gpt-4o-x", "gpt-4o-mini")
        }
        assert found == {"gpt-5": "override 1", "gpt-4o-x": "override 2", "gpt-4o-mini": "override 3"}

    def test_hold_for_every_spelling_and_for_a_provider_that_is_not_stated(self) -> None:
        book = PriceBook([row(1), row(2, provider="google", model="gemini-2.5-flash")])
        assert version(book.price_at(None, "GPT-4o-mini", NOW)) == "override 1"
        assert version(book.price_at("gcp.gemini", "models/gemini-2.5-flash", NOW)) == "override 2"
        assert version(book.price_at("azure", "gpt-4o-mini", NOW)) == "azure/gpt-4o-mini/base"

    def test_may_price_what_has_no_model(self) -> None:
        book = PriceBook([row(1, provider="", model="", tokens={}, units={"calls": Decimal("0.001")})])
        found = known(book.price_at(None, None, NOW))
        assert found.cost(TokenUse(units={"calls": Decimal(2)})) == Decimal("0.002")
        assert book.price_at(None, "sage-1", NOW) is None

    def test_a_change_within_the_hour_is_told(self) -> None:
        half = NOW + timedelta(minutes=30)
        book = PriceBook([row(1, effective_from=half)])
        assert book.for_hour("openai", "gpt-4o-mini", NOW) is NOT_CONSTANT
        assert (
            version(known(book.for_hour("openai", "gpt-4o-mini", NOW + timedelta(hours=1)))) == "override 1"
        )

    def test_part_prices_apply_to_parts(self) -> None:
        found = row(1, tokens={INPUT: Decimal(1), OUTPUT: Decimal(4), CACHE_READ: Decimal("0.1")}).price()
        assert found.cost(use(100, 0, cache_read_tokens=90)) == Decimal("0.000019")


MODELS = [(provider, model) for provider in providers for model in provider.models]


class TestCatalog:
    @settings(max_examples=400)
    @given(
        st.sampled_from(MODELS),
        st.datetimes(datetime(2025, 1, 1), datetime(2026, 12, 31), timezones=st.just(UTC)),  # noqa: DTZ001
        st.sampled_from([0, 1, 999, 128_001, 200_000, 200_001, 272_001, 10**6]),
        st.data(),
    )
    def test_costs_are_those_of_genai_prices(
        self, listed: tuple[Any, Any], at: datetime, inputs: int, data: st.DataObject
    ) -> None:
        provider, model = listed
        found = catalog.Listed(provider, model).at(at)
        read = data.draw(st.integers(0, inputs))
        write = data.draw(st.integers(0, inputs - read))
        outputs = data.draw(st.integers(0, 10**6))
        thought = data.draw(st.integers(0, outputs))
        cost = (
            None
            if found is None
            else found.cost(TokenUse(inputs, outputs, read, write, thought, inputs + outputs))
        )
        if cost is None:
            return
        with localcontext(prec=60), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            usage = catalog_types.Usage(
                input_tokens=inputs,
                output_tokens=outputs,
                cache_read_tokens=read,
                cache_write_tokens=write,
                output_reasoning_tokens=thought,
            )
            theirs = model.calc_price(usage, provider, genai_request_timestamp=at).total_price
            assert cost == theirs.quantize(Decimal("1E-12"), rounding=ROUND_HALF_EVEN)

    def test_what_is_replaced_in_the_library_does_not_touch_us(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from genai_prices import data_snapshot  # noqa: PLC0415  the one that is tampered with

        tampered = data_snapshot.DataSnapshot(providers=[], from_auto_update=True)
        monkeypatch.setattr(data_snapshot, "_custom_snapshot", tampered)
        catalog.find.cache_clear()
        assert CATALOG.price_at("openai", "gpt-4.1", NOW) is not None
