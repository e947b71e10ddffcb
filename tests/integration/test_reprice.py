"""A price that came later: log, roll-ups, seals and history follow together, to the last digit."""

from __future__ import annotations

import threading
import uuid
from datetime import timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from sqlalchemy.orm import Session

from tests.integration.books_world import Books
from tests.integration.ingest_world import NOW, USER, World, event
from tests.integration.pricing_world import apply, costs, preview, reprice, total
from worker import db
from worker.ingest import repricing_queries
from worker.pricing.rules import CostPolicy
from worker.rollups import queries as rollups
from worker.settings import Settings

UNKNOWN = {"provider": "acme", "model": "sage-1", "cost_usd": None}
# 812 tokens in and 455 out.
COST = Decimal("0.002632000000")
DOUBLE = Decimal("0.005264000000")


@pytest.fixture
def books(world: World, databases: Any, bound: Settings) -> Books:
    return Books(world, databases, bound.redis_url)


def put(world: World, *events: dict[str, Any], correction: bool = False) -> None:
    for one in events:
        world.add(one, correction=correction)
    world.drain()


def correction(target: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "event_id": str(uuid.uuid4()),
        "user_id": str(USER),
        "corrects": target["event_id"],
        "occurred_at": (NOW + timedelta(hours=-2)).isoformat(),
        **fields,
    }


