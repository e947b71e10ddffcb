"""What pricing asks the platform database: our own overrides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from worker.pricing.book import LongContext, Override, PriceBook
from worker.pricing.rules import CACHE_READ, CACHE_WRITE, CACHE_WRITE_1H, INPUT, OUTPUT, REASONING

TOKEN_COLUMNS: Final[Mapping[str, str]] = {
    "input_per_mtok": INPUT,
    "output_per_mtok": OUTPUT,
    "cache_read_per_mtok": CACHE_READ,
    "cache_write_per_mtok": CACHE_WRITE,
    "cache_write_1h_per_mtok": CACHE_WRITE_1H,
    "reasoning_per_mtok": REASONING,
}
"""The column of each kind of token in `model_prices`; also what a file of prices calls it."""

_LATEST: Final = text("SELECT coalesce(max(id), 0) FROM model_prices")
_OVERRIDES: Final = text(
    f"SELECT id, provider, model, match, service_tier, effective_from, withdrawn, {', '.join(TOKEN_COLUMNS)},"  # noqa: S608  names of ours
    " units::text AS units, long_context::text AS long_context FROM model_prices ORDER BY id"
)


def latest_override(session: Session) -> int:
    """This function will return the number of the newest row of `model_prices`, 0 for none."""
    return int(session.execute(_LATEST).scalar_one())


def overrides(session: Session) -> list[Override]:
    """This function will return every row of `model_prices`, in the order in which they were added."""
    return [_override(row) for row in session.execute(_OVERRIDES).mappings()]


def load_book(session: Session, *, known: PriceBook | None = None) -> PriceBook:
    """This function will return the book as it is now: `known` itself where no row has come since.

    Rows are only ever added, so the newest number tells; a book that is kept remembers what it looked up.
    """
    if known is not None and known.latest_override == latest_override(session):
        return known
    return PriceBook(overrides(session))


def _override(row: Mapping[Any, Any]) -> Override:
    longer = _exact(row["long_context"])
    return Override(
        id=row["id"],
        provider=row["provider"],
        model=row["model"],
        match=row["match"],
        service_tier=row["service_tier"],
        effective_from=row["effective_from"],
        withdrawn=row["withdrawn"],
        tokens={kind: row[name] for name, kind in TOKEN_COLUMNS.items() if row[name] is not None},
        units={name: Decimal(price) for name, price in (_exact(row["units"]) or {}).items()},
        long_context=None
        if longer is None
        else LongContext(
            threshold=int(longer["threshold"]),
            inclusive=bool(longer["inclusive"]),
            prices={
                kind: Decimal(longer["prices"][name])
                for name, kind in TOKEN_COLUMNS.items()
                if name in longer["prices"]
            },
        ),
    )


def _exact(document: str | None) -> dict[str, Any] | None:
    """JSON with its numbers as they are written: a float would not be the price."""
    return None if document is None else json.loads(document, parse_float=Decimal, parse_int=Decimal)
