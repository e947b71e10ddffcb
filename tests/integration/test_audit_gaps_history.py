"""Numbers over time: many histories against a plain set, what a run costs, and revision 0006 in use."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from tests.integration.books_world import Books, keys
from tests.integration.ingest_world import World
from tests.integration.test_audit_gaps import NOW, Numbers, named
from worker import db
from worker.audits import books_gaps
from worker.audits import books_gaps_queries as queries
from worker.audits.books_gaps import Judged
from worker.audits.books_numbers import Arrivals
from worker.audits.books_stream import BookStreams
from worker.db import _migrations
from worker.settings import Settings

pytestmark = pytest.mark.redis_compatible

ROW = """
    INSERT INTO platform_usage_logs (id, user_id, feature, tokens_used, cost_source, payload_hash,
                                     occurred_at, received_at, shard, stored_at, producer_id, seq)
    SELECT gen_random_uuid(), gen_random_uuid(), 'x', 1, 'unpriced', decode(repeat('00', 16), 'hex'), now(),
           now(), :shard, clock_timestamp(), :producer, number
      FROM unnest(CAST(:numbers AS bigint[])) AS number
"""
CUT = "UPDATE ingest_positions SET audited_at = clock_timestamp() WHERE shard = :shard"
RECEIVED = "SELECT producer_id, received::text AS received, missing FROM usage_producers"

shards = st.integers(0, 1)
stored = st.tuples(shards, st.sampled_from("ab"), st.lists(st.integers(1, 30), min_size=1, max_size=6))
histories = st.lists(st.one_of(stored, shards, st.none()), max_size=14)


@pytest.fixture
def books(world: World, databases: Any, valkey_url: str) -> Numbers:
    """Books of an empty world."""
    return Numbers(world, databases, valkey_url)


def ranges(numbers: set[int]) -> str:
    """This function will write a set of numbers as PostgreSQL does."""
    starts = sorted(one for one in numbers if one - 1 not in numbers)
    ends = sorted(one + 1 for one in numbers if one + 1 not in numbers)
    return "{" + ",".join(f"[{low},{high})" for low, high in zip(starts, ends, strict=True)) + "}"


class History:
    """Rows and cuts as a history has them, and a plain set beside them."""

    def __init__(self, books: Books, streams: BookStreams) -> None:
        self._world, self._streams = books.world, streams
        self.model: dict[str, set[int]] = {}
        self._waiting: list[tuple[int, str, list[int]]] = []
        books.sabotage(
            "TRUNCATE platform_usage_logs, usage_producers, usage_number_positions, ingest_positions"
        )
        self._world.execute("INSERT INTO ingest_positions (shard) VALUES (0), (1)")

    def store(self, shard: int, producer: str, numbers: list[int]) -> None:
        """This function will store rows with these numbers."""
        self._world.execute(ROW, shard=shard, producer=producer, numbers=numbers)
        self.model.setdefault(producer, set()).update(numbers)

    def cut(self, shard: int) -> None:
        """This function will say that a shard's books are proved up to now."""
        self._world.execute(CUT, shard=shard)

    def take_in(self, *, full: bool = False) -> Judged:
        """This function will take in what was cut."""
        return books_gaps.audit(
            lambda: db.platform_session(login=db.Login.AUDIT), self._streams, drained={}, full=full, grace=NOW
        )

    def known(self) -> dict[str, tuple[str, int]]:
        """This function will return which numbers are known, and how many are missing."""
        return {row.producer_id: (row.received, row.missing) for row in self._world.rows(RECEIVED)}

    def expected(self) -> dict[str, tuple[str, int]]:
        """This function will return what has to be known when everything was cut and taken in."""
        return {name: (ranges(found), max(found) - len(found)) for name, found in self.model.items()}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories)
def test_any_history_ends_where_a_full_count_does(books: Numbers, history: list[Any]) -> None:
    told = History(books, BookStreams(books.world.client, keys=keys))
    for step in history:
        if step is None:
            told.take_in()
        elif isinstance(step, int):
            told.cut(step)
        else:
            told.store(*step)
    for shard in (0, 1):
        told.cut(shard)
    judged = told.take_in()
    assert told.known() == told.expected()
    assert judged.measurements["missing_numbers"] == sum(missing for _, missing in told.expected().values())
    full = told.take_in(full=True)
    assert [check.outcome for check in full.checks if check.check_id == "books.numbers"] == ["pass"]
    assert told.known() == told.expected()
    books.sabotage("TRUNCATE usage_producers, usage_number_positions")
    told.take_in()
    assert told.known() == told.expected()


