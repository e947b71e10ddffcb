"""AsyncEmitter against real servers: awaited means acknowledged; cancelled means delivered all the same."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis

from producers import AsyncEmitter, BufferFull, EmitterConfig, InvalidEvent, StreamUnavailable, UsageEvent
from tests.integration.emitted import KEY, USAGE, finish, ids_in, numbers_in, spawn
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


def emitter_at(url: str, **options: Any) -> AsyncEmitter:
    return AsyncEmitter.from_env({"REDIS_URL": url}, **options)


class TestEmit:
    def test_returns_once_it_is_acknowledged(self, valkey_url: str, valkey: redis.Redis) -> None:
        async def main() -> None:
            async with emitter_at(valkey_url) as emitter:
                for count in range(1, 6):
                    identity = await emitter.emit(**USAGE)
                    assert ids_in(valkey)[count - 1 :] == [identity]

        asyncio.run(main())

    def test_concurrent_calls_share_frames(self, valkey_url: str, valkey: redis.Redis) -> None:
        async def main() -> list[UUID]:
            async with emitter_at(valkey_url) as emitter:
                return await asyncio.gather(*(emitter.emit(**USAGE) for _ in range(2000)))

        told = asyncio.run(main())
        assert sorted(ids_in(valkey)) == sorted(told)
        assert valkey.xlen(KEY) < 1000
        assert list(numbers_in(valkey).values()) == [list(range(1, 2001))]

    def test_refuses_before_anything_is_sent(self, valkey_url: str, valkey: redis.Redis) -> None:
        async def main() -> None:
            async with emitter_at(valkey_url) as emitter:
                with pytest.raises(InvalidEvent, match="invalid_tokens"):
                    await emitter.emit(**{**USAGE, "input_tokens": -1})

        asyncio.run(main())
        assert valkey.dbsize() == 0

    def test_is_shared_by_loops_in_threads(self, valkey_url: str, valkey: redis.Redis) -> None:
        emitter = emitter_at(valkey_url)
        told: list[UUID] = []

        async def main() -> None:
            told.extend(await asyncio.gather(*(emitter.emit(**USAGE) for _ in range(200))))

        threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert asyncio.run(emitter.close()).delivered == 800
        assert sorted(ids_in(valkey)) == sorted(told)

    def test_takes_batches_ready_events_and_voids(self, valkey_url: str, valkey: redis.Redis) -> None:
        ready = UsageEvent(**USAGE)

        async def main() -> list[UUID]:
            async with emitter_at(valkey_url) as emitter:
                async with emitter.batch() as batch:
                    told = [batch.emit(**USAGE) for _ in range(700)]
                assert ids_in(valkey) == told
                with contextlib.suppress(LookupError):
                    async with emitter.batch() as batch:
                        batch.emit(**USAGE)
                        raise LookupError("what the app does in the block")
                async with emitter.batch():
                    pass
                told.append(await emitter.send(ready))
                await emitter.void(ready.event_id, user_id=USAGE["user_id"])
                assert emitter.stats.delivered == 702
                return told

        assert asyncio.run(main()) == ids_in(valkey)
        assert len(ids_in(valkey, "usage:corrections:{0}")) == 1

    def test_refuses_after_close(self, valkey_url: str, valkey: redis.Redis) -> None:
        async def main() -> None:
            emitter = emitter_at(valkey_url)
            await emitter.emit(**USAGE)
            assert (await emitter.close()).delivered == 1
            with pytest.raises(StreamUnavailable, match="closed") as caught:
                await emitter.emit(**USAGE)
            assert len(caught.value.events) == 1

        asyncio.run(main())
        assert len(ids_in(valkey)) == 1

    def test_every_event_is_delivered_or_refused_while_it_closes(
        self, valkey_url: str, valkey: redis.Redis
    ) -> None:
        for _ in range(10):
            valkey.flushall()
            asyncio.run(self._emit_and_close(emitter_at(valkey_url), valkey))

    async def _emit_and_close(self, emitter: AsyncEmitter, valkey: redis.Redis) -> None:
        told: list[UUID] = []
        unknown: list[UUID] = []

        async def work() -> None:
            try:
                while True:
                    told.append(await emitter.emit(**USAGE))
            except StreamUnavailable as error:
                unknown.extend(event.event_id for event in error.events)

        tasks = [asyncio.create_task(work()) for _ in range(20)]
        await asyncio.sleep(0.02)
        report = await emitter.close()
        await asyncio.gather(*tasks)
        assert report.failed == ()
        assert len(unknown) == 20
        assert set(told) <= set(ids_in(valkey)) <= set(told) | set(unknown)
        assert len(ids_in(valkey)) == len(set(ids_in(valkey)))


class TestStreamAway:
    def test_the_caller_is_told_and_has_its_event_back(
        self, server: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        async def main() -> None:
            async with emitter_at(server.url()) as emitter:
                server.halt()
                try:
                    outcomes = await asyncio.gather(
                        *(emitter.emit(**USAGE) for _ in range(5)), return_exceptions=True
                    )
                    async with contextlib.AsyncExitStack() as stack:
                        stack.enter_context(pytest.raises(StreamUnavailable, match="REDIS_URL"))
                        batch = await stack.enter_async_context(emitter.batch())
                        for _ in range(3):
                            batch.emit(**USAGE)
                finally:
                    server.restart()
                events = [event for one in outcomes for event in _events_of(one)]
                assert len(events) == 5
                await asyncio.sleep(0.3)
                assert ids_in(client) == []
                told = [await emitter.send(event) for event in events]
                assert ids_in(client) == told
                assert emitter.stats.accepted == 5

        asyncio.run(main())

    def test_with_a_spool_it_is_on_disk_and_arrives_later(
        self, server: servers.ValkeyServer, client: redis.Redis, tmp_path: Path
    ) -> None:
        async def main() -> list[UUID]:
            config = EmitterConfig(redis_url=server.url(), spool_dir=str(tmp_path / "spool"))
            async with AsyncEmitter(config) as emitter:
                server.halt()
                try:
                    told = await asyncio.gather(*(emitter.emit(**USAGE) for _ in range(50)))
                    told.append(await emitter.emit(**USAGE))
                    assert emitter.stats.delivered == 51
                finally:
                    server.restart()
                while not set(told) <= set(ids_in(client)):
                    await asyncio.sleep(0.02)
                return told

        told = asyncio.run(main())
        # One whose answer did not come in time may stand there twice: under one id, which counts once.
        assert len(told) == len(set(told)) == 51
        assert set(ids_in(client)) == set(told)

    def test_takes_only_so_many(self, server: servers.ValkeyServer, client: redis.Redis) -> None:
        async def main() -> None:
            async with emitter_at(server.url(), capacity=10) as emitter:
                server.pause()
                try:
                    tasks = [asyncio.create_task(emitter.emit(**USAGE)) for _ in range(10)]
                    await asyncio.sleep(0)
                    with pytest.raises(BufferFull) as caught:
                        await emitter.emit(**USAGE)
                    assert len(caught.value.events) == 1
                finally:
                    server.resume()
                assert set(await asyncio.gather(*tasks)) == set(ids_in(client))

        asyncio.run(main())


FORKING = """
import asyncio, os, sys
from producers import AsyncEmitter
USAGE = dict(user_id="7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11", feature="fork", input_tokens=1, output_tokens=1)
emitter = AsyncEmitter.from_env()

async def emit(count):
    for identity in await asyncio.gather(*(emitter.emit(**USAGE) for _ in range(count))):
        os.write(1, f"{identity}\\n".encode())

asyncio.run(emit(50))
children = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        asyncio.run(emit(100))
        os._exit(0)
    children.append(pid)
asyncio.run(emit(50))
assert all(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 for pid in children)
"""


def test_fork_in_between(server: servers.ValkeyServer, client: redis.Redis) -> None:
    told = finish(spawn(FORKING, server))
    assert len(told) == len(set(told)) == 400
    assert sorted(ids_in(client)) == sorted(told)


def _events_of(outcome: object) -> tuple[UsageEvent, ...]:
    assert isinstance(outcome, StreamUnavailable)
    return outcome.events
