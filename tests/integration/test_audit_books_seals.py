"""Seals of the books: what is sealed when, what is found in a window later, and runs beside drains."""

from __future__ import annotations

import itertools
import json
import threading
import uuid
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.integration.books_world import Books
from tests.integration.ingest_world import World, event
from worker import db
from worker.audits import books as books_audit
from worker.audits.findings import Outcome
from worker.entrypoints._clock import utcnow

pytestmark = pytest.mark.redis_compatible


@pytest.fixture
def books(world: World, databases: Any, valkey_url: str) -> Books:
    """Books of an empty world."""
    return Books(world, databases, valkey_url)


@pytest.fixture
def used(books: Books) -> Books:
    """Books of a shard with a little of everything, not sealed yet."""
    books.use()
    return books


class TestSealedWindows:
    def test_a_row_that_is_deleted_later_is_named_without_the_stream(self, used: Books) -> None:
        used.audit()
        used.world.client.xtrim("usage:events:{0}", maxlen=0, approximate=False)
        gone = used.stored_id()
        used.sabotage("DELETE FROM platform_usage_logs WHERE id = %(id)s", id=gone)
        found = used.found()
        assert "books.sealed" in found
        assert set(found) <= {"books.sealed", "books.rollups"}
        assert f"gone: {gone}" in found["books.sealed"].message
        assert "are not those that were sealed: rows 5 → 4" in found["books.sealed"].message

    def test_rows_that_are_deleted_later_are_named_while_the_stream_has_them(self, used: Books) -> None:
        used.audit()
        gone = [row[0] for row in used.sabotage("DELETE FROM platform_usage_logs RETURNING id")]
        message = used.found()["books.sealed"].message
        assert [one for one in gone if str(one) not in message] == []

    @pytest.mark.parametrize("at", ["stored_at", "(SELECT max(cut_at) FROM usage_seals)"])
    def test_a_row_that_comes_in_later_is_named(self, used: Books, at: str) -> None:
        used.audit()
        invented = uuid.uuid4()
        statement = (
            "INSERT INTO platform_usage_logs (id, user_id, feature, tokens_used, cost_source, payload_hash,"
            " occurred_at, received_at, shard, stored_at) SELECT %(id)s, user_id, 'x', 1, 'unpriced',"
            " payload_hash, occurred_at, received_at, shard, {at} FROM platform_usage_logs LIMIT 1"
        )
        used.sabotage(statement.replace("{at}", at), id=invented)
        found = used.found()
        assert set(found) == {"books.sealed", "books.rollups"}
        assert f"new: {invented}" in found["books.sealed"].message

    @pytest.mark.parametrize(
        "change",
        [
            "tokens_used = tokens_used + 1",
            "cost_usd = cost_usd * 2",
            "user_id = gen_random_uuid()",
            "model = 'x'",
        ],
    )
    def test_a_row_that_is_changed_later_is_named(self, used: Books, change: str) -> None:
        used.audit()
        changed = used.stored_id()
        statement = "UPDATE platform_usage_logs SET {change} WHERE id = %(id)s"
        used.sabotage(statement.replace("{change}", change), id=changed)
        assert f"changed: {changed}" in used.found()["books.sealed"].message

    def test_only_so_many_rows_are_read_again_and_all_in_turn(self, books: Books) -> None:
        for _ in range(4):
            books.world.add([event() for _ in range(10)])
            books.world.drain()
            books.audit(verified_rows=1)
        assert [seal.row_count for seal in books.seals()] == [10] * 4
        books.sabotage("UPDATE usage_seals SET verified_at = sealed_at")
        for _ in range(2):
            assert books.audit(verified_rows=20).measurements["verified"] == 2
        assert all(seal.verified_at > seal.sealed_at for seal in books.seals())

    def test_old_seals_are_merged_and_say_the_same(self, books: Books) -> None:
        for _ in range(4):
            books.world.add([event() for _ in range(10)])
            books.world.drain()
            books.audit()
        sums = books.world.sums()
        report = books.audit(clock=lambda: utcnow() + timedelta(days=2))
        assert report.measurements["merged"] == 3
        (seal,) = books.seals()
        assert (seal.row_count, seal.events, seal.cost_usd) == (40, 40, sums["cost"])
        assert books.found(full=True) == {}
        gone = books.stored_id()
        books.sabotage("DELETE FROM platform_usage_logs WHERE id = %(id)s", id=gone)
        assert f"gone: {gone}" in books.found()["books.sealed"].message


