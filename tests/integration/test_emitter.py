"""The emitter against a real server: what is acknowledged is in the stream, as documented."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import NAMESPACE_DNS, UUID, uuid4, uuid5

import pytest
import redis

from producers import (
    Emitter,
    EmitterConfig,
    InvalidEvent,
    StreamUnavailable,
    UsageEvent,
)
from producers._stream import MAX_FRAME_BYTES, decode, shard_of

USER = UUID("7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11")
USAGE: dict[str, Any] = {
    "user_id": USER,
    "feature": "blog_writer",
    "model": "gpt-4o-mini",
    "input_tokens": 812,
    "output_tokens": 455,
}


@pytest.fixture
def emitter(valkey_url: str) -> Iterator[Emitter]:
    with Emitter.from_env({"REDIS_URL": valkey_url}) as one:
        yield one


@pytest.fixture
def sharded(valkey_url: str) -> Iterator[Emitter]:
    with Emitter(EmitterConfig(redis_url=valkey_url, shards=3)) as one:
        yield one


def entries(client: redis.Redis, key: str = "usage:events:{0}") -> list[bytes]:
    found: list[tuple[bytes, dict[bytes, bytes]]] = client.xrange(key)  # type: ignore[assignment]  # bytes mode
    assert all(list(fields) == [b"data"] for _, fields in found)
    return [fields[b"data"] for _, fields in found]


def events(client: redis.Redis, key: str = "usage:events:{0}") -> list[UsageEvent]:
    decoded = [one for data in entries(client, key) for one in decode(data, correction="corrections" in key)]
    assert [one.detail for one in decoded if one.event is None] == []
    return [one.event for one in decoded if one.event is not None]


@pytest.mark.redis_compatible
class TestEmit:
    def test_returns_the_id_of_the_entry_in_the_stream(self, emitter: Emitter, valkey: redis.Redis) -> None:
        identity = emitter.emit(**USAGE, cost_usd=0.1, metadata={"tone": "dry"})
        (data,) = entries(valkey)
        written = json.loads(data)
        assert written["event_id"] == str(identity)
        assert written["cost_usd"] == "0.1"
        (event,) = events(valkey)
        assert (event.user_id, event.tokens_used, event.metadata) == (USER, 1267, {"tone": "dry"})

    def test_one_id_for_one_key_of_one_user(self, emitter: Emitter, valkey: redis.Redis) -> None:
        spelt = {**USAGE, "user_id": str(USER).upper()}
        made = {
            emitter.emit(**USAGE, idempotency_key="chatcmpl-9x"),
            emitter.emit(**spelt, idempotency_key="chatcmpl-9x"),
        }
        assert made == {uuid5(uuid5(NAMESPACE_DNS, "usage-worker"), f"{USER}|chatcmpl-9x")}
        assert len(entries(valkey)) == 2
        other = emitter.emit(**{**USAGE, "user_id": uuid4()}, idempotency_key="chatcmpl-9x")
        assert other not in made

    def test_takes_an_id_and_a_time(self, emitter: Emitter, valkey: redis.Redis) -> None:
        identity = uuid4()
        assert emitter.emit(**USAGE, event_id=identity, occurred_at="2026-01-31T09:30:00Z") == identity
        assert json.loads(entries(valkey)[0])["occurred_at"] == "2026-01-31T09:30:00Z"

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"input_tokens": -1}, "invalid_tokens"),
            ({"user_id": None}, "missing_field"),
            ({"cost_usd": float("nan")}, "invalid_cost"),
            ({"occurred_at": ""}, "invalid_occurred_at"),
            ({"idempotency_key": "k", "event_id": uuid4()}, "not both"),
            ({"idempotency_key": ""}, "idempotency_key"),
            ({"idempotency_key": "\ud800"}, "UTF-8"),
        ],
    )
    def test_refuses_before_anything_is_sent(
        self, emitter: Emitter, valkey: redis.Redis, changes: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InvalidEvent, match=message):
            emitter.emit(**{**USAGE, **changes})
        assert valkey.dbsize() == 0

    def test_refuses_an_argument_that_it_does_not_know(self, emitter: Emitter, valkey: redis.Redis) -> None:
        with pytest.raises(TypeError, match="input_token"):
            emitter.emit(**{**USAGE, "input_token": 5})
        assert valkey.dbsize() == 0

    def test_sends_every_user_to_one_shard(self, sharded: Emitter, valkey: redis.Redis) -> None:
        users = [uuid4() for _ in range(20)]
        for user in users:
            sharded.emit(**{**USAGE, "user_id": user})
        sharded.emit(**{**USAGE, "user_id": None, "clerk_id": "user_2abC"})
        for shard in range(3):
            expected = [str(user) for user in users if shard_of(str(user), 3) == shard]
            expected += ["user_2abC"] if shard_of("user_2abC", 3) == shard else []
            assert [event.user_text for event in events(valkey, f"usage:events:{{{shard}}}")] == expected

    def test_is_shared_by_threads(self, emitter: Emitter, valkey: redis.Redis) -> None:
        made: list[UUID] = []

        def work() -> None:
            for _ in range(50):
                made.append(emitter.emit(**USAGE))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(event.event_id for event in events(valkey)) == sorted(made)
        assert len(set(made)) == 400

    def test_keeps_every_entry_however_many_there_are(self, emitter: Emitter, valkey: redis.Redis) -> None:
        # The server trims whole nodes of a hundred entries; nobody has read these.
        for _ in range(3000):
            emitter.emit(**USAGE)
        assert valkey.xlen("usage:events:{0}") == 3000

    def test_keeps_its_connection(self, emitter: Emitter, valkey: redis.Redis) -> None:
        before = valkey.info("stats")["total_connections_received"]
        for _ in range(20):
            emitter.emit(**USAGE)
        assert valkey.info("stats")["total_connections_received"] == before + 1

    def test_gives_its_connection_a_name(self, emitter: Emitter, valkey: redis.Redis) -> None:
        emitter.emit(**USAGE)
        names = [client["name"] for client in valkey.client_list()]
        assert any(str(name).startswith("usage-emitter:") for name in names)


@pytest.mark.redis_compatible
class TestBatch:
    def test_is_one_frame(self, emitter: Emitter, valkey: redis.Redis) -> None:
        with emitter.batch() as batch:
            first = batch.emit(**USAGE)
            second = batch.emit(**USAGE, idempotency_key="k")
            assert valkey.dbsize() == 0
        assert batch.event_ids == [first, second]
        (data,) = entries(valkey)
        assert [one["event_id"] for one in json.loads(data)] == [str(first), str(second)]

    def test_is_cut_at_500_events_and_by_shard(self, sharded: Emitter, valkey: redis.Redis) -> None:
        users = [uuid4() for _ in range(7)]
        with sharded.batch() as batch:
            for number in range(2600):
                batch.emit(**{**USAGE, "user_id": users[number % 7]})
        found = []
        for shard in range(3):
            key = f"usage:events:{{{shard}}}"
            sizes = [len(json.loads(data)) for data in entries(valkey, key)]
            assert all(size == 500 for size in sizes[:-1])
            assert all(shard_of(event.user_text, 3) == shard for event in events(valkey, key))
            found += [event.event_id for event in events(valkey, key)]
        assert sorted(found) == sorted(batch.event_ids)

    def test_is_cut_at_the_size_of_a_frame(self, emitter: Emitter, valkey: redis.Redis) -> None:
        with emitter.batch() as batch:
            for _ in range(300):
                batch.emit(**USAGE, metadata={f"k{number}": "x" * 250 for number in range(28)})
        data = entries(valkey)
        assert len(data) > 1
        assert all(MAX_FRAME_BYTES * 0.9 < len(one) <= MAX_FRAME_BYTES for one in data[:-1])
        assert [event.event_id for event in events(valkey)] == batch.event_ids

    def test_sends_nothing_when_the_block_raises(self, emitter: Emitter, valkey: redis.Redis) -> None:
        def work() -> None:
            with emitter.batch() as batch:
                batch.emit(**USAGE)
                raise LookupError

        with pytest.raises(LookupError):
            work()
        assert valkey.dbsize() == 0

    def test_an_empty_one_sends_nothing(self, emitter: Emitter, valkey: redis.Redis) -> None:
        with emitter.batch() as batch:
            pass
        assert batch.event_ids == []
        assert valkey.dbsize() == 0

    def test_separates_corrections_from_events(self, emitter: Emitter, valkey: redis.Redis) -> None:
        with emitter.batch() as batch:
            target = batch.emit(**USAGE)
            batch.add(UsageEvent(user_id=USER, feature="blog_writer", corrects=target, cost_usd="-0.5"))
        assert len(events(valkey)) == 1
        (correction,) = events(valkey, "usage:corrections:{0}")
        assert correction.corrects == target


@pytest.mark.redis_compatible
class TestVoid:
    def test_is_one_reversal_on_the_stream_of_corrections(
        self, emitter: Emitter, valkey: redis.Redis
    ) -> None:
        target = emitter.emit(**USAGE)
        assert emitter.void(target, user_id=USER) == emitter.void(str(target), user_id=str(USER))
        found = events(valkey, "usage:corrections:{0}")
        assert [(event.corrects, event.void, event.user_id) for event in found] == [(target, True, USER)] * 2
        assert found[0].event_id == found[1].event_id

    def test_needs_its_user(self, emitter: Emitter) -> None:
        with pytest.raises(InvalidEvent, match="missing_field"):
            emitter.void(uuid4())


class TestDurability:
    def test_waits_for_the_fsync(self, valkey: redis.Redis, valkey_url: str) -> None:
        valkey.config_set("appendfsync", "always")
        try:
            with Emitter(EmitterConfig(redis_url=valkey_url, durability="fsync")) as emitter:
                emitter.emit(**USAGE)
                with emitter.batch() as batch:
                    batch.emit(**USAGE)
                    batch.emit(**{**USAGE, "user_id": uuid4()})
        finally:
            valkey.config_set("appendfsync", "no")
        assert len(events(valkey)) == 3

    def test_says_what_it_needs_when_the_server_keeps_no_file(
        self, valkey: redis.Redis, valkey_url: str
    ) -> None:
        valkey.config_set("appendonly", "no")
        try:
            with Emitter(EmitterConfig(redis_url=valkey_url, durability="fsync")) as emitter:
                with pytest.raises(StreamUnavailable, match="USAGE_DURABILITY=fsync needs"):
                    emitter.emit(**USAGE)
        finally:
            valkey.config_set("appendonly", "yes")

    def test_says_so_when_the_server_does_not_fsync(self, valkey: redis.Redis, valkey_url: str) -> None:
        # The server of the tests never calls fsync by itself, so the confirmation does not come.
        valkey.config_set("appendfsync", "no")
        with Emitter(EmitterConfig(redis_url=valkey_url, durability="fsync")) as emitter:
            with pytest.raises(StreamUnavailable, match="did not confirm its fsync") as caught:
                emitter.emit(**USAGE)
        assert [event.event_id for event in caught.value.events] == [
            event.event_id for event in events(valkey)
        ]


@pytest.mark.redis_compatible
class TestClose:
    def test_closes_the_connections(self, emitter: Emitter, valkey: redis.Redis) -> None:
        emitter.emit(**USAGE)
        connected = len(valkey.client_list())
        emitter.close()
        deadline = time.monotonic() + 5
        while len(valkey.client_list()) >= connected:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def test_a_closed_emitter_says_so(self, emitter: Emitter, valkey: redis.Redis) -> None:
        emitter.close()
        emitter.close()
        with pytest.raises(StreamUnavailable, match="closed") as caught:
            emitter.emit(**USAGE)
        assert len(caught.value.events) == 1
        assert valkey.dbsize() == 0
