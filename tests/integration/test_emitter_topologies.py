"""The emitter on a real cluster whose slot moves, and behind a real Sentinel whose primary dies."""

import stat
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis

from producers import Emitter, EmitterConfig, StreamUnavailable
from producers._client import connect
from producers._stream import decode
from worker.dev import _processes, _valkey, servers

USAGE: dict[str, Any] = {
    "user_id": UUID("7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11"),
    "feature": "blog_writer",
    "input_tokens": 812,
    "output_tokens": 455,
}
KEY = "usage:events:{0}"
PASSWORD = "for-this-test-only"  # noqa: S105 - of servers that live for seconds on loopback


def client_of(server: servers.ValkeyServer) -> redis.Redis:
    return redis.Redis.from_url(server.url())


def say(server: servers.ValkeyServer, *words: object) -> Any:
    with client_of(server) as client:
        return client.execute_command(*words)


def ids_in(server: servers.ValkeyServer, key: str = KEY) -> list[UUID]:
    with client_of(server) as client:
        found = [fields[b"data"] for _, fields in client.xrange(key)]
    return [one.event_id for data in found for one in decode(data) if one.event_id is not None]


def is_ready(node: servers.ValkeyServer) -> bool:
    return b"cluster_state:ok" in say(node, "CLUSTER", "INFO")


def wait_until(condition: Callable[[], bool]) -> None:
    assert _processes.wait_until(condition, timeout=20)