@pytest.mark.timeout(120)
def test_reads_its_window_and_no_more(books: Numbers) -> None:
    books.sabotage(
        "INSERT INTO platform_usage_logs (id, user_id, feature, tokens_used, cost_source, payload_hash,"
        " occurred_at, received_at, shard, stored_at, producer_id, seq)"
        " SELECT gen_random_uuid(), gen_random_uuid(), 'x', 1, 'unpriced', decode(repeat('00', 16), 'hex'),"
        " now(), now(), mod(number, 2), now() - interval '1 second' * (100000 - number), 'p', number"
        " FROM generate_series(1, 100000) AS number"
    )
    books.sabotage("VACUUM ANALYZE platform_usage_logs")
    books.world.execute("INSERT INTO ingest_positions (shard, audited_at) VALUES (0, now()), (1, now())")
    with db.platform_session(login=db.Login.AUDIT) as session:
        for one in queries.readings(session):
            session.execute(
                text(
                    "INSERT INTO usage_number_positions (shard, read_at)"
                    " SELECT :shard, max(stored_at) - interval '1000 seconds' FROM platform_usage_logs"
                ),
                {"shard": one.shard},
            )
        windows = queries.readings(session)
        statement, values = queries.window_statement(
            windows, upto=max(one.cut_at for one in windows if one.cut_at)
        )
        explain = text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement.text}")
        plan = session.execute(explain, values).scalar_one()[0]["Plan"]
        pages = session.execute(text("SELECT relpages FROM pg_class WHERE relname = 'platform_usage_logs'"))
        whole = pages.scalar_one()
        found = dict(queries.stretches(session, windows, upto=values["upto"]))
    described = json.dumps(plan)
    assert "ix_platform_usage_logs_stored_at" in described
    assert "Seq Scan" not in described
    # A range of the index is 128 pages.
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < whole / 5
    (stretch,) = found["p"]
    assert (stretch.low, stretch.high) == (99_001, 100_000)


class TestNumbersAtRandom:
    def test_stay_bounded(self, books: Numbers) -> None:
        for start in range(0, 3000, 500):
            books.arrive(*range(2 * start + 1, 2 * start + 1001, 2))
        report = books.audit(numbers_grace=NOW)
        (finding,) = named(report).values()
        assert finding.message.startswith("1000 of its numbers up to 5999 never arrived: 4000 (")
        (row,) = books.world.rows("SELECT *, cardinality(seen_from) AS ranges FROM usage_producers")
        assert (row.ranges, row.settled_because, row.unnamed, row.missing) == (1000, "capped", 1999, 2999)
        books.gaps(full=True)
        assert books.world.rows("SELECT missing FROM usage_producers")[0].missing == 2999
        books.sabotage("UPDATE usage_producers SET unnamed_from = unnamed_from - interval '2 days'")
        message = books.gaps()["p"].message
        assert message.startswith("2999 of its numbers up to 5999 never arrived: 4000 (")
        assert "more than 1000 ranges: of 1999 missing up to 3999" in message
        for start in range(0, 3000, 500):
            books.arrive(*range(2 * start + 2, 2 * start + 1002, 2))
        assert books.gaps() == {}


class TestRevision:
    def test_begins_where_the_books_are_proved(self, books: Numbers, settings: Settings) -> None:
        books.arrive(1, 4)
        books.arrive(5, cost_usd="no")
        books.gaps()
        _migrations.downgrade(settings.platform, "0005")
        with psycopg.connect(settings.platform.url.libpq) as looking:
            rows = looking.execute("SELECT to_regclass('usage_producers')").fetchall()
        assert rows == [(None,)]
        _migrations.migrate(settings.platform)
        (position,) = books.world.rows("SELECT * FROM usage_number_positions")
        (ingest,) = books.world.rows("SELECT * FROM ingest_positions")
        assert position.begins_late
        assert position.read_at == ingest.audited_at
        assert (position.last_entry_id, position.unstored) == (ingest.audited_entry_id, 1)
        books.arrive(6, 8)
        found = books.gaps()
        assert found["p"].message.startswith("1 of its numbers up to 8 never arrived: 7 (")
        (position,) = books.world.rows("SELECT * FROM usage_number_positions")
        assert not position.begins_late

    def test_a_log_that_was_never_proved_is_read_from_its_beginning(
        self, books: Numbers, settings: Settings
    ) -> None:
        books.arrive(1, 3)
        _migrations.downgrade(settings.platform, "0005")
        _migrations.migrate(settings.platform)
        assert books.world.rows("SELECT * FROM usage_number_positions") == []
        assert books.gaps()["p"].message.startswith("1 of its numbers up to 3 never arrived: 2 (")


def test_a_second_run_at_once_takes_nothing_in_twice(books: Numbers) -> None:
    told = History(books, BookStreams(books.world.client, keys=keys))
    told.store(0, "a", [1, 2])
    for shard in (0, 1):
        told.cut(shard)
    with db.platform_session(login=db.Login.AUDIT) as session:
        planned = queries.readings(session)
    told.take_in()
    books.sabotage("UPDATE usage_producers SET received = '{}', seen_from = '{}', seen_to = '{}'")
    with db.platform_session(login=db.Login.AUDIT) as session:
        queries.lock(session)
        books_gaps._take_in(session, planned, Arrivals(), full=False)
    assert told.known() == {"a": ("{}", 0)}
