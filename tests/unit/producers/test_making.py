"""The numbers of events: without gaps in every process, and taken only for what is really made."""

import json
import os
import re
import threading
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from producers import InvalidEvent
from producers._fast import Encoded, encoded
from producers._making import Maker, void_of

USER = UUID("0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11")
BASE: dict[str, Any] = {"user_id": USER, "feature": "blog_writer", "input_tokens": 812, "output_tokens": 455}
# Judged by the contract, not by the short way.
LONG: dict[str, Any] = {**BASE, "user_id": str(USER).upper()}


def number(made: Encoded) -> tuple[str | None, int | None]:
    fields = json.loads(made.data)
    assert made.event.producer_id == fields.get("producer_id")
    assert made.event.seq == fields.get("seq")
    return fields.get("producer_id"), fields.get("seq")


class TestNumbers:
    def test_run_from_1_by_either_way(self) -> None:
        maker = Maker()
        made = [
            number(maker.make(**usage)) for usage in (BASE, LONG, BASE, {**BASE, "cost_usd": "0.1"}, LONG)
        ]
        assert [seq for _, seq in made] == [1, 2, 3, 4, 5]
        assert {name for name, _ in made} == {maker.producer_id}
        assert re.fullmatch(r"[a-z2-7]{12}", maker.producer_id)
        assert Maker().producer_id != maker.producer_id

    def test_stand_where_the_contract_writes_them(self) -> None:
        more: dict[str, Any] = {
            "duration_ms": 5,
            "hold_id": "h",
            "cost_usd": "0.5",
            "metadata": {"tone": "dry"},
        }
        made = Maker().make(**BASE, **more)
        assert made.original is None
        assert encoded(made.event).data == made.data

    @pytest.mark.parametrize(
        "changes",
        [
            {"input_tokens": -1},
            {"feature": ""},
            {"input_token": 5},
            {"cost_usd": "NaN"},
            {"idempotency_key": ""},
            {"event_id": USER, "idempotency_key": "k"},
            {"occurred_at": "yesterday"},
        ],
    )
    def test_are_not_used_up_by_what_is_refused(self, changes: dict[str, Any]) -> None:
        maker = Maker()
        for usage in (BASE, LONG):
            with pytest.raises((InvalidEvent, TypeError)):
                maker.make(**{**usage, **changes})
        assert number(maker.make(**BASE)) == (maker.producer_id, 1)

    @pytest.mark.parametrize("usage", [BASE, LONG])
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"producer_id": "web-1", "seq": 7}, ("web-1", 7)),
            ({"producer_id": "web-1"}, ("web-1", None)),
            ({"seq": 7}, (None, 7)),
            ({"seq": 0}, (None, 0)),
        ],
    )
    def test_of_the_caller_stand_as_they_are(
        self, usage: dict[str, Any], given: dict[str, Any], expected: tuple[str | None, int | None]
    ) -> None:
        maker = Maker()
        assert number(maker.make(**usage, **given)) == expected
        assert number(maker.make(**usage)) == (maker.producer_id, 1)

    def test_have_no_gap_and_no_double_among_threads(self) -> None:
        maker = Maker()
        made: list[int | None] = []

        def work() -> None:
            for _ in range(500):
                made.append(number(maker.make(**BASE))[1])

        threads = [threading.Thread(target=work) for _ in range(8)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert sorted(seq for seq in made if seq is not None) == list(range(1, 4001))

    def test_begin_anew_in_a_child_under_another_name(self) -> None:
        maker = Maker()
        first = number(maker.make(**BASE))
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writing, json.dumps([number(maker.make(**BASE)) for _ in range(2)]).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            (name, one), (again, two) = json.load(pipe)
        assert (one, two) == (1, 2)
        assert name == again != first[0]
        assert number(maker.make(**BASE)) == (first[0], 2)


class TestUnits:
    def test_none_is_as_if_it_were_not_there(self) -> None:
        assert "units" not in json.loads(Maker().make(**BASE, units=None).data)
        assert Maker().make(**BASE, units=None).original is None

    def test_go_the_long_way(self) -> None:
        maker = Maker()
        made = maker.make(**BASE, units={"images": 2, "audio_seconds": Decimal("1.5")})
        assert made.original is not None
        assert "units" in json.loads(made.data)


class TestVoidOf:
    def test_is_the_same_event_each_time_and_has_no_number(self) -> None:
        one, other = void_of(USER, user_id=USER), void_of(str(USER), user_id=str(USER))
        assert one.event_id == other.event_id
        assert (one.producer_id, one.seq, one.void) == (None, None, True)
