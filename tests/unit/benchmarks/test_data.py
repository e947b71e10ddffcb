"""What is measured is what customers send: the emitter's bytes, and events that differ."""

from __future__ import annotations

import json
from collections import Counter

from benchmarks import data
from producers._events import parse
from producers._stream import encode

COUNT = 2000


class TestEvents:
    def test_are_the_bytes_that_the_emitter_sends(self) -> None:
        for event in data.events(200):
            contract = parse(json.loads(event.wire()))
            assert encode(contract) == event.wire()

    def test_differ_as_those_of_customers_do(self) -> None:
        events = list(data.events(COUNT))
        users = Counter(event.user_id for event in events)
        assert len({event.event_id for event in events}) == COUNT
        assert 100 < len(users) <= data.USERS
        assert users.most_common(1)[0][1] > 5 * COUNT / data.USERS
        assert len({event.cost_usd for event in events}) > COUNT / 2
        assert len({event.model for event in events}) >= 5

    def test_have_random_ids_where_that_is_asked(self) -> None:
        assert {event.event_id.version for event in data.events(20)} == {7}
        assert {event.event_id.version for event in data.events(20, random_ids=True)} == {4}


class TestDataset:
    def test_has_a_tenth_of_duplicates_where_its_name_says_so(self) -> None:
        entries = data.Dataset(COUNT).frames_with_duplicates
        ids = [event["event_id"] for entry in entries for event in json.loads(entry)]
        assert len(ids) == COUNT
        assert len(set(ids)) == COUNT - COUNT // 10

    def test_has_frames_of_a_hundred(self) -> None:
        assert {len(json.loads(entry)) for entry in data.Dataset(COUNT).frames} == {data.FRAME}

    def test_has_a_value_for_every_column_of_the_copy(self) -> None:
        lines = data.Dataset(50).copy_text.decode().splitlines()
        assert {line.count("\t") for line in lines} == {data.COLUMNS.count(",")}
