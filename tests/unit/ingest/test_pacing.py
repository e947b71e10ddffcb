"""How much is read at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.ingest.pacing import MOST_AT_ONCE, Pace, extent

MIB = 1024 * 1024


def pace() -> Pace:
    return Pace(batch_size=5000, batch_bytes=16 * MIB)


class TestPace:
    def test_begins_small_and_doubles(self) -> None:
        one = pace()
        asked = []
        for _ in range(7):
            asked.append(one.wanted())
            one.learn(entries=asked[-1], events=asked[-1], size=300 * asked[-1])
        assert asked == [16, 32, 64, 128, 256, 512, 512]

    def test_asks_for_fewer_entries_where_they_hold_more_events(self) -> None:
        one = pace()
        one.learn(entries=16, events=16 * 500, size=16 * 100_000)
        assert one.wanted() == 10

    def test_asks_for_fewer_entries_where_they_are_large(self) -> None:
        one = pace()
        for _ in range(5):
            one.learn(entries=16, events=16, size=16 * MIB)
        assert one.wanted() == 16

    def test_is_full_by_events_or_bytes(self) -> None:
        assert pace().wanted(events=5000) == 0
        assert pace().wanted(size=16 * MIB) == 0
        assert pace().wanted(events=4999, size=0) == 1

    @given(st.lists(st.tuples(st.integers(1, 500), st.integers(1, MIB)), min_size=1, max_size=30))
    def test_never_asks_for_more_than_the_most_and_always_for_one(self, reads: list[tuple[int, int]]) -> None:
        one = pace()
        for events, size in reads:
            asked = one.wanted()
            assert 1 <= asked <= MOST_AT_ONCE
            one.learn(entries=asked, events=asked * events, size=asked * size)


class TestExtent:
    def test_counts_events_and_bytes_without_decoding(self) -> None:
        frame = b'[{"event_id": "a"}, {"event_id": "b"}]'
        assert extent([(b"1-0", [b"data", frame]), (b"1-1", [b"data", b"{"])]) == (2, len(frame) + 1 + 8)
        assert extent([]) == (0, 0)
