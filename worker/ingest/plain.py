"""Ordinary events straight from the bytes of an entry to lines of COPY text: the fast way of the drain.

The contract (`producers._stream.decode`) says what an event is. This module takes what it can prove to mean
the same, and leaves everything else to the contract; see docs/decisions/0009. Nothing here touches a server.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from hashlib import blake2b
from itertools import groupby, repeat
from typing import Final

from producers import _fields as rules
from producers._events import InvalidEvent
from producers._json import NotJSON, read_elements, read_text, skip_blank
from producers._stream import MAX_EVENT_BYTES, MAX_FRAME_BYTES, MAX_FRAME_EVENTS
from worker.ingest import plain_checks as checks
from worker.ingest.plain_checks import MOST_CACHED, Arrival, Fields, Party, Window
from worker.ingest.rules import AgeLimits

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
    "payload_hash",
    "occurred_at",
    "received_at",
)
_DETAILS: Final = (
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "duration_ms",
    "status",
    "hold_id",
    "producer_id",
    "seq",
)
_METADATA: Final = ("metadata",)
# In the order of a line. What no event of a batch has, of the details and metadata, is left out of it.
COLUMNS: Final = (*_BASE, *_DETAILS, *_METADATA)

SumKey = tuple[str, str, str, str, str]
"""User, feature, provider or '', model or '', hour as in `2026-11-21 09:00:00+00`."""

_NULL: Final = "\\N"
_NO_DETAILS: Final = (None,) * len(_DETAILS)
# Behind the hour; what is finer than microseconds is cut by the contract.
_CLOCK: Final = re.compile(r":[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?Z").fullmatch
# Single events that are read at once; one of them that is odd has all of them read one by one.
_TOGETHER: Final = 64

_Amounts = tuple[Party, str, int, int, int, int | None]
"""Party, hour, input, output, tokens used, cost in 10^-12 US dollars or None."""
_Mark = tuple[int, int, int, bool]


class Plain:
    """The plain events of one batch, in order; `ids` has one id for each line."""

    __slots__ = ("_amounts", "_details", "_hashes", "_lines", "_metadata", "clash", "count", "ids", "repeats")

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.count = 0
        self.repeats = 0
        self.clash = False
        self._hashes: dict[str, str] = {}
        self._lines: list[str] = []
        self._amounts: list[_Amounts | None] = []
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
        """This function will return all lines as COPY text."""
        lines = self._lines
        if self._details:
            used, details = self._used_details(), self._details
            nothing = "\t".join([_NULL] * len(used))
            spelled = {
                n: "\t".join([_NULL if values[at] is None else str(values[at]) for at in used])
                for n, values in details.items()
            }
            lines = [f"{line[:-1]}\t{spelled.get(n, nothing)}\n" for n, line in enumerate(lines)]
        if self._metadata:
            metadata = self._metadata
            lines = [f"{line[:-1]}\t{metadata.get(n, _NULL)}\n" for n, line in enumerate(lines)]
        return "".join(lines)

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

    def add(self, event_id: str, payload_hash: str, line: str, amounts: _Amounts) -> bool:
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


class Decoder:
    """Reads entries of the stream of events for one drain; it remembers texts that come again and again."""

    __slots__ = ("_keys", "_parties", "_window")

    def __init__(self, limits: AgeLimits) -> None:
        self._window = Window(limits)
        self._parties: dict[tuple[str, str, str | None, str | None], Party] = {}
        self._keys: set[str] = set()

    def take(self, data: bytes, received_at: datetime, into: Plain) -> list[int] | None:
        """This function will take the ordinary events of one `data` field in.

        It returns the places of the others in their frame, or None where the whole entry has to be read by
        the contract and nothing was taken in.
        """
        arrival = self._window.arrival(received_at)
        events = checks.read(data)
        if events is not None:
            mark = into.mark()
            if not self._take_all(events, repeat(arrival), into):
                return []
            into.back_to(mark)
        if len(data) > MAX_FRAME_BYTES or not checks.is_frame(data) or b'"user_id"' not in data:
            return None
        return self._take_some(data, arrival, into)

    def take_many(
        self, entries: Sequence[bytes], received_at: Sequence[datetime], into: Plain
    ) -> list[list[int] | None]:
        """This function will do what `take` does for each of these `data` fields, in order.

        Single events that follow each other are read at once, which saves a fifth of the time.
        """
        answers: list[list[int] | None] = []
        for is_single, group in groupby(entries, _is_single):
            some = list(group)
            if not is_single:
                arrived = received_at[len(answers) :]
                answers += [
                    self.take(data, moment, into) for data, moment in zip(some, arrived, strict=False)
                ]
                continue
            for start in range(0, len(some), _TOGETHER):
                part = some[start : start + _TOGETHER]
                arrived = received_at[len(answers) : len(answers) + len(part)]
                answers += self._take_singles(part, arrived, into)
        return answers

    def _take_singles(
        self, entries: list[bytes], received_at: Sequence[datetime], into: Plain
    ) -> list[list[int] | None]:
        events = checks.read_lines(entries)
        if events is None:
            return [self.take(data, moment, into) for data, moment in zip(entries, received_at, strict=True)]
        left = self._take_all(events, map(self._window.arrival, received_at), into)
        answers: list[list[int] | None] = [[] for _ in entries]
        for place in left:
            answers[place] = None
        return answers

    def _take_some(self, data: bytes, arrival: Arrival, into: Plain) -> list[int] | None:
        """Takes a frame event by event, between the bounds that the contract's own reader finds."""
        try:
            text = read_text(data)
            elements = list(read_elements(text, skip_blank(text, 0)))
        except NotJSON:
            return None
        if not 0 < len(elements) <= MAX_FRAME_EVENTS:
            return None
        left: list[int] = []
        for index, (value, begin, end) in enumerate(elements):
            events = None
            if isinstance(value, dict):
                raw = text[begin:end].encode()
                if len(raw) <= MAX_EVENT_BYTES:
                    events = checks.read(raw)
            if events is None or self._take_all(events, (arrival,), into):
                left.append(index)
        return left if len(left) < len(elements) else None

    def _take_all(self, events: list[Fields], arrivals: Iterable[Arrival], into: Plain) -> list[int]:
        """Takes these in, and returns the places of those that are not ordinary."""
        left: list[int] = []
        ids_are_canonical = checks.are_canonical_ids(events)
        parties, hours, add = self._parties, self._window.hours, into.add
        for place, (event, arrival) in enumerate(zip(events, arrivals, strict=False)):
            (
                _,
                event_id,
                user_id,
                feature,
                provider,
                model,
                inputs,
                outputs,
                cache_read,
                cache_write,
                reasoning,
                _,
                _,
                _,
                _,
                _,
                stated,
                cost,
                occurred_at,
                members,
            ) = event
            received, earliest, latest, _ = arrival
            if not ids_are_canonical:
                event_id = checks.uuid_text(event_id)
            party = parties.get((user_id, feature, provider, model))
            if party is None:
                party = self._party(user_id, feature, provider, model)
            if event_id is None or party is None:
                left.append(place)
                continue

            hour = hours.get(occurred_at[:13])
            if hour is None or not (earliest <= occurred_at < latest and _CLOCK(occurred_at, 13)):
                moment = self._window.moment(occurred_at, arrival)
                if moment is None:
                    left.append(place)
                    continue
                occurred_at, hour = moment

            if inputs is not None and outputs is not None:
                used = inputs + outputs
                if stated is not None and stated != used:
                    left.append(place)
                    continue
                split = f"{inputs}\t{outputs}"
                hashed_split = f"{inputs}\0{outputs}"
            elif inputs is outputs and stated is not None:
                used = stated
                split, hashed_split = "\\N\t\\N", "None\0None"
            else:
                left.append(place)
                continue
            details: tuple[object, ...] | None = event[8:16]
            parts = "None\0None\0None"
            if details == _NO_DETAILS:
                details = None
            else:
                if not checks.are_good_details(event):
                    left.append(place)
                    continue
                parts = f"{cache_read}\0{cache_write}\0{reasoning}"

            scaled: int | None = None
            if cost is None:
                priced, cost = "\\N\tunpriced", "None"
            else:
                known = checks.cost_of(cost)
                if known is None:
                    left.append(place)
                    continue
                cost, scaled = known
                priced = f"{cost}\treported"
            metadata = None
            if members is not None:
                metadata = checks.metadata_text(members, self._keys)
                if metadata is None:
                    left.append(place)
                    continue

            payload_hash = blake2b(
                f"{party.hashed}{hashed_split}\0{parts}\0{used}\0{cost}".encode(), digest_size=16
            ).hexdigest()
            is_first = add(
                event_id,
                payload_hash,
                f"{event_id}\t{party.columns}\t{split}\t{used}\t{priced}\t\\\\x{payload_hash}\t"
                f"{occurred_at}\t{received}\n",
                (party, hour, inputs or 0, outputs or 0, used, scaled),
            )
            if is_first and (details or metadata):
                into.add_to_line(details, metadata)
        return left

    def _party(self, user_id: str, feature: str, provider: str | None, model: str | None) -> Party | None:
        try:
            user = str(rules.uuid_value(user_id, "user_id", "invalid_user_id"))
            rules.text_value(feature, "feature", "invalid_feature", longest=128)
            if provider:
                rules.text_value(provider, "provider", "invalid_provider", longest=128)
            if model:
                rules.text_value(model, "model", "invalid_model", longest=256)
        except InvalidEvent:
            return None
        if len(self._parties) >= MOST_CACHED:
            self._parties.clear()
        party = Party(user, feature, provider or "", model or "")
        self._parties[user_id, feature, provider, model] = party
        return party


def _is_single(data: bytes) -> bool:
    return data.startswith(b"{")
