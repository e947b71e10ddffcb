"""The emitter with a spool: whatever the stream does, a call is short and its event arrives."""

import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis

from producers import Emitter, EmitterConfig, InvalidConfiguration, StreamUnavailable, UsageEvent
from producers._stream import shard_of
from tests.integration.spool_world import (
    BUDGET_SECONDS,
    KEY,
    SLACK_SECONDS,
    USAGE,
    Gate,
    Timed,
    files,
    full_server,
    ids_in,
    in_order,
    mute_server,
    url_at,
)
from worker.dev import servers
from worker.dev._processes import wait_until

# Where a test counts what is sent once: no pause of a busy machine is a silent server.
PATIENT_MS = 5000


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


class TestStreamThere:
    def test_the_disk_is_not_touched(
        self, server: servers.ValkeyServer, client: redis.Redis, directory: Path
    ) -> None:
        patient = Timed(server.url(), directory, budget_ms=PATIENT_MS)
        patient.emit(200)
        assert files(directory) == []
        assert ids_in(client) == patient.told
        patient.emitter.close()

    def test_each_of_many_threads_has_a_connection(self, timed: Timed, client: redis.Redis) -> None:
        timed.emit_by_threads(8, 100)
        timed.assert_emptied()
        assert sorted(in_order(ids_in(client))) == sorted(timed.told)
        timed.assert_in_budget()

    def test_batches_shards_and_corrections(self, server: servers.ValkeyServer, directory: Path) -> None:
        names = [f"user_{number}" for number in range(12)]
        config = EmitterConfig(redis_url=server.url(), shards=3, spool_dir=str(directory))
        with Emitter(config, budget_ms=PATIENT_MS) as emitter:
            with emitter.batch() as batch:
                for name in names * 100:
                    batch.emit(**{**USAGE, "user_id": None, "clerk_id": name})
            voided = emitter.void(batch.event_ids[0], clerk_id=names[0])
        with redis.Redis.from_url(server.url()) as client:
            found = [ids_in(client, f"usage:events:{{{shard}}}") for shard in range(3)]
            corrections = ids_in(client, f"usage:corrections:{{{shard_of(names[0], 3)}}}")
        assert sorted(one for ids in found for one in ids) == sorted(batch.event_ids)
        assert corrections == [voided]
        assert files(directory) == []

    def test_a_closed_emitter_says_so(self, timed: Timed) -> None:
        timed.emit()
        timed.emitter.close()
        timed.emitter.close()
        with pytest.raises(StreamUnavailable, match="closed"):
            timed.emit()
        assert files(timed.directory) == []

    def test_an_emitter_that_nobody_holds_is_collected(
        self, server: servers.ValkeyServer, directory: Path
    ) -> None:
        Timed(server.url(), directory).emit(3)
        assert wait_until(
            lambda: not any(thread.name == "usage-spool" for thread in threading.enumerate()), timeout=10
        )


