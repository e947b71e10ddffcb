"""What a drain decides, under every fault that the simulation knows."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.simulation.__main__ import EPISODE_STEPS, main
from tests.simulation.episode import RATES, Episode
from tests.simulation.process import FAULTS, Process
from tests.simulation.stream import Event
from tests.simulation.world import KEYS, Violation
from worker.ingest.effects import Advance, Effect, Finish, Read, RenewLease

STEPS = 250_000
# What an episode that failed once was called, and what it was allowed to do; never taken out again.
REGRESSIONS = (
    ("a/0", "clock goes back,failover", "the witness of a stream that went back was overwritten"),
    ("r/1", "restore", "poison was delivered again because storing its letter had failed"),
    ("r/27", "restore", "a database that went back was not noticed when the lease was renewed"),
)
MUST_HAPPEN = (
    *FAULTS,
    *(name for name in RATES if name != "poison"),
    "poison",
    "parked",
    "second drain",
    "stored meanwhile",
    "late commit",
    "late rollback",
    "process gone",
    "sent twice",
    "conflict",
    "refused event",
    "entry destroyed",
)


class TestSweep:
    def test_holds_what_it_promises_under_every_fault(self) -> None:
        faults: Counter[str] = Counter()
        steps = number = 0
        while steps < STEPS:
            episode = Episode(f"sweep/{number}")
            try:
                episode.run(EPISODE_STEPS)
            except Violation as violation:
                pytest.fail(f"python -m tests.simulation --seed sweep/{number}: {violation}")
            steps, number = steps + episode.steps, number + 1
            faults += episode.world.faults
        assert [name for name in MUST_HAPPEN if not faults[name]] == []

    @pytest.mark.parametrize(("seed", "features", "_why"), REGRESSIONS)
    def test_holds_where_it_once_did_not(self, seed: str, features: str, _why: str) -> None:
        Episode(seed, frozenset(filter(None, features.split(",")))).run(EPISODE_STEPS)

    @pytest.mark.parametrize(
        "features", [("failover", "clock goes back"), ("restore", "trim"), ("poison", "pause")]
    )
    def test_holds_where_troubles_meet(self, features: tuple[str, ...]) -> None:
        for number in range(40):
            Episode(f"sweep/{number}", frozenset(features)).run(EPISODE_STEPS)

    def test_does_the_same_again_from_the_same_seed(self) -> None:
        first, second = Episode("again"), Episode("again")
        first.run(500)
        second.run(500)
        assert first.world.faults == second.world.faults
        assert [step[:2] for step in first.world.trace] == [step[:2] for step in second.world.trace]


def until(episode: Episode, process: Process, *kinds: type[Effect]) -> None:
    """Steps until the process is about to do one of these."""
    for _ in range(2000):
        if isinstance(process.effect, kinds):
            return
        episode.world.now = max(episode.world.now, process.ready_at)
        episode.world.step(process)
    pytest.fail("that never comes")


class TestScenarios:
    """What chance meets too seldom to be relied on."""

    def test_a_database_that_went_back_under_an_idle_drain(self) -> None:
        episode = Episode("idle", frozenset({"restore"}))
        world = episode.world
        process = world.start()
        until(episode, process, Read)
        episode.do("back up")
        for _ in range(10):
            world.produce()
        until(episode, process, RenewLease)
        episode.do("restore")
        world.step(process)
        world.produce()
        episode.rest()
        assert world.database.row.counts.entries == len(world.entries)

    @pytest.mark.parametrize("steps", range(1, 7))
    def test_a_process_that_is_gone_just_after_it_met_a_stream_that_went_back(self, steps: int) -> None:
        episode = Episode("witness", frozenset({"failover", "clock goes back"}))
        world = episode.world
        process = world.start()
        world.produce()
        until(episode, process, Advance)
        world.step(process)
        world.server.replicate()
        while world.server.streams[KEYS[0]].added < 9:
            world.produce()
        until(episode, process, Finish)
        episode.do("failover")
        world.behind = 3.0
        for _ in range(4):
            world.produce()
        for _ in range(steps):
            world.step(process)
        world.crash(process)
        for _ in range(4):
            world.produce()
        episode.rest()

    def test_poison_on_one_stream_while_the_other_goes_on(self) -> None:
        episode = Episode("poison", frozenset())
        world = episode.world
        entry = world.add(KEYS[1], [Event(-1, 1)], is_poison=True)
        for _ in range(300):
            world.add(KEYS[0], [Event(-2 - world.seq, 1)])
        episode.rest()
        assert entry.deaths <= world.limits.poison_deliveries


class TestCommand:
    def test_says_what_it_did(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--seed", "x", "--steps", "3000"]) == 0
        assert "seed x: " in capsys.readouterr().out

    def test_shows_the_last_steps_of_what_failed(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(_episode: Episode) -> None:
            raise Violation("on purpose")

        monkeypatch.setattr(Episode, "rest", broken)
        assert main(["--seed", "x", "--steps", "3000"]) == 1
        shown = capsys.readouterr().out
        assert "seed x/0: Violation: on purpose" in shown
        assert "TakeLease()" in shown


class Machine(RuleBasedStateMachine):
    """Hypothesis chooses what happens next, and makes what fails short."""

    @initialize(
        number=st.integers(0, 2**32),
        behind=st.sampled_from([frozenset[str](), frozenset({"clock goes back"})]),
    )
    def begin(self, number: int, behind: frozenset[str]) -> None:
        self.behind = bool(behind)
        self.episode = Episode(
            f"machine/{number}", (frozenset(RATES) - {"clock goes back", "restore"}) | behind
        )
        self.world = self.episode.world
        self.world.flood_rate = 0.0

    @rule(count=st.integers(1, 6))
    def produce(self, count: int) -> None:
        for _ in range(count):
            self.world.produce()

    @rule()
    def start(self) -> None:
        if len(self.world.processes) < 3:
            self.world.start()

    @precondition(lambda self: self.world.processes)
    @rule(which=st.integers(0, 2), fault=st.sampled_from(FAULTS))
    def step_badly(self, which: int, fault: str) -> None:
        self.world.step(self._choose(which), fault)

    @precondition(lambda self: self.world.processes)
    @rule(which=st.integers(0, 2), count=st.integers(1, 25))
    def step(self, which: int, count: int) -> None:
        process = self._choose(which)
        for _ in range(count):
            if process not in self.world.processes:
                return
            self.world.now = max(self.world.now, process.ready_at)
            self.world.step(process)

    @precondition(lambda self: self.world.processes)
    @rule(which=st.integers(0, 2), fault=st.sampled_from(["", "before", "lost", "late"]))
    def store(self, which: int, fault: str) -> None:
        self.world.store(self._choose(which), fault)

    @rule(seconds=st.floats(0.01, 20))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds

    @rule(what=st.sampled_from(sorted(set(RATES) - {"clock goes back", "restore", "flood"})))
    def environment(self, what: str) -> None:
        self.episode.do(what)

    @precondition(lambda self: not self.behind)
    @rule(back_up=st.booleans())
    def restore(self, back_up: bool) -> None:
        self.episode.do("back up" if back_up else "restore")

    @invariant()
    def rows_are_what_the_counters_say(self) -> None:
        if hasattr(self, "world"):
            database = self.world.database
            assert len(database.rows) == database.row.counts.accepted + database.row.counts.recovered

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.episode.rest()

    def _choose(self, which: int) -> Process:
        return self.world.processes[which % len(self.world.processes)]


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=150,
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
)
