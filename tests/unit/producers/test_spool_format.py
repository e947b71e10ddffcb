"""A segment's bytes, cut and spoilt at every place: what is whole comes out, once and in order."""

import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from producers import _spool_format as layout
from producers._spool_format import Kept, Piece

EVENTS = [
    Kept(b'{"event_id":"1"}', "u", False),
    Kept('{"feature":"é"}'.encode(), "user_ü", False),
    Kept(b"{}", "0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11", True),
    Kept(b'{"event_id":"4","metadata":{"k":"v"}}', "u", False),
]
RECORDS = [layout.record(event) for event in EVENTS]
WHOLE = layout.header() + b"".join(RECORDS)
ENDS = [layout.HEADER_BYTES + len(b"".join(RECORDS[: count + 1])) for count in range(len(RECORDS))]


def found_in(data: bytes, start: int = layout.HEADER_BYTES) -> list[Piece]:
    pieces = list(layout.pieces(data, start))
    # Nothing is left out and nothing is told twice.
    edges = [start, *(piece.end for piece in pieces)]
    assert [piece.begin for piece in pieces] == edges[:-1]
    assert edges[-1] == max(start, len(data))
    return pieces


def events_in(data: bytes) -> list[Kept]:
    start = layout.HEADER_BYTES if layout.version_of(data) == layout.VERSION else 0
    return [piece.event for piece in found_in(data, start) if piece.event is not None]


class TestPieces:
    def test_are_the_events_as_they_were(self) -> None:
        assert [piece.event for piece in found_in(WHOLE)] == EVENTS
        assert [piece.end for piece in found_in(WHOLE)] == ENDS

    def test_of_a_segment_cut_at_any_byte(self) -> None:
        for length in range(len(WHOLE)):
            whole = sum(end <= length for end in ENDS)
            data = WHOLE[:length]
            assert events_in(data) == EVENTS[:whole], length
            rest = data[ENDS[whole - 1] if whole else 0 :] if length >= layout.HEADER_BYTES else data
            if whole or length < layout.HEADER_BYTES:
                assert layout.is_torn(rest), length

    def test_of_a_segment_with_any_byte_spoilt(self) -> None:
        for place in range(len(WHOLE)):
            hit = sum(end <= place for end in ENDS) if place >= layout.HEADER_BYTES else None
            for change in (0x01, 0x80, 0xFF):
                data = bytearray(WHOLE)
                data[place] ^= change
                expected = [event for index, event in enumerate(EVENTS) if index != hit]
                assert events_in(bytes(data)) == expected, (place, change)

    def test_of_a_segment_with_bytes_put_in_anywhere(self) -> None:
        for place in range(layout.HEADER_BYTES, len(WHOLE) + 1):
            for foreign in (
                b"\x00" * 40,
                b"\xff\xfeUE",
                b"\xff\xfeUE\x05\x00\x00\x00\x00\x00\x00\x00hello",
                RECORDS[0][:20],
            ):
                found = events_in(WHOLE[:place] + foreign + WHOLE[place:])
                hit = sum(end <= place for end in ENDS) if place not in (layout.HEADER_BYTES, *ENDS) else None
                # A mark put in behind a mark may leave the record whole, and nothing else is harmed.
                others = [event for index, event in enumerate(EVENTS) if index != hit]
                assert found in (others, EVENTS), place

    @given(data=st.binary(max_size=300), copies=st.integers(0, 2), middle=st.binary(max_size=40))
    @example(data=b"\xff\xfeUE" * 20, copies=1, middle=b"\xff\xfeU")
    def test_of_anything(self, data: bytes, copies: int, middle: bytes) -> None:
        spoilt = data + (RECORDS[0] + middle) * copies
        assert sum(piece.event == EVENTS[0] for piece in found_in(spoilt, 0)) >= (1 if copies else 0)

    def test_an_endless_length_is_no_record(self) -> None:
        head = b"\xff\xfeUE" + (2**32 - 1).to_bytes(4, "little") + bytes(4)
        assert events_in(layout.header() + head + RECORDS[1]) == [EVENTS[1]]
        assert not layout.is_torn(head + b"x")


class TestHeader:
    def test_states_the_version(self) -> None:
        assert layout.version_of(WHOLE) == layout.VERSION
        newer = b"USAGESPL" + (9).to_bytes(4, "little")
        assert layout.version_of(newer + zlib.crc32(newer).to_bytes(4, "little")) == 9

    @pytest.mark.parametrize("place", range(16))
    def test_is_none_where_it_is_spoilt(self, place: int) -> None:
        data = bytearray(WHOLE)
        data[place] ^= 1
        assert layout.version_of(bytes(data)) is None
        assert layout.version_of(WHOLE[:place]) is None


class TestPosition:
    def test_is_read_back(self) -> None:
        assert layout.position_of(layout.position_record(2**40 + 5)) == 2**40 + 5

    def test_is_the_beginning_where_it_cannot_be_read(self) -> None:
        record = layout.position_record(77)
        for place in range(len(record)):
            spoilt = bytearray(record)
            spoilt[place] ^= 4
            assert layout.position_of(bytes(spoilt)) == 0
            assert layout.position_of(record[:place]) == 0
        assert layout.position_of(record + b"x") == 0
