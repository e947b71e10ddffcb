"""PostgreSQL and Valkey go down under a busy worker and come back: everything is counted once."""

from __future__ import annotations

import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from producers import Emitter, StreamUnavailable, UsageEvent
from producers._config import EmitterConfig
from tests.fixtures.processes import StartWorker
from worker.dev import servers

USER = uuid.UUID("0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11")


class _App:
    """Emits an event every few milliseconds, and sends again what was not acknowledged, as an app would."""

    def __init__(self, config: EmitterConfig) -> None:
        self.emitted: set[uuid.UUID] = set()
        self.refused_count = 0
        self._config = config
        self._stop = threading.Event()

    def run(self) -> None:
        with Emitter(self._config) as emitter:
            while not self._stop.is_set():
                event = UsageEvent(
                    user_id=USER, feature="chat", input_tokens=1, output_tokens=1, cost_usd="0.000001"
                )
                self._send(emitter, event)
                self._stop.wait(0.005)

    def _send(self, emitter: Emitter, event: UsageEvent) -> None:
        for _ in range(200):
            try:
                emitter.send(event)
            except StreamUnavailable:
                self.refused_count += 1
                time.sleep(0.1)
            else:
                self.emitted.add(event.event_id)
                return

    @contextmanager
    def running(self) -> Iterator[None]:
        """Emits while the block runs."""
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(30)


def _wait_for(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(0.1)


@pytest.mark.timeout(180)
class TestOutage:
    def test_of_either_server_delays_events_and_changes_no_count(
        self, private_servers: servers.EmbeddedServers, celery_worker: StartWorker
    ) -> None:
        platform = private_servers.environ()["PLATFORM_DATABASE_URL"]

        def stored() -> set[uuid.UUID]:
            with psycopg.connect(platform) as database:
                return {row[0] for row in database.execute("SELECT id FROM platform_usage_logs")}

        worker = celery_worker(env=private_servers.environ())
        app = _App(EmitterConfig.from_env(private_servers.environ()))
        with app.running():
            _wait_for(lambda: len(stored()) > 100, seconds=30, what="the first rows")

            private_servers.postgres.kill(signal.SIGQUIT)  # the immediate shutdown: no checkpoint, no goodbye
            time.sleep(2)
            private_servers.postgres.start()
            before = len(app.emitted)
            _wait_for(lambda: len(stored()) > before, seconds=60, what="draining again after PostgreSQL")

            private_servers.valkey.kill(signal.SIGKILL)
            time.sleep(1)
            private_servers.valkey.start()
            before = len(app.emitted)
            _wait_for(lambda: len(app.emitted) > before, seconds=30, what="emitting again after Valkey")
            before = len(app.emitted)
            _wait_for(lambda: len(stored()) > before, seconds=60, what="draining again after Valkey")
        assert app.refused_count > 0, "Valkey was never away"
        _wait_for(lambda: stored() >= app.emitted, seconds=30, what="every acknowledged event stored")
        assert stored() == app.emitted
        with psycopg.connect(platform) as database:
            assert database.execute("SELECT sum(events), sum(tokens_used) FROM usage_hourly").fetchone() == (
                len(app.emitted),
                2 * len(app.emitted),
            )
            assert database.execute("SELECT count(*) FROM usage_dead_letters").fetchone() == (0,)
        assert worker.running
        assert '"event": "backing off"' in worker.log()
        assert "Traceback" not in worker.log()