class TestReprice:
    def test_what_the_preview_says_is_what_changes_and_everybody_agrees(
        self, world: World, books: Books
    ) -> None:
        sent = [event(**UNKNOWN) for _ in range(5)] + [event()]
        put(world, *sent)
        assert books.found() == {}
        apply({"input": "1", "output": "4"})
        foreseen = preview()
        assert (foreseen.examined, foreseen.changed, foreseen.run_id) == (5, 5, None)
        (model,) = foreseen.models.values()
        assert (model.events, model.unpriced_before, model.unpriced_after) == (5, 5, 0)
        assert (model.cost_before, model.cost_after) == (Decimal(0), 5 * COST)
        assert {str(one) for one in model.first_ids} == {one["event_id"] for one in sent[:5]}
        assert total(world)[2] == 5, "a preview changes nothing"
        done = reprice()
        assert (done.changed, done.cost_change) == (foreseen.changed, foreseen.cost_change)
        assert {(cost, source) for cost, source, _ in costs(world).values()} == {
            (COST, "computed"),
            (Decimal("0.000394800000"), "reported"),
        }
        log, hours, unpriced = total(world)
        assert log == hours == 5 * COST + Decimal("0.000394800000")
        assert unpriced == 0
        with db.platform_session() as session:
            used = rollups.usage(
                session, USER, start=NOW - timedelta(hours=1), end=NOW + timedelta(hours=1), by="model"
            )
        assert sum(one.cost_usd for one in used) == log
        world.assert_books_hold()
        assert books.found(full=True) == {}, "the seal of the window followed"

    def test_again_changes_nothing(self, world: World) -> None:
        put(world, event(**UNKNOWN))
        apply({"input": "1", "output": "4"})
        assert reprice().changed == 1
        again = reprice()
        assert (again.changed, again.run_id) == (0, None)
        assert reprice(unpriced_only=False).changed == 0
        assert len(world.rows("SELECT FROM usage_repricings")) == 1

    def test_history_says_why(self, world: World) -> None:
        sent = event(**UNKNOWN)
        put(world, sent)
        (number,) = apply({"input": "1", "output": "4"})
        run = reprice(requested_by="ada", reason="acme's list of January")
        with db.platform_session() as session:
            (found,) = repricing_queries.history(session, uuid.UUID(sent["event_id"]))
        assert (found["requested_by"], found["reason"]) == ("ada", "acme's list of January")
        assert (found["cost_before"], found["cost_after"]) == (None, COST)
        assert (found["source_before"], found["source_after"]) == ("unpriced", "computed")
        assert (found["version_before"], found["version_after"]) == (None, f"override {number}")
        (record,) = world.rows("SELECT * FROM usage_repricings")
        assert (record.id, record.changed, record.cost_change) == (run.run_id, 1, COST)
        assert record.finished_at is not None
        assert record.scope["unpriced_only"] is True

    def test_the_price_is_that_of_the_events_time(self, world: World) -> None:
        before, after = (
            event(**UNKNOWN, occurred_at="2026-03-01T13:29:59.999999+01:00"),
            event(**UNKNOWN, occurred_at="2026-03-01T12:30:00Z"),
        )
        put(world, before, after)
        apply(
            {"input": "1", "output": "4"},
            {"input": "2", "output": "8", "from": "2026-03-01T13:30:00+01:00"},
        )
        assert reprice().changed == 2
        assert costs(world)[before["event_id"]][0] == COST
        assert costs(world)[after["event_id"]][0] == DOUBLE

    def test_corrections_and_voids_follow(self, world: World, books: Books) -> None:
        corrected, voided = event(**UNKNOWN), event(**UNKNOWN)
        put(world, corrected, voided)
        put(
            world,
            correction(corrected, input_tokens=-12, output_tokens=-5),
            correction(corrected, input_tokens=-300),
            correction(voided, void=True),
            correction=True,
        )
        assert total(world)[2] == 1
        assert books.found() == {}
        apply({"input": "1", "output": "4"})
        foreseen = preview()
        assert (foreseen.changed, foreseen.models["acme", "sage-1"].corrections) == (5, 3)
        assert reprice().changed == 5
        log, hours, unpriced = total(world)
        assert log == hours == foreseen.cost_change
        assert unpriced == 0
        by_target = world.rows(
            "SELECT coalesce(corrects, id) AS target, sum(cost_usd) AS cost, sum(tokens_used) AS tokens"
            " FROM platform_usage_logs GROUP BY 1"
        )
        left = {str(row.target): row.cost for row in by_target}
        assert left[voided["event_id"]] == 0
        share = (COST * 950 / 1267).quantize(Decimal("1e-12"))
        assert left[corrected["event_id"]] == share
        assert {source for _, source, _ in costs(world).values()} == {"computed"}
        world.assert_books_hold()
        assert books.found(full=True) == {}
        put(world, correction(corrected, void=True), correction=True)
        assert total(world)[0] == 0, "a void takes what is left, to the last digit"

    def test_a_price_that_changed_refreshes_what_was_computed_and_never_what_was_reported(
        self, world: World, books: Books
    ) -> None:
        apply({"input": "1", "output": "4"})
        open_, told = event(**UNKNOWN), event(**{**UNKNOWN, "cost_usd": "0.003"})
        put(world, open_, told)
        reprice(unpriced_only=False)
        assert books.found() == {}
        apply({"input": "2", "output": "8"})
        assert reprice().changed == 0, "only what has no cost, unless told otherwise"
        foreseen = preview(unpriced_only=False)
        assert reprice(unpriced_only=False).cost_change == foreseen.cost_change == DOUBLE - COST
        found = {str(row.id): row for row in world.rows()}
        assert found[open_["event_id"]].cost_usd == DOUBLE
        kept = found[told["event_id"]]
        assert (kept.cost_usd, kept.cost_source, kept.cost_computed_usd) == (
            Decimal("0.003"),
            "reported",
            DOUBLE,
        )
        assert books.found(full=True) == {}
        reprice(CostPolicy.COMPUTED_FIRST, unpriced_only=False)
        found = {str(row.id): row for row in world.rows()}
        assert found[told["event_id"]].cost_usd == DOUBLE
        assert found[told["event_id"]].cost_reported_usd == Decimal("0.003")
        world.assert_books_hold()
        assert books.found(full=True) == {}

    def test_a_known_cost_never_becomes_unknown(self, world: World) -> None:
        apply({"input": "1", "output": "4"})
        put(world, event(**UNKNOWN))
        reprice()
        apply({"withdrawn": True})
        assert reprice(unpriced_only=False).changed == 0
        assert total(world)[1] == COST

    def test_a_stated_correction_larger_than_the_new_cost_leaves_the_event_alone(self, world: World) -> None:
        apply({"input": "2", "output": "8"})
        sent = event(**UNKNOWN)
        put(world, sent)
        reprice()
        put(world, correction(sent, cost_usd="-0.004"), correction=True)
        apply({"input": "1", "output": "4"})
        assert reprice(unpriced_only=False).changed == 0
        world.assert_books_hold()

    def test_only_what_the_scope_holds(self, world: World) -> None:
        early = event(**UNKNOWN, occurred_at=(NOW - timedelta(days=2)).isoformat())
        other = event(**{**UNKNOWN, "model": "sage-2"})
        late = event(**UNKNOWN)
        put(world, early, other, late)
        apply({"input": "1", "output": "4", "model": "sage-", "match": "prefix"})
        assert preview().changed == 3
        assert preview(unpriced_only=False).changed == 3
        assert preview(model="sage-2").changed == 1
        assert preview(start=NOW).changed == preview(start=NOW, unpriced_only=False).changed == 2
        assert preview(end=NOW).changed == preview(end=NOW, unpriced_only=False).changed == 1
        assert preview(provider="other").changed == 0
        assert reprice(start=NOW, model="sage-1").changed == 1
        assert costs(world)[late["event_id"]][1] == "computed"
        assert costs(world)[early["event_id"]][1] == "unpriced"

    def test_goes_on_after_it_was_stopped_between_batches(
        self, world: World, books: Books, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("worker.ingest.repricing.BATCH_SIZE", 4)
        put(world, [event(**UNKNOWN) for _ in range(10)])  # type: ignore[arg-type]  # one frame
        books.found()
        apply({"input": "1", "output": "4"})
        asked = iter([False, False, True])
        first = reprice(should_stop=lambda: next(asked))
        assert (first.changed, first.is_finished) == (8, False)
        assert total(world)[:2] == (8 * COST, 8 * COST)
        (record,) = world.rows("SELECT * FROM usage_repricings")
        assert record.finished_at is None
        world.assert_books_hold()
        assert books.found(full=True) == {}
        assert reprice().changed == 2
        assert total(world) == (10 * COST, 10 * COST, 0)
        assert books.found(full=True) == {}

    def test_killed_in_a_batch_leaves_that_batch_undone(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(world, event(**UNKNOWN))
        apply({"input": "1", "output": "4"})

        class Killed(BaseException):
            pass

        def die(*_: Any) -> None:
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(repricing_queries, "content", die)
            with pytest.raises(Killed):
                reprice()
        assert total(world) == (Decimal(0), Decimal(0), 1)
        assert world.rows("SELECT FROM usage_repricing_events") == []
        assert reprice().changed == 1


class TestBeside:
    """While others work."""

    def test_drains_and_other_repricings(self, world: World, books: Books) -> None:
        apply({"input": "1", "output": "4", "from": "2026-03-01T12:00:00Z"})
        early = [event(**UNKNOWN, occurred_at="2026-03-01T11:30:00Z") for _ in range(300)]
        world.add(early[:150])
        world.add(early[150:])
        world.drain()
        apply({"input": "1", "output": "4"})
        for number in range(40):
            world.add([event(**UNKNOWN) for _ in range(25)])
            world.add(correction(early[number], input_tokens=-12), correction=True)
        threads = [threading.Thread(target=world.drain)]
        results: list[int] = []
        threads += [threading.Thread(target=lambda: results.append(reprice().changed)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        reprice()
        log, hours, unpriced = total(world)
        assert log == hours
        assert unpriced == 0
        assert len(world.rows("SELECT FROM platform_usage_logs")) == 300 + 40 * 25 + 40
        changed = world.rows("SELECT event_id FROM usage_repricing_events WHERE corrects IS NULL")
        assert len(set(changed)) == len(changed)
        world.assert_books_hold()
        assert books.found(full=True) == {}

    def test_waits_for_whoever_holds_a_shard(self, world: World, databases: Any) -> None:
        put(world, event(**UNKNOWN))
        apply({"input": "1", "output": "4"})
        done = threading.Event()

        def run() -> None:
            reprice()
            done.set()

        with psycopg.connect(databases.platform.url("worker")) as holder:
            holder.execute("SELECT FROM ingest_positions FOR UPDATE")
            running = threading.Thread(target=run)
            running.start()
            assert not done.wait(1)
            assert total(world) == (Decimal(0), Decimal(0), 1)
        running.join()
        assert total(world)[2] == 0

    def test_an_audit_that_has_read_the_window_does_not_seal_what_was_there_before(
        self, world: World, books: Books, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(world, event(**UNKNOWN))
        apply({"input": "1", "output": "4"})
        judge = "worker.audits.books.books_checks.judge"
        from worker.audits import books_checks  # noqa: PLC0415  the one that is replaced

        original = books_checks.judge

        def reprice_first(window: Any) -> Any:
            reprice()
            return original(window)

        with monkeypatch.context() as patch:
            patch.setattr(judge, reprice_first)
            assert books.found() == {}
        assert books.seals() == []
        assert books.found() == {}
        assert len(books.seals()) == 1
        assert books.found(full=True) == {}

    def test_an_audit_that_verifies_a_window_meanwhile_finds_nothing(
        self, world: World, books: Books, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(world, event(**UNKNOWN))
        assert books.found() == {}
        apply({"input": "1", "output": "4"})
        from worker.audits import books_queries  # noqa: PLC0415  the one that is replaced

        original = books_queries.seals
        done: list[int] = []

        def reprice_behind(session: Session, *, shard: int) -> Any:
            found = original(session, shard=shard)
            if not done:
                done.append(reprice().changed)
            return found

        monkeypatch.setattr(books_queries, "seals", reprice_behind)
        assert books.found(full=True) == {}
        assert done == [1]


class TestRights:
    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE model_prices SET input_per_mtok = 0",
            "DELETE FROM model_prices",
            "UPDATE usage_repricing_events SET cost_after = 0",
            "DELETE FROM usage_repricings",
            "UPDATE platform_usage_logs SET tokens_used = 0",
            "UPDATE platform_usage_logs SET cost_reported_usd = 0",
            "DELETE FROM platform_usage_logs",
        ],
    )
    def test_the_worker_adds_and_does_not_edit(self, world: World, statement: str) -> None:
        apply({"input": "1", "output": "4"})
        put(world, event(**UNKNOWN))
        reprice()
        with pytest.raises(Exception, match="permission denied"):
            world.execute(statement)