class TestStreamAway:
    def test_frozen(self, timed: Timed, server: servers.ValkeyServer, client: redis.Redis) -> None:
        timed.emit(5)
        server.pause()
        try:
            timed.emit_by_threads(4, 50)
            timed.emit(20)
            with timed.emitter.batch() as batch:
                for _ in range(1200):
                    batch.emit(**USAGE)
            timed.told += batch.event_ids
            timed.assert_in_budget()
            assert timed.waiting() >= 1400
        finally:
            server.resume()
        timed.assert_emptied()
        timed.emit(5)
        assert set(ids_in(client)) == set(timed.told)
        # Sent twice is what was on its way when the server froze, and what a replay tried meanwhile.
        assert len(timed.told) == len(set(timed.told)) == 5 + 200 + 20 + 1200 + 5

    def test_killed_and_back(self, timed: Timed, server: servers.ValkeyServer, client: redis.Redis) -> None:
        timed.emit(5)
        server.kill(signal.SIGKILL)
        timed.emit_by_threads(3, 30)
        time.sleep(0.2)
        timed.emit(20)
        timed.assert_in_budget()
        assert timed.waiting() >= 100
        server.restart()
        timed.assert_emptied()
        timed.emit(5)
        assert sorted(in_order(ids_in(client))) == sorted(timed.told)

    def test_from_the_start(self, server: servers.ValkeyServer, client: redis.Redis, directory: Path) -> None:
        server.halt()
        timed = Timed(server.url(), directory)
        timed.emit(10)
        timed.assert_in_budget()
        began = time.monotonic()
        timed.emitter.close()
        assert time.monotonic() - began < 3
        assert timed.waiting() == 10
        server.restart()
        later = Timed(server.url(), directory)
        later.emit()
        later.assert_emptied()
        later.emitter.close()
        assert [one for one in ids_in(client) if one in timed.told] == timed.told

    def test_order_holds_among_the_spooled(
        self, timed: Timed, server: servers.ValkeyServer, client: redis.Redis
    ) -> None:
        server.halt()
        timed.emit(1500)
        server.restart()
        timed.assert_emptied()
        assert in_order(ids_in(client)) == timed.told

    @pytest.mark.parametrize("scheme", ["redis", "rediss"])
    def test_a_peer_that_never_speaks(self, directory: Path, scheme: str) -> None:
        with mute_server() as port:
            timed = Timed(f"{scheme}://:S3cret@127.0.0.1:{port}/0", directory)
            timed.emit(10)
            timed.emit_by_threads(4, 5)
            timed.assert_in_budget()
            assert timed.waiting() == 30
            timed.emitter.close()

    def test_a_connect_that_hangs(self, directory: Path) -> None:
        with full_server() as port:
            timed = Timed(f"redis://:S3cret@127.0.0.1:{port}/0", directory)
            timed.emit(10)
            timed.assert_in_budget()
            assert timed.waiting() == 10
            timed.emitter.close()

    def test_a_name_that_nobody_resolves(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def hangs(*_: Any, **__: Any) -> Any:
            time.sleep(1.5)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

        monkeypatch.setattr(socket, "getaddrinfo", hangs)
        timed = Timed("redis://valkey.example:6379/0", directory)
        timed.emit(10)
        timed.assert_in_budget()
        assert timed.waiting() == 10
        timed.emitter.close()

    def test_a_budget_of_the_callers(self, server: servers.ValkeyServer, directory: Path) -> None:
        timed = Timed(server.url(), directory, budget_ms=600)
        timed.emit(3)
        server.pause()
        try:
            timed.emit()
            assert 0.2 < timed.taken[-1] < 0.6 + SLACK_SECONDS
            timed.emit()
            assert timed.taken[-1] < BUDGET_SECONDS + SLACK_SECONDS
        finally:
            server.resume()
        timed.assert_emptied()
        timed.emitter.close()
        with pytest.raises(InvalidConfiguration, match="budget_ms"):
            Timed(server.url(), directory, budget_ms=0)


class TestStreamRefuses:
    @pytest.mark.parametrize(
        ("spoil", "repair"),
        [
            (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
            (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
            (
                ("CONFIG", "SET", "min-replicas-to-write", "1"),
                ("CONFIG", "SET", "min-replicas-to-write", "0"),
            ),
            (("RENAME", KEY, "aside"), ("RENAME", "aside", KEY)),
            (("ACL", "SETUSER", "default", "-xadd"), ("ACL", "SETUSER", "default", "+xadd")),
            (("CONFIG", "SET", "requirepass", "another"), None),
        ],
        ids=["OOM", "READONLY", "NOREPLICAS", "WRONGTYPE", "NOPERM", "WRONGPASS"],
    )
    def test_events_wait_until_it_takes_them(
        self,
        timed: Timed,
        server: servers.ValkeyServer,
        client: redis.Redis,
        spoil: tuple[str, ...],
        repair: tuple[str, ...] | None,
    ) -> None:
        timed.emit(3)
        client.execute_command(*spoil)  # type: ignore[no-untyped-call]  # redis-py has no annotation here
        if spoil[0] == "RENAME":
            client.set(KEY, "in the way")
        if repair is None:
            client.client_kill_filter(_type="normal", skipme=True)
        timed.emit(30)
        time.sleep(0.3)
        timed.emit(30)
        timed.assert_in_budget()
        assert timed.waiting() >= 60
        if repair is None:
            repair = ("CONFIG", "SET", "requirepass", server.password)
        client.execute_command(*repair)  # type: ignore[no-untyped-call]  # as above
        timed.assert_emptied()
        timed.emit(3)
        assert sorted(in_order(ids_in(client))) == sorted(timed.told)

    @pytest.mark.parametrize(
        "answer",
        [
            b"-LOADING Valkey is loading the dataset in memory\r\n",
            b"-MASTERDOWN Link with MASTER is down\r\n",
            b"-CLUSTERDOWN Hash slot not served\r\n",
            b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
            b"-MISCONF Valkey is configured to save RDB snapshots, but it's unable to persist to disk.\r\n",
            b"-ERR max number of clients reached\r\n",
            b"-BUSY Valkey is busy running a script.\r\n",
            b"+OK\r\n",
            b"$-1\r\n",
        ],
    )
    def test_whatever_it_says_instead(
        self, server: servers.ValkeyServer, client: redis.Redis, directory: Path, answer: bytes
    ) -> None:
        gate = Gate(server.port)
        try:
            timed = Timed(url_at(server, gate.port), directory)
            timed.emit(2)
            gate.answer = answer
            timed.emit(20)
            timed.assert_in_budget()
            time.sleep(0.15)
            # It was asked again meanwhile, and that was no acknowledgement either.
            assert not set(ids_in(client)) & set(timed.told[2:])
            gate.answer = None
            timed.assert_emptied()
            timed.emit(2)
            timed.emitter.close()
        finally:
            gate.close()
        assert sorted(in_order(ids_in(client))) == sorted(timed.told)

    def test_a_part_of_a_batch(
        self, server: servers.ValkeyServer, client: redis.Redis, directory: Path
    ) -> None:
        client.set("usage:events:{1}", "in the way")
        timed = Timed(server.url(), directory, shards=2, budget_ms=PATIENT_MS)
        users = [
            next(f"user_{n}" for n in range(50) if shard_of(f"user_{n}", 2) == shard) for shard in (0, 1)
        ]
        with timed.emitter.batch() as batch:
            for user in users * 5:
                batch.emit(**{**USAGE, "user_id": None, "clerk_id": user})
            batch.add(UsageEvent(clerk_id=users[1], feature="x", corrects=UUID(int=5), cost_usd="-0.5"))
        assert timed.waiting() == 5
        client.delete("usage:events:{1}")
        timed.assert_emptied()
        timed.emitter.close()
        for shard in (0, 1):
            expected = [
                one for one, user in zip(batch.event_ids[:10], users * 5, strict=True) if user == users[shard]
            ]
            assert in_order(ids_in(client, f"usage:events:{{{shard}}}")) == expected
        assert set(ids_in(client, "usage:corrections:{1}")) == {batch.event_ids[10]}

    def test_one_key_does_not_hold_up_the_others(
        self, server: servers.ValkeyServer, client: redis.Redis, directory: Path
    ) -> None:
        client.set("usage:events:{1}", "in the way")
        timed = Timed(server.url(), directory, shards=2, budget_ms=PATIENT_MS)
        users = [
            next(f"user_{n}" for n in range(50) if shard_of(f"user_{n}", 2) == shard) for shard in (0, 1)
        ]
        for number in range(20):
            timed.emit(user_id=None, clerk_id=users[number % 2])
        server.halt()
        for number in range(1500):
            timed.emit(user_id=None, clerk_id=users[number % 2])
        server.restart()
        good, refused = timed.told[::2], timed.told[1::2]
        assert wait_until(lambda: len(ids_in(client)) >= len(good), timeout=15)
        time.sleep(2.5)
        timed.emit(user_id=None, clerk_id=users[0])
        # They came in order, and were not sent again beside the others.
        came, outage = ids_in(client), set(good[10:])
        assert sorted(came) == sorted([*good, timed.told[-1]])
        assert [one for one in came if one in outage] == good[10:]
        assert timed.waiting() == len(refused)
        client.delete("usage:events:{1}")
        timed.assert_emptied()
        timed.emitter.close()
        assert in_order(ids_in(client, "usage:events:{1}")) == refused

    def test_is_told_without_an_event_or_a_password(
        self, timed: Timed, server: servers.ValkeyServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        timed.emit()
        server.halt()
        timed.emit(5)
        server.restart()
        timed.assert_emptied()
        assert "usage events go to the spool at" in caplog.text
        assert "the stream answers again" in caplog.text
        assert "blog_writer" not in caplog.text
        assert server.password not in caplog.text
