"""Ordinary events straight from the bytes of an entry to lines of COPY text: the fast way of the drain.

The contract (`producers._stream.decode`) says what an event is. This module takes what it can prove to mean
the same, and leaves everything else to the contract; see docs/decisions/0009. Nothing here touches a server.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from hashlib import blake2b
from itertools import groupby, islice, repeat
from typing import Final

from producers import _fields as rules
from producers._events import InvalidEvent
from producers._json import NotJSON, read_elements, read_text, skip_blank
from producers._stream import MAX_EVENT_BYTES, MAX_FRAME_BYTES, MAX_FRAME_EVENTS
from worker.ingest import costs
from worker.ingest import plain_checks as checks
from worker.ingest.plain_batch import NO_DETAILS, Plain
from worker.ingest.plain_checks import MOST_CACHED, NULL, Arrival, Fields, Party, Window
from worker.ingest.plain_columns import columns_of
from worker.ingest.plain_prices import Choice, HourPrices
from worker.ingest.rules import AgeLimits
from worker.pricing.book import Prices
from worker.pricing.catalog import STANDARD

# Behind the hour; what is finer than microseconds is cut by the contract.
_CLOCK: Final = re.compile(r":[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?Z").fullmatch
# Single events that are read at once; one of them that is odd has all of them read one by one.
_TOGETHER: Final = 64


class Decoder:
    """Reads entries of the stream of events for one drain; it remembers texts that come again and again."""

    __slots__ = ("_choice", "_hour_prices", "_keys", "_parties", "_producers", "_window")

    def __init__(self, limits: AgeLimits, prices: Prices) -> None:
        self._window = Window(limits)
        self._choice = Choice(prices)
        self._hour_prices: dict[tuple[str, str], HourPrices] = {}
        self._parties: dict[tuple[str, str, str | None, str | None], Party] = {}
        self._keys: set[str] = set()
        self._producers: set[str] = set()

    def use_prices(self, prices: Prices) -> None:
        """This function will price what comes from now on with these."""
        if prices is not self._choice.prices:
            self._choice = Choice(prices)
            self._hour_prices.clear()
            # They lead to the prices of before.
            self._parties.clear()

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
        ids_are_canonical = checks.are_canonical_ids(events)
        arrivals = list(islice(arrivals, len(events)))
        if ids_are_canonical and len(events) > 1:
            alike = self._take_alike(events, arrivals, into)
            if alike:
                return []
        left: list[int] = []
        parties, hours, add = self._parties, self._window.hours, into.add
        for place, (event, arrival) in enumerate(zip(events, arrivals, strict=True)):
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
                duration,
                status,
                hold,
                producer,
                number,
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
            details: tuple[object, ...] | None = (cache_read, cache_write, reasoning, hold)
            parts = "None\0None\0None"
            if details == NO_DETAILS:
                details = None
            else:
                if not checks.are_good_details(event):
                    left.append(place)
                    continue
                parts = f"{cache_read}\0{cache_write}\0{reasoning}"

            made_by = self._made_by(producer, number)
            lasted = NULL if duration is None else duration
            if made_by is None:
                left.append(place)
                continue
            scaled: int | None = None
            if cost is not None:
                known = checks.cost_of(cost)
                if known is None:
                    left.append(place)
                    continue
                cost, scaled = known
            price = party.prices[hour]
            if price is None:
                left.append(place)
                continue
            computed = None
            if price.price is not None and (inputs is not None or not used):
                computed = price.price.scaled(
                    inputs or 0, outputs or 0, cache_read or 0, cache_write or 0, reasoning or 0
                )
            chosen, scaled = self._choice.of(cost, scaled, computed, price.version)
            metadata = None
            if members is not None:
                metadata = checks.metadata_text(members, self._keys)
                if metadata is None or costs.service_tier(members) not in STANDARD:
                    left.append(place)
                    continue

            payload_hash = blake2b(
                f"{party.hashed}{hashed_split}\0{parts}\0{used}\0{cost}".encode(), digest_size=16
            ).hexdigest()
            is_first = add(
                event_id,
                payload_hash,
                f"{event_id}\t{party.columns}\t{split}\t{used}\t{chosen}\t\\\\x{payload_hash}\t"
                f"{occurred_at}\t{received}\t{lasted}\t{status or NULL}\t{made_by}\n",
                (party, hour, inputs or 0, outputs or 0, used, scaled),
            )
            if is_first and (details or metadata):
                into.add_to_line(details, metadata)
        return left

    def _take_alike(self, events: list[Fields], arrivals: list[Arrival], into: Plain) -> bool:
        """Takes all of these in, or none where they are not alike."""
        columns = columns_of(
            events, arrivals, parties=self._parties, hours=self._window.hours, choice=self._choice
        )
        if columns is None:
            return False
        made_by = [
            self._made_by(producer, number)
            for producer, number in zip(columns.producers, columns.numbers, strict=True)
        ]
        if None in made_by:
            return False
        rest = [
            f"{NULL if duration is None else duration}\t{status or NULL}\t{by}"
            for duration, status, by in zip(columns.durations, columns.statuses, made_by, strict=True)
        ]
        lines = [
            f"{event_id}\t{party.columns}\t{inputs}\t{outputs}\t{used}\t{priced}\t\\\\x{hashed}\t"
            f"{occurred_at}\t{arrival[0]}\t{end}\n"
            for event_id, party, inputs, outputs, used, priced, hashed, occurred_at, arrival, end in zip(
                columns.ids,
                columns.parties,
                columns.inputs,
                columns.outputs,
                columns.used,
                columns.priced,
                columns.hashes,
                columns.times,
                arrivals,
                rest,
                strict=True,
            )
        ]
        amounts = list(
            zip(
                columns.parties,
                columns.hours,
                columns.inputs,
                columns.outputs,
                columns.used,
                columns.scaled,
                strict=True,
            )
        )
        into.extend(columns.ids, columns.hashes, lines, amounts)
        return True

    def _made_by(self, producer: str | None, number: int | None) -> str | None:
        """The two columns as text, or None where the producer's name is refused."""
        if producer is None:
            return f"{NULL}\t{NULL if number is None else number}"
        if producer not in self._producers:
            try:
                rules.identifier_value(producer, "producer_id", "invalid_field", longest=128)
            except InvalidEvent:
                return None
            if len(self._producers) >= MOST_CACHED:
                self._producers.clear()
            self._producers.add(producer)
        return f"{producer}\t{NULL if number is None else number}"

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
        named = (provider or "", model or "")
        prices = self._hour_prices.get(named)
        if prices is None:
            if len(self._hour_prices) >= MOST_CACHED:
                self._hour_prices.clear()
            prices = self._hour_prices[named] = HourPrices(self._choice.prices.book, *named)
        party = Party(user, feature, *named, prices=prices)
        self._parties[user_id, feature, provider, model] = party
        return party


def _is_single(data: bytes) -> bool:
    return data.startswith(b"{")
