"""The books of numbers: what never arrived is named, and whatever did arrive, in any way, is not."""

from __future__ import annotations

import json
import threading
import uuid
from datetime import timedelta
from typing import Any

import pytest

from tests.integration.books_world import Books
from tests.integration.ingest_world import USER, World, event
from worker import db
from worker.audits import operations as audits
from worker.audits.books_gaps import GRACE
from worker.audits.findings import AuditReport, Finding, Outcome
from worker.entrypoints._clock import utcnow

pytestmark = pytest.mark.redis_compatible

MISSING = "books.missing_numbers"
NOW = timedelta(0)
# As long as the numbers were told apart, in the past.
AGED = """
    UPDATE usage_producers
       SET seen_from = ARRAY(SELECT one - %(age)s FROM unnest(seen_from) WITH ORDINALITY AS each(one, place)
                              ORDER BY place),
           seen_to = ARRAY(SELECT one - %(age)s FROM unnest(seen_to) WITH ORDINALITY AS each(one, place)
                            ORDER BY place)
"""


def numbered(*numbers: int, producer: str = "p", **fields: Any) -> list[dict[str, Any]]:
    """This function will return one good event for each number."""
    return [event(producer_id=producer, seq=number, **fields) for number in numbers]


class Numbers(Books):
    """Books of which only the numbers are asked for."""

    def arrive(self, *numbers: int, shard: int = 0, **fields: Any) -> None:
        """This function will send and drain events with these numbers."""
        self.world.add(numbered(*numbers, **fields), shard=shard)
        self.world.drain(shard=shard)

    def gaps(self, grace: timedelta = NOW, **options: Any) -> dict[str, Finding]:
        """This function will audit once and return what is missing, by producer."""
        return named(self.audit(numbers_grace=grace, **options))

    def received(self, producer: str = "p") -> str:
        """This function will return which numbers of a producer are known to have arrived."""
        rows = self.world.rows(
            "SELECT received::text AS received FROM usage_producers WHERE producer_id = :id", id=producer
        )
        return str(rows[0].received)

    def age(self, age: timedelta) -> None:
        """This function will make everything older that is known of numbers."""
        self.sabotage(AGED, age=age)


def named(report: AuditReport) -> dict[str, Finding]:
    """This function will return what a run found missing, by producer."""
    found = [one for one in report.findings if one.check_id == MISSING]
    return {one.object.removeprefix("producer "): one for one in found}


def outcome(report: AuditReport, check_id: str = MISSING) -> Outcome:
    """This function will return the answer of one check."""
    return next(check.outcome for check in report.checks if check.check_id == check_id)


@pytest.fixture
def books(world: World, databases: Any, valkey_url: str) -> Numbers:
    """Books of an empty world."""
    return Numbers(world, databases, valkey_url)


