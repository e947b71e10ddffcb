"""Prices and the arithmetic of a cost: exact, rounded once. No server, no clock, no catalog here.

An unknown price is None and never 0: that goes for a model nobody knows, for a kind of token without a price,
and for a unit (an image, a second of audio) without one. A more special kind of token that has no price of
its own is charged as the whole it is part of: cached input as input, reasoning as output.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from math import lcm
from typing import Final, NamedTuple

PLACES: Final = 12
_SCALE: Final = 10**PLACES
_LIMIT: Final = 10 ** (12 + PLACES)
_MONEY: Final = Context(prec=80, rounding=ROUND_HALF_EVEN)
_NOTHING: Final[Mapping[str, Decimal]] = {}

INPUT: Final = "input_tokens"
OUTPUT: Final = "output_tokens"
CACHE_READ: Final = "cache_read_tokens"
CACHE_WRITE: Final = "cache_write_tokens"
CACHE_WRITE_1H: Final = "cache_write_1h_tokens"
REASONING: Final = "output_reasoning_tokens"
REQUESTS: Final = "requests"
_SPLIT: Final = frozenset((INPUT, OUTPUT, CACHE_READ, CACHE_WRITE, REASONING))


class CostPolicy(enum.StrEnum):
    """Which of two known costs is the one that counts."""

    REPORTED_FIRST = "reported_first"
    COMPUTED_FIRST = "computed_first"


class CostChoice(NamedTuple):
    """The cost that counts, in US dollars at twelve places, and where it came from."""

    cost_usd: Decimal | None
    source: str


def choose_cost(reported: Decimal | None, computed: Decimal | None, policy: CostPolicy) -> CostChoice:
    """This function will choose between both costs of an event; with neither it is `unpriced`, never 0."""
    first = CostChoice(reported, "reported"), CostChoice(computed, "computed")
    for choice in first if policy is CostPolicy.REPORTED_FIRST else reversed(first):
        if choice.cost_usd is not None:
            return choice
    return CostChoice(None, "unpriced")


@dataclass(frozen=True, slots=True)
class TokenUse:
    """What one event used. Input includes cached tokens, output includes reasoning; None = not stated."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    tokens_used: int = 0
    units: Mapping[str, Decimal] = field(default_factory=dict)

    @property
    def split_is_unknown(self) -> bool:
        """Whether only a total is known, which has no price."""
        return self.tokens_used != 0 and (self.input_tokens is None or self.output_tokens is None)

    def quantity(self, kind: str) -> Fraction | None:
        """This function will return how much of a kind was used, None where the event does not say."""
        if kind == REQUESTS:
            # An event is one request unless it says otherwise.
            return Fraction(self.units.get(kind, 1))
        if kind in _SPLIT:
            name = "reasoning_tokens" if kind == REASONING else kind
            return Fraction(getattr(self, name) or 0)
        stated = self.units.get(kind)
        return None if stated is None else Fraction(stated)


@dataclass(frozen=True, slots=True)
class Rate:
    """The price in US dollars of `per` of a kind, None where it is unknown.

    `tiers` are (start, price), rising: with more than `start` input tokens, cached ones included, the whole
    request has that price. `parts` are the kinds with a rate of their own that this one includes. What is
    used at all is charged as `least` at least.
    """

    kind: str
    price: Decimal | None
    per: int
    tiers: tuple[tuple[int, Decimal], ...] = ()
    parts: tuple[str, ...] = ()
    least: int = 0

    def at(self, input_tokens: int) -> Decimal | None:
        """This function will return the price for a request with so many input tokens."""
        price = self.price
        for start, above in self.tiers:
            if input_tokens > start:
                price = above
        return price


class _Table(NamedTuple):
    """Prices of one token of each kind in 10^-12 US dollars over a common denominator; None = unknown."""

    input: int | None
    output: int | None
    cache_read: int
    cache_write: int
    reasoning: int
    request: int
    denominator: int


