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

from worker.ingest.plain_checks import Arrival, Fields, Party

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
    """Cost and its source as columns."""
    scaled: Sequence[int | None]
    """The cost in 10^-12 US dollars; all or none of them are None."""
    hashes: Sequence[str]
    times: Sequence[str]
    hours: Sequence[str]
    producers: Sequence[str | None]
    numbers: Sequence[int | None]


def columns_of(
    events: Sequence[Fields],
    arrivals: Sequence[Arrival],
    *,
    parties: Mapping[tuple[str, str, str | None, str | None], Party],
    hours: Mapping[str, str],
) -> Columns | None:
    """This function will return the columns of events with canonical ids, or None where they differ in kind.

    `parties` and `hours` are what is known already; None also where something is new to them.
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
        *uncommon,
        producers,
        numbers,
        stated,
        costs,
        times,
        metadata,
    ) = zip(*events, strict=True)
    uncommon += stated, metadata
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
    spelled: Sequence[str | None] = costs
    scaled: Sequence[int | None] = costs
    priced: Sequence[str] = ("\\N\tunpriced",) * count
    if costs.count(None) != count:
        known = _costs(costs)
        if known is None:
            return None
        spelled, scaled = known
        priced = [f"{cost}\treported" for cost in spelled]
    used = list(map(add, inputs, outputs))
    hashed = [
        f"{p.hashed}{i}\0{o}\0None\0None\0None\0{u}\0{c}".encode()
        for p, i, o, u, c in zip(party, inputs, outputs, used, spelled, strict=True)
    ]
    hashes = [blake2b(text, digest_size=16).hexdigest() for text in hashed]
    return Columns(ids, party, inputs, outputs, used, priced, scaled, hashes, times, hour, producers, numbers)


def _earliest(arrival: Arrival) -> str:
    return arrival[1]


def _latest(arrival: Arrival) -> str:
    return arrival[2]


def _costs(costs: Sequence[str | None]) -> tuple[list[str], list[int]] | None:
    """Costs with one digit before the point, of a millionth at least: below, Decimal writes an exponent."""
    known = [cost for cost in costs if cost is not None]
    count = len(costs)
    if len(known) != count or min(map(len, known)) <= len("0.") or max(map(len, known)) > _WIDTH:
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
