"""Runs of periodic jobs: one of many claims each window, and a killed run is taken over a few times."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest

from worker import db
from worker.jobs import operations as jobs
from worker.jobs import queries
from worker.settings import Settings

NOW = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)
LONGEST = timedelta(seconds=120)


def _claim(*, now: datetime = NOW, redelivered: bool = False, job: str = "audits.rls") -> int | None:
    with db.platform_session() as session:
        return jobs.claim(
            session, job=job, window_start=NOW, now=now, redelivered=redelivered, longest_run=LONGEST
        )


def _finish(now: datetime = NOW, outcome: str = "done") -> None:
    with db.platform_session() as session:
        jobs.finish(session, job="audits.rls", window_start=NOW, now=now, outcome=outcome, counts={"fail": 2})


@pytest.mark.usefixtures("bound")
class TestClaim:
    def test_is_won_by_one_of_many_at_once(self) -> None:
        start = threading.Barrier(6)
        answers: list[int | None] = []

        def contend() -> None:
            start.wait()
            answers.append(_claim())

        threads = [threading.Thread(target=contend) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert sorted(answers, key=str) == [1, *[None] * 5]

    def test_of_another_job_or_window_is_free(self) -> None:
        assert _claim() == 1
        assert _claim(job="audits.pool") == 1

    def test_is_taken_over_when_its_message_came_back_but_three_times_at_most(self) -> None:
        assert _claim() == 1
        assert [_claim(redelivered=True) for _ in range(4)] == [2, 3, None, None]

    def test_is_taken_over_when_it_started_longer_ago_than_any_run_lasts(self) -> None:
        assert _claim() == 1
        assert _claim(now=NOW + LONGEST) is None
        assert _claim(now=NOW + LONGEST + timedelta(seconds=1)) == 2

    def test_of_a_finished_run_is_refused_for_ever(self) -> None:
        assert _claim() == 1
        _finish()
        assert _claim(redelivered=True) is None
        assert _claim(now=NOW + timedelta(days=1)) is None


@pytest.mark.usefixtures("bound")
class TestFinish:
    def test_keeps_outcome_and_counts_for_people(self) -> None:
        _claim()
        _finish(NOW + timedelta(seconds=3), "failed")
        with db.platform_session() as session:
            [run] = queries.last_runs(session)
        assert (run.job, run.outcome, run.counts, run.attempts) == ("audits.rls", "failed", {"fail": 2}, 1)
        assert run.finished_at == NOW + timedelta(seconds=3)

    def test_forgets_what_the_same_job_did_a_month_ago(self, bound: Settings) -> None:
        del bound
        _claim()
        _claim(job="audits.pool")
        _finish(NOW + timedelta(days=31))
        with db.platform_session() as session:
            assert [run.job for run in queries.last_runs(session)] == ["audits.pool"]
