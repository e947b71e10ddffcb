"""The relay: killed, cut off, side by side with others, and with rows that cannot be sent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis

from producers import EmitterConfig, StreamUnavailable, UsageEvent, outbox
from producers._outbox_relay import Delivering
from tests.fixtures.databases import Databases
from tests.integration.outbox_world import SHARDS, USAGE, ids


@pytest.fixture
def url(databases: Databases) -> str:
    """An app's own database, with its table and an outbox in it."""
    address = databases.platform.url("superuser")
    with psycopg.connect(address) as connection:
        connection.execute("CREATE TABLE drafts (id int PRIMARY KEY)")
        outbox.create_table(connection)
    return address


@pytest.fixture
def connection(url: str) -> Iterator[psycopg.Connection[Any]]:
    """The app's connection."""
    with psycopg.connect(url) as opened:
        yield opened


@pytest.fixture
def config(valkey_url: str) -> EmitterConfig:
    """Where the relay sends to."""
    return EmitterConfig(redis_url=valkey_url, shards=SHARDS)


@pytest.fixture
def relay(url: str, config: EmitterConfig) -> Iterator[outbox.Relay]:
    """A relay."""
    with outbox.Relay(lambda: psycopg.connect(url), config) as made:
        yield made


class TestRelay:
    def test_killed_between_sending_and_deletion_it_makes_one_event(
        self, url: str, connection: psycopg.Connection[Any], valkey: redis.Redis, valkey_url: str,
        relay: outbox.Relay,
    ) -> None:  # fmt: skip
        written = {outbox.Outbox().add(connection, **USAGE) for _ in range(20)}
        connection.commit()
        script = (
            "import os, signal, psycopg\n"
            "from producers import EmitterConfig, outbox\n"
            "from producers._delivery import Delivery\n"
            "class Dying(Delivery):\n"
            "    def deliver(self, events):\n"
            "        super().deliver(events)\n"
            "        os.kill(os.getpid(), signal.SIGKILL)\n"
            "config = EmitterConfig.from_env()\n"
            f"outbox.Relay(lambda: psycopg.connect({url!r}), config, delivery=Dying(config)).run_once()\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={"REDIS_URL": valkey_url, "USAGE_STREAM_SHARDS": "2", "PATH": os.defpath},
            timeout=60,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL
        assert set(ids(valkey)) == written, "the child had sent them"
        # The server notices the dead connection by itself; until then the rows are locked.
        total = 0
        for _ in range(200):
            total += relay.run_once()
            if total == 20:
                break
            threading.Event().wait(0.05)
        assert total == 20
        assert ids(valkey) == dict.fromkeys(written, 2), "sent again, under the same ids"
        assert outbox.status(connection).waiting == 0

    def test_many_writers_and_two_relays(self, url: str, config: EmitterConfig, valkey: redis.Redis) -> None:
        committed: list[uuid.UUID] = []
        rolled_back: list[uuid.UUID] = []
        trouble: list[Exception] = []
        stop = threading.Event()

        def write(seed: int) -> None:
            writer = outbox.Outbox()
            with psycopg.connect(url) as one:
                for number in range(100):
                    made = [writer.add(one, **USAGE) for _ in range(1 + (number + seed) % 3)]
                    if (number * 7 + seed) % 4 == 0:
                        one.rollback()
                        rolled_back.extend(made)
                    else:
                        one.commit()
                        committed.extend(made)

        def carry() -> None:
            with outbox.Relay(lambda: psycopg.connect(url), config, batch_size=17) as own:
                own.run(stop, on_trouble=trouble.append, errors=psycopg.Error)

        relays = [threading.Thread(target=carry) for _ in range(2)]
        writers = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
        for thread in (*relays, *writers):
            thread.start()
        for thread in writers:
            thread.join()
        with psycopg.connect(url, autocommit=True) as one:
            for _ in range(400):
                if outbox.status(one).waiting == 0:
                    break
                threading.Event().wait(0.05)
        stop.set()
        for thread in relays:
            thread.join(timeout=10)
        assert trouble == []
        assert len(committed) > 400
        assert ids(valkey) == dict.fromkeys(committed, 1)
        assert not set(rolled_back) & set(ids(valkey))

    def test_while_the_stream_is_away_rows_stay(
        self, url: str, connection: psycopg.Connection[Any], config: EmitterConfig, valkey: redis.Redis
    ) -> None:
        written = outbox.Outbox().add(connection, **USAGE)
        connection.commit()
        nobody = EmitterConfig(redis_url="redis://127.0.0.1:1/0")
        with outbox.Relay(lambda: psycopg.connect(url), nobody) as relay:
            with pytest.raises(StreamUnavailable):
                relay.run_once()
            stop, seen = threading.Event(), []

            def note(error: Exception) -> None:
                seen.append(error)
                stop.set()

            relay.run(stop, on_trouble=note)
        assert [type(error) for error in seen] == [StreamUnavailable]
        assert outbox.status(connection).waiting == 1
        connection.rollback()
        with outbox.Relay(lambda: psycopg.connect(url), config) as relay:
            assert relay.run_once() == 1
        assert ids(valkey) == {written: 1}

    def test_deletes_what_was_acknowledged_and_keeps_the_rest(
        self, url: str, connection: psycopg.Connection[Any], config: EmitterConfig
    ) -> None:
        writer = outbox.Outbox()
        first, second = (writer.add(connection, **USAGE) for _ in range(2))
        connection.commit()

        class Half:
            def deliver(self, events: Any) -> None:
                raise StreamUnavailable("half", [one.event for one in events if one.event_id == second])

            def close(self) -> None: ...

        half: Delivering = Half()
        with outbox.Relay(lambda: psycopg.connect(url), config, delivery=half) as relay:
            with pytest.raises(StreamUnavailable):
                relay.run_once()
        left = connection.execute("SELECT event_id FROM usage_outbox").fetchall()
        assert (left, first == second) == ([(second,)], False)

    def test_a_row_that_is_no_event_stays_and_harms_no_neighbour(
        self, connection: psycopg.Connection[Any], relay: outbox.Relay, valkey: redis.Redis
    ) -> None:
        good = [outbox.Outbox().add(connection, **USAGE)]
        for data in (b"{", b"[]", b'{"event_id":1}', json.dumps(UsageEvent(**USAGE).wire()).encode()):
            connection.execute(
                "INSERT INTO usage_outbox (event_id, data) VALUES (%s, %s)", (uuid.uuid4(), data)
            )
        good.append(outbox.Outbox().add(connection, **USAGE))
        connection.commit()
        assert relay.run_once() == 6
        assert relay.run_once() == 0
        assert ids(valkey) == dict.fromkeys(good, 1)
        found = outbox.status(connection)
        assert (found.waiting, found.refused) == (0, 4)
        assert found.refusals == {"invalid_event_id": 2, "not_an_object": 1, "not_json": 1}

    def test_goes_on_after_the_database_cut_it_off(
        self, url: str, connection: psycopg.Connection[Any], config: EmitterConfig, valkey: redis.Redis
    ) -> None:
        pids: list[int] = []

        def connect() -> psycopg.Connection[Any]:
            opened = psycopg.connect(url)
            pids.append(opened.info.backend_pid)
            return opened

        with outbox.Relay(connect, config) as relay:
            assert relay.run_once() == 0
            connection.execute("SELECT pg_terminate_backend(%s, 5000)", pids)
            written = outbox.Outbox().add(connection, **USAGE)
            connection.commit()
            with pytest.raises(psycopg.OperationalError):
                relay.run_once()
            assert relay.run_once() == 1
        assert (len(pids), ids(valkey)) == (2, {written: 1})

    def test_a_missing_table_ends_it_at_once(self, databases: Databases, config: EmitterConfig) -> None:
        with outbox.Relay(lambda: psycopg.connect(databases.platform.url("owner")), config) as relay:
            with pytest.raises(psycopg.errors.UndefinedTable):
                relay.run(threading.Event(), errors=psycopg.Error)

    def test_makes_a_transaction_of_each_round_whatever_the_connection_was_made_for(
        self, url: str, connection: psycopg.Connection[Any], config: EmitterConfig
    ) -> None:
        outbox.Outbox().add(connection, **USAGE)
        connection.commit()
        free: list[Any] = []

        class Looking:
            def deliver(self, events: Any) -> None:
                query = "SELECT id FROM usage_outbox FOR UPDATE SKIP LOCKED"
                free.extend(connection.execute(query).fetchall())

            def close(self) -> None: ...

        opened = psycopg.connect(url, autocommit=True)
        with outbox.Relay(lambda: opened, config, delivery=Looking()) as relay:
            assert relay.run_once() == 1
        assert free == [], "another relay could have had the row while it was sent"
