"""The producers' chaos in small, and each of its invariants seen red where it has to be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid5

import pytest

from tests.chaos.producers import checks
from tests.chaos.producers.book import Book, Call, read
from tests.chaos.producers.books import Books, Timed, percentile
from tests.chaos.producers.calibration import Clock, Interval, covered, start_scheduler_clock
from tests.chaos.producers.plan import LANES, PRODUCERS, Hurt, Plan, make_plan, use
from tests.chaos.producers.run import Evidence, Record
from tests.chaos.world import REPOSITORY

SEED = 7
BUFFERED = 7
_NAMES = UUID(int=7)


def make_call(producer: int, number: int) -> Call:
    event_id = str(uuid5(_NAMES, f"{producer}/{number}"))
    return Call(number, event_id, number * 10**9, number * 10**9 + 2 * 10**6, 1000, 1002, 50 + producer)


def timed(took: float, *, scheduler: float = 0.0, disk: float = 0.0) -> Timed:
    return Timed(0, make_call(0, 1), took, scheduler, disk, "none")


def row_of(producer: int, number: int) -> tuple[object, ...]:
    meant, event_id = use(SEED, producer, number), make_call(producer, number).event_id
    tokens = (meant.input_tokens, meant.output_tokens, meant.input_tokens + meant.output_tokens)
    cost = f"{meant.units // 10**12}.{meant.units % 10**12:012d}"
    names = (meant.feature, meant.provider or "", meant.model or "")
    return (event_id, str(meant.owner), *names, *tokens, cost, "reported", 1001, producer, number)


@pytest.fixture
def run() -> tuple[Evidence, Books]:
    """A run in which all went well: three events of two producers, one of them twice on the stream."""
    plan = make_plan(seed=SEED, events=3, seconds=20, faults=4)
    evidence = Evidence(plan, 0)
    keys = [(0, 0), (0, 1), (BUFFERED, 0)]
    evidence.rows = [row_of(*key) for key in keys]
    for producer, number in keys:
        meant = use(SEED, producer, number)
        sums = (str(meant.owner), meant.feature, 1, meant.input_tokens, meant.output_tokens)
        evidence.sums.append((*sums, f"{meant.units // 10**12}.{meant.units % 10**12:012d}"))
    evidence.positions = [
        {"entries": 4, "events": 4, "accepted": 3, "duplicates": 1, "conflicts": 0, "rejected": 0}
    ]
    evidence.entries_added = 4
    evidence.records = [Record(planned, 0) for planned in plan.faults]
    evidence.kills = sum(planned.kill is not None for planned in plan.faults)
    evidence.left_for_flush = 5
    evidence.logs = {"producer-0.log": "WARNING the stream is away (OOM): usage events go to the spool"}
    books = Books(tried=set(keys), promised=set(keys))
    books.returned = {key: make_call(*key) for key in keys}
    books.reports = [(1, 1, 0, 57)]
    books.taken_by[57] = 1
    books.timed = [timed(3.0), timed(70.0, scheduler=15.0, disk=6.0)]
    return evidence, books


def red(run: tuple[Evidence, Books]) -> set[str]:
    return {check.__name__.partition("_")[0] for check in checks.CHECKS if check(*run)}


def lose_row(evidence: Evidence, _: Books) -> None:
    del evidence.rows[0], evidence.sums[0]


def invent_row(evidence: Evidence, _: Books) -> None:
    evidence.rows.append(row_of(1, 9))


def store_under_new_id(evidence: Evidence, _: Books) -> None:
    evidence.rows[0] = (str(UUID(int=1)), *evidence.rows[0][1:])


def store_twice(evidence: Evidence, _: Books) -> None:
    evidence.rows.append((str(UUID(int=1)), *evidence.rows[0][1:]))


def change_cost(evidence: Evidence, _: Books) -> None:
    row = list(evidence.rows[0])
    row[8] = row[8][:-1] + ("1" if row[8][-1] == "0" else "0")
    evidence.rows[0] = tuple(row)


def change_sum(evidence: Evidence, _: Books) -> None:
    evidence.sums[1] = (*evidence.sums[1][:3], evidence.sums[1][3] + 1, *evidence.sums[1][4:])


def send_late(evidence: Evidence, _: Books) -> None:
    evidence.rows[0] = (*evidence.rows[0][:10], 1900, *evidence.rows[0][11:])


BREAKS: dict[str, tuple[Callable[[Evidence, Books], object], set[str]]] = {
    "a row is missing": (lose_row, {"P1", "P7"}),
    "a row of nobody": (invent_row, {"P2", "P7"}),
    "another id": (store_under_new_id, {"P1", "P2"}),
    "stored twice": (store_twice, {"P2", "P3", "P4", "P7"}),
    "another cost": (change_cost, {"P4"}),
    "another sum": (change_sum, {"P4"}),
    "the time of sending": (send_late, {"P5"}),
    "a roll-up differs": (lambda e, _: e.differences.append("x"), {"P6"}),
    "a duplicate not counted": (lambda e, _: e.positions[0].update(duplicates=0), {"P7"}),
    "an entry not counted": (lambda e, _: e.positions[0].update(entries=3), {"P7"}),
    "a dead letter": (lambda e, _: e.dead_letters.append("x: conflict"), {"P8"}),
    "a segment left": (lambda e, _: e.spool_left.append("1-2-3.spool"), {"P9"}),
    "emit raised": (lambda _, b: b.raised.append("StreamUnavailable"), {"P10"}),
    "a report that forgets": (lambda _, b: b.reports.append((9, 8, 0, 57)), {"P10"}),
    "over budget": (lambda _, b: b.timed.append(timed(70.0, scheduler=10.0, disk=9.0)), {"P11"}),
    "a loop held up": (lambda _, b: b.loop_stalls.append(timed(60.0)), {"P12"}),
    "an exception in a log": (lambda e, _: e.logs.update(x="Traceback (most recent"), {"P13"}),
    "nothing to flush": (lambda e, _: setattr(e, "left_for_flush", 0), {"P14"}),
    "a kill that was none": (lambda e, _: setattr(e, "kills", 0), {"P14"}),
    "events that are not those of the plan": (lambda _, b: b.tried.add((0, 7)), {"P14"}),
}


class TestChecks:
    def test_a_run_in_which_all_went_well(self, run: tuple[Evidence, Books]) -> None:
        assert red(run) == set()

    @pytest.mark.parametrize("name", BREAKS)
    def test_each_break_is_seen(self, run: tuple[Evidence, Books], name: str) -> None:
        breaking, expected = BREAKS[name]
        breaking(*run)
        assert red(run) == expected

    def test_an_event_of_a_buffer_that_was_not_flushed_may_be_lost(self, run: tuple[Evidence, Books]) -> None:
        evidence, books = run
        books.promised.remove((BUFFERED, 0))
        del evidence.rows[2], evidence.sums[2]
        evidence.positions[0].update(accepted=2, events=3)
        assert red(run) == set()


class TestPlan:
    def test_twenty_faults_of_all_kinds_in_an_order_of_the_seed(self) -> None:
        plan = make_plan(seed=SEED, events=200_000, seconds=250, faults=20)
        assert plan == make_plan(seed=SEED, events=200_000, seconds=250, faults=20)
        hurts = [planned.hurt for planned in plan.faults]
        assert sorted(hurts) == sorted([*Hurt] * 5)
        assert hurts[-1] is Hurt.KILLED
        assert hurts != [one.hurt for one in make_plan(seed=8, events=1, seconds=250, faults=20).faults]
        begins = [planned.at for planned in plan.faults]
        ends = [planned.at + planned.seconds for planned in plan.faults]
        assert all(end < begin for end, begin in zip(ends, begins[1:], strict=False))

    @pytest.mark.parametrize("seed", range(20))
    def test_three_producers_are_killed_in_the_middle_of_faults(self, seed: int) -> None:
        plan = make_plan(seed=seed, events=1000, seconds=100, faults=20)
        killed = [planned for planned in plan.faults if planned.kill is not None]
        assert len({planned.kill for planned in killed}) == 3
        assert all(planned.kill_after < planned.seconds for planned in killed)

    def test_every_event_is_emitted_by_one_lane(self) -> None:
        plan = Plan(SEED, 1003, 10.0, ())
        numbers = [
            (producer, number)
            for producer, kind in enumerate(PRODUCERS)
            for lane in range(LANES[kind])
            for number in plan.numbers(producer, lane)
        ]
        assert len(numbers) == len(set(numbers)) == 1003


class TestBook:
    def test_a_flush_speaks_for_its_own_process(self, tmp_path: Path) -> None:
        path = tmp_path / "book"
        book = Book(path)
        for number in (0, 2):
            book.tried(number)
            book.returned(number, UUID(int=number), (1, 2, 3, 4))
        # Killed before its flush; the successor's flush knows nothing of these two.
        pid = os.fork()
        if pid == 0:
            successor = Book(path)
            successor.tried(4)
            successor.returned(4, UUID(int=4), (1, 2, 3, 4))
            successor.flushed()
            os._exit(0)
        os.waitpid(pid, 0)
        found = read(path)
        assert [call.number for call in found.calls] == found.tried == [0, 2, 4]
        assert found.safe == {4}

    def test_a_last_line_that_was_cut_off_is_not_read(self, tmp_path: Path) -> None:
        (tmp_path / "book").write_text("T 1\nT 2")
        assert read(tmp_path / "book").tried == [1]


class TestClock:
    def test_a_call_is_given_what_the_machine_took_meanwhile(self, tmp_path: Path) -> None:
        pairs = [(100, 150), (180, 260), (400, 500)]
        data = b"".join(number.to_bytes(8, "little") for pair in pairs for number in pair)
        (tmp_path / "clock").write_bytes(data + b"torn")
        clock = Clock([tmp_path / "clock"])
        assert clock.taken(120, 200) == 30 + 20
        assert clock.taken(260, 400) == 0
        assert [one.ended - one.began for one in clock.within(120, 200)] == [50, 80]
        assert clock.within(300, 350) == []

    def test_fsyncs_at_the_same_time_count_once(self) -> None:
        together = [Interval(10, 50), Interval(20, 40), Interval(45, 80), Interval(90, 95)]
        assert covered(together, 30, 93) == 20 + 30 + 3
        assert covered([], 30, 93) == 0

    def test_a_call_that_only_waits_is_not_excused(self, tmp_path: Path) -> None:
        start_scheduler_clock(tmp_path / "clock")
        began = time.monotonic_ns()
        threading.Event().wait(0.2)
        ended = time.monotonic_ns()
        # This thread waited for 200 ms; a processor was there all the while, or some of the time.
        assert Clock([tmp_path / "clock"]).taken(began, ended) < 150_000_000

    def test_percentiles(self) -> None:
        assert percentile([float(number) for number in range(100)], 0.99) == 99.0
        assert percentile([], 0.5) == 0.0


@pytest.mark.xdist_group("chaos")
@pytest.mark.timeout(200)
class TestSmallRun:
    def test_loses_nothing(self, tmp_path: Path) -> None:
        written = tmp_path / "report.json"
        command = ["--events", "2400", "--faults", "4", "--seconds", "9", "--seed", str(SEED)]
        done = subprocess.run(
            [sys.executable, "-m", "tests.chaos.producers", *command, "--json", str(written)],
            cwd=REPOSITORY,
            env={
                "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
                "HOME": str(tmp_path),
                "LC_ALL": "C.UTF-8",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=190,
            check=False,
        )
        assert done.returncode in (0, 1), done.stdout + done.stderr
        report = json.loads(written.read_text())
        assert list(report["invariants"]) == [check.__name__ for check in checks.CHECKS]
        failed = {name for name, problems in report["invariants"].items() if problems}
        # Times are judged by the full run, on a machine of its own: here other tests take the processors.
        assert failed <= {"P11_budget", "P12_loop_not_held_up"}, done.stdout
        counts = report["counts"]
        assert counts["emitted"] == 2400
        assert counts["faults"] == 4
        assert counts["producers killed"] == 3
        assert counts["left for spool flush"] > 0
