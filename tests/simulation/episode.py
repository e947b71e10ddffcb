"""One world for some thousand steps: what its environment may do, then rest, then the books."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from tests.simulation.database import Letter, Row
from tests.simulation.process import DATABASE, FAULTS, STREAM, Process
from tests.simulation.stream import Event
from tests.simulation.world import KEYS, World
from worker.ingest.effects import DrainOutcome

# How often each happens where an episode has it, in parts of the environment's turns.
RATES: Final = {
    "pause": 4,
    "crash while waiting": 2,
    "stop": 1,
    "outage": 0.7,
    "failover": 1.5,
    "clock goes back": 0,
    "flush": 0.5,
    "group destroyed": 0.7,
    "stranger": 4,
    "delete": 2,
    "trim": 3,
    "restore": 2,
    "operator": 2,
    "flood": 0,
    "poison": 0.5,
}
# These make entries count again or not at all, or move the group, without anything being wrong.
_DISTURBING: Final = frozenset(
    {"failover", "clock goes back", "flush", "group destroyed", "stranger", "delete", "trim", "restore"}
)
_MOST_POISON: Final = 3


class Episode:
    """`run()` takes about `steps` steps; the same seed does the same again."""

    def __init__(self, seed: str, features: frozenset[str] | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(seed)  # noqa: S311  no secret
        self.world = World(self.rng)
        if features is None:
            share = self.rng.choice((0.0, 0.15, 0.4, 0.7))
            features = frozenset(name for name in RATES if self.rng.random() < share)
        if "restore" in features:
            # Rows below the position that a restore takes away are not read again: `recover --since` does it.
            features -= {"clock goes back"}
            if "failover" in features:
                # An entry that was deleted unread comes back with the replica, below the position as well.
                features -= {"delete"}
        self.features = features
        self.steps = 0
        self._fault_rate = self.rng.choice((0.0, 0.01, 0.05, 0.15))
        self._environment_rate = self.rng.choice((0.05, 0.15, 0.3))
        self._backup: tuple[Row, dict[int, int], dict[Letter, str], dict[Letter, int]] | None = None
        self._poison = 0
        if "flood" in features:
            self.world.flood_rate = 0.01
        actions: dict[Callable[[], None], float] = {self._produce: 30, self._start: 6, self._wait: 6}
        does = {
            "pause": self._pause,
            "crash while waiting": self._crash,
            "stop": self._stop,
            "outage": self._fail,
            "failover": self._fail_over,
            "flush": self._flush,
            "group destroyed": self._destroy_group,
            "stranger": self._intrude,
            "delete": self._delete,
            "trim": self._trim,
            "back up": self._back_up,
            "restore": self._restore,
            "operator": self._switch,
            "poison": self._add_poison,
        }
        actions |= {does[name]: RATES[name] for name in does if name in features}
        if "failover" in features:
            actions[self._replicate] = 6
        if "restore" in features:
            actions[self._back_up] = 6
        self._actions, self._weights = list(actions), list(actions.values())
        self.does = does

    def run(self, steps: int) -> None:
        """This function will run the episode and check its end; raises Violation."""
        for _ in range(steps):
            self._turn()
        self.rest()

    def _turn(self) -> None:
        self.steps += 1
        world, rng = self.world, self.rng
        ready = [process for process in world.processes if process.ready_at <= world.now]
        if not ready or rng.random() < self._environment_rate:
            rng.choices(self._actions, self._weights)[0]()
            return
        process = ready[0] if len(ready) == 1 else rng.choice(ready)
        fault = rng.choice(FAULTS) if rng.random() < self._fault_rate else ""
        if process.transaction is not None and not process.transaction.is_done and rng.random() < 0.3:
            world.store(process, fault)
        else:
            world.step(process, fault)

    def do(self, name: str) -> None:
        """This function will let the environment do one thing by its name."""
        self.does[name]()

    def _disturb(self, name: str, *values: object) -> None:
        self.world.note(name, *values)
        self.world.is_disturbed = self.world.is_disturbed or name in _DISTURBING

    def _some(self) -> Process | None:
        return self.rng.choice(self.world.processes) if self.world.processes else None

    def _produce(self) -> None:
        self.world.produce()

    def _start(self) -> None:
        if len(self.world.processes) < 3:
            if self.world.processes:
                self.world.note("second drain")
            self.world.start()

    def _wait(self) -> None:
        world = self.world
        if any(process.ready_at <= world.now for process in world.processes):
            world.now += self.rng.random() * 0.2
        else:
            world.now = max(
                world.now, min((one.ready_at for one in world.processes), default=world.now + 0.5)
            )

    def _pause(self) -> None:
        process = self._some()
        if process is not None:
            process.pause(self.rng.random() * 3 * self.world.limits.lease_seconds)
            self._disturb("pause", process.name)

    def _crash(self) -> None:
        process = self._some()
        if process is not None:
            self._disturb("crash while waiting")
            self.world.crash(process)

    def _stop(self) -> None:
        process = self._some()
        if process is not None:
            process.is_stopped = True
            self._disturb("stop", process.name)

    def _fail(self) -> None:
        server = self.rng.choice((STREAM, DATABASE))
        self.world.down_until[server] = self.world.now + self.rng.random() * 20
        self._disturb("outage", server)

    def _replicate(self) -> None:
        self.world.server.replicate()

    def _fail_over(self) -> None:
        world = self.world
        before = world.in_streams()
        world.server.fail_over()
        self._disturb("failover")
        standing = world.in_streams()
        world.removed(sorted(before - standing, key=lambda entry: entry.seq), "failover")
        for entry in sorted(standing - before, key=lambda entry: entry.seq):
            # Deleted on the old primary and not yet on the new one: nobody could read it meanwhile.
            world.seq += 1
            entry.seq = world.seq
        for process in world.processes:
            process.lose_connection()
        self._turn_clock_back()

    def _turn_clock_back(self) -> None:
        self.world.now += 0.01
        if "clock goes back" in self.features:
            self.world.behind = self.rng.random() * 6
            self._disturb("clock goes back", self.world.behind)

    def _flush(self) -> None:
        world = self.world
        before = sorted(world.in_streams(), key=lambda entry: entry.seq)
        world.server.flush()
        self._disturb("flush")
        world.removed(before, "flush")
        self._turn_clock_back()

    def _destroy_group(self) -> None:
        self.world.server.streams[self.rng.choice(KEYS)].group = None
        self._disturb("group destroyed")

    def _intrude(self) -> None:
        if self.world.server.read_as_stranger(self.rng.choice(KEYS), self.rng.randint(1, 4)):
            self._disturb("stranger")

    def _delete(self) -> None:
        stream = self.world.server.streams[self.rng.choice(KEYS)]
        if stream.entries:
            entry = self.rng.choice(stream.entries[-20:])
            stream.drop(entry)
            self._disturb("delete", entry.key, entry.entry_id)
            self.world.removed([entry], "deleted")

    def _trim(self) -> None:
        world, key = self.world, self.rng.choice(KEYS)
        stream = world.server.streams[key]
        world.settle_late()
        if stream.group is not None and stream.entries:
            behind = min(world.database.position(key), stream.group.last_delivered, *stream.group.pending)
            gone = stream.trim(behind)
            self._disturb("trim", len(gone))
            for entry in gone:
                world.expect(entry.excused or world.database.has_outcome(entry), "trimmed unread")

    def _back_up(self) -> None:
        self.world.settle_late()
        self._backup = self.world.database.snapshot()

    def _restore(self) -> None:
        world = self.world
        if self._backup is not None:
            world.database.restore(self._backup)
            self._disturb("restore")
            standing = world.in_streams()
            world.removed([entry for entry in world.entries if entry not in standing], "restore")

    def _switch(self) -> None:
        self.world.settle_late()
        row = self.world.database.row
        row.is_paused = not row.is_paused
        self._disturb("operator")

    def _add_poison(self) -> None:
        if self._poison < _MOST_POISON:
            self._poison += 1
            self._disturb("poison added")
            self.world.produce(is_poison=True)

    def rest(self) -> None:
        """Faults end, the clock runs, and fresh drains run until one has nothing to do."""
        world = self.world
        world.note("rest")
        world.settle_late()
        world.down_until = {STREAM: 0.0, DATABASE: 0.0}
        world.flood_rate = world.behind = 0.0
        world.database.row.is_paused = False
        while world.processes:
            self._finish(world.processes[0])
        self._settle()
        world.check_rest()
        world.now += 60
        for n in range(2 * world.limits.batch_size + 1):
            world.add(KEYS[0], [Event(1_000_000 + n, 1)])
        self._settle()
        world.check_rest()
        row = world.database.row
        world.expect(not row.careful_left and not row.crashes, "careful mode does not end")

    def _settle(self) -> None:
        world = self.world
        for _ in range(80 + 20 * self._poison):
            world.now += world.limits.lease_seconds / 4
            process = world.start()
            self._finish(process)
            if process.report is not None and process.report.outcome is DrainOutcome.IDLE:
                return
        world.expect(False, "the drains do not come to rest")

    def _finish(self, process: Process) -> None:
        """Steps until the drain has ended, or until its process is gone."""
        world = self.world
        for _ in range(20_000):
            self.steps += 1
            if process not in world.processes:
                return
            world.now = max(world.now, process.ready_at)
            world.step(process)
        world.expect(False, "a drain does not end")
