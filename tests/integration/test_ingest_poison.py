"""What the database refuses: the poison is found and put aside, its neighbours are stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy.orm import Session

from tests.integration.ingest_world import USER, World, event
from worker import db

REFUSE_13 = """
    ALTER TABLE platform_usage_logs ADD CONSTRAINT no_thirteen CHECK (input_tokens <> 13)
"""
REFUSE_IN_ROLLUPS = """
    ALTER TABLE usage_hourly ADD CONSTRAINT no_such_feature CHECK (feature <> 'poison')
"""
RAISE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.feature = 'poison' THEN RAISE EXCEPTION 'refused'; END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON platform_usage_logs FOR EACH ROW EXECUTE FUNCTION refuse()
"""


@pytest.fixture
def as_superuser(databases: Any) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(databases.platform.url("superuser"), autocommit=True) as connection:
        yield connection


class TestPoison:
    @pytest.mark.parametrize(
        ("ddl", "poison", "sqlstate"),
        [
            (REFUSE_13, {"input_tokens": 13}, "23514"),
            (REFUSE_IN_ROLLUPS, {"feature": "poison"}, "23514"),
            (RAISE, {"feature": "poison"}, "P0001"),
        ],
        ids=["check", "check on the roll-ups", "trigger"],
    )
    def test_is_found_among_a_thousand_and_harms_nobody(
        self,
        world: World,
        as_superuser: psycopg.Connection[Any],
        ddl: str,
        poison: dict[str, Any],
        sqlstate: str,
    ) -> None:
        as_superuser.execute(ddl)
        good = [event(input_tokens=1000 + n) for n in range(999)]
        bad = event(**poison)
        sent = [*good[:371], bad, *good[371:]]
        for start in range(0, 1000, 200):
            world.add(sent[start : start + 200])
        counts = world.drain()
        assert (counts["events"], counts["accepted"], counts["rejected"]) == (1000, 999, 1)
        (letter,) = world.letters()
        assert (letter.reason, letter.entry_index) == ("refused_by_database", 171)
        assert sqlstate in str(letter.detail)
        assert letter.raw == json.dumps(bad).encode()
        assert world.unacknowledged() == 0
        world.assert_books_hold()

    def test_several_are_found_with_duplicates_and_conflicts_between_them(
        self, world: World, as_superuser: psycopg.Connection[Any]
    ) -> None:
        as_superuser.execute(REFUSE_13)
        stored = event()
        world.add(stored)
        world.drain()
        bad = [event(input_tokens=13) for _ in range(3)]
        world.add([bad[0], stored, event(), bad[1], {**stored, "cost_usd": "5"}, bad[2], event()])
        counts = world.drain()
        assert {name: counts[name] for name in ("accepted", "duplicates", "conflicts", "rejected")} == {
            "accepted": 2,
            "duplicates": 1,
            "conflicts": 1,
            "rejected": 3,
        }
        assert [letter.entry_index for letter in world.letters()] == [0, 3, 4, 5]
        world.assert_books_hold()

    def test_that_is_a_sum_too_large_is_found_as_well(self, world: World) -> None:
        world.add(event(input_tokens=100))
        world.drain()
        world.execute("UPDATE usage_hourly SET input_tokens = 9223372036854775800")
        world.add([event(input_tokens=500), event(input_tokens=500, feature="another")])
        counts = world.drain()
        assert (counts["accepted"], counts["rejected"]) == (1, 1)
        assert "22003" in str(world.letters()[0].detail)

    def test_can_be_replayed_when_the_database_takes_it(
        self, world: World, as_superuser: psycopg.Connection[Any]
    ) -> None:
        as_superuser.execute(REFUSE_13)
        world.add([event(), event(input_tokens=13)])
        world.drain()
        as_superuser.execute("ALTER TABLE platform_usage_logs DROP CONSTRAINT no_thirteen")
        replayed = world.replay(reason="refused_by_database")
        assert (replayed.tried, replayed.accepted) == (1, 1)
        assert len(world.rows()) == 2
        world.assert_books_hold()


class TestDatabaseItself:
    @pytest.mark.parametrize("sqlstate", ["40P01", "53100", "57014", "55P03", "25006"])
    def test_in_trouble_is_never_taken_for_poison(
        self, world: World, as_superuser: psycopg.Connection[Any], sqlstate: str
    ) -> None:
        as_superuser.execute(
            f"""
            CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE EXCEPTION 'not now' USING ERRCODE = '{sqlstate}'; END $$;
            CREATE TRIGGER fail BEFORE INSERT ON platform_usage_logs FOR EACH ROW EXECUTE FUNCTION fail()
            """
        )
        world.add([event(), event()])
        counts = world.drain(work_seconds=0.2)
        assert (counts["outcome"], counts["events"]) == ("backing_off", 0)
        assert (world.letters(), world.rows(), world.unacknowledged()) == ([], [], 1)
        as_superuser.execute("DROP TRIGGER fail ON platform_usage_logs")
        assert world.drain()["accepted"] == 2
        world.assert_books_hold()

    def test_that_was_never_migrated_stops_the_drain_with_nothing_acknowledged(
        self, world: World, as_superuser: psycopg.Connection[Any]
    ) -> None:
        world.add(event())
        as_superuser.execute("REVOKE INSERT ON platform_usage_logs FROM usage_worker")
        with pytest.raises(Exception, match="permission denied"):
            world.drain()
        assert world.unacknowledged() == 1
        assert world.position().is_held is False
        as_superuser.execute("GRANT INSERT ON platform_usage_logs TO usage_worker")
        assert world.drain()["accepted"] == 1

    def test_that_is_locked_is_waited_for(self, world: World, as_superuser: psycopg.Connection[Any]) -> None:
        world.add(event(user_id=str(USER)))
        attempts = [0]

        @contextmanager
        def impatient() -> Iterator[Session]:
            with db.platform_session() as session:
                session.connection().exec_driver_sql("SET LOCAL lock_timeout = '100ms'")
                attempts[0] += 1
                yield session

        with as_superuser.transaction():
            as_superuser.execute("LOCK TABLE usage_hourly IN ACCESS EXCLUSIVE MODE")
            counts = world.drain(open_session=impatient, work_seconds=0.5)
            assert (counts["outcome"], counts["entries"]) == ("backing_off", 0)
        assert world.drain()["accepted"] == 1
        assert attempts[0] > 2
