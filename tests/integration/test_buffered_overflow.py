"""BufferedEmitter where as many events wait as may: never silent, and never longer than its budget."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis

from producers import BufferedEmitter, BufferFull, EmitterConfig
from tests.integration.emitted import USAGE, ids_in, until
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


class TestOverflow:
    @pytest.fixture
    def frozen(self, server: servers.ValkeyServer) -> Iterator[servers.ValkeyServer]:
        server.pause()
        yield server
        server.resume()

    def full(self, server: servers.ValkeyServer, **options: Any) -> tuple[BufferedEmitter, list[UUID]]:
        emitter = emitter_at(server.url(), capacity=10, flush_at=1, **options)
        return emitter, [emitter.emit(**USAGE) for _ in range(10)]

    def test_raises_at_once_if_asked_to(self, frozen: servers.ValkeyServer, client: redis.Redis) -> None:
        emitter, told = self.full(frozen, overflow="raise", budget_ms=5000)
        began = time.monotonic()
        with pytest.raises(BufferFull, match="10 usage events") as caught:
            emitter.emit(**USAGE)
        assert time.monotonic() - began < 2
        (event,) = caught.value.events
        frozen.resume()
        until(lambda: emitter.stats.waiting == 0)
        told.append(emitter.send(event))
        assert emitter.close().accepted == 11
        assert set(ids_in(client)) == set(told)
        frozen.pause()

    def test_blocks_for_its_budget_and_raises(
        self, frozen: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        emitter, told = self.full(frozen, budget_ms=80)
        began = time.monotonic()
        with pytest.raises(BufferFull) as caught:
            emitter.emit(**USAGE)
        assert 0.08 <= time.monotonic() - began < 3
        assert len(caught.value.events) == 1
        frozen.resume()
        assert emitter.close().accepted == 10
        assert set(ids_in(client)) == set(told)
        frozen.pause()

    def test_blocks_until_there_is_room(self, frozen: servers.ValkeyServer, client: redis.Redis) -> None:
        emitter, told = self.full(frozen, budget_ms=10_000)
        thaw = threading.Timer(0.2, frozen.resume)
        thaw.start()
        began = time.monotonic()
        told.append(emitter.emit(**USAGE))
        assert 0.1 < time.monotonic() - began < 9
        thaw.join()
        assert emitter.close().failed == ()
        assert set(ids_in(client)) == set(told)
        frozen.pause()

    def test_a_batch_names_what_was_not_taken(
        self, frozen: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        emitter = emitter_at(frozen.url(), capacity=10, overflow="raise")
        with pytest.raises(BufferFull) as caught, emitter.batch() as batch:
            told = [batch.emit(**USAGE) for _ in range(12)]
        assert [event.event_id for event in caught.value.events] == told[10:]
        frozen.resume()
        emitter.close()
        assert set(ids_in(client)) == set(told[:10])
        frozen.pause()

    def test_a_batch_waits_once_for_all(self, frozen: servers.ValkeyServer, client: redis.Redis) -> None:
        emitter = emitter_at(frozen.url(), capacity=10, budget_ms=100)
        began = time.monotonic()
        with pytest.raises(BufferFull) as caught, emitter.batch() as batch:
            told = [batch.emit(**USAGE) for _ in range(30)]
        assert 0.1 <= time.monotonic() - began < 1.5
        assert [event.event_id for event in caught.value.events] == told[10:]
        frozen.resume()
        assert emitter.close().accepted == 10
        frozen.pause()

    def test_with_a_spool_it_delivers_in_the_callers_thread(
        self, server: servers.ValkeyServer, client: redis.Redis, tmp_path: Path
    ) -> None:
        config = EmitterConfig(redis_url=server.url(), spool_dir=str(tmp_path / "spool"))
        emitter = BufferedEmitter(config, capacity=1000, flush_at=1)
        server.pause()
        slowest = 0.0
        told = []
        try:
            for _ in range(1500):
                began = time.monotonic()
                told.append(emitter.emit(**USAGE))
                slowest = max(slowest, time.monotonic() - began)
        finally:
            server.resume()
        assert slowest < 1
        until(lambda: set(ids_in(client)) == set(told))
        report = emitter.close()
        assert (report.accepted, report.failed) == (1500, ())
