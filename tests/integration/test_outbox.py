"""The outbox on a real PostgreSQL and a real Valkey: what commits is sent, what rolls back is not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from psycopg.rows import dict_row
from sqlalchemy import (
    create_engine,  # noqa: TID251 - as an app opens its own, no engine of ours
    text,
)
from sqlalchemy.orm import Session

from producers import EmitterConfig, InvalidEvent, UsageEvent, outbox
from tests.fixtures.databases import Databases
from tests.integration.outbox_world import SHARDS, USAGE, USER, ids, sent


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


def drain(relay: outbox.Relay) -> int:
    """Relays until nothing is left."""
    total = 0
    while settled := relay.run_once():
        total += settled
    return total


class TestTransaction:
    def test_a_committed_event_is_sent_once_and_its_row_is_gone(
        self, connection: psycopg.Connection[Any], relay: outbox.Relay, valkey: redis.Redis
    ) -> None:
        event_id = outbox.Outbox().add(connection, **USAGE)
        assert relay.run_once() == 0, "sent before the commit"
        connection.commit()
        assert relay.run_once() == 1
        assert relay.run_once() == 0
        assert ids(valkey) == {event_id: 1}
        assert outbox.status(connection) == (0, 0, None, {})

    def test_a_transaction_that_is_rolled_back_sends_nothing(
        self, connection: psycopg.Connection[Any], relay: outbox.Relay, valkey: redis.Redis
    ) -> None:
        connection.execute("INSERT INTO drafts VALUES (1)")
        outbox.Outbox().add(connection, **USAGE)
        connection.rollback()
        assert relay.run_once() == 0
        assert ids(valkey) == {}

    def test_a_savepoint_takes_its_own_events_back_only(
        self, connection: psycopg.Connection[Any], relay: outbox.Relay, valkey: redis.Redis
    ) -> None:
        writer = outbox.Outbox()
        kept = writer.add(connection, **USAGE)
        with connection.transaction():
            writer.add(connection, **USAGE)
            raise psycopg.Rollback
        also = writer.add(connection, **USAGE)
        connection.commit()
        assert relay.run_once() == 2
        assert ids(valkey) == {kept: 1, also: 1}

    def test_a_transaction_that_commits_late_is_not_left_behind(
        self, url: str, connection: psycopg.Connection[Any], relay: outbox.Relay, valkey: redis.Redis
    ) -> None:
        """Its row has the lower number: a relay that remembers how far it came would never look there."""
        with psycopg.connect(url) as early:
            first = outbox.Outbox().add(early, **USAGE)
            second = outbox.Outbox().add(connection, **USAGE)
            connection.commit()
            assert drain(relay) == 1
            assert ids(valkey) == {second: 1}
        assert drain(relay) == 1
        assert ids(valkey) == {first: 1, second: 1}

    def test_autocommit_without_a_transaction_is_refused(self, url: str, valkey: redis.Redis) -> None:
        with psycopg.connect(url, autocommit=True) as alone:
            with pytest.raises(outbox.OutsideTransaction, match="transaction"):
                outbox.Outbox().add(alone, **USAGE)
            with pytest.raises(outbox.OutsideTransaction):
                outbox.Outbox().add(alone.cursor(), **USAGE)
            with alone.transaction():
                outbox.Outbox().add(alone, **USAGE)
            assert outbox.status(alone).waiting == 1

    def test_a_bad_event_writes_nothing_and_leaves_the_transaction_as_it_was(
        self, connection: psycopg.Connection[Any]
    ) -> None:
        connection.execute("INSERT INTO drafts VALUES (1)")
        with pytest.raises(InvalidEvent, match="invalid_tokens"):
            outbox.Outbox().add(connection, **{**USAGE, "input_tokens": -1})
        connection.commit()
        assert outbox.status(connection).waiting == 0
        assert connection.execute("SELECT count(*) FROM drafts").fetchone() == (1,)

    def test_events_carry_no_number_that_a_rollback_would_tear_a_gap_into(
        self, connection: psycopg.Connection[Any], relay: outbox.Relay, valkey: redis.Redis
    ) -> None:
        writer = outbox.Outbox()
        writer.add(connection, **USAGE)
        connection.rollback()
        writer.add(connection, **USAGE)
        writer.add(connection, **USAGE, producer_id="invoices", seq=7)
        connection.commit()
        drain(relay)
        assert [(event.producer_id, event.seq) for event in sent(valkey)] == [(None, None), ("invoices", 7)]

    def test_id_and_time_are_those_of_the_call(
        self, connection: psycopg.Connection[Any], relay: outbox.Relay, valkey: redis.Redis
    ) -> None:
        writer = outbox.Outbox()
        keyed = [writer.add(connection, **USAGE, idempotency_key="job-7") for _ in range(2)]
        connection.commit()
        drain(relay)
        assert len(set(keyed)) == 1
        one, other = sent(valkey)
        assert one.event_id == other.event_id == keyed[0]
        assert one.occurred_at < other.occurred_at

    def test_a_correction_goes_to_its_own_stream(
        self, connection: psycopg.Connection[Any], relay: outbox.Relay, valkey: redis.Redis
    ) -> None:
        writer = outbox.Outbox()
        target = writer.add(connection, **USAGE)
        refund = UsageEvent(user_id=USER, feature="chat", corrects=target, cost_usd="-0.01")
        writer.add_event(connection, refund)
        connection.commit()
        assert drain(relay) == 2
        assert ids(valkey) == {target: 1}
        assert sent(valkey, correction=True) == [refund]


class TestConnections:
    """Each way in is the caller's transaction: rolled back it leaves nothing, committed it leaves one row."""

    def _waiting(self, url: str) -> int:
        with psycopg.connect(url) as other:
            return outbox.status(other).waiting

    def test_a_cursor_and_a_connection_that_makes_dicts(self, url: str) -> None:
        with psycopg.connect(url, row_factory=dict_row) as one, one.cursor() as cursor:
            outbox.Outbox().add(cursor, **USAGE)
            one.rollback()
            assert self._waiting(url) == 0
            outbox.Outbox().add(cursor, **USAGE)
            outbox.Outbox().add(one, **USAGE)
            one.commit()
            assert outbox.status(one).waiting == 2

    def test_sqlalchemy_session_and_connection(self, url: str) -> None:
        engine = _engine(url)
        with Session(engine) as session:
            session.execute(text("INSERT INTO drafts VALUES (1)"))
            outbox.Outbox().add(session, **USAGE)
            session.rollback()
        assert self._waiting(url) == 0
        with Session(engine) as session, session.begin():
            outbox.Outbox().add(session, **USAGE)
            inner = session.begin_nested()
            outbox.Outbox().add(session, **USAGE)
            inner.rollback()
        assert self._waiting(url) == 1
        with engine.begin() as connection:
            outbox.Outbox().add(connection, **USAGE)
        assert self._waiting(url) == 2
        engine.dispose()

    def test_psycopg_with_asyncio(self, url: str) -> None:
        async def use() -> None:
            writer = outbox.Outbox()
            async with await psycopg.AsyncConnection.connect(url) as one:
                await writer.add_async(one, **USAGE)
                await one.rollback()
                await writer.add_async(one, **USAGE)
                async with one.cursor() as cursor:
                    await writer.add_async(cursor, **USAGE)
                with pytest.raises(TypeError, match="add_async"):
                    writer.add(one, **USAGE)
                await one.commit()
            async with await psycopg.AsyncConnection.connect(url, autocommit=True) as alone:
                with pytest.raises(outbox.OutsideTransaction):
                    await writer.add_async(alone, **USAGE)

        asyncio.run(use())
        assert self._waiting(url) == 2

    def test_sqlalchemy_with_asyncio(self, url: str) -> None:
        pytest.importorskip("greenlet", reason="SQLAlchemy's asyncio needs it")

        async def use() -> None:
            from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession  # noqa: PLC0415 - needs greenlet

            writer = outbox.Outbox()
            engine = AsyncEngine(_engine(url, "postgresql+psycopg_async"))
            async with AsyncSession(engine) as session:
                await writer.add_async(session, **USAGE)
                await session.rollback()
                await writer.add_async(session, **USAGE)
                with pytest.raises(TypeError, match="add_async"):
                    writer.add(session, **USAGE)
                await session.commit()
            async with engine.begin() as connection:
                await writer.add_async(connection, **USAGE)
            await engine.dispose()

        asyncio.run(use())
        assert self._waiting(url) == 2

    def test_asyncio_is_not_mixed_up(self, url: str) -> None:
        with psycopg.connect(url) as one:
            with pytest.raises(TypeError, match=r"add\(…\)"):
                asyncio.run(outbox.Outbox().add_async(one, **USAGE))
            with pytest.raises(TypeError, match="expected a connection or cursor"):
                outbox.Outbox().add("postgresql://…", **USAGE)
            one.commit()
        assert self._waiting(url) == 0

    def test_asyncpg(self, url: str) -> None:
        asyncpg = pytest.importorskip("asyncpg")

        async def use() -> None:
            connection = await asyncpg.connect(url)
            with pytest.raises(outbox.OutsideTransaction):
                await outbox.Outbox().add_async(connection, **USAGE)
            transaction = connection.transaction()
            await transaction.start()
            await outbox.Outbox().add_async(connection, **USAGE)
            await transaction.rollback()
            async with connection.transaction():
                await outbox.Outbox().add_async(connection, **USAGE)
            await connection.close()
            async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool:
                with pytest.raises(TypeError):
                    await outbox.Outbox().add_async(pool, **USAGE)
                async with pool.acquire() as lent, lent.transaction():
                    await outbox.Outbox().add_async(lent, **USAGE)

        asyncio.run(use())
        assert self._waiting(url) == 2


