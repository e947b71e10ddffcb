"""BufferedEmitter against real servers: what it took arrives, once, and what it cannot take it says."""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis

from producers import (
    BufferedEmitter,
    EmitterConfig,
    InvalidConfiguration,
    InvalidEvent,
    StreamUnavailable,
    UsageEvent,
)
from producers._stream import shard_of
from tests.integration.emitted import KEY, USAGE, ids_in, numbers_in, until
from worker.dev import servers


@pytest.fixture(scope="module")
def shared_server() -> Iterator[servers.ValkeyServer]:
    with servers.ValkeyServer() as own:
        yield own


@pytest.fixture
def server(shared_server: servers.ValkeyServer) -> servers.ValkeyServer:
    """A server that a test may stop and spoil, if it repairs it."""
    with redis.Redis.from_url(shared_server.url()) as one:
        one.flushall()
    return shared_server


@pytest.fixture
def client(server: servers.ValkeyServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url()) as one:
        yield one


def emitter_at(url: str, **options: Any) -> BufferedEmitter:
    return BufferedEmitter.from_env({"REDIS_URL": url}, **options)


class TestEmit:
    def test_eight_threads_lose_and_double_nothing(self, valkey_url: str, valkey: redis.Redis) -> None:
        emitter = emitter_at(valkey_url)
        told: list[UUID] = []

        def work() -> None:
            mine = [emitter.emit(**USAGE) for _ in range(2000)]
            told.extend(mine)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        report = emitter.close()
        assert (report.accepted, report.delivered, report.failed) == (16_000, 16_000, ())
        assert sorted(ids_in(valkey)) == sorted(told)
        assert len(set(told)) == 16_000
        assert valkey.xlen(KEY) < 2000
        assert list(numbers_in(valkey).values()) == [list(range(1, 16_001))]

    def test_flushes_when_enough_wait(self, valkey_url: str, valkey: redis.Redis) -> None:
        with emitter_at(valkey_url, flush_at=10, flush_interval_ms=60_000) as emitter:
            told = [emitter.emit(**USAGE) for _ in range(10)]
            until(lambda: ids_in(valkey) == told, seconds=3)

    def test_flushes_when_the_oldest_waited_long_enough(self, valkey_url: str, valkey: redis.Redis) -> None:
        with emitter_at(valkey_url, flush_interval_ms=300) as emitter:
            began = time.monotonic()
            told = [emitter.emit(**USAGE)]
            until(lambda: ids_in(valkey) == told, seconds=3)
            assert time.monotonic() - began >= 0.3

    def test_flushes_on_request(self, valkey_url: str, valkey: redis.Redis) -> None:
        with emitter_at(valkey_url, flush_interval_ms=60_000) as emitter:
            told = [emitter.emit(**USAGE) for _ in range(3)]
            assert emitter.flush(3)
            assert ids_in(valkey) == told
            assert emitter.flush(3)
            assert emitter.stats.waiting == 0

    def test_refuses_in_the_call(self, valkey_url: str, valkey: redis.Redis) -> None:
        with emitter_at(valkey_url) as emitter:
            with pytest.raises(InvalidEvent, match="invalid_tokens"):
                emitter.emit(**{**USAGE, "input_tokens": -1})
            with pytest.raises(TypeError, match="input_token"):
                emitter.emit(**{**USAGE, "input_token": 5})
            assert emitter.close().accepted == 0
        assert valkey.dbsize() == 0

    def test_has_the_time_of_the_call(self, valkey_url: str, valkey: redis.Redis) -> None:
        with emitter_at(valkey_url, flush_interval_ms=60_000) as emitter:
            before = time.time()
            identity = emitter.emit(**USAGE)
            after = time.time()
            time.sleep(0.05)
        # The id of version 7 begins with the milliseconds.
        assert before - 0.002 <= (identity.int >> 80) / 1000 <= after
        assert ids_in(valkey) == [identity]

    def test_takes_batches_ready_events_and_voids(self, valkey_url: str, valkey: redis.Redis) -> None:
        ready = UsageEvent(**USAGE)
        with emitter_at(valkey_url) as emitter:
            with emitter.batch() as batch:
                told = [batch.emit(**USAGE), batch.add(ready)]
            with contextlib.suppress(LookupError), emitter.batch() as batch:
                batch.emit(**USAGE)
                raise LookupError("what the app does in the block")
            again = emitter.send(ready)
            reversal = emitter.void(ready.event_id, user_id=USAGE["user_id"])
        assert ids_in(valkey) == [*told, again]
        assert ids_in(valkey, "usage:corrections:{0}") == [reversal]

    def test_one_key_is_one_id(self, valkey_url: str, valkey: redis.Redis) -> None:
        with emitter_at(valkey_url) as emitter:
            made = {emitter.emit(**USAGE, idempotency_key="chatcmpl-9x") for _ in range(3)}
        assert set(ids_in(valkey)) == made
        assert len(made) == 1

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"flush_at": 0}, "flush_at"),
            ({"flush_interval_ms": -1}, "flush_interval_ms"),
            ({"capacity": 0}, "capacity"),
            ({"overflow": "drop"}, "block, raise or spill"),
            ({"overflow": "spill"}, "USAGE_SPOOL_DIR"),
        ],
    )
    def test_refuses_settings_that_it_cannot_keep(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidConfiguration, match=message):
            emitter_at("redis://127.0.0.1:1", **options)


