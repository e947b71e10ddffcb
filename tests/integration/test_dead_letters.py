"""Dead letters: listed, replayed through the same path, given up; never twice, never without their bytes."""

from __future__ import annotations

import hashlib
import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from tests.integration.ingest_world import AGE, NOW, USER, World, event
from worker import db
from worker.ingest import dead_letters, queries
from worker.ingest.dead_letters import NothingSelected, OneLetterOnly, Selection
from worker.pricing.book import Prices

pytestmark = pytest.mark.redis_compatible


def bad(**fields: object) -> dict[str, object]:
    return event(**{"input_tokens": "many", **fields})


def add_user(world: World, clerk_id: str = "user_new") -> None:
    world.execute("INSERT INTO users (id, clerk_id) VALUES (:id, :clerk_id)", id=USER, clerk_id=clerk_id)


class TestSeveralShards:
    def test_are_replayed_in_one_step(self, world: World) -> None:
        for shard, count in ((0, 3), (1, 1), (2, 5)):
            for _ in range(count):
                world.add(event(user_id=None, clerk_id="user_new"), shard=shard)
            world.drain(shard=shard)
        add_user(world)
        replayed = world.replay_waiting()
        assert (replayed.accepted, replayed.duplicates, replayed.refused) == (9, 0, 0)
        assert [(one.shard, one.replayed) for one in map(world.position, range(3))] == [
            (0, 3),
            (1, 1),
            (2, 5),
        ]
        assert len(world.rows()) == 9
        world.assert_books_hold()
        world.assert_rollups_hold()


class TestList:
    def test_filters_by_reason_state_and_time_newest_first(self, world: World) -> None:
        world.add(b"{")
        world.drain()
        world.add(event(cost_usd="-1"))
        world.drain()
        first, second = world.letters()
        assert [one.id for one in world.letters(reason="not_json")] == [first.id]
        with db.platform_session() as session:
            newest = queries.dead_letters(session)
            since = queries.dead_letters(session, since=second.stored_at)
            until = queries.dead_letters(session, until=second.stored_at)
            limited = queries.dead_letters(session, limit=1)
            dead_letters.discard(session, selection=Selection(ids=[first.id]), now=NOW)
            by_reason = queries.open_letters_by_reason(session)
        assert [one.id for one in newest] == [second.id, first.id]
        assert [one.id for one in since] == [second.id]
        assert [one.id for one in until] == [first.id]
        assert [one.id for one in limited] == [second.id]
        assert by_reason == {"invalid_cost": 1}
        assert [one.id for one in world.letters(state="discarded")] == [first.id]
        assert [one.id for one in world.letters(state="open")] == [second.id]

    def test_shows_one_with_its_bytes(self, world: World) -> None:
        world.add(b"\x00\xff{")
        world.drain()
        (letter,) = world.letters()
        with db.platform_session() as session:
            shown = queries.dead_letter(session, letter.id)
            assert queries.dead_letter(session, uuid.uuid4()) is None
        assert shown is not None
        assert shown.raw == b"\x00\xff{"
        assert shown.raw_sha256 == hashlib.sha256(b"\x00\xff{").digest()


