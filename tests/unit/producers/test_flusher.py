"""The flusher's own logic: order, failures, marks, ends, and signals in the middle of everything."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from producers import StreamUnavailable
from producers._fast import Encoded
from producers._flusher import Flusher
from producers._making import Maker

USAGE: dict[str, Any] = {
    "user_id": "7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11",
    "feature": "blog_writer",
    "input_tokens": 1,
    "output_tokens": 1,
}


class Delivered:
    """Takes what is delivered, unless `refuse` says otherwise."""

    def __init__(self) -> None:
        self.taken: list[Encoded] = []
        self.sizes: list[int] = []
        self.refuse: Callable[[Sequence[Encoded]], None] = lambda events: None
        self.is_closed = False

    def deliver(self, events: Sequence[Encoded]) -> None:
        self.refuse(events)
        self.sizes.append(len(events))
        self.taken += events

    def close(self) -> None:
        self.is_closed = True

    @property
    def numbers(self) -> list[int | None]:
        return [made.event.seq for made in self.taken]


def flusher_of(delivery: Delivered, **options: Any) -> Flusher:
    return Flusher(delivery, **{"flush_at": 500, "interval": 0.01, "capacity": 10_000, **options})


def put(flusher: Flusher, maker: Maker, count: int) -> None:
    for _ in range(count):
        flusher.put(maker.make(**USAGE))


class TestOrder:
    def test_is_that_of_the_calls_also_after_a_failure(self) -> None:
        delivery, maker = Delivered(), Maker()
        flusher = flusher_of(delivery)

        def refuse(events: Sequence[Encoded]) -> None:
            delivery.refuse = lambda events: None
            # Others come meanwhile: they stand behind those that failed.
            put(flusher, maker, 5)
            raise StreamUnavailable("refused", [made.event for made in events])

        delivery.refuse = refuse
        put(flusher, maker, 5)
        assert flusher.flush(5)
        assert flusher.close(5).delivered == 10
        assert delivery.numbers == list(range(1, 11))

    def test_takes_no_more_at_once_than_a_few_frames(self) -> None:
        delivery, maker = Delivered(), Maker()
        flusher = flusher_of(delivery, flush_at=10_000, interval=5.0)
        put(flusher, maker, 4500)
        assert flusher.close(5).delivered == 4500
        assert delivery.sizes == [2000, 2000, 500]
        assert delivery.is_closed


class TestFailure:
    def test_without_names_is_that_of_all(self) -> None:
        delivery, maker = Delivered(), Maker()
        errors: list[Exception] = [StreamUnavailable("no names"), MemoryError("anything"), OSError("at all")]

        def refuse(events: Sequence[Encoded]) -> None:
            if errors:
                raise errors.pop()

        delivery.refuse = refuse
        flusher = flusher_of(delivery)
        put(flusher, maker, 3)
        assert flusher.close(5).delivered == 3
        assert delivery.numbers == [1, 2, 3]

    def test_keeps_only_what_is_named(self) -> None:
        delivery, maker = Delivered(), Maker()

        def refuse_second(events: Sequence[Encoded]) -> None:
            delivery.refuse = lambda events: None
            delivery.taken += [made for made in events if made.event.seq != 2]
            raise StreamUnavailable("one of them", [made.event for made in events if made.event.seq == 2])

        delivery.refuse = refuse_second
        flusher = flusher_of(delivery)
        put(flusher, maker, 3)
        assert flusher.close(5).delivered == 3
        assert delivery.numbers == [1, 3, 2]

    def test_that_lasts_pauses_longer_and_longer(self) -> None:
        delivery, maker = Delivered(), Maker()
        moments: list[float] = []

        def refuse(events: Sequence[Encoded]) -> None:
            moments.append(time.monotonic())
            raise StreamUnavailable("refused", [made.event for made in events])

        delivery.refuse = refuse
        heard: list[StreamUnavailable] = []
        flusher = flusher_of(delivery, on_error=heard.append)
        put(flusher, maker, 1)
        time.sleep(1.0)
        report = flusher.close(0.0)
        assert len(report.failed) == 1
        assert 3 <= len(moments) <= 9
        assert len(heard) == 1

    def test_is_told_once_where_the_report_was_read(self, caplog: pytest.LogCaptureFixture) -> None:
        delivery, maker = Delivered(), Maker()

        def refuse(events: Sequence[Encoded]) -> None:
            raise StreamUnavailable("refused", [made.event for made in events])

        delivery.refuse = refuse
        heard: list[StreamUnavailable] = []
        read, unread = (flusher_of(delivery, on_error=heard.append, exit_timeout=0.05) for _ in range(2))
        put(read, maker, 1)
        put(unread, maker, 1)
        assert len(read.close(0.0).failed) == 1
        read.end()
        assert heard == []
        unread.end()
        assert [event.seq for event in heard[0].events] == [2]
        assert caplog.text.count("were not delivered") == 1


class TestThread:
    def test_starts_with_the_first_event(self) -> None:
        flusher = flusher_of(Delivered())
        assert flusher._thread is None
        put(flusher, Maker(), 1)
        assert flusher._thread is not None
        flusher.close(5)
        assert flusher._thread is None

    def test_that_cannot_start_leaves_it_to_close(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def start(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", start)
        delivery = Delivered()
        flusher = flusher_of(delivery)
        put(flusher, Maker(), 3)
        assert "cannot be started" in caplog.text
        assert flusher.close(5).delivered == 3
        assert delivery.numbers == [1, 2, 3]

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_that_dies_is_replaced(self) -> None:
        delivery, maker = Delivered(), Maker()
        go_on = threading.Event()

        def die(events: Sequence[Encoded]) -> None:
            delivery.refuse = lambda events: None
            delivery.taken += events
            go_on.wait(5)
            raise SystemExit

        delivery.refuse = die
        flusher = flusher_of(delivery)
        put(flusher, maker, 1)
        thread = flusher._thread
        assert thread is not None
        go_on.set()
        thread.join(5)
        put(flusher, maker, 1)
        assert flusher.flush(5)
        assert delivery.numbers[-1] == 2
        flusher.close(5)


class TestSignals:
    def test_a_handler_may_emit_and_flush_whatever_it_interrupts(self) -> None:
        delivery, maker = Delivered(), Maker()
        flusher = flusher_of(delivery, flush_at=20, interval=0.001, capacity=50)
        flushed: list[bool] = []

        def handle(*_: object) -> None:
            flusher.put(maker.make(**USAGE))
            flushed.append(flusher.flush(5))

        before = signal.signal(signal.SIGALRM, handle)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0007)
            end, count = time.monotonic() + 1.5, 0
            while time.monotonic() < end:
                flusher.wait_for_room(5)
                put(flusher, maker, 1)
                count += 1
                if count % 50 == 0:
                    flusher.stats()
                    assert flusher.flush(5)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert flusher.close(5).delivered == count + len(flushed)
        assert len(flushed) > 100
        assert all(flushed)
