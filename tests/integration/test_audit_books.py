"""The books audit: silent while all is counted once, and with every sentence broken on purpose, its ids."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.integration.books_world import Books
from tests.integration.ingest_world import USER, World, event
from worker import db
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


class TestAgreement:
    def test_nothing_was_ever_drained(self, books: Books) -> None:
        assert books.found() == {}
        assert books.found(full=True) == {}

    def test_a_little_of_everything_is_sealed(self, used: Books) -> None:
        assert used.found() == {}
        (seal,) = used.seals()
        position = used.world.position()
        assert (seal.entries, seal.events, seal.row_count, seal.letter_count) == (6, 10, 5, 4)
        assert (seal.accepted, seal.duplicates, seal.conflicts, seal.rejected) == (5, 1, 1, 3)
        assert seal.cost_usd == used.world.sums()["cost"]
        assert (seal.last_entry_id, used.audited()) == (position.last_entry_id, position.last_entry_id)
        assert used.found(full=True) == {}

    def test_a_run_begins_where_the_last_seal_ends(self, used: Books) -> None:
        used.audit()
        used.world.add(event())
        used.world.drain()
        report = used.audit()
        assert report.measurements["rows"] == 1
        first, second = used.seals()
        assert second.since == first.cut_at
        assert second.row_count == 1

    def test_a_run_in_which_nothing_happened_adds_no_seal(self, used: Books) -> None:
        for _ in range(3):
            assert used.found() == {}
        assert len(used.seals()) == 1

    def test_entries_in_flight_are_no_difference(self, used: Books) -> None:
        for _ in range(3):
            used.world.add(event())
        assert used.found() == {}
        assert used.audited() == used.world.position().last_entry_id

    def test_entries_that_are_trimmed_behind_the_position_are_no_difference(self, used: Books) -> None:
        used.audit()
        used.world.client.xtrim("usage:events:{0}", maxlen=0, approximate=False)
        used.world.add(event())
        used.world.drain()
        assert used.found() == {}

    def test_a_replay_and_its_letters_agree(self, used: Books) -> None:
        used.audit()
        used.world.execute("INSERT INTO users (id, clerk_id) VALUES (:id, 'user_late')", id=USER)
        assert used.world.replay_waiting().accepted == 1
        used.world.add([event(), event(feature="")])
        used.world.drain()
        assert used.found() == {}
        assert used.found(full=True) == {}

    def test_several_shards_are_sealed_each(self, books: Books) -> None:
        for shard in (0, 1, 2):
            books.world.add(event(), shard=shard)
            books.world.drain(shard=shard)
        assert books.found() == {}
        assert [seal.shard for seal in books.seals()] == [0, 1, 2]

    def test_the_worker_may_audit_where_there_is_no_auditor(self, used: Books) -> None:
        assert used.found(login=db.Login.RUNTIME) == {}
        assert len(used.seals()) == 1

    def test_says_that_rows_were_recovered_and_seals_them(self, used: Books) -> None:
        used.sabotage(
            "UPDATE ingest_positions SET recovered = 1, accepted = accepted - 1, events = events - 1"
        )
        report = used.audit()
        (finding,) = report.findings
        assert (finding.check_id, finding.severity) == ("books.recovered", "info")
        assert len(used.seals()) == 1


class TestDifferences:
    def test_a_deleted_row_is_named(self, used: Books) -> None:
        gone = used.stored_id()
        used.sabotage("DELETE FROM platform_usage_logs WHERE id = %(id)s", id=gone)
        found = used.found()
        assert set(found) == {"books.rows", "books.rollups"} or set(found) == {"books.rows"}
        assert f"missing: {gone}" in found["books.rows"].message
        assert "5 rows were counted since the last seal, the log has 4" in found["books.rows"].message

    def test_a_row_that_nobody_sent_is_named(self, used: Books) -> None:
        invented = uuid.uuid4()
        used.sabotage(
            "INSERT INTO platform_usage_logs (id, user_id, feature, tokens_used, cost_source, payload_hash,"
            " occurred_at, received_at, shard, stored_at) SELECT %(id)s, user_id, feature, 1, 'unpriced',"
            " payload_hash, occurred_at, received_at, shard, stored_at FROM platform_usage_logs LIMIT 1",
            id=invented,
        )
        found = used.found()
        assert set(found) == {"books.rows", "books.rollups"}
        assert f"came in no entry: {invented}" in found["books.rows"].message
        assert "the log has 6" in found["books.rows"].message
        assert found["books.rollups"].object.startswith(f"{USER} blog_writer '' ''")

    def test_a_changed_cost_is_named_with_key_and_amounts(self, used: Books) -> None:
        changed = used.stored_id("provider = 'openai' AND corrects IS NULL AND cost_usd > 0")
        used.sabotage("UPDATE platform_usage_logs SET cost_usd = cost_usd + 1 WHERE id = %(id)s", id=changed)
        found = used.found()
        assert set(found) == {"books.rollups"}
        finding = found["books.rollups"]
        assert finding.object == f"{USER} blog_writer openai gpt-4o-mini 2026-03-01T12:00:00+00:00"
        assert f"rows that were changed: {changed}" in finding.message
        assert "cost_usd" in finding.message
        assert "events" not in finding.message.partition(";")[0]

    def test_a_doubled_roll_up_is_named_with_both_amounts(self, used: Books) -> None:
        used.sabotage("UPDATE usage_hourly SET tokens_used = tokens_used * 2 WHERE model = ''")
        found = used.found()
        assert set(found) == {"books.rollups"}
        finding = found["books.rollups"]
        assert finding.object == f"{USER} blog_writer '' '' 2026-03-01T12:00:00+00:00"
        assert finding.message == "roll-up ≠ log: tokens_used 2534 ≠ 1267"

    def test_a_missing_roll_up_is_named(self, used: Books) -> None:
        used.sabotage("DELETE FROM usage_hourly WHERE model = ''")
        found = used.found()
        assert set(found) == {"books.rollups"}
        assert "events no row ≠ 1" in found["books.rollups"].message

    def test_an_invented_roll_up_is_found_by_a_full_run(self, used: Books) -> None:
        used.audit()
        used.sabotage(
            "INSERT INTO usage_hourly (user_id, feature, provider, model, hour, events)"
            " VALUES (%(user)s, 'invented', '', '', '2026-01-01T00:00Z', 1)",
            user=USER,
        )
        assert used.found() == {}
        found = used.found(full=True)
        assert set(found) == {"books.rollups"}
        assert found["books.rollups"].object == f"{USER} invented '' '' 2026-01-01T00:00:00+00:00"

    def test_an_unread_entry_that_is_deleted_is_missed(self, used: Books) -> None:
        used.audit()
        entry_id = used.world.add(event())
        used.world.add(event())
        used.world.client.xdel("usage:events:{0}", entry_id)
        for drained in (False, True):
            if drained:
                used.world.drain()
            found = used.found()
            assert set(found) == {"books.trimmed_unread"}
            assert found["books.trimmed_unread"].message.startswith("1 entries were taken out of the stream")
            assert f"deleted up to {entry_id}" in found["books.trimmed_unread"].message
            assert used.audited() < entry_id

    def test_entries_that_are_trimmed_unread_are_missed(self, used: Books) -> None:
        used.audit()
        for _ in range(3):
            used.world.add(event())
        used.world.client.xtrim("usage:events:{0}", maxlen=1, approximate=False)
        found = used.found()
        assert set(found) == {"books.trimmed_unread"}
        assert "2 entries were taken out of the stream before they were read" in (
            found["books.trimmed_unread"].message
        )

    def test_an_entry_that_was_passed_over_is_named(self, used: Books) -> None:
        used.audit()
        sent = event()
        skipped = used.world.add(sent)
        used.sabotage("UPDATE ingest_positions SET last_entry_id = %(at)s", at=skipped)
        found = used.found()
        assert set(found) == {"books.entries"}
        assert "1 entries went by without being counted" in found["books.entries"].message
        assert f"not in the log: {sent['event_id']}" in found["books.entries"].message

    def test_a_stream_that_was_deleted_is_recognised(self, used: Books) -> None:
        used.audit()
        used.world.client.delete("usage:events:{0}")
        assert set(used.found()) == {"books.stream_recreated"}
        used.world.add(event(), at=utcnow())
        found = used.found()
        assert set(found) == {"books.stream_recreated"}
        assert found["books.stream_recreated"].object == "usage:events:{0}"
        assert "the stream is not the one that was sealed at" in found["books.stream_recreated"].message
        assert "1 entries were ever added" in found["books.stream_recreated"].message

    def test_a_position_beyond_the_stream_is_named(self, used: Books) -> None:
        used.audit()
        used.sabotage("UPDATE ingest_positions SET last_entry_id = '1999999999999-0'")
        found = used.found()
        assert set(found) == {"books.position_beyond_stream"}
        assert "the position is 1999999999999-0" in found["books.position_beyond_stream"].message

    @pytest.mark.parametrize(
        ("change", "broken", "words"),
        [
            ("entries = entries + 1", {"books.entries"}, "1 more entries were counted than ever came"),
            ("duplicates = duplicates + 1", {"books.events"}, "10 events were counted"),
            ("accepted = accepted + 1", {"books.events", "books.rows"}, "6 accepted"),
            ("replayed = replayed + 1", {"books.rows"}, "so it is the counter"),
            ("rejected = 0", {"books.events"}, "0 rejected"),
        ],
    )
    def test_a_changed_counter_is_found(self, used: Books, change: str, broken: set[str], words: str) -> None:
        used.sabotage("UPDATE ingest_positions SET {change}".replace("{change}", change))
        found = used.found()
        assert set(found) == broken
        assert words in " ".join(one.message for one in found.values())

    def test_counters_that_went_back_are_named(self, used: Books) -> None:
        used.audit()
        used.sabotage("UPDATE ingest_positions SET events = events - 1, duplicates = duplicates - 1")
        found = used.found()
        assert set(found) == {"books.counters"}
        assert "events 10 → 9, duplicates 1 → 0" in found["books.counters"].message

    def test_a_deleted_dead_letter_is_named(self, used: Books) -> None:
        ((entry_id, event_id),) = used.sabotage(
            "DELETE FROM usage_dead_letters WHERE reason = 'conflict' RETURNING stream_id, event_id"
        )
        found = used.found()
        assert set(found) == {"books.dead_letters"}
        assert (
            f"without a dead letter: {event_id} (entry {entry_id}[2])" in found["books.dead_letters"].message
        )

    def test_rows_of_a_shard_that_nobody_counted_are_found_by_a_full_run(self, used: Books) -> None:
        used.audit()
        used.sabotage(
            "INSERT INTO platform_usage_logs (id, user_id, feature, tokens_used, cost_source, payload_hash,"
            " occurred_at, received_at, shard) SELECT %(id)s, user_id, 'x', 1, 'unpriced', payload_hash,"
            " occurred_at, received_at, 7 FROM platform_usage_logs LIMIT 1",
            id=uuid.uuid4(),
        )
        # Its hour is one of those that the seal touched; its shard is none that was ever drained.
        assert set(used.found()) == {"books.rollups"}
        found = used.found(full=True)
        assert set(found) == {"books.rows", "books.rollups"}
        assert found["books.rows"].message == "0 rows were ever counted, the log has 1"
