"""The spool at its limits: a full disk, a slow fsync, forks, and what is left for others to send."""

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
import redis

from producers import Batch, EmitterConfig, StreamUnavailable
from producers import _spool_segment as segments
from producers._spool_flush import flush
from tests.integration.spool_world import (
    USAGE,
    Timed,
    ids_in,
    in_order,
)
from worker.dev import servers


@pytest.fixture
def server() -> Iterator[servers.ValkeyServer]:
    """A server of the test's own, to be stopped and spoilt."""
    with servers.ValkeyServer() as own:
        yield own


@pytest.fixture
def client(server: servers.ValkeyServer) -> "Iterator[redis.Redis]":
    with redis.Redis.from_url(server.url()) as one:
        yield one


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def timed(server: servers.ValkeyServer, directory: Path) -> Iterator[Timed]:
    one = Timed(server.url(), directory)
    yield one
    one.emitter.close()


class TestDurability:
    def test_what_the_server_did_not_sync_in_time_is_in_the_spool(
        self, server: servers.ValkeyServer, client: redis.Redis, directory: Path
    ) -> None:
        client.config_set("appendfsync", "no")
        timed = Timed(server.url(), directory, durability="fsync")
        timed.emit(5)
        timed.assert_in_budget()
        assert timed.waiting() == 5
        client.config_set("appendfsync", "always")
        timed.assert_emptied()
        timed.emit(5)
        timed.assert_in_budget()
        timed.emitter.close()
        assert sorted(in_order(ids_in(client))) == sorted(timed.told)


class TestSpoolFull:
    def test_is_told_with_both_causes_and_the_events(
        self, server: servers.ValkeyServer, client: redis.Redis, directory: Path
    ) -> None:
        timed = Timed(server.url(), directory, spool_max_mb=0.005)
        server.halt()
        with pytest.raises(StreamUnavailable, match=r"did not acknowledge 1 event.*spool is full") as caught:
            timed.emit(100)
        assert len(timed.told) > 5
        assert server.password not in str(caught.value)
        batches: list[Batch] = []

        def emit_together() -> None:
            with timed.emitter.batch() as batch:
                batches.append(batch)
                for _ in range(3):
                    batch.emit(**USAGE)

        with pytest.raises(StreamUnavailable) as whole:
            emit_together()
        assert [event.event_id for event in whole.value.events] == batches[0].event_ids
        server.restart()
        timed.assert_emptied()
        for event in (*caught.value.events, *whole.value.events):
            timed.told.append(timed.emitter.send(event))
        timed.emit(3)
        timed.emitter.close()
        assert sorted(in_order(ids_in(client))) == sorted(timed.told)

    def test_a_disk_that_fails_is_told(
        self, timed: Timed, server: servers.ValkeyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        timed.emit()
        server.halt()

        def fails(_: int) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patched:
            patched.setattr(segments, "_fdatasync", fails)
            with pytest.raises(StreamUnavailable, match=r"EIO: Input/output error") as caught:
                timed.emit()
        timed.emit()
        server.restart()
        timed.assert_emptied()
        timed.emitter.send(caught.value.events[0])

    def test_a_directory_that_vanishes_is_told(self, timed: Timed, server: servers.ValkeyServer) -> None:
        timed.emit()
        timed.directory.rmdir()
        timed.emit()
        server.halt()
        with pytest.raises(StreamUnavailable, match=r"ENOENT"):
            timed.emit()
        timed.directory.mkdir(mode=0o700)
        timed.emit()
        server.restart()
        timed.assert_emptied()


class TestFlush:
    def test_sends_what_nobody_holds(
        self, server: servers.ValkeyServer, client: redis.Redis, directory: Path
    ) -> None:
        config = EmitterConfig(redis_url=server.url(), spool_dir=str(directory))
        server.halt()
        ended = Timed(server.url(), directory)
        ended.emit(5)
        ended.emitter.close()
        with pytest.raises(StreamUnavailable, match="REDIS_URL"):
            flush(config, directory)
        living = Timed(server.url(), directory)
        living.emit(3)
        server.restart()
        done = flush(config, directory)
        # The living one may have been quicker.
        assert done.events in (0, 5)
        assert done.damaged_bytes == 0
        living.assert_emptied()
        living.emitter.close()
        assert sorted(in_order(ids_in(client))) == sorted(ended.told + living.told)
        assert flush(config, directory) == (0, 0, 0, 0)


class TestFork:
    def test_parent_and_child_keep_and_send_their_own(
        self, timed: Timed, server: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        timed.emit(3)
        server.halt()
        timed.emit(3)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(reading)
                child = [timed.emitter.emit(**USAGE) for _ in range(20)]
                os.write(writing, "".join(f"{one}\n" for one in child).encode())
                code = 0
            finally:
                os._exit(code)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            theirs = [UUID(line.strip()) for line in pipe]
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert len(theirs) == 20
        timed.emit(3)
        server.restart()
        timed.assert_emptied()
        assert sorted(in_order(ids_in(client))) == sorted(timed.told + theirs)
