"""The worker's end of a stream, on a real server: policy at the start, errors by what they ask for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import redis

from producers._client import connect
from producers._config import EmitterConfig
from worker.entries import EntryId, GroupMissing
from worker.errors import ConfigurationError
from worker.valkey import StreamFigures, StreamReader, StreamTrouble, check_server

KEY = "usage:events:{0}"

pytestmark = pytest.mark.redis_compatible


@pytest.fixture
def reader(valkey_url: str) -> StreamReader:
    """A reader whose group exists."""
    made = StreamReader(connect(EmitterConfig(redis_url=valkey_url), for_emit=False), group="g", consumer="c")
    made.create_groups([KEY])
    return made


@pytest.fixture
def configurable(valkey: redis.Redis) -> Iterator[redis.Redis]:
    """A server whose configuration is put back."""
    names = ("maxmemory-policy", "appendonly", "maxmemory")
    before = {name: str(valkey.config_get(name)[name]) for name in names}
    yield valkey
    for name, value in before.items():
        valkey.config_set(name, value)


class TestReader:
    def test_gives_entries_as_they_are_with_repeated_fields(
        self, reader: StreamReader, valkey: redis.Redis
    ) -> None:
        valkey.execute_command("XADD", KEY, "5-1", "data", "a", b"\xff", "b", "data", "c")  # type: ignore[no-untyped-call]  # redis-py: untyped
        entries = reader.read({KEY: "0-0"}, count=10, block_ms=None)[KEY]
        assert [(entry_id, list(fields)) for entry_id, fields in entries] == [
            (b"5-1", [b"data", b"a", b"\xff", b"b", b"data", b"c"])
        ]

    def test_waits_for_the_first_entry_no_longer_than_told(
        self, reader: StreamReader, valkey: redis.Redis
    ) -> None:
        assert reader.read({KEY: "0-0"}, count=10, block_ms=20) == {}
        timer = threading.Timer(0.05, lambda: valkey.xadd(KEY, {"data": "x"}))
        timer.start()
        assert len(reader.read({KEY: "0-0"}, count=10, block_ms=5000)[KEY]) == 1
        timer.join()

    def test_adopts_in_order_and_names_what_was_deleted(
        self, reader: StreamReader, valkey: redis.Redis
    ) -> None:
        for n in range(1, 2508):
            valkey.xadd(KEY, {"data": str(n)}, id=f"{n}-0")
        valkey.xreadgroup("g", "other", {KEY: ">"}, count=3000)
        valkey.xdel(KEY, "3-0")
        assert reader.pending(KEY) == (2507, "1-0")
        adopted = reader.adopt(KEY)
        assert adopted.entry_ids == [f"{n}-0" for n in range(1, 2508) if n != 3]
        assert adopted.deleted == ["3-0"]
        assert reader.acknowledge(KEY, adopted.entry_ids) == 2506
        assert reader.pending(KEY) == (0, None)

    def test_moves_the_group_and_says_where_it_stood(self, reader: StreamReader, valkey: redis.Redis) -> None:
        for n in range(1, 6):
            valkey.xadd(KEY, {"data": str(n)}, id=f"{n}-0")
        assert reader.advance(KEY, "2-0", entries_read=2, expected=EntryId(0, 0)) == (EntryId(0, 0), 0, 0)
        assert reader.states([KEY]) == {KEY: (EntryId(2, 0), 2, 0)}
        assert reader.advance(KEY, "5-0", entries_read=5, expected=EntryId(0, 0)) == (EntryId(2, 0), 2, 0)
        group = valkey.xinfo_groups(KEY)[0]
        assert (group["lag"], group["pending"], group["entries-read"]) == (0, 0, 5)

    def test_leaves_the_group_of_a_stream_that_went_back(
        self, reader: StreamReader, valkey: redis.Redis
    ) -> None:
        for n in range(1, 6):
            valkey.xadd(KEY, {"data": str(n)}, id=f"{n}-0")
        assert reader.advance(KEY, "5-0", entries_read=5, expected=EntryId(1, 0)) is None
        assert reader.advance(KEY, "6-0", entries_read=6, expected=EntryId(0, 0)) is None
        assert reader.states([KEY])[KEY].last_delivered == EntryId(0, 0)

    @pytest.mark.parametrize("missing", ["key", "group"])
    def test_says_that_there_is_no_group(
        self, reader: StreamReader, valkey: redis.Redis, missing: str
    ) -> None:
        valkey.xadd(KEY, {"data": "x"}, id="1-0")
        valkey.delete(KEY) if missing == "key" else valkey.xgroup_destroy(KEY, "g")
        with pytest.raises(GroupMissing):
            reader.states([KEY])
        with pytest.raises(GroupMissing):
            reader.advance(KEY, "1-0", entries_read=1, expected=EntryId(0, 0))

    def test_creates_groups_twice_without_complaint(self, reader: StreamReader) -> None:
        reader.create_groups([KEY, "usage:corrections:{0}"])
        reader.create_groups([KEY, "usage:corrections:{0}"])

    def test_counts_what_was_added_and_what_stands_above_a_position(
        self, reader: StreamReader, valkey: redis.Redis
    ) -> None:
        for n in range(1, 2101):
            valkey.xadd(KEY, {"data": "x"}, id=f"{n}-0")
        figures = reader.figures(KEY, position="50-0")
        assert (figures.added, figures.above) == (2100, 2050)
        assert reader.figures(KEY, position="2100-0").above == 0
        nothing = StreamFigures(key="no:such:{0}", added=0, above=0)
        assert reader.figures("no:such:{0}", position="0-0") == nothing


class TestErrors:
    def test_say_that_the_group_is_gone(self, reader: StreamReader, valkey: redis.Redis) -> None:
        valkey.flushall()
        with pytest.raises(GroupMissing):
            reader.adopt(KEY)
        with pytest.raises(GroupMissing):
            reader.pending(KEY)

    def test_of_the_wrong_type_are_configuration(self, reader: StreamReader, valkey: redis.Redis) -> None:
        valkey.delete(KEY)
        valkey.set(KEY, "x")
        with pytest.raises(ConfigurationError, match="WRONGTYPE"):
            reader.create_groups([KEY])
        with pytest.raises(ConfigurationError, match="WRONGTYPE"):
            reader.figures(KEY, position="0-0")

    def test_of_a_server_that_is_not_there_can_be_tried_again(self) -> None:
        client = connect(EmitterConfig(redis_url="redis://127.0.0.1:1/0"), for_emit=False)
        away = StreamReader(client, group="g", consumer="c")
        with pytest.raises(StreamTrouble):
            away.read({KEY: "0-0"}, count=1, block_ms=None)
        with pytest.raises(StreamTrouble):
            away.create_groups([KEY])

    def test_of_a_full_server_still_let_it_drain(
        self, reader: StreamReader, configurable: redis.Redis
    ) -> None:
        configurable.xadd(KEY, {"data": "x"})
        configurable.config_set("maxmemory", 1)
        with pytest.raises(redis.OutOfMemoryError):
            configurable.xadd(KEY, {"data": "y"})
        ((entry_id, _),) = reader.read({KEY: "0-0"}, count=10, block_ms=None)[KEY]
        reader.advance(KEY, entry_id.decode(), entries_read=1, expected=EntryId(0, 0))
        assert reader.states([KEY])[KEY].last_delivered == EntryId.parse(entry_id)


class TestServerPolicy:
    def test_is_good_with_noeviction_and_an_append_only_file(self, configurable: redis.Redis) -> None:
        configurable.config_set("maxmemory-policy", "noeviction")
        configurable.config_set("appendonly", "yes")
        assert check_server(configurable) == []

    def test_refuses_a_server_that_evicts(self, configurable: redis.Redis) -> None:
        configurable.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(ConfigurationError, match=r"REDIS_URL.*allkeys-lru.*noeviction"):
            check_server(configurable)

    def test_warns_of_a_server_without_an_append_only_file(self, configurable: redis.Redis) -> None:
        configurable.config_set("appendonly", "no")
        (warning,) = check_server(configurable)
        assert "appendonly yes" in warning

    def test_asks_info_where_config_is_forbidden(self, configurable: redis.Redis, valkey_url: str) -> None:
        configurable.config_set("appendonly", "yes")
        configurable.acl_setuser("plain", enabled=True, passwords=["+word"], categories=["+@all"], keys=["*"])
        configurable.execute_command("ACL", "SETUSER", "plain", "-config")  # type: ignore[no-untyped-call]  # redis-py: untyped
        try:
            host = valkey_url.rpartition("@")[2]
            plain = redis.Redis.from_url(f"redis://plain:word@{host}")
            (warning,) = check_server(plain)
            assert "may not read CONFIG" in warning
            configurable.config_set("maxmemory-policy", "allkeys-lru")
            with pytest.raises(ConfigurationError, match="allkeys-lru"):
                check_server(plain)
            plain.close()
        finally:
            configurable.acl_deluser("plain")
