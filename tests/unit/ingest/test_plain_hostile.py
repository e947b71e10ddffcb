"""What the tests of the contract refuse, repair or normalise, put through the fast decoder as well."""

from __future__ import annotations

import itertools
import json
from decimal import Decimal
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers._stream import MAX_FRAME_EVENTS
from tests.fuzz.differential import LIMITS, NOW, PRICES, compare
from tests.unit.producers.test_event_amounts import COSTS_REFUSED, INTEGERS_REFUSED
from tests.unit.producers.test_event_identity import IDS_REFUSED, TEXTS_REFUSED
from tests.unit.producers.test_event_time import TIMES_REFUSED
from tests.unit.producers.test_json import ALMOST_JSON, VALUES
from tests.unit.producers.test_stream import DUMPED, JSON_LIKE, NOT_JSON, SAMPLES
from worker.ingest.plain import Decoder
from worker.ingest.plain_batch import Plain

GOOD: Final[dict[str, object]] = {
    "v": 1,
    "event_id": "018f3c1a-7b1c-7d3e-9a55-0123456789ab",
    "user_id": "7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11",
    "feature": "blog_writer",
    "provider": "openai",
    "model": "gpt-5",
    "input_tokens": 812,
    "output_tokens": 455,
    "cost_usd": "0.004531",
    "occurred_at": "2026-01-31T09:38:10.123456Z",
}
TEXT_FIELDS: Final = ("feature", "provider", "model", "hold_id", "producer_id", "status")
NUMBER_FIELDS: Final = (
    *("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens"),
    *("tokens_used", "duration_ms", "seq"),
)
HOSTILE: Final[list[tuple[str, object]]] = [
    *((name, value) for name in ("event_id", "user_id") for value in IDS_REFUSED),
    *((name, value) for name in TEXT_FIELDS for value in [*TEXTS_REFUSED, "x" * 129, "x" * 257]),
    *((name, value) for name in NUMBER_FIELDS for value in [*INTEGERS_REFUSED, 10**12 + 1, 2**63]),
    *(("cost_usd", value) for value in [*COSTS_REFUSED, "4e-13", 5e-324, "0.0000000000004"]),
    *(("occurred_at", value) for value in TIMES_REFUSED),
    *(("v", value) for value in [2, 0, "2", "x", True, 1.5, [1]]),
    ("v", {}),
    *((name, value) for name in ("corrects", "clerk_id", "void", "extra") for value in ("x", True, 1, "")),
]
METADATA: Final = [
    *(
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":1e999999999999999999999}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\u0000"}',
    ),
    *(
        b'{"\\udfff":1}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\xff"}',
        b'{"a":"\x00"}',
        b'{"a":"\t"}',
        b'{"a":01}',
    ),
    *(
        b'{"a":1,"a":1}',
        b'{"a":1,"a":2}',
        b'{"a":{"b":1}}',
        b'{"a":[1]}',
        b"[1]",
        b'"text"',
        b"5",
        b"true",
        b"NaN",
    ),
    *(
        b'{"api_key":"x"}',
        b'{"token":7}',
        b'{"_repaired":["size"]}',
        b'{"_extra":{}}',
        b'{"":1}',
        b"{}",
        b"{ }",
    ),
    *(b'{"a":9223372036854775807}', b'{"a":9223372036854775808}', b'{"a":-9223372036854775809}', b'{"a":-0}'),
    *(
        b'{"a":0.1}',
        b'{"a":0.10}',
        b'{"a":-0.0}',
        b'{"a":1e5}',
        b'{"a":1E5}',
        b'{"a":1e16}',
        b'{"a":0.00001}',
    ),
    *(
        b'{"a":0.30000000000000003}',
        b'{"a":0.1000000000000000055511151231257827}',
        b'{"a":1.0}',
        b'{"a":5e-324}',
    ),
    *(b'{"a":123456789012345680.0}', b'{"a":1234567890123456.7}', b'{"a":99999999999999990000.5}'),
    *(b'{"a" : 1 , "b":  "x y"}', b'{"a":"\x7f"}', '{"ä":"\u2028"}'.encode()),
    *(b'{"a":"' + b"x" * 8183 + b'"}', b'{"a":"' + b"x" * 8185 + b'"}', b'{"' + b"k" * 129 + b'":1}'),
    *(b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}", b'{"a":' + b"9" * 100_000 + b"}"),
    *(json.dumps({f"k{n}": n for n in range(size)}).encode() for size in (64, 65)),
]