class TestHoles:
    def test_a_complete_series_is_silent(self, books: Numbers) -> None:
        books.arrive(1, 2, 3)
        report = books.audit(numbers_grace=NOW)
        assert named(report) == {}
        assert outcome(report) is Outcome.PASS
        assert books.received() == "{[1,4)}"

    def test_events_without_numbers_are_no_matter(self, books: Numbers) -> None:
        books.world.add([event(), event(producer_id="p"), event(seq=7), event(producer_id="q", seq=0)])
        books.world.drain()
        assert books.gaps() == {}
        assert books.world.rows("SELECT * FROM usage_producers") == []

    def test_names_ranges_counts_and_the_times_between(self, books: Numbers) -> None:
        books.arrive(*range(1, 17), *range(21, 35), 36)
        (finding,) = books.gaps().values()
        assert (finding.object, finding.severity) == ("producer p", "medium")
        assert finding.message.startswith("5 of its numbers up to 36 never arrived: 17-20 (between 20")
        assert "), 35 (between 20" in finding.message
        assert "StreamUnavailable" in finding.remediation
        assert books.received() == "{[1,17),[21,35),[36,37)}"

    def test_a_missing_beginning_is_a_gap(self, books: Numbers) -> None:
        books.arrive(3, 4)
        (finding,) = books.gaps().values()
        assert finding.message.startswith("2 of its numbers up to 4 never arrived: 1-2 (before 20")

    def test_many_ranges_are_told_in_part(self, books: Numbers) -> None:
        books.arrive(*range(1, 90, 2))
        (finding,) = books.gaps().values()
        assert finding.message.startswith("44 of its numbers up to 89 never arrived: 2 (between")
        assert finding.message.endswith(", 38, 40 and 24 more ranges")

    def test_the_highest_numbers_that_there_are(self, books: Numbers) -> None:
        books.arrive(1, 2**63 - 2, 2**63 - 1)
        (finding,) = books.gaps().values()
        assert f": 2-{2**63 - 3} (between" in finding.message

    def test_is_judged_after_an_hour(self, books: Numbers) -> None:
        books.arrive(1, 3)
        assert books.gaps(grace=GRACE) == {}
        books.age(timedelta(minutes=59))
        assert books.gaps(grace=GRACE) == {}
        books.age(timedelta(minutes=2))
        assert set(books.gaps(grace=GRACE)) == {"p"}

    def test_is_gone_when_the_numbers_come_after_all(self, books: Numbers) -> None:
        books.arrive(1, 4)
        states = []
        for late in ([], [2], [3], []):
            if late:
                books.arrive(*late)
            report = books.audit(numbers_grace=NOW)
            with db.platform_session() as session:
                recorded = audits.record(session, report, utcnow())
            states.append((len(recorded.new), len(recorded.standing), len(recorded.gone)))
        assert states == [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)]
        assert books.received() == "{[1,5)}"

    def test_a_run_reads_what_came_since_and_nothing_twice(self, books: Numbers) -> None:
        books.arrive(1, 2)
        books.gaps()
        books.sabotage("UPDATE usage_producers SET received = '{}', seen_from = '{}', seen_to = '{}'")
        books.arrive(3)
        books.gaps()
        assert books.received() == "{[3,4)}"

    def test_shards_are_read_together(self, books: Numbers) -> None:
        books.arrive(1, 3, 5, shard=0)
        books.arrive(2, 4, 7, shard=1)
        assert books.gaps()["p"].message.startswith("1 of its numbers up to 7 never arrived: 6 (")

    def test_producers_do_not_mix(self, books: Numbers) -> None:
        books.arrive(1, 2, producer="a")
        books.arrive(1, 3, producer="b")
        assert set(books.gaps()) == {"b"}

    def test_the_worker_may_look_where_there_is_no_auditor(self, books: Numbers) -> None:
        books.arrive(1, 3)
        assert set(books.gaps(login=db.Login.RUNTIME)) == {"p"}

    def test_corrections_have_numbers_too(self, books: Numbers) -> None:
        books.arrive(1)
        target = books.world.rows()[0].id
        unpriced: dict[str, Any] = {"cost_usd": None, "input_tokens": None, "output_tokens": None}
        (void,) = numbered(2, corrects=str(target), void=True, **unpriced)
        books.world.add(void, correction=True)
        books.arrive(3)
        assert books.gaps() == {}


