"""Lines of a file, each judged alone."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime

from worker.entrypoints.cli._events_file import Line, read_lines

NOW = datetime(2026, 11, 21, 2, 3, tzinfo=UTC)
USER = "0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11"


def _read(*lines: bytes) -> list[Line]:
    return list(read_lines(io.BytesIO(b"\n".join(lines)), now=NOW))


def _line(**changes: object) -> bytes:
    return json.dumps({"user_id": USER, "feature": "chat", "tokens_used": 5, **changes}).encode()


class TestReadLines:
    def test_fills_in_id_and_time_where_they_are_absent(self) -> None:
        first, second = _read(_line(), _line(occurred_at="2026-11-20T00:00:00Z", event_id=USER))
        assert first.event is not None
        assert second.event is not None
        assert first.event.occurred_at == NOW
        assert (str(second.event.event_id), second.event.occurred_at.day) == (USER, 20)

    def test_the_same_user_and_key_are_the_same_event(self) -> None:
        one, same, other = _read(*(_line(idempotency_key=key) for key in ("a", "a", "b")))
        assert one.event is not None
        assert same.event is not None
        assert other.event is not None
        assert one.event.event_id == same.event.event_id != other.event.event_id

    def test_refuses_each_bad_line_by_number_and_goes_on(self) -> None:
        found = _read(
            b"{",
            b"",
            b'"text"',
            b'{"feature": "a", "feature": "b"}',
            _line(tokens_used=-1),
            _line(idempotency_key=5),
            _line(idempotency_key="a", event_id=USER),
            b"\xff",
            _line(),
        )
        assert [(line.number, line.reason) for line in found] == [
            (1, "not_json"),
            (3, "not_an_object"),
            (4, "duplicate_key"),
            (5, "invalid_tokens"),
            (6, "invalid_event_id"),
            (7, "invalid_event_id"),
            (8, "not_json"),
            (9, None),
        ]

    def test_a_line_without_an_end_does_not_fill_the_memory(self) -> None:
        endless = b'{"feature": "' + b"x" * 2_000_000
        found = _read(endless, _line())
        assert [(line.number, line.reason) for line in found] == [(1, "event_too_large"), (2, None)]
        assert found[0].size_bytes > 2_000_000

    def test_an_event_that_grows_too_large_is_refused_alone(self) -> None:
        wide = _line(feature="x" * 10, metadata={"a": "b"}, hold_id="h")
        assert [line.reason for line in _read(wide, _line())] == [None, None]
