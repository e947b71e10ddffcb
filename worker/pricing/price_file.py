"""A file of prices: what an operator writes, judged before any of it is stored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from worker.errors import ConfigurationError
from worker.pricing import names
from worker.pricing.book import LongContext, Match, Override
from worker.pricing.queries import TOKEN_COLUMNS

KINDS: Final[Mapping[str, str]] = {
    name.removesuffix("_per_mtok"): kind for name, kind in TOKEN_COLUMNS.items()
}
"""What a file calls the price of a kind of token."""
UNKNOWN_USE: Final = "responses_without_usage"
_UNIT: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_Dollars = Annotated[Decimal, Field(ge=0, le=10**6, decimal_places=12, allow_inf_nan=False)]


class InvalidPrices(ConfigurationError):
    """The file is no list of prices; nothing of it was stored."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    input: _Dollars | None = None
    output: _Dollars | None = None
    cache_read: _Dollars | None = None
    cache_write: _Dollars | None = None
    cache_write_1h: _Dollars | None = None
    reasoning: _Dollars | None = None

    def tokens(self) -> dict[str, Decimal]:
        """The prices that are stated, by kind."""
        stated = ((kind, getattr(self, name)) for name, kind in KINDS.items())
        return {kind: price for kind, price in stated if price is not None}


class LongContextEntry(_Part):
    """Prices of the whole request for a long one."""

    threshold: int = Field(ge=1, le=10**9)
    inclusive: bool = False
    """Whether a request of exactly `threshold` input tokens has these prices already."""


class PriceEntry(_Part):
    """One price of a file: US dollars per million tokens, or per one of a unit."""

    provider: str = Field("", max_length=128)
    model: str = Field("", max_length=256)
    match: Match = "exact"
    service_tier: str = Field("", max_length=64)
    effective_from: AwareDatetime = Field(alias="from")
    withdrawn: bool = False
    units: dict[str, _Dollars] = Field(default_factory=dict, max_length=64)
    long_context: LongContextEntry | None = None
    source: str | None = Field(None, max_length=2000)
    note: str | None = Field(None, max_length=2000)

    @model_validator(mode="after")
    def _is_whole(self) -> PriceEntry:
        wrong = [name for name in self.units if not _UNIT.fullmatch(name)]
        if wrong:
            raise ValueError("a unit's name is like images or audio_seconds")
        if UNKNOWN_USE in self.units:
            raise ValueError(f"{UNKNOWN_USE} stands for usage that nobody knows: it has no price")
        prices = {**self.tokens(), **self.units}
        if self.withdrawn == bool(prices):
            raise ValueError("state at least one price, or withdrawn: true and none")
        if self.long_context is not None:
            missing = self.long_context.tokens().keys() - self.tokens().keys()
            if missing or not self.long_context.tokens():
                raise ValueError("long_context states the long price of kinds that have an ordinary one")
        return self

    def override(self) -> Override:
        """This function will return the entry as a row that has no number yet; names in one spelling."""
        longer = self.long_context
        return Override(
            id=0,
            provider=names.provider_name(self.provider),
            model=names.model_name(self.model),
            match=self.match,
            service_tier=self.service_tier.strip().lower(),
            effective_from=self.effective_from,
            withdrawn=self.withdrawn,
            tokens=self.tokens(),
            units=self.units,
            long_context=None
            if longer is None
            else LongContext(longer.threshold, longer.inclusive, longer.tokens()),
        )


class PriceFile(BaseModel):
    """The whole file: `prices:` and a list."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prices: list[PriceEntry] = Field(min_length=1, max_length=10_000)

    @model_validator(mode="after")
    def _is_unambiguous(self) -> PriceFile:
        seen = set[tuple[object, ...]]()
        for one in self.prices:
            row = one.override()
            if (*row.key, row.effective_from) in seen:
                raise ValueError(f"{row.provider} {row.model} has two prices from the same moment on")
            seen.add((*row.key, row.effective_from))
        return self


def read(document: Any) -> list[PriceEntry]:
    """This function will judge a parsed file whole; raises InvalidPrices, which names each wrong place."""
    try:
        return PriceFile.model_validate(document).prices
    except ValidationError as invalid:
        problems = [
            f"{'.'.join(map(str, error['loc'])) or 'file'}: {error['msg']}"
            for error in invalid.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise InvalidPrices("\n".join(problems)) from None