class TestWhatLeavesNoRow:
    def test_an_event_that_came_twice_under_two_numbers(self, books: Numbers) -> None:
        same = str(uuid.uuid4())
        books.arrive(1, event_id=same)
        books.arrive(2, event_id=same)
        books.arrive(3)
        assert books.gaps() == {}

    def test_in_a_run_of_its_own(self, books: Numbers) -> None:
        same = str(uuid.uuid4())
        books.arrive(1, event_id=same)
        books.gaps()
        books.arrive(2, event_id=same)
        books.gaps()
        books.arrive(4)
        assert books.gaps()["p"].message.startswith("1 of its numbers up to 4 never arrived: 3 (")

    def test_a_frame_that_was_sent_again(self, books: Numbers) -> None:
        frame = numbered(1, 2, 3)
        for _ in range(2):
            books.world.add(frame)
            books.world.drain()
        assert books.gaps() == {}
        assert books.received() == "{[1,4)}"

    def test_events_that_were_put_aside(self, books: Numbers) -> None:
        same = str(uuid.uuid4())
        books.arrive(1, event_id=same)
        books.arrive(2, event_id=same, cost_usd="9")
        books.arrive(3, cost_usd="no")
        books.world.add(numbered(4, user_id=None, clerk_id="user_late")[0])
        books.world.add([*numbered(5, feature=""), 17, *numbered(6)])
        books.world.add(numbered("7", occurred_at="yesterday"))  # type: ignore[arg-type]
        books.arrive(8)
        assert len(books.world.letters()) == 6
        assert books.gaps() == {}
        assert books.received() == "{[1,9)}"

    def test_what_cannot_be_read_has_not_arrived(self, books: Numbers) -> None:
        books.world.add(b'{"producer_id":"p","seq":2')
        books.world.add(b'{"producer_id":"\\u0000","seq":2}')
        books.world.add(b'{"producer_id":"p","seq":true}')
        books.arrive(1, 3)
        assert books.gaps()["p"].message.startswith("1 of its numbers up to 3 never arrived: 2 (")

    def test_a_replay_changes_nothing(self, books: Numbers) -> None:
        books.world.add(numbered(1, user_id=None, clerk_id="user_late")[0])
        books.arrive(2, 4)
        before = books.gaps()
        books.world.execute("INSERT INTO users (id, clerk_id) VALUES (:id, 'user_late')", id=USER)
        assert books.world.replay_waiting().accepted == 1
        after = books.gaps()
        assert after["p"].message == before["p"].message
        assert ": 3 (" in after["p"].message
        assert books.received() == "{[1,3),[4,5)}"

    def test_entries_that_are_recovered(self, books: Numbers) -> None:
        books.arrive(1, 2, 3)
        books.gaps()
        books.sabotage("UPDATE ingest_positions SET last_entry_id = '0-0'")
        books.world.drain()
        assert books.received() == "{[1,4)}"
        assert books.gaps() == {}


class TestWhatIsOnItsWay:
    def test_entries_in_flight_are_not_missing(self, books: Numbers) -> None:
        books.arrive(1, shard=0)
        books.arrive(2, shard=1)
        books.world.add(numbered(3), shard=0)
        books.arrive(4, shard=1)
        report = books.audit(numbers_grace=NOW)
        assert named(report) == {}
        # The entries have ids of a day long ago, so their shard is far behind.
        assert outcome(report) is Outcome.INCONCLUSIVE
        books.world.drain(shard=0)
        report = books.audit(numbers_grace=NOW)
        assert outcome(report) is Outcome.PASS

    def test_a_shard_that_is_not_proved_stops_all(self, books: Numbers) -> None:
        books.arrive(1, shard=0)
        books.arrive(2, shard=1)
        books.gaps()
        books.sabotage(
            "UPDATE ingest_positions SET accepted = accepted + 1, events = events + 1 WHERE shard = 0"
        )
        books.arrive(3, shard=0)
        books.arrive(4, shard=1)
        assert set(books.found(numbers_grace=NOW)) == {"books.rows"}
        assert books.received() == "{[1,3)}"
        books.sabotage(
            "UPDATE ingest_positions SET accepted = accepted - 1, events = events - 1 WHERE shard = 0"
        )
        assert books.gaps() == {}
        assert books.received() == "{[1,5)}"

    def test_a_shard_that_was_never_proved(self, books: Numbers) -> None:
        books.arrive(1, 3)
        books.sabotage("UPDATE ingest_positions SET accepted = accepted + 1")
        assert outcome(books.audit(numbers_grace=NOW)) is Outcome.INCONCLUSIVE

    def test_beside_drains_nothing_is_missed_and_nothing_invented(self, books: Numbers) -> None:
        done = threading.Event()
        frames = [numbered(*range(start, start + 20)) for start in range(1, 1201, 20)]

        def send(shard: int) -> None:
            for frame in frames[shard::2]:
                books.world.add(frame, shard=shard)
                books.world.drain(shard=shard)

        drains = [threading.Thread(target=send, args=[shard]) for shard in (0, 1)]
        auditing = threading.Thread(target=lambda: [books.gaps() for _ in iter(done.is_set, True)])
        for one in (*drains, auditing):
            one.start()
        for one in drains:
            one.join()
        done.set()
        auditing.join()
        assert books.gaps() == {}
        assert books.received() == "{[1,1201)}"