class TestClose:
    def test_refuses_later_events_and_names_them(self, valkey_url: str, valkey: redis.Redis) -> None:
        emitter = emitter_at(valkey_url)
        emitter.emit(**USAGE)
        emitter.close()
        with pytest.raises(StreamUnavailable, match="closed") as caught:
            emitter.emit(**USAGE)
        assert len(caught.value.events) == 1
        assert emitter.close().accepted == 1
        assert len(ids_in(valkey)) == 1

    def test_every_event_is_delivered_or_refused_while_it_closes(
        self, valkey_url: str, valkey: redis.Redis
    ) -> None:
        for _ in range(12):
            valkey.flushall()
            emitter = emitter_at(valkey_url, flush_at=5)
            told: list[UUID] = []

            def work(emitter: BufferedEmitter = emitter, told: list[UUID] = told) -> None:
                try:
                    while True:
                        told.append(emitter.emit(**USAGE))
                except StreamUnavailable:
                    pass

            threads = [threading.Thread(target=work) for _ in range(3)]
            for thread in threads:
                thread.start()
            time.sleep(0.01)
            report = emitter.close()
            for thread in threads:
                thread.join()
            assert sorted(ids_in(valkey)) == sorted(told)
            assert report.failed == ()

    def test_reports_what_it_could_not_deliver_in_time(
        self, server: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        emitter = emitter_at(server.url())
        server.pause()
        try:
            told = [emitter.emit(**USAGE) for _ in range(3)]
            began = time.monotonic()
            report = emitter.close(timeout=0.3)
            assert time.monotonic() - began < 2
        finally:
            server.resume()
        assert (report.accepted, report.delivered) == (3, 0)
        assert [event.event_id for event in report.failed] == told
        with emitter_at(server.url()) as second:
            for event in report.failed:
                second.send(event)
        assert set(ids_in(client)) == set(told)

    def test_an_emitter_that_nobody_holds_delivers_and_ends(
        self, valkey_url: str, valkey: redis.Redis
    ) -> None:
        emitter = emitter_at(valkey_url, flush_interval_ms=60_000)
        told = [emitter.emit(**USAGE)]
        thread = emitter._flusher._thread
        assert thread is not None
        del emitter
        gc.collect()
        thread.join(5)
        assert not thread.is_alive()
        assert ids_in(valkey) == told

    def test_an_emitter_without_events_has_no_thread(self, valkey_url: str) -> None:
        before = threading.active_count()
        with emitter_at(valkey_url) as emitter:
            assert emitter.flush(0.0)
            assert emitter.stats.accepted == 0
            assert threading.active_count() == before
        assert threading.active_count() == before

    def test_may_be_called_from_its_own_thread(
        self, server: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        client.set(KEY, "in the way")
        closed = threading.Event()

        def give_up(error: StreamUnavailable) -> None:
            del error
            emitter.close(timeout=0.2)
            closed.set()

        emitter = emitter_at(server.url(), flush_interval_ms=0, on_error=give_up)
        emitter.emit(**USAGE)
        assert closed.wait(10)
        assert len(emitter.close().failed) == 1


class TestStreamAway:
    def test_nothing_is_lost_and_the_callers_do_not_notice(
        self, server: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        heard: list[StreamUnavailable] = []
        emitter = emitter_at(server.url(), flush_interval_ms=20, on_error=heard.append)
        told: list[UUID] = []
        slowest = 0.0

        def emit(seconds: float) -> None:
            nonlocal slowest
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                began = time.monotonic()
                told.append(emitter.emit(**USAGE))
                slowest = max(slowest, time.monotonic() - began)
                time.sleep(0.002)

        emit(0.3)
        server.halt()
        emit(2.0)
        assert emitter.stats.waiting > 100
        server.restart()
        emit(0.3)
        report = emitter.close()
        assert report.failed == ()
        assert report.delivered == len(told)
        assert set(ids_in(client)) == set(told)
        assert len(heard) == 1
        assert {event.event_id for event in heard[0].events} <= set(told)
        assert slowest < 1

    def test_only_what_was_refused_is_sent_again(
        self, server: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        users = {shard_of(name, 2): name for name in (f"user_{number}" for number in range(20))}
        client.set("usage:events:{1}", "in the way")
        emitter = BufferedEmitter(EmitterConfig(redis_url=server.url(), shards=2), flush_interval_ms=20)
        told = {
            shard: [emitter.emit(**{**USAGE, "user_id": None, "clerk_id": name}) for _ in range(5)]
            for shard, name in users.items()
        }
        until(lambda: ids_in(client) == told[0])
        assert emitter.stats.waiting == 5
        until(lambda: emitter.stats.failed_attempts >= 2)
        client.delete("usage:events:{1}")
        until(lambda: emitter.stats.waiting == 0)
        assert ids_in(client) == told[0]
        assert ids_in(client, "usage:events:{1}") == told[1]
        assert emitter.close().delivered == 10

    def test_with_a_spool_closing_leaves_it_to_the_disk(
        self, server: servers.ValkeyServer, client: redis.Redis, tmp_path: Path
    ) -> None:
        config = EmitterConfig(redis_url=server.url(), spool_dir=str(tmp_path / "spool"))
        emitter = BufferedEmitter(config)
        server.halt()
        try:
            told = [emitter.emit(**USAGE) for _ in range(700)]
            report = emitter.close()
            assert (report.delivered, report.failed) == (700, ())
        finally:
            server.restart()
        # Whoever uses the directory next sends what is in it.
        with BufferedEmitter(config) as second:
            told.append(second.emit(**USAGE))
            until(lambda: set(ids_in(client)) == set(told))
        assert len(ids_in(client)) == 701

    def test_flush_says_that_it_could_not(self, server: servers.ValkeyServer, client: redis.Redis) -> None:
        client.set(KEY, "in the way")
        with emitter_at(server.url()) as emitter:
            emitter.emit(**USAGE)
            assert not emitter.flush(0.3)
            client.delete(KEY)
            assert emitter.flush(5)
        assert len(ids_in(client)) == 1

    def test_an_error_in_on_error_is_logged(
        self, server: servers.ValkeyServer, client: redis.Redis, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(error: StreamUnavailable) -> None:
            raise LookupError("the app's own")

        client.set(KEY, "in the way")
        with caplog.at_level(logging.INFO, "producers"):
            emitter = emitter_at(server.url(), flush_interval_ms=0, on_error=fail)
            emitter.emit(**USAGE)
            until(lambda: "the app's own" in caplog.text)
            client.delete(KEY)
            assert emitter.close().failed == ()
        assert "usage events wait" in caplog.text
        assert "delivered again" in caplog.text
        assert server.password not in caplog.text


def test_ids_are_those_of_the_call_whatever_is_tried_again(
    server: servers.ValkeyServer, client: redis.Redis
) -> None:
    """A frozen server takes a frame and answers too late: the repetition is the same bytes."""
    identity = uuid4()
    emitter = emitter_at(server.url(), flush_interval_ms=0)
    emitter.emit(**USAGE)
    emitter.flush(3)
    server.pause()
    try:
        emitter.emit(**USAGE, event_id=identity)
        time.sleep(2.6)
    finally:
        server.resume()
    assert emitter.close().failed == ()
    found: list[tuple[bytes, dict[bytes, bytes]]] = client.xrange(KEY)  # type: ignore[assignment]  # bytes mode
    assert len({fields[b"data"] for _, fields in found[1:]}) == 1
    assert set(ids_in(client)[1:]) == {identity}