class TestReplay:
    def test_of_corrected_bytes_stores_the_event_and_keeps_both(self, world: World) -> None:
        sent = bad()
        world.add([event(), sent])
        world.drain()
        (letter,) = world.letters()
        mended = json.dumps({**sent, "input_tokens": 5}).encode()
        replayed = world.replay(ids=[letter.id], corrected=mended)
        assert (replayed.tried, replayed.accepted, replayed.refused) == (1, 1, 0)
        (letter,) = world.letters()
        assert (letter.state, letter.replayed_at, letter.replay_count) == ("replayed", NOW, 1)
        assert (letter.raw, letter.corrected_raw) == (json.dumps(sent).encode(), mended)
        assert len(world.rows()) == 2
        position = world.position()
        assert (position.accepted, position.rejected, position.replayed) == (1, 1, 1)
        world.assert_books_hold()

    def test_twice_adds_nothing(self, world: World) -> None:
        world.add([event(user_id=None, clerk_id="user_new") for _ in range(3)])
        world.drain()
        add_user(world)
        assert world.replay(reason="unknown_user").accepted == 3
        before = world.rows(), world.rows("SELECT * FROM usage_hourly"), world.position()
        assert world.replay(reason="unknown_user").tried == 0
        assert world.replay(ids=[letter.id for letter in world.letters()]).tried == 0
        assert (world.rows(), world.rows("SELECT * FROM usage_hourly"), world.position()) == before
        world.assert_books_hold()

    def test_that_is_refused_again_stays_open_under_the_new_reason(self, world: World) -> None:
        sent = bad()
        world.add(sent)
        world.drain()
        (letter,) = world.letters()
        still_bad = json.dumps({**sent, "input_tokens": 5, "cost_usd": "NaN"}).encode()
        assert world.replay(ids=[letter.id], corrected=still_bad).refused == 1
        (letter,) = world.letters()
        assert (letter.state, letter.reason, letter.replay_count) == ("open", "invalid_cost", 1)
        assert letter.raw == json.dumps(sent).encode()
        mended = json.dumps({**sent, "input_tokens": 5}).encode()
        assert world.replay(ids=[letter.id], corrected=mended).accepted == 1

    def test_of_what_was_stored_meanwhile_closes_it_as_a_duplicate(self, world: World) -> None:
        sent = event(user_id=None, clerk_id="user_new")
        world.add(sent)
        world.drain()
        add_user(world)
        world.add(sent)
        world.drain()
        assert world.replay(reason="unknown_user").duplicates == 1
        assert world.letters()[0].state == "replayed"
        assert world.position().replayed == 0
        world.assert_books_hold()

    def test_of_a_conflict_stays_a_conflict(self, world: World) -> None:
        sent = event()
        world.add([sent, {**sent, "cost_usd": "8"}])
        world.drain()
        assert world.replay(reason="conflict").refused == 1
        assert [letter.state for letter in world.letters()] == ["open"]
        assert len(world.rows()) == 1

    def test_measures_age_from_when_it_was_received(self, world: World) -> None:
        world.add(event(user_id=None, clerk_id="user_new"))
        world.drain()
        add_user(world)
        with db.platform_session() as session:
            replayed = dead_letters.replay(
                session,
                selection=Selection(reason="unknown_user"),
                limits=AGE,
                prices=Prices(),
                now=NOW + timedelta(days=400),
            )
        assert replayed.accepted == 1
        assert world.rows()[0].received_at == NOW

    def test_of_a_frame_makes_a_letter_of_each_bad_event_in_it(self, world: World) -> None:
        frame = json.dumps([event(), bad(), event(user_id=None, clerk_id="user_new")]).encode()
        entry_id = world.add(frame[:-1])
        assert world.drain()["rejected"] == 1
        (letter,) = world.letters()
        assert (letter.entry_index, letter.reason) == (-1, "not_json")
        replayed = world.replay(ids=[letter.id], corrected=frame)
        assert (replayed.tried, replayed.accepted, replayed.refused) == (1, 1, 2)
        letters = world.letters()
        assert [(one.entry_index, one.state, one.reason) for one in letters] == [
            (-1, "replayed", "not_json"),
            (1, "open", "invalid_tokens"),
            (2, "open", "unknown_user"),
        ]
        assert {one.stream_id for one in letters} == {entry_id}
        assert json.loads(letters[2].raw or b"")["clerk_id"] == "user_new"
        add_user(world)
        assert world.replay_waiting().accepted == 1
        world.assert_books_hold()

    def test_of_an_entry_without_data_keeps_saying_so(self, world: World) -> None:
        world.add_fields([b"payload", b"{}"])
        world.drain()
        assert world.replay(reason="malformed_entry").refused == 1
        (letter,) = world.letters()
        assert (letter.state, letter.reason) == ("open", "malformed_entry")
        assert world.replay(ids=[letter.id], corrected=json.dumps(event()).encode()).accepted == 1

    def test_takes_no_frame_in_the_place_of_one_event(self, world: World) -> None:
        world.add([[event()], event()])
        world.drain()
        (letter,) = world.letters()
        assert (letter.reason, letter.entry_index) == ("not_an_object", 0)
        assert world.replay(ids=[letter.id]).refused == 1
        frame = json.dumps([event(), event()]).encode()
        assert world.replay(ids=[letter.id], corrected=frame).refused == 1
        assert len(world.rows()) == 1

    def test_goes_on_where_a_step_ended(self, world: World) -> None:
        world.add([bad() for _ in range(25)])
        world.drain()
        after, tried = None, 0
        for _ in range(4):
            with db.platform_session() as session:
                step = dead_letters.replay(
                    session,
                    selection=Selection(reason="invalid_tokens"),
                    limits=AGE,
                    prices=Prices(),
                    now=NOW,
                    after=after,
                    limit=10,
                )
            tried, after = tried + step.tried, step.after
            if after is None:
                break
        assert (tried, after) == (25, None)
        assert {letter.replay_count for letter in world.letters()} == {1}

    def test_beside_running_drains_and_other_replays_loses_and_doubles_nothing(self, world: World) -> None:
        waiting = [event(user_id=None, clerk_id="user_new", feature=f"f{n % 3}") for n in range(60)]
        world.add(waiting)
        world.drain()
        add_user(world)
        for start in range(0, 400, 20):
            world.add([event(feature=f"f{n % 3}") for n in range(start, start + 20)])
        with ThreadPoolExecutor(3) as pool:
            drained = pool.submit(world.drain, batch_size=40)
            replays = [pool.submit(world.replay, reason="unknown_user") for _ in range(2)]
            assert drained.result()["accepted"] == 400
            assert sum(replay.result().accepted for replay in replays) == 60
        assert len(world.rows()) == 460
        world.assert_books_hold()

    def test_leaves_erased_letters_alone(self, world: World) -> None:
        world.add(event(user_id=None, clerk_id="user_new"))
        world.drain()
        world.execute("UPDATE usage_dead_letters SET raw = NULL")
        add_user(world)
        assert world.replay(reason="unknown_user").tried == 0
        assert world.replay_waiting().tried == 0

    def test_asks_for_a_selection_and_one_letter_for_corrected_bytes(self, world: World) -> None:
        with pytest.raises(NothingSelected):
            world.replay()
        with pytest.raises(OneLetterOnly):
            world.replay(reason="not_json", corrected=b"{}")
        with pytest.raises(OneLetterOnly):
            world.replay(ids=[uuid.uuid4(), uuid.uuid4()], corrected=b"{}")


