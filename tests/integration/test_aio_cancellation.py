"""AsyncEmitter where nobody waits any more: what was made is delivered all the same, and once."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
import redis

from producers import AsyncEmitter, StreamUnavailable
from tests.integration.emitted import KEY, USAGE, ids_in, until
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


class TestCancellation:
    def test_at_every_step_the_event_is_there_once_or_was_never_made(
        self, valkey_url: str, valkey: redis.Redis
    ) -> None:
        cancelled = 0
        made: list[UUID] = []

        async def main() -> None:
            nonlocal cancelled
            async with emitter_at(valkey_url) as emitter:
                for step in range(60):
                    identity = UUID(int=USAGE["user_id"].int + 1 + step)
                    task = asyncio.create_task(emitter.emit(**USAGE, event_id=identity))
                    for _ in range(step % 6):
                        await asyncio.sleep(0)
                    if step >= 30:
                        await asyncio.sleep(0.00002 * step)
                    task.cancel()
                    (outcome,) = await asyncio.gather(task, return_exceptions=True)
                    cancelled += isinstance(outcome, asyncio.CancelledError)
                    assert isinstance(outcome, asyncio.CancelledError) or outcome == identity
                    if step % 6 == 0 and step < 30:
                        assert identity not in ids_in(valkey)
                        continue
                    made.append(identity)
                assert (await emitter.close()).delivered == len(made)

        asyncio.run(main())
        assert ids_in(valkey) == made
        assert 20 < cancelled

    def test_what_waits_for_a_frozen_server_is_delivered(
        self, server: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        identities = [UUID(int=USAGE["user_id"].int + number) for number in range(20)]

        async def main() -> None:
            emitter = emitter_at(server.url())
            server.pause()
            try:
                tasks = [asyncio.create_task(emitter.emit(**USAGE, event_id=one)) for one in identities]
                await asyncio.sleep(0.1)
                for task in tasks:
                    task.cancel()
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
                assert all(isinstance(one, asyncio.CancelledError) for one in outcomes)
            finally:
                server.resume()
            report = await emitter.close()
            assert (report.delivered, report.failed) == (20, ())

        asyncio.run(main())
        assert sorted(ids_in(client)) == identities

    def test_what_failed_and_nobody_awaits_is_tried_again(
        self, server: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        heard: list[StreamUnavailable] = []

        async def main() -> None:
            emitter = emitter_at(server.url(), on_error=heard.append)
            await emitter.emit(**USAGE)
            client.rename(KEY, "aside")
            client.set(KEY, "in the way")
            task = asyncio.create_task(emitter.emit(**USAGE))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            while not heard:
                await asyncio.sleep(0.01)
            client.delete(KEY)
            report = await emitter.close()
            assert (report.delivered, report.failed) == (2, ())

        asyncio.run(main())
        assert ids_in(client) == [event.event_id for event in heard[0].events]

    def test_told_of_a_failure_and_cancelled_before_it_runs_on(
        self, server: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        """The error is on its way to a task that will not see it any more: the event goes back."""

        async def main() -> None:
            emitter = emitter_at(server.url())
            client.set(KEY, "in the way")
            task = asyncio.create_task(emitter.emit(**USAGE))
            await asyncio.sleep(0)
            # The thread fails and tells the loop, which is kept busy here.
            time.sleep(0.3)
            task.cancel()
            (outcome,) = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(outcome, asyncio.CancelledError)
            assert emitter.stats.waiting == 1
            client.delete(KEY)
            assert (await emitter.close()).delivered == 1

        asyncio.run(main())
        assert len(ids_in(client)) == 1


class TestLoops:
    @pytest.mark.parametrize("cancelled", [True, False])
    def test_a_loop_that_is_closed_meanwhile(
        self, server: servers.ValkeyServer, client: redis.Redis, cancelled: bool
    ) -> None:
        emitter = emitter_at(server.url())
        server.pause()
        try:
            loop = asyncio.new_event_loop()
            task = loop.create_task(emitter.emit(**USAGE))
            loop.run_until_complete(asyncio.sleep(0.05))
            if cancelled:
                task.cancel()
                loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
            else:
                # asyncio complains of a pending task where it is destroyed; here that is on purpose.
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # a private switch of asyncio
            loop.close()
            del task
            gc.collect()
        finally:
            server.resume()
        assert asyncio.run(emitter.close()).delivered == 1
        assert len(ids_in(client)) == 1

    def test_a_failure_for_a_loop_that_is_closed_is_tried_again(
        self, server: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        emitter = emitter_at(server.url())
        client.set(KEY, "in the way")
        server.pause()
        try:
            loop = asyncio.new_event_loop()
            task = loop.create_task(emitter.emit(**USAGE))
            loop.run_until_complete(asyncio.sleep(0.05))
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # a private switch of asyncio
            loop.close()
        finally:
            server.resume()
        until(lambda: emitter.stats.failed_attempts > 0)
        client.delete(KEY)
        assert asyncio.run(emitter.close()).delivered == 1
        assert len(ids_in(client)) == 1
        del task
        gc.collect()

    def test_close_ends_what_a_frozen_server_holds_up(
        self, server: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        async def main() -> list[UUID]:
            emitter = emitter_at(server.url())
            server.pause()
            try:
                task = asyncio.create_task(emitter.emit(**USAGE))
                await asyncio.sleep(0.05)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                began = time.monotonic()
                report = await emitter.close(timeout=0.2)
                assert time.monotonic() - began < 2
                return [event.event_id for event in report.failed]
            finally:
                server.resume()

        told = asyncio.run(main())
        assert len(told) == 1
        until(lambda: ids_in(client) in (told, []))
