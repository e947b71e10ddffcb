"""What pricing writes: prices of our own. Rows are added and never changed.

Every function works inside the caller's transaction and never commits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from worker.pricing import queries
from worker.pricing.book import Override, PriceBook
from worker.pricing.price_file import PriceEntry
from worker.pricing.queries import TOKEN_COLUMNS
from worker.pricing.rules import Price


@dataclass(frozen=True, slots=True)
class PriceChange:
    """One entry of a file beside what there is.

    `replaced` is the row with the same key and moment that it stands before, None where it is new; `before`
    is the price that events of that moment have without it. `is_needed` is False where the row says the same
    already.
    """

    entry: PriceEntry
    row: Override
    replaced: Override | None
    before: Price | None
    is_needed: bool


def plan(known: Iterable[Override], entries: Iterable[PriceEntry]) -> list[PriceChange]:
    """This function will compare the entries of a file with the rows there are; it writes nothing."""
    rows = list(known)
    book = PriceBook(rows)
    newest = {(*row.key, row.effective_from): row for row in sorted(rows, key=lambda row: row.id)}
    found: list[PriceChange] = []
    for entry in entries:
        row = entry.override()
        standing = newest.get((*row.key, row.effective_from))
        before = book.price_at(
            row.provider or None, row.model or None, row.effective_from, service_tier=row.service_tier
        )
        is_needed = standing is None or replace(standing, id=0) != row
        found.append(PriceChange(entry, row, standing, before, is_needed))
    return found


# Of two that add prices the second one sees the first one's rows, and numbers become visible in their order:
# whoever has loaded the book up to a number has all that came before it.
_ONE_AT_A_TIME: Final = text("SELECT pg_advisory_xact_lock(hashtextextended('usage-model-prices', 0))")
_ADD: Final = text(
    "INSERT INTO model_prices (provider, model, match, service_tier, effective_from, withdrawn,"  # noqa: S608
    f" {', '.join(TOKEN_COLUMNS)}, units, long_context, source, note, applied_by, applied_at)"
    " VALUES (:provider, :model, :match, :service_tier, :effective_from, :withdrawn,"
    f" {', '.join(f':{name}' for name in TOKEN_COLUMNS)}, CAST(:units AS jsonb),"
    " CAST(:long_context AS jsonb), :source, :note, :applied_by, :applied_at) RETURNING id"
)


def apply(
    session: Session, entries: Sequence[PriceEntry], *, applied_by: str, now: datetime
) -> list[tuple[PriceChange, int | None]]:
    """This function will add what a file says and is not known yet; returns each change with its number.

    All of it or nothing: the caller commits. What is known already has no number.
    """
    session.execute(_ONE_AT_A_TIME)
    added: list[tuple[PriceChange, int | None]] = []
    for change in plan(queries.overrides(session), entries):
        number = None
        if change.is_needed:
            values = _values(change) | {"applied_by": applied_by, "applied_at": now}
            number = int(session.execute(_ADD, values).scalar_one())
        added.append((change, number))
    return added


def _values(change: PriceChange) -> dict[str, Any]:
    row = change.row
    longer = row.long_context
    return {
        "provider": row.provider,
        "model": row.model,
        "match": row.match,
        "service_tier": row.service_tier,
        "effective_from": row.effective_from,
        "withdrawn": row.withdrawn,
        **{name: row.tokens.get(kind) for name, kind in TOKEN_COLUMNS.items()},
        "units": json.dumps({name: _text(price) for name, price in row.units.items()}),
        "long_context": None
        if longer is None
        else json.dumps(
            {
                "threshold": longer.threshold,
                "inclusive": longer.inclusive,
                "prices": {
                    name: _text(longer.prices[kind])
                    for name, kind in TOKEN_COLUMNS.items()
                    if kind in longer.prices
                },
            }
        ),
        "source": change.entry.source,
        "note": change.entry.note,
    }


def _text(price: Decimal) -> str:
    """Digits as they are: a number of JSON would go through a binary fraction in some reader."""
    return format(price, "f")