class TestWaiting:
    def test_are_replayed_when_their_user_appears(self, world: World) -> None:
        world.add([event(user_id=None, clerk_id="user_new"), event(user_id=None, clerk_id="nobody")])
        world.drain()
        assert world.replay_waiting().tried == 0
        add_user(world)
        replayed = world.replay_waiting()
        assert (replayed.tried, replayed.accepted) == (1, 1)
        assert [letter.state for letter in world.letters()] == ["replayed", "open"]
        assert world.rows()[0].user_id == USER
        world.assert_books_hold()


class TestDiscard:
    def test_keeps_the_bytes_and_is_not_replayed(self, world: World) -> None:
        world.add([event(user_id=None, clerk_id="user_new"), bad()])
        world.drain()
        add_user(world)
        with db.platform_session() as session:
            assert dead_letters.discard(session, selection=Selection(reason="unknown_user"), now=NOW) == 1
            assert dead_letters.discard(session, selection=Selection(reason="unknown_user"), now=NOW) == 0
        assert world.replay(reason="unknown_user").tried == 0
        assert world.replay_waiting().tried == 0
        letter = next(one for one in world.letters() if one.reason == "unknown_user")
        assert (letter.state, letter.discarded_at, letter.raw is None) == ("discarded", NOW, False)

    def test_selects_by_time_of_storing(self, world: World) -> None:
        world.add(b"{")
        world.drain()
        future = datetime(2200, 1, 1, tzinfo=UTC)
        with db.platform_session() as session:
            assert dead_letters.discard(session, selection=Selection(since=future), now=NOW) == 0
            assert dead_letters.discard(session, selection=Selection(until=future), now=NOW) == 1
            with pytest.raises(NothingSelected):
                dead_letters.discard(session, selection=Selection(), now=NOW)