@pytest.fixture
def nodes() -> Iterator[list[servers.ValkeyServer]]:
    """Two nodes of a cluster; the first one has every slot."""
    running: list[servers.ValkeyServer] = []
    try:
        for _ in range(2):
            settings = {
                "cluster-enabled": "yes",
                "cluster-port": str(_processes.free_port()),
                "cluster-node-timeout": "2000",
            }
            running.append(servers.ValkeyServer(settings=settings, password=PASSWORD).start())
        first, second = running
        say(first, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        say(second, "CLUSTER", "MEET", "127.0.0.1", first.port, first.settings["cluster-port"])
        for node in running:
            wait_until(partial(is_ready, node))
        yield running
    finally:
        for node in running:
            node.stop()


class TestCluster:
    def test_finds_the_node_of_each_shard_and_follows_a_slot_that_moves(
        self, nodes: list[servers.ValkeyServer]
    ) -> None:
        first, second = nodes
        config = EmitterConfig(redis_url=first.url(), cluster=True, shards=3)
        slot = say(first, "CLUSTER", "KEYSLOT", "usage:events:{0}")
        ids = {node: say(node, "CLUSTER", "MYID") for node in nodes}
        users = [uuid4() for _ in range(12)]
        with Emitter(config) as emitter:
            sent = self.send(emitter, users)
            # The slot of shard 0 is on its way: the first node answers ASK for a key that it has no more.
            say(second, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[first])
            say(first, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[second])
            words = ("MIGRATE", "127.0.0.1", second.port, KEY, 0, 5000, "AUTH", PASSWORD)
            assert say(first, *words) == b"OK"
            sent += self.send(emitter, users)
            # And there it is: from now on the first node answers MOVED.
            for node in (second, first):
                say(node, "CLUSTER", "SETSLOT", slot, "NODE", ids[second])
            sent += self.send(emitter, users)
        found = ids_in(second) + ids_in(first, "usage:events:{1}") + ids_in(first, "usage:events:{2}")
        assert sorted(found) == sorted(sent)
        assert len(ids_in(second)) > 0

    def test_with_a_spool_it_moves_goes_away_and_comes_back(
        self, nodes: list[servers.ValkeyServer], tmp_path: Path
    ) -> None:
        first, second = nodes
        spool = tmp_path / "spool"
        config = EmitterConfig(redis_url=first.url(), cluster=True, shards=3, spool_dir=str(spool))
        slot = say(first, "CLUSTER", "KEYSLOT", "usage:events:{0}")
        ids = {node: say(node, "CLUSTER", "MYID") for node in nodes}
        users = [uuid4() for _ in range(12)]
        with Emitter(config) as emitter:
            sent = self.send(emitter, users)
            say(second, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[first])
            say(first, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[second])
            assert say(first, "MIGRATE", "127.0.0.1", second.port, KEY, 0, 5000, "AUTH", PASSWORD) == b"OK"
            sent += self.send(emitter, users)
            for node in (second, first):
                say(node, "CLUSTER", "SETSLOT", slot, "NODE", ids[second])
            sent += self.send(emitter, users)
            for node in nodes:
                node.pause()
            began = time.monotonic()
            sent += self.send(emitter, users)
            assert time.monotonic() - began < 2
            assert list(spool.iterdir())
            for node in nodes:
                node.resume()
            wait_until(lambda: not list(spool.iterdir()))
            sent += self.send(emitter, users)
        found = ids_in(second) + ids_in(first, "usage:events:{1}") + ids_in(first, "usage:events:{2}")
        assert set(found) == set(sent)

    @staticmethod
    def send(emitter: Emitter, users: list[UUID]) -> list[UUID]:
        sent = [emitter.emit(**{**USAGE, "user_id": user}) for user in users]
        with emitter.batch() as batch:
            for user in users:
                batch.emit(**{**USAGE, "user_id": user})
        return sent + batch.event_ids

    def test_waits_for_the_fsync_of_the_node_that_took_the_event(
        self, nodes: list[servers.ValkeyServer]
    ) -> None:
        config = EmitterConfig(redis_url=nodes[0].url(), cluster=True, durability="fsync")
        with Emitter(config) as emitter:
            identity = emitter.emit(**USAGE)
        assert ids_in(nodes[0]) == [identity]

    def test_a_cluster_that_is_away_is_told(self, nodes: list[servers.ValkeyServer]) -> None:
        for node in nodes:
            node.halt()
        with Emitter(EmitterConfig(redis_url=nodes[0].url(), cluster=True)) as emitter:
            with pytest.raises(StreamUnavailable) as caught:
                emitter.emit(**USAGE)
        assert PASSWORD not in str(caught.value)

    def test_the_worker_gets_a_client_in_bytes_mode(self, nodes: list[servers.ValkeyServer]) -> None:
        client = connect(EmitterConfig(redis_url=nodes[0].url(), cluster=True), for_emit=False)
        try:
            client.xadd(KEY, {"data": b"\xff"})
            assert client.xrange(KEY)[0][1] == {b"data": b"\xff"}  # type: ignore[index]  # a list
        finally:
            client.close()


@pytest.fixture
def primary_and_replica(tmp_path: Path) -> Iterator[tuple[servers.ValkeyServer, servers.ValkeyServer, str]]:
    """A primary with its replica, and the address of the Sentinel that watches them."""
    common = {"masterauth": PASSWORD, "repl-diskless-sync-delay": "0"}
    program = tmp_path / "sentinel"
    program.write_text(f'#!/bin/sh\nexec {_valkey.server_binary()} "$@" --sentinel\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    with (
        servers.ValkeyServer(settings=common, password=PASSWORD) as primary,
        servers.ValkeyServer(
            settings={**common, "replicaof": f"127.0.0.1 {primary.port}"}, password=PASSWORD
        ) as replica,
    ):
        wait_until(lambda: say(replica, "INFO", "replication")["master_link_status"] == "up")
        watch = (
            f"monitor Main 127.0.0.1 {primary.port} 1\nsentinel auth-pass Main {PASSWORD}\n"
            "sentinel down-after-milliseconds Main 300\nsentinel failover-timeout Main 3000"
        )
        with servers.ValkeyServer(
            binary=program, settings={"sentinel": watch}, password=PASSWORD
        ) as sentinel:
            wait_until(lambda: len(say(sentinel, "SENTINEL", "REPLICAS", "Main")) == 1)
            yield primary, replica, f"default:{PASSWORD}@127.0.0.1:{sentinel.port}"


class TestSentinel:
    def test_finds_the_primary_and_the_next_one(
        self, primary_and_replica: tuple[servers.ValkeyServer, servers.ValkeyServer, str]
    ) -> None:
        primary, replica, sentinel = primary_and_replica
        config = EmitterConfig(redis_url=f"redis://:{PASSWORD}@Main/0", sentinels=(sentinel,))
        with Emitter(config) as emitter:
            first = emitter.emit(**USAGE)
            assert ids_in(primary) == [first]
            wait_until(lambda: ids_in(replica) == [first])
            primary.kill()
            second = self.persist(emitter)
        assert ids_in(replica) == [first, second]

    @staticmethod
    def persist(emitter: Emitter) -> UUID:
        """Sends one event until the new primary has acknowledged it."""
        deadline = time.monotonic() + 30
        try:
            return emitter.emit(**USAGE)
        except StreamUnavailable as error:
            (event,) = error.events
        while True:
            try:
                return emitter.send(event)
            except StreamUnavailable:
                assert time.monotonic() < deadline

    def test_an_unknown_service_is_told(
        self, primary_and_replica: tuple[servers.ValkeyServer, servers.ValkeyServer, str]
    ) -> None:
        config = EmitterConfig(redis_url=f"redis://:{PASSWORD}@other/0", sentinels=(primary_and_replica[2],))
        with Emitter(config) as emitter:
            with pytest.raises(StreamUnavailable, match="other") as caught:
                emitter.emit(**USAGE)
        assert PASSWORD not in str(caught.value)
