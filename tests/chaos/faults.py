"""How each fault is done. A function returns when the fault is over; recovering is the product's part."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable
from typing import Final

import redis

from tests.chaos import failpoints
from tests.chaos.failpoints import Action
from tests.chaos.fleet import Fleet
from tests.chaos.plan import Fault, Planned, chance
from tests.chaos.world import GROUP, World, keys
from worker.dev import _processes

_ARMED_SECONDS: Final = 20.0
# A failpoint waits until whatever else happened is over.
_REACHED_SECONDS: Final = 60.0


class NotDone(Exception):
    """The fault could not be done here or now; the timeline says why."""


class Injector:
    """Does the faults of a plan to one world and its fleet."""

    def __init__(self, world: World, fleet: Fleet) -> None:
        self._world = world
        self._fleet = fleet
        self._done: dict[Fault, Callable[[Planned, random.Random], str]] = {
            Fault.CHILD_KILL: self._child_kill,
            Fault.WORKER_KILL: lambda _, dice: self._kill("worker", dice),
            Fault.PRODUCER_KILL: lambda _, dice: self._kill("producer", dice),
            Fault.BEAT_KILL: lambda _, dice: self._kill("beat", dice),
            Fault.CHILD_PAUSE: self._child_pause,
            Fault.VALKEY_KILL: self._valkey_kill,
            Fault.VALKEY_RESTART: self._valkey_restart,
            Fault.POSTGRES_IMMEDIATE: lambda _, dice: self._postgres(dice, immediate=True),
            Fault.POSTGRES_FAST: lambda _, dice: self._postgres(dice, immediate=False),
            Fault.HALF_OPEN_STREAM: lambda *_: f"{world.worker_stream.silence()} connections",
            Fault.HALF_OPEN_TABLES: lambda *_: f"{world.worker_tables.silence()} connections",
            Fault.LOST_REPLY_PRODUCER: lambda *_: self._lose_reply("producer_stream"),
            Fault.LOST_REPLY_WORKER: lambda *_: self._lose_reply("worker_stream"),
            Fault.LOST_REPLY_TABLES: lambda *_: self._lose_reply("worker_tables"),
            Fault.ROLE_CHANGE: self._role_change,
            Fault.OUT_OF_MEMORY: self._out_of_memory,
            Fault.DISK_FULL_STREAM: self._disk_full_stream,
            Fault.DISK_FULL_TABLES: self._disk_full_tables,
            Fault.TWO_BEATS: self._two_beats,
            Fault.OLD_WORKER: self._old_worker,
            Fault.FAILPOINT: self._failpoint,
        }

    def do(self, planned: Planned) -> str:
        """This function will do one fault, wait until it is over, and return what it was done to.

        Raises NotDone.
        """
        return self._done[planned.fault](planned, chance(planned.seed))

    def _child_kill(self, _: Planned, dice: random.Random) -> str:
        pid = self._child(dice)
        with contextlib.suppress(ProcessLookupError):
            self._fleet.kill_child(pid)
        return f"child {pid}"

    def _child_pause(self, _: Planned, dice: random.Random) -> str:
        pid = self._child(dice)
        self._fleet.pause_child(pid, failpoints.PAUSE_SECONDS)
        return f"child {pid} for {failpoints.PAUSE_SECONDS:.0f} s"

    def _child(self, dice: random.Random) -> int:
        pid = self._fleet.choose_child(dice)
        if pid is None:
            raise NotDone("no worker had a child")
        return pid

    def _kill(self, prefix: str, dice: random.Random) -> str:
        names = self._fleet.names(prefix)
        if not names:
            raise NotDone(f"no {prefix}")
        return self._fleet.kill(dice.choice(names))

    def _valkey_kill(self, _: Planned, dice: random.Random) -> str:
        with self._world.valkey_lock:
            self._world.crash(self._world.valkey, signal.SIGKILL)
            away = 0.2 + dice.random()
            time.sleep(away)
            self._world.valkey.start()
        return f"away {away:.1f} s"

    def _valkey_restart(self, _: Planned, dice: random.Random) -> str:
        with self._world.valkey_lock:
            self._world.valkey.halt()
            away = 0.2 + 2 * dice.random()
            time.sleep(away)
            self._world.valkey.start()
        return f"away {away:.1f} s"

    def _postgres(self, dice: random.Random, *, immediate: bool) -> str:
        with self._world.postgres_lock:
            self._world.postgres.halt(immediate=immediate)
            away = 0.2 + 1.5 * dice.random()
            time.sleep(away)
            self._world.postgres.start()
        return f"away {away:.1f} s"

    def _lose_reply(self, name: str) -> str:
        proxy = {
            "producer_stream": self._world.producer_stream,
            "worker_stream": self._world.worker_stream,
            "worker_tables": self._world.worker_tables,
        }[name]
        proxy.lose_reply()
        if not _processes.wait_until(lambda: proxy.lost_all, timeout=_ARMED_SECONDS):
            raise NotDone("no reply came")
        return name.replace("_", " ")

    def _role_change(self, _: Planned, dice: random.Random) -> str:
        seconds = 1 + 2 * dice.random()
        with self._world.valkey_lock:
            self._command("REPLICAOF", "127.0.0.1", "1")
            time.sleep(seconds)
            self._command("REPLICAOF", "NO", "ONE")
        return f"a replica for {seconds:.1f} s"

    def _out_of_memory(self, _: Planned, dice: random.Random) -> str:
        seconds = 2 + 3 * dice.random()
        with self._world.valkey_lock:
            self._command("CONFIG", "SET", "maxmemory", "1")
            time.sleep(seconds)
            self._command("CONFIG", "SET", "maxmemory", "0")
        return f"for {seconds:.1f} s"

    def _disk_full_stream(self, _: Planned, dice: random.Random) -> str:
        world = self._world
        if not world.may_mount:
            raise NotDone("skipped: mount is not permitted here")
        with world.valkey_lock:
            world.stream_disk.fill()
            ended = _processes.wait_until(lambda: not world.valkey.running, timeout=5)
            time.sleep(0.5 + dice.random())
            world.stream_disk.free()
            world.valkey.start()
        return "the server ended, as with appendfsync always" if ended else "nothing was written meanwhile"

    def _disk_full_tables(self, _: Planned, dice: random.Random) -> str:
        if not self._world.may_mount:
            raise NotDone("skipped: mount is not permitted here")
        seconds = 3 + 2 * dice.random()
        with self._world.postgres_lock:
            self._world.table_disk.fill()
            time.sleep(seconds)
            self._world.table_disk.free()
        return f"for {seconds:.1f} s"

    def _two_beats(self, planned: Planned, dice: random.Random) -> str:
        name, seconds = f"second-beat-{planned.seed}", 12 + 6 * dice.random()
        self._fleet.add_beat(name)
        time.sleep(seconds)
        self._fleet.remove(name)
        return f"for {seconds:.0f} s"

    def _old_worker(self, _: Planned, dice: random.Random) -> str:
        """A worker of the release before reads through the group, and dies with what it was given."""
        client = self._world.stream()
        try:
            given = 0
            for _attempt in range(20):
                for key, _where in keys()[:2]:
                    reply = client.execute_command(  # type: ignore[no-untyped-call]  # redis-py: untyped
                        "XREADGROUP", "GROUP", GROUP, "old-worker", "COUNT", 3, "STREAMS", key, ">"
                    )
                    given += len(reply or ())
                if given >= 1 + dice.randrange(3):
                    break
                time.sleep(0.05)
        except redis.RedisError as error:
            raise NotDone(f"the server was away: {type(error).__name__}") from error
        finally:
            client.close()
        return f"{given} reads left pending"

    def _failpoint(self, planned: Planned, dice: random.Random) -> str:
        if planned.action is None:
            raise NotDone("a failpoint without an action")
        if planned.boundary in ("adopt", "acknowledge"):
            self._old_worker(planned, dice)
        armed = self._fleet.arm(planned.boundary, planned.action)
        if not _processes.wait_until(lambda: not armed.exists(), timeout=_REACHED_SECONDS):
            with contextlib.suppress(FileNotFoundError):
                armed.unlink()
                raise NotDone("not reached")
        if planned.action is Action.PAUSE:
            time.sleep(failpoints.PAUSE_SECONDS)
        return "happened"

    def _command(self, *words: str) -> None:
        client = self._world.stream()
        try:
            # A server that is loading or has just lost a connection gets a second chance: it must be mended.
            for attempt in range(10):
                try:
                    client.execute_command(*words)  # type: ignore[no-untyped-call]  # redis-py: untyped
                except redis.RedisError:
                    if attempt == 9:
                        raise
                    time.sleep(0.3)
                else:
                    return
        finally:
            client.close()