def dumped(members: dict[str, object]) -> bytes:
    """JSON of whatever has a spelling in it; a Decimal keeps its digits."""
    members = {name: _writable(value) for name, value in members.items()}
    text = json.dumps(members, separators=(",", ":"), ensure_ascii=False, default=repr)
    for value in members.values():
        if isinstance(value, Decimal):
            text = text.replace(json.dumps(repr(value)), str(value))
    return text.encode("utf-8", "surrogatepass")


def _writable(value: object) -> object:
    """Python does not write whole numbers of more than 4,300 digits."""
    return Decimal(value) if isinstance(value, int) and value.bit_length() > 10_000 else value


@pytest.mark.parametrize(("name", "value"), HOSTILE, ids=itertools.count())
def test_hostile_values(name: str, value: object) -> None:
    data = dumped({**GOOD, name: value})
    compare(data)
    # Between two good ones, in another order, with blanks: all the ways that it can be read.
    turned = dumped(dict(reversed({**GOOD, name: value}.items())))
    compare(turned.replace(b",", b" , "))
    compare(b"[" + b",".join([dumped(GOOD), data, turned]) + b"]")


@pytest.mark.parametrize("metadata", METADATA, ids=itertools.count())
def test_hostile_metadata(metadata: bytes) -> None:
    data = dumped(GOOD)[:-1] + b',"metadata":' + metadata + b"}"
    compare(data)
    compare(data.replace(b'{"v":1,', b'{ "v":1,'))
    compare(b"[" + b",".join([dumped(GOOD), data]) + b"]")


@pytest.mark.parametrize("data", [*NOT_JSON.values(), *SAMPLES.values()], ids=[*NOT_JSON, *SAMPLES])
def test_hostile_entries(data: bytes) -> None:
    compare(data)
    compare(b"[" + dumped(GOOD) + b"," + data + b"]")


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("again", ["same", "other", "null"])
@pytest.mark.parametrize("first", [True, False])
def test_no_key_may_stand_twice(name: str, again: str, first: bool) -> None:
    value: object = {"same": GOOD[name], "other": 7, "null": None}[again]
    member = f"{json.dumps(name)}:{json.dumps(value)}".encode()
    data = dumped(GOOD)
    data = b"{" + member + b"," + data[1:] if first else data[:-1] + b"," + member + b"}"
    assert compare(data) is None
    assert compare(data.replace(b'":', b'" : ')) is None
    assert compare(b"[" + data + b"," + dumped(GOOD) + b"]") == 1


@pytest.mark.parametrize("size", [0, 1, MAX_FRAME_EVENTS, MAX_FRAME_EVENTS + 1])
def test_the_size_of_a_frame(size: int) -> None:
    for blank in (b"", b" "):
        data = b"[" + (b"," + blank).join([dumped(GOOD)] * size) + b"]"
        plain = Plain()
        taken = Decoder(LIMITS, PRICES).take(data, NOW, plain)
        assert (taken == [], plain.count) == ((True, size) if 0 < size <= MAX_FRAME_EVENTS else (False, 0))
        compare(data)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(DUMPED | JSON_LIKE | ALMOST_JSON.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary())
def test_anything(data: bytes) -> None:
    compare(data)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from([*GOOD, "metadata", *NUMBER_FIELDS]), VALUES)
def test_any_value_anywhere(name: str, value: object) -> None:
    compare(dumped({**GOOD, name: value}))


def test_no_id_borrows_from_its_neighbour() -> None:
    """The ids of a frame are looked at all together: each has to be one by itself."""
    first, second = "018f3c1a-7b1c-7d3e-9a55-0123456789ab", "018f3c1a-7b1c-7d3e-9a55-0123456789ac"
    for at in (1, 8, 9, 20, 35):
        moved = [first[:at], first[at:] + second]
        assert compare(b"[" + b",".join([dumped({**GOOD, "event_id": one}) for one in moved]) + b"]") is None


@pytest.mark.parametrize(
    "text", ["018f3c1a7-b1c-7d3e-9a55-0123456789ab", "018f3c1a-7b1c-7d3e-9a550-123456789ab"]
)
def test_no_id_has_its_hyphens_elsewhere(text: str) -> None:
    assert compare(dumped({**GOOD, "event_id": text})) is None
    assert compare(b"[" + dumped({**GOOD, "event_id": text}) + b"," + dumped(GOOD) + b"]") == 1
