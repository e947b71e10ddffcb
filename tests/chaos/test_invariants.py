"""The suite's checks: they hold where all went well, and each fails when what it is about is harmed."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import uuid
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.chaos import invariants
from tests.chaos.evidence import Emitted, Evidence, Letter, line
from tests.chaos.monitor import Monitor, Record, Samples
from tests.chaos.plan import Fault, Planned
from tests.chaos.traffic import Kind, Traffic

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def _evidence() -> Evidence:
    """Of a run of one frame in which all went well."""
    monitor = cast("Monitor", SimpleNamespace(records=[], samples=Samples(taken=1)))
    evidence = Evidence(monitor, settle_seconds=1.0)
    traffic = Traffic(seed=7, producer=0, events=20_000, frame=20, base=NOW)
    for number in range(3):
        event = traffic.event(number)
        evidence.emitted[str(event.event_id)] = Emitted(line(event), 0, 0, Kind.FRAME, True)
        evidence.rows[str(event.event_id)] = line(event)
        total = evidence.sums.setdefault((str(event.owner), event.feature), [0, 0, 0, 0])
        for place, amount in enumerate((1, event.input_tokens, event.output_tokens, event.cost or 0)):
            total[place] += amount
    evidence.row_count = 3
    evidence.stored_sums = [
        (user, feature, count, tokens, output, _dollars(cost))
        for (user, feature), (count, tokens, output, cost) in evidence.sums.items()
    ]
    evidence.positions = [
        {
            "shard": 0,
            "last_entry_id": "5-0",
            "last_correction_id": "0-0",
            "entries": 1,
            "events": 3,
            "accepted": 3,
            **dict.fromkeys(("duplicates", "conflicts", "rejected", "recovered", "replayed"), 0),
            "paused_at": None,
            "paused_by": None,
        }
    ]
    evidence.streams = {
        "usage:events:{0}": {"length": 1, "last-generated-id": b"5-0", "entries-added": 1},
    }
    evidence.groups = {"usage:events:{0}": {"pending": 0, "lag": 0, "last-delivered-id": b"5-0"}}
    evidence.job_runs = [{"job": "audits.rls", "window_start": NOW, "attempts": 1}]
    evidence.audit_runs = [{"kind": "rls", "database": "platform"}]
    evidence.logs = {"worker.log": "all is well"}
    evidence.secrets = ["hunter2"]
    return evidence


def _dollars(units: int) -> Decimal:
    """So many units of 10^-12, as the database returns them."""
    return Decimal(units).scaleb(-12)


def _first(evidence: Evidence) -> str:
    return next(iter(evidence.rows))


def _letter(event_id: str | None = None, *, reason: str = "not_json", raw: bytes = b"x") -> Letter:
    return Letter("1", reason, raw, b"", None if event_id is None else uuid.UUID(event_id), "5-0", True)


def _lose(evidence: Evidence) -> None:
    del evidence.rows[_first(evidence)]


def _invent(evidence: Evidence) -> None:
    evidence.rows[str(uuid.UUID(int=1))] = b""


def _double(evidence: Evidence) -> None:
    evidence.row_count += 1


def _both(evidence: Evidence) -> None:
    evidence.letters.append(_letter(_first(evidence)))


def _round(evidence: Evidence) -> None:
    evidence.rows[_first(evidence)] += b"0"


def _drift(evidence: Evidence) -> None:
    evidence.differences.append(("a user", 1, 2))


def _drift_meanwhile(evidence: Evidence) -> None:
    evidence.monitor.samples.differences.append("at 3 s: a user")


def _leave(evidence: Evidence) -> None:
    evidence.groups["usage:events:{0}"]["lag"] = 1


def _forget_an_entry(evidence: Evidence) -> None:
    evidence.streams["usage:events:{0}"]["entries-added"] = 2


def _read_again(evidence: Evidence) -> None:
    ids = json.dumps([_first(evidence)])
    evidence.logs["worker.log"] = f'{{"event": "entries at or below the position", "event_ids": {ids}}}'


def _change(evidence: Evidence) -> None:
    evidence.monitor.samples.rows["a"] = ("a", b"hash")


def _mangle(evidence: Evidence) -> None:
    evidence.letters.append(_letter())


def _hang(evidence: Evidence) -> None:
    record = Record(Planned(0, Fault.VALKEY_KILL, 0), began=1, ended=2, recovered=63)
    evidence.monitor.records.append(record)


def _run_twice(evidence: Evidence) -> None:
    evidence.audit_runs *= 2


def _leak(evidence: Evidence) -> None:
    evidence.logs["worker.log"] += "\npassword: hunter2"


class TestInvariants:
    def test_hold_where_all_went_well(self) -> None:
        assert {check.__name__: check(_evidence()) for check in invariants.INVARIANTS} == {
            check.__name__: [] for check in invariants.INVARIANTS
        }

    @pytest.mark.parametrize(
        ("check", "harm"),
        [
            (invariants.I1_no_loss, _lose),
            (invariants.I2_no_invention, _invent),
            (invariants.I3_no_double, _double),
            (invariants.I3_no_double, _both),
            (invariants.I4_money_exact, _round),
            (invariants.I5_rollups_equal, _drift),
            (invariants.I6_rollups_equal_at_every_moment, _drift_meanwhile),
            (invariants.I7_nothing_left, _leave),
            (invariants.I8_deliveries_conserved, _forget_an_entry),
            (invariants.I8_deliveries_conserved, _read_again),
            (invariants.I9_rows_immutable, _change),
            (invariants.I10_dead_letters_whole, _mangle),
            (invariants.I11_recovers_in_time, _hang),
            (invariants.I12_jobs_once, _run_twice),
            (invariants.I13_no_secret_in_logs, _leak),
        ],
    )
    def test_fail_when_what_they_are_about_is_harmed(self, check: invariants.Invariant, harm: Any) -> None:
        evidence = _evidence()
        harm(evidence)
        assert check(evidence)

    def test_show_where_a_lost_event_came_from(self) -> None:
        evidence = _evidence()
        lost = _first(evidence)
        _lose(evidence)
        (text,) = invariants.I1_no_loss(evidence)
        assert lost in text
        assert "producer 0 step 0 (frame), acknowledged" in text

    def test_do_not_miss_an_event_that_nobody_acknowledged(self) -> None:
        evidence = _evidence()
        lost = _first(evidence)
        evidence.emitted[lost] = dataclasses.replace(evidence.emitted[lost], acknowledged=False)
        _lose(evidence)
        assert invariants.I1_no_loss(evidence) == []
