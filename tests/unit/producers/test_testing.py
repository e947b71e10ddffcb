"""RecordingEmitter judges like the real emitters, and shows what it was given."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from producers import (
    AsyncEmitter,
    AsyncUsageEmitter,
    BufferedEmitter,
    BufferFull,
    Emitter,
    EmitterConfig,
    InvalidEvent,
    StreamUnavailable,
    UsageEmitter,
    UsageEvent,
)
from producers.testing import RecordingAsyncEmitter, RecordingEmitter

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
USAGE: dict[str, Any] = {
    "user_id": "7F1C3A52-0A5E-4C43-9D6C-3F6B7F1F0A11",
    "feature": "blog_writer",
    "input_tokens": 812,
    "output_tokens": 455,
    "cost_usd": 0.1,
}


class TestRecordingEmitter:
    def test_keeps_what_the_worker_would_see(self) -> None:
        emitter = RecordingEmitter(clock=lambda: NOON)
        identity = emitter.emit(**USAGE, metadata={"tone": "dry"})
        (event,) = emitter.events
        assert event.event_id == identity
        assert event.user_id == UUID(USAGE["user_id"])
        assert (event.tokens_used, event.cost_usd, event.metadata) == (1267, Decimal("0.1"), {"tone": "dry"})
        assert (event.occurred_at, event.seq) == (NOON, 1)

    def test_an_event_keeps_the_time_that_it_states(self) -> None:
        emitter = RecordingEmitter(clock=lambda: NOON)
        emitter.emit(**USAGE, occurred_at="2026-01-01T00:00:00Z")
        assert emitter.events[0].occurred_at == datetime(2026, 1, 1, tzinfo=UTC)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [({"input_tokens": -1}, "invalid_tokens"), ({"feature": ""}, "invalid_feature")],
    )
    def test_refuses_what_the_real_one_refuses(self, changes: dict[str, Any], reason: str) -> None:
        emitter = RecordingEmitter()
        with pytest.raises(InvalidEvent, match=reason):
            emitter.emit(**{**USAGE, **changes})
        with pytest.raises(TypeError, match="input_token"):
            emitter.emit(**{**USAGE, "input_token": 5})
        assert emitter.events == []

    def test_shows_repetitions(self) -> None:
        emitter = RecordingEmitter()
        first, again = (emitter.emit(**USAGE, idempotency_key="chatcmpl-9x") for _ in range(2))
        emitter.emit(**USAGE)
        assert first == again
        assert emitter.repeated == [first]
        assert len(emitter.events) == 3

    def test_fails_when_asked_to(self) -> None:
        emitter = RecordingEmitter()
        emitter.fail_next(times=2)
        emitter.fail_next(BufferFull("as in production"))
        emitter.fail_next(LookupError)
        for expected in (StreamUnavailable, StreamUnavailable, BufferFull):
            with pytest.raises(expected) as caught:
                emitter.emit(**USAGE)
            assert len(caught.value.events) == 1
        with pytest.raises(LookupError):
            emitter.emit(**USAGE)
        emitter.send(caught.value.events[0])
        assert emitter.events == list(caught.value.events)

    def test_batches_and_voids(self) -> None:
        emitter = RecordingEmitter(clock=lambda: NOON)
        ready = UsageEvent(**USAGE)
        with emitter.batch() as batch:
            told = [batch.emit(**USAGE), batch.add(ready)]
            assert emitter.events == []
        with pytest.raises(LookupError), emitter.batch() as batch:
            raise LookupError
        with emitter.batch():
            pass
        emitter.void(ready.event_id, user_id=USAGE["user_id"])
        assert [event.event_id for event in emitter.events[:2]] == told
        assert (emitter.events[2].corrects, emitter.events[2].occurred_at) == (ready.event_id, NOON)

    def test_is_closed_and_cleared(self) -> None:
        with RecordingEmitter() as emitter:
            emitter.emit(**USAGE)
        with pytest.raises(StreamUnavailable, match="closed"):
            emitter.emit(**USAGE)
        emitter.clear()
        emitter.emit(**USAGE)
        assert [event.seq for event in emitter.events] == [1]

    def test_can_stand_where_an_emitter_is_expected(self) -> None:
        def take(emitter: UsageEmitter, event_id: UUID) -> None:
            assert emitter.emit(**USAGE, event_id=event_id) == event_id

        recording = RecordingEmitter()
        take(recording, uuid4())
        # That the others fit as well is what the type checker sees here.
        config = EmitterConfig(redis_url="redis://127.0.0.1:1")
        others: list[UsageEmitter] = [Emitter(config), BufferedEmitter(config)]
        awaited: list[AsyncUsageEmitter] = [AsyncEmitter(config), RecordingAsyncEmitter()]
        assert len(others) == len(awaited)


class TestRecordingAsyncEmitter:
    def test_keeps_events(self) -> None:
        async def main() -> RecordingAsyncEmitter:
            async with RecordingAsyncEmitter(clock=lambda: NOON) as emitter:
                await emitter.emit(**USAGE)
                async with emitter.batch() as batch:
                    batch.emit(**USAGE)
                await emitter.send(UsageEvent(**USAGE))
                await emitter.void(uuid4(), user_id=USAGE["user_id"])
            with pytest.raises(StreamUnavailable):
                await emitter.emit(**USAGE)
            return emitter

        assert len(asyncio.run(main()).events) == 4
