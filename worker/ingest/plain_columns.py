"""Events that are alike, a column at a time: what a frame of our own emitters is nearly always.

The loop in `plain.py` takes any ordinary event; here the same is done for all events of a frame at once, in
half the time, as long as none of them has an uncommon member. Whatever is not so is left to the loop.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from operator import add
from typing import Final, NamedTuple

from worker.ingest.plain_checks import Arrival, Fields, Party, cost_of
from worker.ingest.plain_prices import Choice

# Each time with a comma behind it; what is finer than microseconds is cut by the contract.
_CLOCKS: Final = re.compile(r"(?:.{13}:[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?Z,)*").fullmatch
_MILLIONTH: Final = 10**6
# Cost in US dollars with one digit before the point and 12 behind it.
_PLACES: Final = 12
_WIDTH: Final = _PLACES + 2


class Columns(NamedTuple):
    """Events that are alike: a sequence for each thing that a line or the roll-ups need."""

    ids: Sequence[str]
    parties: Sequence[Party]
    inputs: Sequence[int]
    outputs: Sequence[int]
    used: Sequence[int]
    priced: Sequence[str]
    """Cost, its source, both costs and the price's version."""
    scaled: Sequence[int | None]
    """The cost in 10^-12 US dollars."""
    hashes: Sequence[str]
    times: Sequence[str]
    hours: Sequence[str]
    durations: Sequence[int | None]
    statuses: Sequence[str | None]
    producers: Sequence[str | None]
    numbers: Sequence[int | None]


def columns_of(
    events: Sequence[Fields],
    arrivals: Sequence[Arrival],
    *,
    parties: Mapping[tuple[str, str, str | None, str | None], Party],
    hours: Mapping[str, str],
    choice: Choice,
) -> Columns | None:
    """This function will return the columns of events with canonical ids, or None where they differ in kind.

    `parties` and `hours` are what is known already; None also where something is new to them, or where only
    the contract's way can tell a price.
    """
    count = len(events)
    (
        _,
        ids,
        users,
        features,
        providers,
        models,
        inputs,
        outputs,
        cache_read,
        cache_write,
        reasoning,
        durations,
        statuses,
        holds,
        producers,
        numbers,
        stated,
        costs,
        times,
        metadata,
    ) = zip(*events, strict=True)
    uncommon = (cache_read, cache_write, reasoning, holds, stated, metadata)
    if any(column.count(None) != count for column in uncommon) or None in inputs or None in outputs:
        return None
    try:
        party = [parties[key] for key in zip(users, features, providers, models, strict=True)]
        hour = [hours[time[:13]] for time in times]
    except KeyError:
        return None
    if min(times) < max(map(_earliest, arrivals)) or max(times) >= min(map(_latest, arrivals)):
        return None
    if not _CLOCKS(",".join(times) + ","):
        return None
    asked = [one.prices[at] for one, at in zip(party, hour, strict=True)]
    prices = [price for price in asked if price is not None]
    if len(prices) != count:
        return None
    spelled: Sequence[str | None] = costs
    scaled: Sequence[int | None] = costs
    if costs.count(None) != count:
        known = _costs(costs)
        if known is None:
            return None
        spelled, scaled = known
    used = list(map(add, inputs, outputs))
    priced, scaled = choice.of_all(spelled, scaled, prices, inputs, outputs)
    hashed = [
        f"{p.hashed}{i}\0{o}\0None\0None\0None\0{u}\0{c}".encode()
        for p, i, o, u, c in zip(party, inputs, outputs, used, spelled, strict=True)
    ]
    hashes = [blake2b(text, digest_size=16).hexdigest() for text in hashed]
    return Columns(
        ids=ids,
        parties=party,
        inputs=inputs,
        outputs=outputs,
        used=used,
        priced=priced,
        scaled=scaled,
        hashes=hashes,
        times=times,
        hours=hour,
        durations=durations,
        statuses=statuses,
        producers=producers,
        numbers=numbers,
    )


def _earliest(arrival: Arrival) -> str:
    return arrival[1]


def _latest(arrival: Arrival) -> str:
    return arrival[2]


def _costs(costs: Sequence[str | None]) -> tuple[Sequence[str], Sequence[int]] | None:
    """As Decimal writes each at 12 places, and in 10^-12 US dollars; None where one is absent or refused."""
    stated = [cost for cost in costs if cost is not None]
    if len(stated) != len(costs):
        return None
    together = _usual_costs(stated)
    if together is not None:
        return together
    alone = [known for cost in stated if (known := cost_of(cost)) is not None]
    return ([text for text, _ in alone], [cost for _, cost in alone]) if len(alone) == len(costs) else None


def _usual_costs(known: Sequence[str]) -> tuple[Sequence[str], Sequence[int]] | None:
    """Costs with one digit before the point, of a millionth at least: below, Decimal writes an exponent."""
    count = len(known)
    if min(map(len, known)) <= len("0.") or max(map(len, known)) > _WIDTH:
        return None
    spelled = [cost.ljust(_WIDTH, "0") for cost in known]
    joined = "".join(spelled)
    if joined[1::_WIDTH] != "." * count or not joined.isascii():
        return None
    digits = joined.replace(".", "")
    width = _WIDTH - 1
    if len(digits) != width * count or not digits.isdigit():
        return None
    scaled = [int(digits[at : at + width]) for at in range(0, len(digits), width)]
    return (spelled, scaled) if min(scaled) >= _MILLIONTH else None
