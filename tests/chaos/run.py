"""One run: start everything, hurt it by plan, let it come to rest, and look whether the books agree."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psycopg
import redis

from tests.chaos import evidence as evidences
from tests.chaos import failpoints, operating
from tests.chaos.evidence import Evidence
from tests.chaos.faults import Injector, NotDone
from tests.chaos.fleet import Fleet
from tests.chaos.invariants import INVARIANTS
from tests.chaos.monitor import DIFFERENCES, LIMIT_SECONDS, Monitor
from tests.chaos.plan import Plan, Planned, Profile
from tests.chaos.traffic import LATE, Traffic
from tests.chaos.world import REPOSITORY, World, add_user, entry

WORKERS: Final = 2
PRODUCERS: Final = 2
_FRAME: Final = {Profile.SMALL: 40, Profile.MATRIX: 20, Profile.FULL: 100}
# Each audit leaves a seal per shard, and verifying one reads whatever its keys touch.
_BOOKS_SECONDS: Final = {Profile.SMALL: 30, Profile.MATRIX: 30, Profile.FULL: 150}
_TELL_SECONDS: Final = 30.0
_SETTLE_SECONDS: Final = LIMIT_SECONDS + 30


class TimeLimit(Exception):
    """The run took longer than it may."""


@dataclass
class Result:
    """What a run came to."""

    plan: Plan
    evidence: Evidence
    monitor: Monitor
    broken: dict[str, list[str]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    exits: dict[str, list[int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every invariant holds and the suite itself did what it should."""
        return not self.errors and not any(self.broken.values())


