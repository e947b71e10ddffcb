"""Delivers within a budget: to the stream while it answers, to the spool while it does not.

The caller's own thread does the ordinary thing, one command over a connection that is at hand, and writes to
the spool. Whatever may take long is done by one thread per process: finding the server, connecting, TLS,
frames, clusters, and the replay of what was spooled. The caller waits for it no longer than the stream's
share of its budget.
"""

import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Final

from redis import exceptions as redis_errors

from producers._config import EmitterConfig, redacted
from producers._routes import Addressed, NotKept, Routes
from producers._spool import Spool, SpoolFailed
from producers._spool_direct import Direct
from producers._spool_replay import Replay, is_about_a_key
from producers._stream import MAX_FRAME_EVENTS
from producers._transport import Request, Transport

# The rest of the budget is for the disk.
_SHARE: Final = 0.4
# Many frames get a share each, as far as this goes.
_LONGEST_WAIT: Final = 1.0
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
# How often segments of processes that have ended are looked for.
_LOOK_SECONDS: Final = 5.0
_MOMENT: Final = 0.01
# How long what is refused because of its key waits, before it is tried again.
_REFUSED_SECONDS: Final = 2.0
_CLOSE_SECONDS: Final = 2.0
_CLOSE_AWAY_SECONDS: Final = 0.5
_log: Final = logging.getLogger("producers.spool")


class _Job:
    """Requests that a caller waits for, for a while."""

    __slots__ = ("abandoned", "over", "requests")

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.abandoned = False
        self.over = threading.Lock()
        self.over.acquire()


