"""Repair of metadata: it never refuses, keeps its bounds, says what it did, and does it once."""

import enum
import json
import math
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers._metadata import EXTRA, MARKS, MAX_BYTES, MAX_KEYS, REPAIRED, looks_secret, repair


class Colour(enum.Enum):
    RED = "red"


def repaired(value: object, **extra: object) -> dict[str, object]:
    result = repair(value, extra=extra, marks=set())
    assert result is not None
    return result


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


def nested(levels: int) -> object:
    value: object = "x"
    for _ in range(levels):
        value = {"a": value}
    return value


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.decimals()
    | st.text(alphabet=st.characters(), max_size=40)
    | st.binary(max_size=4)
    | st.just(object())
    | st.uuids()
    | st.datetimes()
)
KEYS = st.text(alphabet=st.characters(), max_size=6) | st.sampled_from(["api_key", REPAIRED, EXTRA, "_value"])
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(KEYS | st.integers(), inner, max_size=6)
        | st.tuples(inner, inner)
    ),
    max_leaves=60,
)
LARGE = st.dictionaries(
    st.text(min_size=1, max_size=200), st.text(max_size=3000) | st.lists(st.integers()), max_size=80
)


class TestRepair:
    @pytest.mark.parametrize(
        "value",
        [
            {},
            {"a": 1, "b": [True, None, 1.5, "ü€😀"], "c": {"d": {"e": []}}},
            {
                "max_tokens": 512,
                "tokens": 9,
                "token_count": 3,
                "prompt_id": "p-1",
                "author": "Kim",
                "key": "x",
            },
            {"big": 2**63 - 1, "small": -(2**63), "tiny": 5e-324},
            {"": "empty key"},
            {f"k{number}": number for number in range(MAX_KEYS)},
        ],
    )
    def test_leaves_good_metadata_alone(self, value: dict[str, object]) -> None:
        assert repaired(value) == value

    def test_nothing_stays_nothing(self) -> None:
        assert repair(None, extra={}, marks=set()) is None

    @pytest.mark.parametrize(
        ("value", "expected", "mark"),
        [
            ("text", {"_value": "text"}, "not_an_object"),
            ([1, 2], {"_value": [1, 2]}, "not_an_object"),
            ({"a": "x\x00y"}, {"a": "x\ufffdy"}, "text"),
            ({"a": "\ud800"}, {"a": "\ufffd"}, "text"),
            ({"\udfff": 1}, {"\ufffd": 1}, "text"),
            ({"a": math.nan}, {"a": None}, "number"),
            ({"a": Decimal("Infinity")}, {"a": None}, "number"),
            ({"a": 2**63}, {"a": "9223372036854775808"}, "number"),
            ({"a": 10**5000}, {"a": "[number too long]"}, "number"),
            ({"a": Decimal("1E+400")}, {"a": "1E+400"}, "number"),
            ({"a": Decimal("0." + "1" * 5000)}, {"a": "[number too long]"}, "number"),
            ({"a": Decimal("0.12345678901234567891")}, {"a": "0.12345678901234567891"}, "number"),
            ({"a": object()}, {"a": "[type]"}, "type"),
            ({"a": b"x"}, {"a": "[type]"}, "type"),
            ({1: "x"}, {"1": "x"}, "key"),
            ({"k" * 200: 1}, {"k" * 128: 1}, "key"),
            ({"api_key": "x"}, {"api_key": "[redacted]"}, "redacted"),
            ({"a": {"Authorization": ["Bearer x"]}}, {"a": {"Authorization": "[redacted]"}}, "redacted"),
            (
                {"api_key": "[redacted]", "token": "", REPAIRED: "x"},
                {"api_key": "[redacted]", "token": ""},
                "reserved",
            ),
            ({REPAIRED: "mine"}, {}, "reserved"),
            ({REPAIRED: ["mine"]}, {}, "reserved"),
        ],
    )
    def test_repairs_and_says_so(self, value: object, expected: dict[str, object], mark: str) -> None:
        assert repaired(value) == {**expected, REPAIRED: [mark]}

    def test_a_number_that_becomes_text_under_a_secret_key_is_redacted_at_once(self) -> None:
        assert repaired({"token": 2**70}) == {"token": "[redacted]", REPAIRED: ["number", "redacted"]}

    def test_converts_what_python_programs_have(self) -> None:
        identity = UUID("7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11")
        moment = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
        value = {"id": identity, "at": moment, "colour": Colour.RED, "pair": (1, 2), "price": Decimal("0.10")}
        assert repaired(value) == {
            "id": str(identity),
            "at": "2026-01-31T09:30:00+00:00",
            "colour": "red",
            "pair": [1, 2],
            "price": 0.1,
        }

    def test_cuts_off_what_is_too_deep(self) -> None:
        assert repaired(nested(8)) == nested(8)
        result = repaired(nested(9))
        assert result[REPAIRED] == ["depth"]
        assert depth_of(result["a"]) == 7

    def test_keeps_the_first_keys_of_too_many(self) -> None:
        result = repaired({f"k{number}": number for number in range(MAX_KEYS + 1)})
        assert result.pop(REPAIRED) == ["keys"]
        assert list(result) == [f"k{number}" for number in range(MAX_KEYS)]

    def test_cuts_long_strings_before_it_leaves_members_out(self) -> None:
        result = repaired({"long": "x" * 9000, "short": "y"})
        assert result == {"long": "x" * 256 + "…", "short": "y", REPAIRED: ["size"]}

    def test_leaves_out_what_does_not_fit(self) -> None:
        result = repaired({f"k{number}": list(range(300)) for number in range(20)} | {"last": 1})
        assert result["last"] == 1
        assert result[REPAIRED] == ["size"]
        assert 0 < sum(name.startswith("k") for name in result) < 20

    def test_ends_in_a_structure_that_contains_itself(self) -> None:
        value: dict[str, object] = {"a": 1}
        value.update({f"self{number}": value for number in range(8)})
        result = repaired(value)
        assert {"depth", "size"} <= set(result[REPAIRED])  # type: ignore[call-overload]  # a list of str

    def test_keeps_unknown_fields_apart(self) -> None:
        assert repaired({"a": 1}, region="eu") == {"a": 1, EXTRA: {"region": "eu"}}
        assert repaired(None, region="eu") == {EXTRA: {"region": "eu"}}
        assert repaired({EXTRA: {"zone": 1}}, region="eu") == {EXTRA: {"zone": 1, "region": "eu"}}
        assert repaired({EXTRA: "mine"}, region="eu") == {EXTRA: {"region": "eu"}, REPAIRED: ["reserved"]}

    def test_adds_to_earlier_marks(self) -> None:
        result = repair({REPAIRED: ["depth"], "a": math.inf}, extra={}, marks={"cost_became_zero"})
        assert result == {"a": None, REPAIRED: ["cost_became_zero", "depth", "number"]}

    @given(ANYTHING | LARGE, st.dictionaries(st.text(max_size=4), ANYTHING, max_size=2))
    def test_always_ends_within_bounds_and_changes_nothing_again(
        self, value: object, extra: dict[str, object]
    ) -> None:
        result = repair(value, extra=extra, marks=set())
        if result is None:
            return
        text = json.dumps(result, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        assert len(text.encode()) <= MAX_BYTES
        assert "\\u0000" not in text
        assert depth_of(result) <= 8
        marks = result.get(REPAIRED, [])
        assert isinstance(marks, list)
        assert set(marks) <= MARKS
        assert repair(json.loads(text), extra={}, marks=set()) == result
        assert repair(json.loads(text, parse_float=Decimal), extra={}, marks=set()) == result


class TestLooksSecret:
    @pytest.mark.parametrize(
        "key",
        "password PASSWORD db_password userPassword api_key apiKey API-KEY openai.api.key X-Api-Key token "
        "access_token accessToken refreshToken Authorization proxy-authorization cookie Set-Cookie "
        "client_secret clientSecret secret private_key aws_secret_access_key sessionId jwt credentials "
        "passwd bearer OPENAI_API_KEY auth".split(),
    )
    def test_knows(self, key: str) -> None:
        assert looks_secret(key)

    @pytest.mark.parametrize(
        "key",
        "tokens max_tokens token_count input_tokens author keyboard key primary_key monkey user_id session "
        "secretary prompt feature region model passport".split(),
    )
    def test_leaves(self, key: str) -> None:
        assert not looks_secret(key)

    def test_a_number_is_no_secret(self) -> None:
        assert repaired({"token": 5, "password": None, "secret": True}) == {
            "token": 5,
            "password": None,
            "secret": True,
        }