class TestSealing:
    def test_a_difference_stands_until_it_is_mended(self, used: Books) -> None:
        used.sabotage("UPDATE usage_hourly SET events = events + 1 WHERE model = ''")
        for _ in range(2):
            assert set(used.found()) == {"books.rollups"}
        assert (used.seals(), used.audited()) == ([], "0-0")
        used.sabotage("UPDATE usage_hourly SET events = events - 1 WHERE model = ''")
        assert used.found() == {}
        assert len(used.seals()) == 1

    def test_what_cannot_be_mended_is_accepted_with_a_reason(self, used: Books) -> None:
        used.audit()
        for _ in range(3):
            used.world.add(event())
        used.world.client.xtrim("usage:events:{0}", maxlen=1, approximate=False)
        used.world.drain()
        assert set(used.found(accept="a test trimmed them")) == {"books.trimmed_unread"}
        assert used.found() == {}
        assert used.seals()[-1].accepted_reason == "a test trimmed them"
        assert used.audited() == used.world.position().last_entry_id

    def test_a_sealed_window_that_changed_is_accepted_too(self, used: Books) -> None:
        used.audit()
        used.sabotage("DELETE FROM platform_usage_logs WHERE corrects IS NOT NULL")
        used.sabotage("UPDATE usage_hourly SET events = 4 WHERE events = 3")
        assert "books.sealed" in used.found(accept="erased on demand")
        assert "books.sealed" not in used.found()

    def test_of_two_runs_at_once_one_seals(self, used: Books) -> None:
        reports: list[Any] = []
        threads = [threading.Thread(target=lambda: reports.append(used.audit())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [report.outcome for report in reports] == [Outcome.PASS] * 4
        seals = used.seals()
        assert sum(seal.row_count for seal in seals) == 5
        for before, after in itertools.pairwise(seals):
            assert after.since == before.cut_at

    def test_drains_at_work_are_no_difference(self, books: Books) -> None:
        world, stop = books.world, threading.Event()
        failures: list[BaseException] = []

        def produce_and_drain(shard: int) -> None:
            try:
                while not stop.is_set():
                    for _ in range(20):
                        world.add([event(), event(feature=""), event(user_id=str(uuid.uuid4()))], shard=shard)
                    world.drain(shard=shard, batch_size=7)
            except BaseException as error:
                failures.append(error)
                raise

        threads = [threading.Thread(target=produce_and_drain, args=[shard]) for shard in (0, 1)]
        for thread in threads:
            thread.start()
        try:
            runs = [books.audit() for _ in range(25)]
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert failures == []
        assert [finding for report in runs for finding in report.findings] == []
        assert sum(report.measurements["rows"] for report in runs) > 100
        assert books.found(full=True) == {}
        sealed = sum(seal.row_count for seal in books.seals())
        assert Decimal(sealed) == world.sums()["rows"]

    def test_the_time_of_the_cut_is_read_under_the_lock(self, used: Books) -> None:
        # A batch that waits for its commit holds the row: the cut waits, and has what the batch stored.
        with db.platform_session() as session:
            connection = session.connection().connection.driver_connection
            assert connection is not None
            connection.execute("SELECT FROM ingest_positions WHERE shard = 0 FOR UPDATE")
            done: list[Any] = []
            thread = threading.Thread(target=lambda: done.append(used.audit()))
            thread.start()
            thread.join(0.5)
            assert thread.is_alive()
            released = connection.execute("SELECT clock_timestamp()").fetchone()
        thread.join()
        (seal,) = used.seals()
        assert released is not None
        assert seal.cut_at > released[0]


def test_a_report_is_a_document(used: Books) -> None:
    used.sabotage("UPDATE ingest_positions SET entries = entries + 1")
    document = json.loads(json.dumps(used.audit().as_document()))
    (finding,) = document["findings"]
    assert finding["check_id"] == "books.entries"
    assert finding["object"] == "shard 0"
    assert len(document["checks"]) == len(books_audit.CHECK_IDS)
