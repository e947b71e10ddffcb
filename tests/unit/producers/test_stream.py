"""Keys, shards and entries: what is written is what is read, and no bytes can harm the reader."""

import itertools
import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers import InvalidEvent, UsageEvent
from producers._events import REASONS
from producers._stream import (
    MAX_EVENT_BYTES,
    MAX_FRAME_BYTES,
    MAX_FRAME_EVENTS,
    Decoded,
    correction_key,
    decode,
    encode,
    encode_frame,
    pack,
    shard_of,
    stream_key,
)

USER = "7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11"
EVENT = "018f3c1a-7b1c-7d3e-9a55-0123456789ab"


def event(**changes: Any) -> UsageEvent:
    return UsageEvent(
        **{"user_id": USER, "feature": "blog", "input_tokens": 5, "output_tokens": 3, **changes}
    )


def good(**changes: Any) -> dict[str, Any]:
    return {**event(event_id=EVENT).wire(), **changes}


def dumped(value: object) -> bytes:
    return json.dumps(value).encode()


def only(data: bytes, **options: bool) -> Decoded:
    (decoded,) = decode(data, **options)
    return decoded


class TestKeys:
    def test_have_literal_braces_around_the_shard(self) -> None:
        assert stream_key("usage:events", 0) == "usage:events:{0}"
        assert stream_key("usage:events", 12) == "usage:events:{12}"

    @pytest.mark.parametrize(
        ("stream", "expected"),
        [
            ("usage:events", "usage:corrections:{3}"),
            ("acme:prod:events", "acme:prod:corrections:{3}"),
            ("events", "corrections:{3}"),
        ],
    )
    def test_corrections_stand_beside_the_events(self, stream: str, expected: str) -> None:
        assert correction_key(stream, 3) == expected

    @pytest.mark.parametrize(
        ("text", "crc"),
        [("123456789", 0xCBF43926), (USER, 0x744C3BD5), ("", 0)],
    )
    def test_the_shard_is_the_checksum_of_the_id(self, text: str, crc: int) -> None:
        assert shard_of(text, 1 << 32) == crc
        assert shard_of(text, 7) == crc % 7
        assert shard_of(text, 1) == 0