class Sender:
    """The delivery of one process with a spool; its child makes another one."""

    def __init__(
        self,
        config: EmitterConfig,
        routes: Routes,
        *,
        budget_ms: int,
        spool_max_mb: float,
        check: bool = True,
    ) -> None:
        """This function will prepare the spool's directory; raises InvalidConfiguration."""
        self._arguments = (config, routes, budget_ms, spool_max_mb)
        self._routes = routes
        self._spool = Spool(config.spool_dir or "", max_mb=spool_max_mb)
        if check:
            self._spool.prepare()
        self._share = budget_ms / 1000 * _SHARE
        # Few: an idle connection may have been closed, a key have moved. The thread has patience of its own.
        self._transport = Transport(config, attempts=3)
        self._direct = Direct(self._transport, timeout=self._share)
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        # Why the stream is held to be away; None: it answers, as far as is known.
        self._away: str | None = None
        self._failures = 0
        self._ask_at = 0.0
        self._look_at = 0.0
        # Until then it need not look again only because something was written.
        self._patient_until = 0.0
        self._closes_at: float | None = None
        self._reason = "not asked"
        self.pid = os.getpid()

    def again(self) -> "Sender":
        """This function will make the same for a forked child."""
        config, routes, budget_ms, spool_max_mb = self._arguments
        return Sender(config, routes, budget_ms=budget_ms, spool_max_mb=spool_max_mb, check=False)

    def deliver_one(self, event: Addressed) -> None:
        """This function will return once the stream or the disk has the event; raises NotKept."""
        request = self._routes.single(event)
        if self._away is None:
            try:
                if request.reply_count == 1 and self._direct.send(request):
                    return
            except redis_errors.RedisError as error:
                if is_about_a_key(error):
                    self._note(error)
                else:
                    self._lose(error)
            else:
                self._ask([request])
                if request.done:
                    return
        self._keep((event,))

    def deliver(self, events: Sequence[Addressed]) -> None:
        """This function will do the same for many; raises NotKept with those that neither has."""
        frames = self._routes.frames(events)
        if self._away is None:
            # By events and not by frames, of which each shard has its own.
            shares = -(-len(events) // MAX_FRAME_EVENTS)
            self._ask([frame.request for frame in frames], shares)
        missing = [event for frame in frames if not frame.request.done for event in frame.events]
        if missing:
            self._keep(missing)

    def close(self) -> None:
        """This function will end the thread and let go of the segments; what they hold waits on the disk.

        Where the stream answers, it has two seconds to take what is left.
        """
        self._closes_at = time.monotonic() + _CLOSE_SECONDS
        thread = self._thread
        if thread is not None and thread.is_alive():
            self._jobs.put(None)
            thread.join(_CLOSE_SECONDS + 0.5 if self._away is None else _CLOSE_AWAY_SECONDS)
            if thread.is_alive():
                # It waits for a silent server and lets go when that is over.
                return
        self.shut()

    def shut(self) -> None:
        """This function will close connections and files at once."""
        self._direct.clear()
        self._transport.close()
        self._spool.close()

    def step(self, job: _Job | None) -> float | None:
        """This function will do what is due and return for how many seconds nothing will be, None for ever.

        It belongs to the thread.
        """
        jobs = self._gather(job)
        if jobs:
            self._serve(jobs)
        now = time.monotonic()
        if now >= (self._look_at if self._away is None else self._ask_at):
            self._look()
            now = time.monotonic()
        if self._closes_at is not None and (
            self._away is not None
            or max(now, self._look_at) > self._closes_at
            or not self._spool.holds_events
        ):
            self.shut()
            return None
        return max(0.0, (self._look_at if self._away is None else self._ask_at) - now)

    def _keep(self, events: Sequence[Addressed]) -> None:
        self._start()
        try:
            self._spool.keep(events)
        except SpoolFailed as error:
            raise NotKept(str(error), events=events, reason=self._reason) from error
        if self._away is None:
            # Nobody has planned to look at the spool soon.
            self._look_at = self._patient_until
            self._jobs.put(None)

    def _ask(self, requests: Sequence[Request], shares: int = 1) -> None:
        """Has the thread send them, and waits for it no longer than it may."""
        if not requests or not self._start():
            return
        job = _Job(requests)
        self._jobs.put(job)
        wait = min(self._share * shares, max(self._share, _LONGEST_WAIT))
        try:
            if not job.over.acquire(timeout=wait):
                self._lose(redis_errors.TimeoutError(f"no answer within {wait * 1000:.0f} ms"))
        finally:
            job.abandoned = True

    def _start(self) -> bool:
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    jobs = self._jobs
                    # It is woken to end when nobody holds this any more.
                    itself = weakref.ref(self, lambda _: jobs.put(None))
                    thread = threading.Thread(
                        target=_run, args=(itself, jobs), name="usage-spool", daemon=True
                    )
                    try:
                        thread.start()
                    except RuntimeError:
                        # No thread can be started when the interpreter ends: the disk is still there.
                        return False
                    self._thread = thread
        return True

    def _gather(self, job: _Job | None) -> list[_Job]:
        jobs = [] if job is None else [job]
        with suppress(Empty):
            while True:
                following = self._jobs.get_nowait()
                if following is not None:
                    jobs.append(following)
        return [one for one in jobs if not one.abandoned]

    def _serve(self, jobs: Sequence[_Job]) -> None:
        requests = [request for job in jobs for request in job.requests]
        try:
            self._routes.send(self._transport, requests)
        except redis_errors.RedisError as error:
            if all(request.done or is_about_a_key(request.error) for request in requests):
                self._note(error)
            else:
                self._fail(error)
        else:
            self._find()
        for job in jobs:
            job.over.release()
        if self._away is None:
            with suppress(redis_errors.RedisError):
                for _ in jobs:
                    self._direct.add()

    def _look(self) -> None:
        """Replays what waits, which also tells whether the stream answers."""
        replay = Replay(self._routes, self._transport, self._spool)
        patience = 0.0
        try:
            replay.run(own=True, go_on=lambda: self._go_on(replay))
            if not replay.events and self._away is not None:
                self._transport.ask()
                self._find()
            # What was written meanwhile is next; what is being written needs a moment.
            pause = _MOMENT if self._spool.holds_events else _LOOK_SECONDS * random.uniform(0.8, 1.2)  # noqa: S311 - jitter, no secret
        except redis_errors.RedisError as error:
            self._fail(error)
            return
        except OSError as error:
            _log.warning("the spool at %s cannot be replayed: %s", self._spool.directory, error)
            pause = patience = _LOOK_SECONDS
            self._ask_at = time.monotonic() + pause
        if replay.refusal is not None:
            self._note(replay.refusal)
            _log.warning("the stream refuses some of the spooled usage events: %s", self._reason)
            pause = patience = _REFUSED_SECONDS
        self._look_at = time.monotonic() + pause
        self._patient_until = time.monotonic() + patience

    def _go_on(self, replay: Replay) -> bool:
        """Between two runs of events: whoever waits comes first."""
        if replay.events:
            self._find()
        jobs = self._gather(None)
        if jobs:
            self._serve(jobs)
        return self._closes_at is None or time.monotonic() <= self._closes_at

    def _find(self) -> None:
        self._failures = 0
        if self._away is not None:
            self._away = None
            _log.info("the stream answers again: spooled usage events follow")

    def _fail(self, error: Exception) -> None:
        """What the thread found: it waits before it asks again."""
        self._lose(error)
        self._failures += 1
        pause = min(_FIRST_PAUSE * 2**self._failures, _LONGEST_PAUSE)
        self._ask_at = time.monotonic() + pause * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret

    def _note(self, error: Exception) -> None:
        self._reason = redacted(str(error)) or type(error).__name__

    def _lose(self, error: Exception) -> None:
        self._note(error)
        if self._away is None:
            # By then the spool has what the stream did not take, and that is the question to ask.
            self._ask_at = time.monotonic() + _FIRST_PAUSE * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret
            self._away = self._reason
            self._direct.clear()
            _log.warning(
                "the stream is away (%s): usage events go to the spool at %s",
                self._reason,
                self._spool.directory,
            )
            self._jobs.put(None)


def _run(of: "weakref.ref[Sender]", jobs: "SimpleQueue[_Job | None]") -> None:
    """The thread: it holds no emitter that nobody else holds."""
    wait: float | None = 0.0
    job: _Job | None = None
    while wait is not None:
        with suppress(Empty):
            job = jobs.get(timeout=wait) if wait else jobs.get_nowait()
        sender = of()
        if sender is None:
            return
        try:
            wait = sender.step(job)
        except Exception:  # noqa: BLE001 - whatever it is, what is spooled has to be sent one day
            _log.exception("the replay of the spool failed and is tried again")
            wait = _LONGEST_PAUSE
        job = None
        del sender
