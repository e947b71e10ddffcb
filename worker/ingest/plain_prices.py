"""What plain events cost: the prices of a model, hour by hour, in the shape that a line of text needs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, NamedTuple

from worker.ingest.plain_checks import NULL
from worker.pricing.book import NOT_CONSTANT, NotConstant, PriceBook, Prices
from worker.pricing.rules import CostPolicy, Price

_NOTHING: Final = f"{NULL}\t{NULL}"


# Above it a cost is worked out by the price itself, which knows long contexts.
_NEVER: Final = (-1, 0, 0, 0)


class HourPrice(NamedTuple):
    """The price of a model in one hour, None where none is known."""

    price: Price | None
    version: str
    linear: tuple[int, int, int, int] = _NEVER
    """As in `Price.linear`; holds for no input where that is None."""


class HourPrices(dict[str, HourPrice | None]):
    """The prices of one model by hour as a roll-up has it; None where only the contract's way can tell."""

    __slots__ = ("_book", "_model", "_provider")

    def __init__(self, book: PriceBook, provider: str, model: str) -> None:
        super().__init__()
        self._book = book
        self._provider = provider or None
        self._model = model or None

    def __missing__(self, hour: str) -> HourPrice | None:
        found: Price | NotConstant | None = NOT_CONSTANT
        # The last hour of the calendar has no end.
        with suppress(OverflowError):
            start = datetime.fromisoformat(hour).astimezone(UTC)
            found = self._book.for_hour(self._provider, self._model, start)
        answer: HourPrice | None
        if found is None:
            answer = HourPrice(None, NULL)
        elif isinstance(found, NotConstant) or not _is_plain(found.version):
            answer = None
        else:
            answer = HourPrice(found, found.version, found.linear or _NEVER)
        self[hour] = answer
        return answer


class Choice:
    """Chooses between both costs as `worker.pricing.rules.choose_cost` does, and spells the outcome."""

    __slots__ = ("_computed_first", "prices")

    def __init__(self, prices: Prices) -> None:
        self.prices = prices
        self._computed_first = prices.policy is CostPolicy.COMPUTED_FIRST

    def of(
        self, reported: str | None, scaled: int | None, computed: int | None, version: str
    ) -> tuple[str, int | None]:
        """This function will return the columns cost, source, reported, computed and version as text, and the
        cost in 10^-12 US dollars. `reported` is the text and `scaled` the number of one cost.
        """
        # Whole 10^-12 dollars with an exponent: numeric reads it exactly, and it takes no arithmetic here.
        ours = _NOTHING if computed is None else f"{computed}e-12\t{version}"
        if reported is not None and (computed is None or not self._computed_first):
            return f"{reported}\treported\t{reported}\t{ours}", scaled
        if computed is not None:
            return f"{computed}e-12\tcomputed\t{reported or NULL}\t{ours}", computed
        return f"{NULL}\tunpriced\t{NULL}\t{ours}", None

    def of_all(
        self,
        reported: Sequence[str | None],
        scaled: Sequence[int | None],
        prices: Sequence[HourPrice],
        inputs: Sequence[int],
        outputs: Sequence[int],
    ) -> tuple[Sequence[str], Sequence[int | None]]:
        """This function will do the same for events without parts, all or none of which state a cost."""
        computed = [
            request + i * per_input + o * per_output
            if i <= most
            else (None if price is None else price.scaled(i, o))
            for (price, _, (most, request, per_input, per_output)), i, o in zip(
                prices, inputs, outputs, strict=True
            )
        ]
        if None not in computed and (reported[0] is None or self._computed_first):
            stated = (text or NULL for text in reported)
            columns = [
                f"{ours}e-12\tcomputed\t{text}\t{ours}e-12\t{one.version}"
                for text, ours, one in zip(stated, computed, prices, strict=True)
            ]
            return columns, computed
        if None not in computed:
            columns = [
                f"{text}\treported\t{text}\t{ours}e-12\t{one.version}"
                for text, ours, one in zip(reported, computed, prices, strict=True)
            ]
            return columns, scaled
        chosen = [
            self.of(text, cost, ours, one.version)
            for text, cost, ours, one in zip(reported, scaled, computed, prices, strict=True)
        ]
        return [text for text, _ in chosen], [cost for _, cost in chosen]


def _is_plain(version: str) -> bool:
    return version.isprintable() and "\\" not in version
