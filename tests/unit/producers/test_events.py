"""UsageEvent in Python's hands: its own types by the same rules, and what is sent is what is read."""

import copy
import enum
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers import InvalidEvent, UsageEvent
from producers._events import build, parse
from tests.unit.producers.samples import BASE, EVENT, USER, fields


class Feature(enum.StrEnum):
    BLOG = "blog_writer"


TOKENS = st.integers(0, 10**9)
TEXT = st.text(alphabet=st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=20)
EVENTS = st.fixed_dictionaries(
    {
        "event_id": st.uuids(),
        "user_id": st.uuids(),
        "feature": TEXT,
        "input_tokens": TOKENS,
        "output_tokens": TOKENS,
        "occurred_at": st.datetimes(min_value=datetime(1971, 1, 1), timezones=st.timezones()).filter(  # noqa: DTZ001 - Hypothesis adds the zone
            lambda moment: moment.year < 9999
        ),
    },
    optional={
        "provider": TEXT,
        "model": TEXT,
        "cost_usd": st.decimals(0, 10**6) | st.floats(0, 10**6),
        "duration_ms": st.integers(0, 10**12),
        "status": st.sampled_from(["ok", "error"]),
        "hold_id": TEXT,
        "producer_id": TEXT,
        "seq": st.integers(0, 2**63 - 1),
        "metadata": st.dictionaries(st.text(), st.text() | st.integers() | st.floats(), max_size=3),
    },
)


class TestUsageEvent:
    def test_takes_python_types(self) -> None:
        event = UsageEvent(
            event_id=UUID(EVENT),
            user_id=UUID(USER),
            feature=Feature.BLOG,
            input_tokens=812,
            output_tokens=455,
            cost_usd=0.1,
            occurred_at=datetime(2026, 1, 31, 9, 30, tzinfo=UTC),
        )
        assert event == parse(fields(cost_usd="0.1"))
        assert type(event.feature) is str

    def test_fills_in_id_and_time_once(self) -> None:
        given = {"user_id": USER, "feature": "x", "tokens_used": 1}
        first, second = UsageEvent(**given), UsageEvent(**given)
        assert first.event_id < second.event_id
        assert first.occurred_at.tzinfo is UTC
        assert first.event_id == first.event_id

    def test_raises_the_same_error(self) -> None:
        with pytest.raises(InvalidEvent, match="invalid_tokens"):
            UsageEvent(user_id=USER, feature="x", input_tokens=-1, output_tokens=0)

    def test_refuses_a_misspelt_field(self) -> None:
        with pytest.raises(InvalidEvent, match="input_token: no such field"):
            UsageEvent(user_id=USER, feature="x", input_token=1, output_tokens=0)

    def test_a_web_framework_gets_a_validation_error(self) -> None:
        with pytest.raises(pydantic.ValidationError, match="invalid_tokens") as caught:
            UsageEvent.model_validate({**BASE, "input_tokens": "S3cret"})
        assert "S3cret" not in str(caught.value)
        assert UsageEvent.model_validate(BASE) == parse(BASE)

    def test_is_frozen_and_can_be_copied_and_pickled(self) -> None:
        event = build(BASE)
        with pytest.raises(pydantic.ValidationError):
            event.feature = "other"  # type: ignore[misc]  # the point of the test
        assert copy.deepcopy(event) == event
        assert event.model_copy(update={"feature": "y"}).feature == "y"

    def test_an_error_can_cross_to_another_process(self) -> None:
        error = InvalidEvent("invalid_cost", "cost_usd", "expected a number")
        again = copy.copy(error)
        assert (again.reason, again.field, again.detail, str(again)) == (
            error.reason,
            error.field,
            error.detail,
            str(error),
        )


class TestRoundTrip:
    @given(EVENTS)
    def test_what_is_sent_is_what_is_read(self, given: dict[str, Any]) -> None:
        event = UsageEvent(**given)
        assert parse(event.wire()) == event
        assert list(event.wire()) == list(parse(event.wire()).wire())
