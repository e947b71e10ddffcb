"""The plain events of one batch: their lines of COPY text, and their sums for the roll-ups."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from worker.ingest.plain_checks import NULL, Party

_BASE: Final = (
    "id",
    "user_id",
    "feature",
    "provider",
    "model",
    "input_tokens",
    "output_tokens",
    "tokens_used",
    "cost_usd",
    "cost_source",
    "cost_reported_usd",
    "cost_computed_usd",
    "price_version",
    "payload_hash",
    "occurred_at",
    "received_at",
    "duration_ms",
    "status",
    "producer_id",
    "seq",
)
_DETAILS: Final = (
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "hold_id",
)
_METADATA: Final = ("metadata",)
# In the order of a line. What no event of a batch has, of the details and metadata, is left out of it.
COLUMNS: Final = (*_BASE, *_DETAILS, *_METADATA)

SumKey = tuple[str, str, str, str, str]
"""User, feature, provider or '', model or '', hour as in `2026-11-21 09:00:00+00`."""

NO_DETAILS: Final = (None,) * len(_DETAILS)
Amounts = tuple[Party, str, int, int, int, int | None]
"""Party, hour, input, output, tokens used, cost in 10^-12 US dollars or None."""
_Mark = tuple[int, int, int, bool]


class Plain:
    """The plain events of one batch, in order; `ids` has one id for each line."""

    __slots__ = (
        "_amounts",
        "_details",
        "_first",
        "_hashes",
        "_lines",
        "_metadata",
        "clash",
        "count",
        "ids",
        "repeats",
    )

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.count = 0
        self.repeats = 0
        self.clash = False
        self._hashes: dict[str, str] = {}
        self._lines: list[str] = []
        self._amounts: list[Amounts | None] = []
        self._details: dict[int, tuple[object, ...]] = {}
        self._metadata: dict[int, str] = {}

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of `text()`."""
        details = (_DETAILS[at] for at in self._used_details())
        return (*_BASE, *details, *(_METADATA if self._metadata else ()))

    def _used_details(self) -> list[int]:
        """The places of those details that some event has."""
        by_column = zip(*self._details.values(), strict=True)
        return [at for at, values in enumerate(by_column) if values.count(None) < len(values)]

    def text(self) -> str:
        """This function will return all lines as COPY text, in the order of the ids they begin with."""
        lines = self._lines
        if self._details:
            used, details = self._used_details(), self._details
            nothing = "\t".join([NULL] * len(used))
            spelled = {
                n: "\t".join([NULL if values[at] is None else str(values[at]) for at in used])
                for n, values in details.items()
            }
            lines = [f"{line[:-1]}\t{spelled.get(n, nothing)}\n" for n, line in enumerate(lines)]
        if self._metadata:
            metadata = self._metadata
            lines = [f"{line[:-1]}\t{metadata.get(n, NULL)}\n" for n, line in enumerate(lines)]
        # Ids of this release rise with the time, so that there is little to move.
        return "".join(sorted(lines))

    @property
    def sums(self) -> dict[SumKey, list[int]]:
        """Per roll-up row: events, unpriced events, input, output, tokens used, cost in 10^-12 US dollars."""
        sums: dict[SumKey, list[int]] = {}
        for (owner, hour), amounts in self._sums().items():
            user, feature, provider, model = owner.split("\t")
            sums[user, feature, provider, model, hour] = amounts
        return sums

    def sums_text(self) -> str:
        """This function will return the roll-up rows as COPY text: the key, then the sums, in US dollars.

        The columns are those of `worker.rollups.queries`, KEY and SUMS.
        """
        # Whole 10^-12 dollars with an exponent: numeric reads it exactly, and it takes no arithmetic here.
        return "".join(
            [
                f"{owner}\t{hour}\t{events}\t{unpriced}\t{inputs}\t{outputs}\t{used}\t{cost}e-12\n"
                for (owner, hour), (events, unpriced, inputs, outputs, used, cost) in self._sums().items()
            ]
        )

    def _sums(self) -> dict[tuple[str, str], list[int]]:
        sums: dict[tuple[str, str], list[int]] = {}
        for amounts in self._amounts:
            if amounts is None:
                continue
            party, hour, inputs, outputs, used, cost = amounts
            unpriced = 0
            if cost is None:
                cost, unpriced = 0, 1
            key = (party.owner, hour)
            row = sums.get(key)
            if row is None:
                sums[key] = [1, unpriced, inputs, outputs, used, cost]
                continue
            row[0] += 1
            row[1] += unpriced
            row[2] += inputs
            row[3] += outputs
            row[4] += used
            row[5] += cost
        return sums

    def without(self, ids: Collection[str]) -> None:
        """This function will take the events with these ids out of the sums; their lines stay."""
        known = set(ids)
        self._amounts = [
            None if event_id in known else amounts
            for event_id, amounts in zip(self.ids, self._amounts, strict=True)
        ]

    def add(self, event_id: str, payload_hash: str, line: str, amounts: Amounts) -> bool:
        """This function will take one event in; False when its id has come before, so that it has no line."""
        self.count += 1
        first = self._hashes.setdefault(event_id, payload_hash)
        if first is not payload_hash:
            self.repeats += 1
            if first != payload_hash:
                self.clash = True
            return False
        self.ids.append(event_id)
        self._lines.append(line)
        self._amounts.append(amounts)
        return True

    def extend(
        self, ids: Sequence[str], hashes: Sequence[str], lines: Sequence[str], amounts: Sequence[Amounts]
    ) -> None:
        """This function will take events in; what `add` does with each of them."""
        fresh = dict(zip(ids, hashes, strict=True))
        if len(fresh) == len(ids) and self._hashes.keys().isdisjoint(fresh):
            self.count += len(ids)
            self._hashes.update(fresh)
            self.ids += ids
            self._lines += lines
            self._amounts += amounts
            return
        for one in zip(ids, hashes, lines, amounts, strict=True):
            self.add(*one)

    def add_to_line(self, details: tuple[object, ...] | None, metadata: str | None) -> None:
        """This function will give the last line its optional columns."""
        if details is not None:
            self._details[len(self.ids) - 1] = details
        if metadata is not None:
            self._metadata[len(self.ids) - 1] = metadata

    def mark(self) -> _Mark:
        """This function will return what `back_to` needs to forget all that came after."""
        return len(self.ids), self.count, self.repeats, self.clash

    def back_to(self, mark: _Mark) -> None:
        """This function will forget what was taken in after the mark."""
        length, self.count, self.repeats, self.clash = mark
        for n in range(length, len(self.ids)):
            del self._hashes[self.ids[n]]
            self._details.pop(n, None)
            self._metadata.pop(n, None)
        del self.ids[length:], self._lines[length:], self._amounts[length:]