class TestTable:
    @pytest.mark.parametrize("table", ["", "Usage", 'a"b', "a.b.c", "a;drop", "a b", "x" * 64, "1a", "a."])
    def test_what_is_no_name_is_refused(self, table: str) -> None:
        with pytest.raises(ValueError, match="table is"):
            outbox.Outbox(table)

    def test_may_stand_in_a_schema_of_its_own_and_be_made_by_many_at_once(
        self, url: str, config: EmitterConfig, valkey: redis.Redis
    ) -> None:
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("CREATE SCHEMA billing")

        def create() -> None:
            with psycopg.connect(url) as one:
                outbox.create_table(one, "billing.events_out")

        threads = [threading.Thread(target=create) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with psycopg.connect(url) as one:
            outbox.Outbox("billing.events_out").add(one, **USAGE)
        with outbox.Relay(lambda: psycopg.connect(url), config, table="billing.events_out") as relay:
            assert drain(relay) == 1
        assert len(ids(valkey)) == 1

    def test_rights_that_the_document_names_are_enough(self, url: str, config: EmitterConfig) -> None:
        document = (Path(__file__).parents[2] / "docs" / "outbox.md").read_text(encoding="utf-8")
        block = document.split("```sql\n")[1].split("```")[0]
        app, carrier = (f"outbox_{role}_{uuid.uuid4().hex[:8]}" for role in ("app", "relay"))
        with psycopg.connect(url, autocommit=True) as admin:
            for login in (app, carrier):
                admin.execute(f"CREATE ROLE {login} LOGIN PASSWORD 'sesame'")
                admin.execute(f"GRANT USAGE ON SCHEMA public TO {login}")
            admin.execute(block.replace("my_app", app).replace("my_relay", carrier))

        def as_role(role: str) -> psycopg.Connection[Any]:
            return psycopg.connect(url, user=role, password="sesame")  # noqa: S106 - of this test's own role

        with as_role(app) as one:
            outbox.Outbox().add(one, **USAGE)
            one.commit()
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                one.execute("SELECT data FROM usage_outbox")
        with outbox.Relay(lambda: as_role(carrier), config) as relay:
            assert drain(relay) == 1
        with psycopg.connect(url, autocommit=True) as admin:
            for role in (app, carrier):
                admin.execute(f"DROP OWNED BY {role}")
                admin.execute(f"DROP ROLE {role}")


def test_importing_it_loads_no_driver() -> None:
    script = "import sys, producers.outbox; print([m for m in sys.modules if m in ('psycopg', 'sqlalchemy')])"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"


def _engine(url: str, driver: str = "postgresql+psycopg") -> Any:
    return create_engine(url.replace("postgresql", driver, 1))
