"""The strict JSON reader, compared with the standard library's where both must agree."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers._json import (
    NotJSON,
    RepeatedKeys,
    _read_nested,
    expect_end,
    read_elements,
    read_text,
    read_value,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)
ALMOST_JSON = st.text(alphabet='[]{}:,"\\ 01.eE-+ntrufalsNI\n', max_size=30)


def read(text: str) -> object:
    value, end = read_value(text, 0)
    expect_end(text, end)
    return value


def read_slowly(text: str) -> object:
    value, end = _read_nested(text, 0)
    expect_end(text, end)
    return value


def outcome(reader: object, text: str) -> object:
    try:
        return reader(text)  # type: ignore[operator]  # one of the two functions above
    except NotJSON:
        return NotJSON


class TestReadText:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"\xef\xbb\xbf{}", "byte order mark"),
            ("{}".encode("utf-16"), "not UTF-8 at byte 0"),
            (b'{"a":"\xff"}', "not UTF-8 at byte 6"),
            (b'{"a":"\xed\xa0\x80"}', "not UTF-8 at byte 6"),  # half a surrogate pair in UTF-8's clothes
            (b'{"a":"\xc0\x80"}', "not UTF-8 at byte 6"),  # NUL, longer than needed
            (b'{"a":"\xe2\x82', "not UTF-8 at byte 6"),
        ],
    )
    def test_refuses_everything_but_plain_utf_8(self, data: bytes, message: str) -> None:
        with pytest.raises(NotJSON, match=message):
            read_text(data)


class TestReadValue:
    @given(VALUES)
    def test_reads_what_json_writes(self, value: object) -> None:
        assert read(json.dumps(value)) == value

    @given(VALUES)
    def test_reads_the_same_with_a_stack_of_its_own(self, value: object) -> None:
        assert read_slowly(json.dumps(value, indent=1)) == value

    @given(ALMOST_JSON)
    def test_both_ways_refuse_the_same(self, text: str) -> None:
        text = text.lstrip(" \n")
        assert repr(outcome(read, text)) == repr(outcome(read_slowly, text))

    @pytest.mark.parametrize(
        "text",
        [
            *(
                "",
                "{",
                "[",
                '{"a"}',
                '{"a":}',
                "{'a':1}",
                '{"a":1,}',
                "[1,]",
                "[1 2]",
                "01",
                "+1",
                ".5",
                "1.",
            ),
            *("0x1", "nul", "True", '"\n"', '"\\x"', '"\\ud8"', '"', "{1:2}", "[1]]", "{}{}", '{"a":1}x'),
            *("\x00", "// c"),
        ],
    )
    def test_refuses_what_is_not_json(self, text: str) -> None:
        with pytest.raises(NotJSON):
            read(text)

    @pytest.mark.parametrize("opener", ["[", '{"a":', '[{"a":'])
    def test_reads_what_is_nested_beyond_any_stack(self, opener: str) -> None:
        closer = opener[::-1].translate(str.maketrans('[{":a', "]}   "))
        value = read(opener * 20_000 + "1" + closer * 20_000)
        depth = 0
        while isinstance(value, list | dict):
            value = value[0] if isinstance(value, list) else value["a"]
            depth += 1
        assert value == 1
        assert depth in (20_000, 40_000)

    @pytest.mark.parametrize("text", ["[" * 50_000, '{"a":' * 50_000, "[" * 50_000 + "}" * 50_000])
    def test_refuses_broken_nesting_beyond_any_stack(self, text: str) -> None:
        with pytest.raises(NotJSON):
            read(text)

    def test_keeps_numbers_exact(self) -> None:
        value = read("[0.1, 1e-7, 1E400, 12345678901234567890, -0]")
        assert value == [Decimal("0.1"), Decimal("1e-7"), Decimal("1E400"), 12345678901234567890, 0]

    @pytest.mark.parametrize(
        "text", ["1e99999999999999999999", "-1e-99999999999999999999", "NaN", "Infinity", "-Infinity"]
    )
    def test_numbers_beyond_any_number_are_not_finite(self, text: str) -> None:
        value = read(text)
        assert isinstance(value, Decimal)
        assert not value.is_finite()

    def test_an_integer_of_any_length_is_no_error(self) -> None:
        value = read("9" * 100_000)
        assert isinstance(value, Decimal)
        assert value.adjusted() == 99_999

    def test_remembers_that_a_key_stood_twice(self) -> None:
        assert isinstance(read('{"a":1,"a":2}'), RepeatedKeys)
        assert type(read('{"a":1,"b":2}')) is dict

    def test_a_message_shows_nothing_of_the_text(self) -> None:
        with pytest.raises(NotJSON) as caught:
            read('{"password": S3cret}')
        assert "S3cret" not in str(caught.value)


class TestReadElements:
    def test_tells_where_each_element_stands(self) -> None:
        text = ' [ {"a":1} ,2\t,"]" ] '
        assert [text[start:end] for _, start, end in read_elements(text, 1)] == ['{"a":1}', "2", '"]"']

    @pytest.mark.parametrize("text", ["[", "[1", "[1,", "[1,]", "[,1]", "[1}", "[1]2", "[1] [2]", "[}"])
    def test_refuses_a_broken_array(self, text: str) -> None:
        with pytest.raises(NotJSON):
            list(read_elements(text, 0))
