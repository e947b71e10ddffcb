"""The Celery signals, under a real worker with pool processes."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from producers._stream import decode
from producers.integrations import celery as integration
from producers.integrations._context import current_usage, usage_context
from producers.testing import RecordingEmitter
from tests.unit.producers.integrations import celery_tasks
from worker.dev import _processes

_ROOT = Path(__file__).parents[4]


@pytest.fixture
def sender(valkey_url: str) -> Iterator[Any]:
    app, usage = celery_tasks.make(valkey_url)
    yield app
    usage.disconnect()
    app.close()


@pytest.fixture
def start(
    valkey_url: str, guard: _processes.Guard, tmp_path: Path
) -> Iterator[Callable[..., _processes.OwnedProcess]]:
    started: list[_processes.OwnedProcess] = []

    def worker(*arguments: str) -> _processes.OwnedProcess:
        module = "tests.unit.producers.integrations.celery_worker_app"
        process = _processes.OwnedProcess(
            [
                sys.executable,
                "-m",
                "celery",
                "-A",
                module,
                "worker",
                "--without-mingle",
                "--loglevel=INFO",
                *arguments,
            ],
            log=tmp_path / "worker.log",
            guard=guard,
            env={
                "PATH": os.defpath,
                "PYTHONPATH": str(_ROOT),
                "REDIS_URL": valkey_url,
            },
            cwd=tmp_path,
        )
        started.append(process)
        return process

    yield worker
    for process in started:
        process.stop(10)


def _found(valkey: redis.Redis, count: int) -> list[tuple[str | None, str, int | None]]:
    """Waits until that many events are there, and returns user, feature and tokens of all, sorted."""
    deadline = time.monotonic() + 15
    while True:
        entries: Any = valkey.xrange("usage:events:{0}")
        events = [one.event for _, fields in entries for one in decode(fields[b"data"])]
        if len(events) >= count or time.monotonic() > deadline:
            assert None not in events
            found = [(one.clerk_id, one.feature, one.input_tokens) for one in events if one is not None]
            return sorted(found, key=str)
        time.sleep(0.05)


class TestWorker:
    def test_tasks_work_for_those_who_sent_them_and_lose_nothing(
        self,
        start: Callable[..., _processes.OwnedProcess],
        sender: Any,
        valkey: redis.Redis,
        tmp_path: Path,
    ) -> None:
        expected = []
        for number in range(20):
            user = f"user_{number}"
            with usage_context(clerk_id=user, feature=f"feature {number}"):
                name = ("count", "fail", "again", "pass_on")[number % 4]
                sender.send_task(name, (number,))
            sender.send_task("count", (1000 + number,))
            expected += [(user, f"feature {number}", number), ("nobody", "none", 1000 + number)]
        stated = {"usage_user_id": "user_x", "usage_feature": "stated"}
        with usage_context(clerk_id="user_y", feature="around"):
            sender.send_task("count", (7,), headers=stated)
        expected.append(("user_x", "stated", 7))

        worker = start("--pool=prefork", "--concurrency=2")
        # Nothing is delivered before the pool processes end, since their buffers wait for a minute.
        _processes.wait_until(lambda: not _waiting(valkey) and _done(worker) >= 51, timeout=30)
        assert valkey.exists("usage:events:{0}") == 0
        worker.stop(10)
        assert _found(valkey, len(expected)) == sorted(expected, key=str), worker.log.read_text()

    def test_threads_do_not_mix_and_the_worker_closes_their_emitter(
        self, start: Callable[..., _processes.OwnedProcess], sender: Any, valkey: redis.Redis
    ) -> None:
        for number in range(20):
            with usage_context(clerk_id=f"user_{number}", feature="threads"):
                sender.send_task("count", (number,))
        worker = start("--pool=threads", "--concurrency=4")
        _processes.wait_until(lambda: not _waiting(valkey) and _done(worker) >= 20, timeout=30)
        worker.stop(10)
        expected = [(f"user_{number}", "threads", number) for number in range(20)]
        assert _found(valkey, 20) == sorted(expected, key=str), worker.log.read_text()


def _waiting(valkey: redis.Redis) -> int:
    return int(valkey.llen("celery"))


def _done(worker: _processes.OwnedProcess) -> int:
    """How many tasks have ended, well or not."""
    log = worker.log.read_text(errors="replace")
    return sum(log.count(f"] {how}") for how in ("succeeded in", "raised unexpected", "retry: "))


class TestSender:
    """In the process of the one who sends."""

    @pytest.fixture
    def made(self) -> list[RecordingEmitter]:
        return []

    @pytest.fixture
    def usage(self, made: list[RecordingEmitter]) -> Iterator[integration.CeleryUsage]:
        def make() -> RecordingEmitter:
            made.append(RecordingEmitter())
            return made[-1]

        usage = integration.install(Celery("sender"), emitter=make)
        yield usage
        usage.disconnect()

    def test_makes_an_emitter_when_it_is_needed_and_closes_it(
        self, usage: integration.CeleryUsage, made: list[RecordingEmitter]
    ) -> None:
        assert made == []
        assert usage.emitter is usage.emitter
        usage.disconnect()
        assert len(made) == 1
        assert made[0]._closed

    def test_a_forked_child_makes_its_own(self, usage: integration.CeleryUsage) -> None:
        parents = usage.emitter
        child = os.fork()
        if child == 0:
            os._exit(0 if usage.emitter is not parents else 1)
        assert os.waitpid(child, 0)[1] == 0

    def test_is_installed_once(self, sender: Any) -> None:
        with pytest.raises(RuntimeError, match="already"):
            integration.install(sender, emitter=RecordingEmitter)

    def test_an_eager_task_runs_in_the_context_of_its_caller(self, sender: Any) -> None:
        seen = []

        def look() -> None:
            seen.append((current_usage().user, current_usage().feature))

        with usage_context(clerk_id="user_1", feature="eager"):
            sender.task(name="look", shared=False)(look).apply()
            seen.append((current_usage().user, current_usage().feature))
        assert seen == [("user_1", "eager")] * 2