class Run:
    """Carries out a plan. `limit` is in seconds, after which everything is stopped."""

    def __init__(self, plan: Plan, *, limit: float, may_mount: bool, keep_logs: Path | None = None) -> None:
        self._plan = plan
        self._may_mount = may_mount
        self._keep_logs = keep_logs
        self._started = time.monotonic()
        self._deadline = self._started + limit
        self._monitor: Monitor
        self._errors: list[str] = []
        self._threads: list[threading.Thread] = []
        self._producers: list[tuple[Traffic, Path]] = []
        self._seconds: dict[str, float] = {}

    def carry_out(self) -> Result:
        """This function will do the whole run and return its result; whatever it started has ended then."""
        failpoints.check()
        with World(events=self._plan.events, may_mount=self._may_mount) as world:
            self._monitor = Monitor(world, started=self._started)
            evidence = Evidence(self._monitor)
            fleet = Fleet(world, books_seconds=_BOOKS_SECONDS[self._plan.profile], note=self._monitor.note)
            exits: dict[str, list[int]] = {}
            try:
                self._live(world, fleet, evidence)
            except TimeLimit as error:
                self._errors.append(str(error))
            except Exception:  # noqa: BLE001  what the run left is looked at all the same
                self._errors.append(traceback.format_exc(limit=-4))
            finally:
                exits = fleet.exits()
                self._monitor.stop()
                fleet.stop()
                self._keep(fleet)
            self._read(world, fleet, evidence)
        result = Result(self._plan, evidence, self._monitor, errors=self._errors, exits=exits)
        result.broken = {check.__name__: check(evidence) for check in INVARIANTS}
        result.seconds = {**self._seconds, "all": time.monotonic() - self._started}
        return result

    def _live(self, world: World, fleet: Fleet, evidence: Evidence) -> None:
        self._populate(world, fleet)
        self._wait(lambda: _rows(world) > 0, seconds=60, what="the first row")
        self._mark("start")
        self._monitor.start()
        injector = Injector(world, fleet)
        began = time.monotonic()
        told = 0.0
        for number, planned in enumerate(self._plan.faults):
            self._sleep(began + planned.at - time.monotonic())
            self._threads.append(self._inject(injector, planned))
            if self._monitor.elapsed() - told > _TELL_SECONDS:
                told = self._monitor.elapsed()
                self._tell(f"{number + 1} of {len(self._plan.faults)} faults")
        self._wait(lambda: not any(one.is_alive() for one in self._threads), what="the last fault's end")
        self._mark("faults")
        self._wait(lambda: not fleet.emitting(), what="the producers' end")
        emitted = time.monotonic()
        self._mark("emitting")
        with contextlib.suppress(TimeLimit):
            self._wait(lambda: _is_settled(world), seconds=_SETTLE_SECONDS, what="everything drained")
            evidence.settle_seconds = time.monotonic() - emitted
        # What is not recovered by then is reported as never.
        with contextlib.suppress(TimeLimit):
            self._wait(lambda: not self._monitor.unrecovered(), seconds=10, what="every recovery")
        self._mark("settling")
        self._put_right(world, evidence)
        self._mark("audit")

    def _populate(self, world: World, fleet: Fleet) -> None:
        with operating.bound(world.environ()):
            operating.populate(now=_utcnow())
        for number in range(WORKERS):
            fleet.add_worker(f"worker-{number}")
        fleet.add_beat("beat")
        # Otherwise a part of the events would have been sent before anything can happen to them.
        self._wait(fleet.is_ready, seconds=90, what="the workers")
        base = _utcnow().replace(microsecond=0)
        share = -(-self._plan.events // PRODUCERS)
        for number in range(PRODUCERS):
            traffic = Traffic(
                seed=self._plan.seed,
                producer=number,
                events=share,
                frame=_FRAME[self._plan.profile],
                base=base,
            )
            ledger = world.folder / f"ledger-{number}"
            self._producers.append((traffic, ledger))
            arguments = {
                "seed": self._plan.seed,
                "producer": number,
                "events": share,
                "frame": _FRAME[self._plan.profile],
                "rate": share / self._plan.seconds,
                "base": base.isoformat(),
                "ledger": ledger,
            }
            words = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
            fleet.add_producer(f"producer-{number}", words)

    def _inject(self, injector: Injector, planned: Planned) -> threading.Thread:
        def act() -> None:
            record = self._monitor.begin(planned)
            try:
                record.target = injector.do(planned)
            except NotDone as reason:
                record.problem = str(reason)
                if self._plan.profile is Profile.MATRIX:
                    self._errors.append(f"{planned.what}: {reason}")
            except Exception as error:  # noqa: BLE001  a fault that fails is a failure of the run
                record.problem = f"{type(error).__name__}: {error}"
                self._errors.append(f"{planned.what}: {record.problem}")
            finally:
                self._monitor.end(record)

        thread = threading.Thread(target=act, name=planned.what, daemon=True)
        thread.start()
        return thread

    def _put_right(self, world: World, evidence: Evidence) -> None:
        """What an operator does: late users appear, and what waits is replayed, twice."""
        with world.database() as database:
            for number in range(LATE):
                add_user(database, f"late-{number}")
        with operating.bound(world.environ()) as settings:
            now = _utcnow()
            for attempt in ("replay", "replay again"):
                answers = [
                    operating.replay(settings, reason=reason, now=now)
                    for reason in ("unknown_user", "unknown_target", "poison")
                ]
                evidence.commands[attempt] = "; ".join(filter(None, answers))
            self._mark("replays")
            for attempt in ("reconcile", "reconcile again"):
                evidence.commands[attempt] = operating.reconcile(now=now)
            self._mark("reconciling")
            evidence.commands["audit books"] = operating.audit_books(settings)

    def _read(self, world: World, fleet: Fleet, evidence: Evidence) -> None:
        if not self._producers:
            return
        with world.database() as database:
            evidence.differences = [tuple(row) for row in database.execute(DIFFERENCES).fetchall()]
        evidences.read_emitted(evidence, self._producers)
        evidences.read_stored(evidence, world)
        evidences.read_logs(evidence, world, fleet.logs)
        self._mark("reading")

    def _keep(self, fleet: Fleet) -> None:
        if self._keep_logs is not None:
            shutil.copytree(fleet.logs, self._keep_logs, dirs_exist_ok=True)

    def _wait(self, condition: Callable[[], bool], *, what: str, seconds: float | None = None) -> None:
        until = self._deadline if seconds is None else min(self._deadline, time.monotonic() + seconds)
        while not condition():
            if time.monotonic() > until:
                raise TimeLimit(f"waited too long for {what}")
            time.sleep(0.25)

    def _tell(self, text: str) -> None:
        at, left = self._monitor.elapsed(), self._monitor.unrecovered()
        sys.stderr.write(f"chaos: {at:.0f} s, {text}, {left} not recovered from yet\n")
        sys.stderr.flush()

    def _sleep(self, seconds: float) -> None:
        if time.monotonic() + seconds > self._deadline:
            raise TimeLimit("the plan does not fit into the time limit")
        if seconds > 0:
            time.sleep(seconds)

    def _mark(self, name: str) -> None:
        self._seconds[name] = time.monotonic() - self._started


def _rows(world: World) -> int:
    with contextlib.suppress(psycopg.Error), world.database() as database:
        row = database.execute("SELECT coalesce(sum(accepted), 0) FROM ingest_positions").fetchone()
        return int(row[0]) if row else 0
    return 0


def _is_settled(world: World) -> bool:
    try:
        return all(entry(one.position) >= entry(one.tail) for one in world.where())
    except (psycopg.Error, redis.RedisError, OSError):
        return False


def _utcnow() -> dt.datetime:
    return dt.datetime.now(dt.UTC)  # noqa: TID251  the entry point of a run


def git_commit() -> str:
    """This function will name the commit that runs, with a + where the tree has changes."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def stop_after(seconds: float) -> threading.Timer:
    """This function will end this process hard after so long; its watchman then ends all that it started."""

    def end() -> None:
        sys.stderr.write("chaos: the hard time limit is over\n")
        sys.stderr.flush()
        os._exit(3)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    return timer