class TestEncode:
    def test_is_compact_utf_8(self) -> None:
        data = encode(event(event_id=EVENT, feature="Übersetzung", occurred_at="2026-01-31T09:30:00Z"))
        assert data.decode() == (
            f'{{"v":1,"event_id":"{EVENT}","user_id":"{USER}","feature":"Übersetzung","input_tokens":5,'
            '"output_tokens":3,"occurred_at":"2026-01-31T09:30:00Z"}'
        )

    def test_a_frame_is_read_event_by_event(self) -> None:
        events = [event(), event(feature="Ü"), event(metadata={"a": "😀"})]
        decoded = decode(encode_frame(events))
        assert [one.event for one in decoded] == events
        assert [one.raw for one in decoded] == [encode(one) for one in events]

    def test_refuses_an_empty_frame(self) -> None:
        with pytest.raises(InvalidEvent, match="empty_frame"):
            encode_frame([])

    def test_refuses_what_is_too_large_for_one_frame(self) -> None:
        with pytest.raises(InvalidEvent, match="frame_too_large"):
            encode_frame([event()] * (MAX_FRAME_EVENTS + 1))

    @given(st.lists(st.integers(1, MAX_EVENT_BYTES), max_size=40), st.integers(0, 1100))
    def test_packs_within_the_limits_and_in_order(self, sizes: list[int], small: int) -> None:
        payloads = [b"1" * size for size in sizes] + [b"2"] * small
        frames = list(pack(payloads))
        assert b",".join(frame[1:-1] for frame, _ in frames) == b",".join(payloads)
        assert sum(count for _, count in frames) == len(payloads)
        assert all(len(frame) <= MAX_FRAME_BYTES for frame, _ in frames)
        assert all(1 <= count <= MAX_FRAME_EVENTS for _, count in frames)

    def test_packs_up_to_the_last_byte(self) -> None:
        half = b"1" * (MAX_FRAME_BYTES // 2)
        fitting = half[:-3]
        assert [len(frame) for frame, _ in pack([half, fitting])] == [MAX_FRAME_BYTES]
        assert len(list(pack([half, fitting + b"1"]))) == 2


NOT_JSON = {
    "empty": b"",
    "blank": b" \n",
    "brace": b"{",
    "words": b"hello",
    "quotes": b"{'a': 1}",
    "byte order mark": b"\xef\xbb\xbf" + dumped({}),
    "UTF-16": json.dumps({}).encode("utf-16"),
    "UTF-16 without mark": json.dumps({"a": 1}).encode("utf-16-le"),
    "UTF-32": json.dumps({}).encode("utf-32"),
    "Latin-1": '{"feature":"Ü"}'.encode("latin-1"),
    "binary": bytes(range(256)),
    "gzip": b"\x1f\x8b\x08\x00",
    "two values": b"{}{}",
    "JSON lines": b"{}\n{}",
    "cut frame": b"[{}",
    "comma at the end": b"[{},]",
    "something behind": b"[{}] x",
    "comment": b"{} // c",
    "raw control character": b'{"a":"\n"}',
    "NUL behind": b"{}\x00",
    "deep": b"[" * 60_000,
    "deep object": b'{"a":' * 30_000,
}


class TestDecodeEntry:
    @pytest.mark.parametrize("data", NOT_JSON.values(), ids=NOT_JSON)
    def test_what_is_not_json_is_one_dead_letter(self, data: bytes) -> None:
        decoded = only(data)
        assert (decoded.index, decoded.reason, decoded.raw) == (-1, "not_json", data)
        assert decoded.detail

    def test_an_empty_frame_is_one_dead_letter(self) -> None:
        assert only(b" [ ] ") == Decoded(
            index=-1, raw=b" [ ] ", reason="empty_frame", detail="an array without events"
        )

    def test_bounds_the_number_of_events(self) -> None:
        assert len(decode(dumped([good()] * MAX_FRAME_EVENTS))) == MAX_FRAME_EVENTS
        decoded = only(dumped([good()] * (MAX_FRAME_EVENTS + 1)))
        assert (decoded.index, decoded.reason) == (-1, "too_many_events")

    def test_bounds_the_size_of_a_frame(self) -> None:
        data = dumped([good()])
        assert decode(data.ljust(MAX_FRAME_BYTES))[0].event is not None
        decoded = only(data.ljust(MAX_FRAME_BYTES + 1))
        assert (decoded.index, decoded.reason) == (-1, "frame_too_large")

    @pytest.mark.parametrize("size", [MAX_EVENT_BYTES + 1, MAX_FRAME_BYTES + 1])
    def test_bounds_the_size_of_an_event(self, size: int) -> None:
        data = dumped(good())
        assert only(data.ljust(MAX_EVENT_BYTES)).event is not None
        decoded = only(b"\n" + data.ljust(size))
        assert decoded.reason == "event_too_large"

    def test_bounds_the_size_of_each_event_alone(self) -> None:
        large = good(metadata={"a": "x" * MAX_EVENT_BYTES})
        decoded = decode(dumped([good(), large, good()]))
        assert [one.reason for one in decoded] == [None, "event_too_large", None]
        assert decoded[1].event_id == UUID(EVENT)

    @pytest.mark.parametrize("value", [None, True, 5, 1.5, "text"])
    def test_a_value_that_is_no_object_is_judged_alone(self, value: object) -> None:
        assert only(dumped(value)).reason == "not_an_object"
        assert [one.reason for one in decode(dumped([value, good(), [good()]]))] == [
            "not_an_object",
            None,
            "not_an_object",
        ]

    def test_white_space_belongs_to_a_single_event_as_received(self) -> None:
        data = b" \r\n" + dumped(good()) + b"\t "
        decoded = only(data)
        assert (decoded.index, decoded.raw) == (0, data)
        assert decoded.event is not None


class TestDecodeEvents:
    def test_one_bad_event_does_not_harm_its_neighbours(self) -> None:
        bad = good(input_tokens=-1)
        decoded = decode(dumped([good(), bad, good()]))
        assert [one.index for one in decoded] == [0, 1, 2]
        assert [one.reason for one in decoded] == [None, "invalid_tokens", None]
        assert decoded[1].raw == dumped(bad)
        assert decoded[1].detail == "input_tokens: expected a number from 0 to 1000000000"

    def test_a_refused_event_can_be_found_by_its_ids(self) -> None:
        decoded = only(dumped(good(cost_usd="x")))
        assert (decoded.event_id, decoded.user_id, decoded.clerk_id) == (UUID(EVENT), UUID(USER), None)
        decoded = only(dumped({"event_id": 5, "user_id": [1], "clerk_id": "user_1"}))
        assert (decoded.event_id, decoded.user_id, decoded.clerk_id) == (None, None, "user_1")
        assert only(dumped({"clerk_id": "\x00", "event_id": "x"})).clerk_id is None

    def test_refuses_a_key_that_stands_twice(self) -> None:
        twice = dumped(good())[:-1] + b',"input_tokens":9}'
        assert only(twice).reason == "duplicate_key"
        inside = dumped(good(metadata={"a": 1})).replace(b'{"a": 1}', b'{"a":1,"a":2}')
        decoded = only(inside)
        assert decoded.event is not None
        assert decoded.event.metadata == {"a": 2, "_repaired": ["duplicate_key"]}

    @pytest.mark.parametrize(
        "metadata",
        [
            b'{"a":NaN}',
            b'{"a":' + b"9" * 100_000 + b"}",
            b'{"a":1e999999999999999999999}',
            b'{"a":"\\ud800"}',
            b'{"a":"\\u0000"}',
            b'{"\\udfff":1}',
            b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
            b'{"a":' + b'{"b":' * 20_000 + b"1" + b"}" * 20_000 + b"}",
            b'{"a":"' + b"x" * 200_000 + b'"}',
            b"[" + b"0," * 90_000 + b"0]",
            b"NaN",
        ],
        ids=itertools.count(),
    )
    def test_nothing_in_metadata_refuses_an_event(self, metadata: bytes) -> None:
        decoded = only(dumped(good())[:-1] + b',"metadata":' + metadata + b"}")
        assert decoded.event is not None
        assert decoded.event.metadata is not None
        assert decoded.event.metadata["_repaired"]
        assert decode(encode(decoded.event))[0].event == decoded.event

    @pytest.mark.parametrize(
        ("number", "reason"),
        [
            (b"9" * 100_000, "invalid_tokens"),
            (b"1e999999999", "invalid_tokens"),
            (b"1e-999999999", "invalid_tokens"),
            (b"1e99999999999999999999", "invalid_tokens"),
            (b"0." + b"1" * 100_000, "invalid_tokens"),
            (b"NaN", "invalid_tokens"),
            (b"-Infinity", "invalid_tokens"),
            (b"812.0", None),
            (b"8.12e2", None),
        ],
    )
    def test_numbers_are_read_without_float(self, number: bytes, reason: str | None) -> None:
        data = dumped(good(input_tokens="HERE")).replace(b'"HERE"', number)
        assert only(data).reason == reason

    def test_costs_keep_every_digit(self) -> None:
        data = dumped(good(cost_usd="HERE")).replace(b'"HERE"', b"0.100000000001")
        decoded = only(data)
        assert decoded.event is not None
        assert str(decoded.event.cost_usd) == "0.100000000001"

    def test_tells_the_streams_apart(self) -> None:
        void = dumped(
            {"event_id": EVENT, "user_id": USER, "corrects": USER, "void": True, "feature": "x"}
            | {"occurred_at": "2026-01-31T09:30:00Z"}
        )
        assert only(void, correction=True).event is not None
        assert only(void).reason == "not_a_correction"
        assert only(dumped(good()), correction=True).reason == "not_a_correction"


# One entry for each code that the bytes alone can earn.
SAMPLES = {
    "not_json": b"{",
    "empty_frame": b"[]",
    "frame_too_large": b"[".ljust(MAX_FRAME_BYTES + 1),
    "too_many_events": b"[" + b"{}," * MAX_FRAME_EVENTS + b"{}]",
    "not_an_object": b"5",
    "event_too_large": b"{".ljust(MAX_FRAME_BYTES + 1),
    "duplicate_key": b'{"v":1,"v":1}',
    "unknown_version": b'{"v":2}',
    "missing_field": b"{}",
    "invalid_event_id": dumped(good(event_id="x")),
    "invalid_user_id": dumped(good(user_id="x")),
    "invalid_feature": dumped(good(feature="")),
    "invalid_provider": dumped(good(provider=5)),
    "invalid_model": dumped(good(model="x" * 257)),
    "invalid_tokens": dumped(good(input_tokens=-1)),
    "inconsistent_tokens": dumped(good(tokens_used=1)),
    "invalid_cost": dumped(good(cost_usd=-1)),
    "invalid_units": dumped(good(units={"images": -1})),
    "invalid_occurred_at": dumped(good(occurred_at="today")),
    "invalid_field": dumped(good(status="?")),
    "not_a_correction": dumped(good(corrects=USER)),
}
# What takes the entry, the clock or the database to know.
ELSEWHERE = [
    *("malformed_entry", "too_old", "in_future", "unknown_user", "unknown_target", "over_correction"),
    *("conflict", "refused_by_database", "poison"),
]


class TestEveryReason:
    @pytest.mark.parametrize(("reason", "data"), SAMPLES.items(), ids=SAMPLES)
    def test_is_told(self, reason: str, data: bytes) -> None:
        assert only(data).reason == reason

    def test_is_told_here_or_by_the_worker(self) -> None:
        assert sorted([*SAMPLES, *ELSEWHERE]) == sorted(REASONS)


JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(alphabet=st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from([*UsageEvent.model_fields, "v", "unknown"])
ALMOST_EVENTS = st.dictionaries(FIELDS, JSON_VALUES, max_size=6).map(lambda changes: {**good(), **changes})
# Compact and spacious, escaped and not, as other languages write it.
DUMPED = st.builds(
    lambda value, ascii_only, indent: json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode(
        "utf-8", "surrogatepass"
    ),
    st.lists(ALMOST_EVENTS | JSON_VALUES, max_size=4) | ALMOST_EVENTS,
    st.booleans(),
    st.sampled_from([None, 1]),
)
JSON_LIKE = st.text(alphabet='[]{}:,"\\ 01.eE-+ntrufalsv_id\n', max_size=60).map(str.encode)


def check(data: bytes, decoded: list[Decoded]) -> None:
    """What holds for the judgement of any bytes."""
    assert decoded
    if decoded[0].index == -1:
        assert len(decoded) == 1
        assert decoded[0].raw == data
    else:
        assert [one.index for one in decoded] == list(range(len(decoded)))
    for one in decoded:
        assert (one.event is None) == (one.reason is not None) == (one.detail is not None)
        assert one.reason is None or one.reason in REASONS
        if one.event is not None:
            again = decode(encode(one.event), correction=one.event.corrects is not None)
            assert again[0].event == one.event


class TestNoBytesCanHarm:
    @given(st.binary(max_size=200) | JSON_LIKE, st.booleans())
    def test_any_bytes(self, data: bytes, correction: bool) -> None:
        check(data, decode(data, correction=correction))

    @given(DUMPED, st.booleans())
    def test_any_json(self, data: bytes, correction: bool) -> None:
        check(data, decode(data, correction=correction))

    @given(DUMPED, st.integers(0, 400), st.binary(min_size=1, max_size=2))
    def test_damaged_events(self, data: bytes, position: int, damage: bytes) -> None:
        data = data[:position] + damage + data[position + 1 :]
        check(data, decode(data))

    @given(
        st.lists(ALMOST_EVENTS | JSON_VALUES, min_size=1, max_size=5),
        st.booleans(),
        st.sampled_from([None, 2]),
    )
    def test_the_slices_of_a_frame_join_to_the_frame(
        self, values: list[object], ascii_only: bool, indent: int | None
    ) -> None:
        try:
            data = json.dumps(values, ensure_ascii=ascii_only, indent=indent).encode()
        except UnicodeEncodeError:
            data = json.dumps(values, indent=indent).encode()
        decoded = decode(data)
        position = 0
        for index, one in enumerate(decoded):
            start = data.index(one.raw, position)
            expected = b"[" if index == 0 else b","
            assert data[position:start].strip() == expected
            position = start + len(one.raw)
        assert data[position:].strip() == b"]"