@dataclass(frozen=True, eq=False)
class Price:
    """The price of one model from some moment on; `version` names it, for good.

    `rates` hold INPUT and OUTPUT in any case, and parts before what includes them. `covered` are units
    without a rate of their own that are part of what has one.
    """

    version: str
    rates: tuple[Rate, ...]
    covered: frozenset[str] = frozenset()
    _starts: tuple[int, ...] = field(init=False, repr=False)
    _tables: tuple[_Table, ...] = field(init=False, repr=False)
    _flat: _Table = field(init=False, repr=False)

    def __post_init__(self) -> None:
        starts = tuple(sorted({start for rate in self.rates for start, _ in rate.tiers}))
        tables = tuple(_table(self.rates, size) for size in (0, *(start + 1 for start in starts)))
        for name, value in (("_starts", starts), ("_tables", tables), ("_flat", tables[0])):
            object.__setattr__(self, name, value)

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds that have a price."""
        return frozenset(rate.kind for rate in self.rates if rate.price is not None)

    @property
    def linear(self) -> tuple[int, int, int, int] | None:
        """The largest input that it holds for, and what a request, a token of input and one of output cost.

        In 10^-12 US dollars, for events without parts and units: the cost is their sum as it stands. None
        where it would have to be rounded, or where one of them has no price.
        """
        table = self._flat
        if table.input is None or table.output is None or table.denominator != 1:
            return None
        return self._starts[0] if self._starts else _LIMIT, table.request, table.input, table.output

    def scaled(
        self,
        input_tokens: int,
        output_tokens: int,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        reasoning_tokens: int = 0,
    ) -> int | None:
        """This function will return the cost in 10^-12 US dollars of an event without units.

        Parts are within their wholes, as the contract of events has them; what is absent is 0. None: one of
        the kinds has no price.
        """
        table = self._flat
        if self._starts and input_tokens > self._starts[0]:
            table = self._tables[sum(input_tokens > start for start in self._starts)]
        per_input, per_output, per_read, per_write, per_reasoning, request, denominator = table
        if per_input is None or per_output is None:
            use = TokenUse(
                input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens
            )
            exact = self.exact(use)
            return None if exact is None else round(exact * _SCALE)
        cost = request + input_tokens * per_input + output_tokens * per_output
        if cache_read_tokens:
            cost += cache_read_tokens * (per_read - per_input)
        if cache_write_tokens:
            cost += cache_write_tokens * (per_write - per_input)
        if reasoning_tokens:
            cost += reasoning_tokens * (per_reasoning - per_output)
        return cost if denominator == 1 else _half_even(cost, denominator)

    def cost(self, use: TokenUse) -> Decimal | None:
        """This function will return the cost in US dollars at twelve places, rounded half-even once.

        None: something that was used has no price, the split of the tokens is unknown, a part is larger than
        its whole, or no column could hold the cost.
        """
        if use.split_is_unknown:
            return None
        if use.units:
            exact = self.exact(use)
            scaled = None if exact is None else round(exact * _SCALE)
        else:
            scaled = self.scaled(
                use.input_tokens or 0,
                use.output_tokens or 0,
                use.cache_read_tokens or 0,
                use.cache_write_tokens or 0,
                use.reasoning_tokens or 0,
            )
        return None if scaled is None or scaled >= _LIMIT else unscaled(scaled)

    def exact(self, use: TokenUse) -> Fraction | None:
        """This function will return the cost in US dollars before it is rounded; None as in `cost`."""
        priced = {rate.kind for rate in self.rates}
        if any(amount and unit not in priced | self.covered for unit, amount in use.units.items()):
            return None
        alone: dict[str, Fraction] = {}
        total = Fraction(0)
        for rate in self.rates:
            parts = sum((alone[part] for part in rate.parts), Fraction(0))
            stated = use.quantity(rate.kind)
            if stated and stated < rate.least:
                stated = Fraction(rate.least)
            alone[rate.kind] = left = Fraction(0) if stated is None else stated - parts
            if left < 0:
                return None
            price = rate.at(use.input_tokens or 0)
            if left and price is None:
                return None
            total += left * Fraction(price or 0) / rate.per
        return total


def unscaled(scaled: int) -> Decimal:
    """This function will return 10^-12 US dollars as US dollars at twelve places."""
    return Decimal(scaled).scaleb(-PLACES, context=_MONEY)


def spelled(scaled: int) -> str:
    """This function will spell a cost in 10^-12 US dollars, not below zero, as PostgreSQL reads it."""
    return f"{scaled // _SCALE}.{scaled % _SCALE:012d}"


def rates_in_order(rates: Iterable[Rate], within: Mapping[str, frozenset[str]]) -> tuple[Rate, ...]:
    """This function will complete rates for a Price: parts first, each whole knowing its parts.

    `within` says of a kind which ones include it. INPUT and OUTPUT are added as unknown where they are
    absent.
    """
    by_kind = {rate.kind: rate for rate in rates}
    for kind in (INPUT, OUTPUT):
        by_kind.setdefault(kind, Rate(kind, None, 10**6))
    nothing = frozenset[str]()
    parts = {kind: tuple(part for part in by_kind if kind in within.get(part, nothing)) for kind in by_kind}
    ordered = sorted(by_kind.values(), key=lambda rate: (len(parts[rate.kind]), rate.kind))
    return tuple(replace(rate, tiers=tuple(sorted(rate.tiers)), parts=parts[rate.kind]) for rate in ordered)


def _table(rates: Iterable[Rate], input_tokens: int) -> _Table:
    """The prices that hold for a request of this size, as whole numbers."""
    price: dict[str, Fraction | None] = {}
    for rate in rates:
        at = rate.at(input_tokens)
        price[rate.kind] = None if at is None else Fraction(at) * _SCALE / rate.per

    def part(kind: str, whole: str) -> Fraction:
        own = price.get(kind)
        return own if own is not None else price[whole] or Fraction(0)

    per_input, per_output = price[INPUT], price[OUTPUT]
    amounts = (
        per_input or Fraction(0),
        per_output or Fraction(0),
        part(CACHE_READ, INPUT),
        part(CACHE_WRITE, INPUT),
        part(REASONING, OUTPUT),
        price.get(REQUESTS) or Fraction(0),
    )
    denominator = lcm(*(amount.denominator for amount in amounts))
    inputs, outputs, reads, writes, thoughts, requests = (int(amount * denominator) for amount in amounts)
    return _Table(
        None if per_input is None else inputs,
        None if per_output is None else outputs,
        reads,
        writes,
        thoughts,
        requests,
        denominator,
    )


def _half_even(numerator: int, denominator: int) -> int:
    whole, rest = divmod(numerator, denominator)
    if 2 * rest > denominator or (2 * rest == denominator and whole % 2):
        whole += 1
    return whole