class TestAccepting:
    def test_gives_up_what_the_run_reports(self, books: Numbers) -> None:
        books.arrive(1, 4, 6)
        assert set(books.gaps(accept="the host burnt down")) == {"p"}
        assert books.gaps() == {}
        (row,) = books.world.rows("SELECT * FROM usage_producers")
        assert (row.settled_upto, row.settled_because, row.missing) == (5, "accepted", 0)
        assert row.settled_reason == "the host burnt down"
        books.arrive(8)
        assert books.gaps()["p"].message.startswith("1 of its numbers up to 8 never arrived: 7 (")

    def test_leaves_what_is_young(self, books: Numbers) -> None:
        books.arrive(1, 3)
        books.gaps()
        books.age(timedelta(hours=2))
        books.arrive(5)
        assert books.gaps(accept="lost", grace=GRACE)["p"].message.startswith("1 of its numbers")
        assert books.gaps(grace=GRACE) == {}
        assert ": 4 (" in books.gaps()["p"].message

    def test_what_was_given_up_stays_so_in_a_full_run(self, books: Numbers) -> None:
        books.arrive(1, 4)
        books.gaps(accept="lost")
        assert books.gaps(full=True) == {}
        assert books.found(full=True, numbers_grace=NOW) == {}

    def test_one_that_comes_late_is_no_matter(self, books: Numbers) -> None:
        books.arrive(1, 4)
        books.gaps(accept="lost")
        books.arrive(2)
        assert books.gaps() == {}


class TestFull:
    def test_finds_what_was_taken_out_of_the_record(self, books: Numbers) -> None:
        books.arrive(1, 2, 3, 4)
        books.gaps()
        books.sabotage(
            "UPDATE usage_producers SET received = '{[1,2),[4,5)}', missing = 2,"
            " seen_from = seen_from || seen_from, seen_to = seen_to || seen_to"
        )
        assert set(books.gaps()) == {"p"}
        found = books.found(full=True, numbers_grace=NOW)
        assert set(found) == {"books.numbers"}
        assert found["books.numbers"].message.startswith("2 numbers stand in the log that had not been")
        assert books.received() == "{[1,5)}"
        assert books.found(full=True, numbers_grace=NOW) == {}

    def test_keeps_numbers_that_left_no_row(self, books: Numbers) -> None:
        books.arrive(1)
        books.arrive(2, cost_usd="no")
        books.arrive(3)
        books.gaps()
        books.world.client.xtrim("usage:events:{0}", maxlen=0, approximate=False)
        assert books.found(full=True, numbers_grace=NOW) == {}

    def test_takes_up_what_was_stored_before_numbers_were_counted(self, books: Numbers) -> None:
        books.arrive(1, 4)
        books.arrive(1, 2, producer="q")
        books.gaps()
        books.sabotage("DELETE FROM usage_producers")
        books.sabotage("UPDATE usage_number_positions SET begins_late = true")
        books.arrive(5, 7)
        books.arrive(2, producer="new")
        found = books.gaps()
        assert {name: one.message.partition(" (")[0] for name, one in found.items()} == {
            "p": "1 of its numbers up to 7 never arrived: 6",
            "new": "1 of its numbers up to 2 never arrived: 1",
        }
        found = books.gaps(full=True)
        assert set(found) == {"p", "new"}
        assert found["p"].message.startswith("3 of its numbers up to 7 never arrived: 2-3 (")


class TestForgetting:
    def test_a_complete_producer_that_is_quiet_for_long(self, books: Numbers) -> None:
        books.arrive(1, 2, producer="complete")
        books.arrive(1, 3, producer="incomplete")
        books.gaps()
        long = timedelta(days=37)
        books.sabotage("UPDATE usage_producers SET last_stored_at = last_stored_at - %(long)s", long=long)
        books.arrive(1, producer="fresh")
        assert set(books.gaps()) == {"incomplete"}
        rows = books.world.rows("SELECT producer_id FROM usage_producers ORDER BY producer_id")
        assert [row.producer_id for row in rows] == ["fresh", "incomplete"]


def test_json_has_the_finding(books: Numbers) -> None:
    books.arrive(1, 3)
    document = json.loads(json.dumps(books.audit(numbers_grace=NOW).as_document()))
    assert [one["object"] for one in document["findings"]] == ["producer p"]
    assert {"check_id": MISSING, "outcome": "fail", "reason": "producer p"} in document["checks"]
