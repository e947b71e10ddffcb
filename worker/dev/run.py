"""`usage-worker dev`: servers, schema, seeds, worker, Flower, traffic, a table to watch, and a clean end."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from producers import Emitter, _client
from worker import db
from worker.db import _provision
from worker.dev import _board, _books, _processes, seed, servers, traffic
from worker.dev._children import FLOWER_USER, Children
from worker.jobs import queries as jobs
from worker.settings import Settings, load_settings

USERS = 300
USERS_WITH_CONTENT = 20
WORKER_CHILDREN = 3
REFRESH_SECONDS = 0.5
DRAIN_SECONDS = 120.0
JOBS_SECONDS = 60.0
JOBS = ("audits.pool", "audits.rls", "subscriptions.reconcile")
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for: how many events (None: without end), and whether to check the books and leave."""

    events: int | None = None
    exit_when_done: bool = False
    data_dir: Path | None = None


class Stop:
    """A Ctrl-C or SIGTERM asks the run to stop; a second one ends it at once."""

    def __init__(self) -> None:
        # A plain flag: a threading.Event takes a lock, which the handler must not wait for.
        self._asked = False
        self.at_once: Callable[[], None] = lambda: None

    def __call__(self, _number: int, _frame: object) -> None:
        if self._asked:
            self.at_once()
            os._exit(INTERRUPTED)
        self._asked = True

    def is_set(self) -> bool:
        """This function will say whether the run was asked to stop."""
        return self._asked

    def wait(self, seconds: float) -> None:
        """This function will wait, not longer than until the run is asked to stop."""
        _processes.wait_until(self.is_set, timeout=seconds)


@contextlib.contextmanager
def _signals(stop: Stop) -> Iterator[None]:
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(options: Options, *, clock: Callable[[], datetime], console: Console) -> int:
    """This function will run everything until it is done or interrupted, and return the exit code.

    0: done, or stopped by the operator; 1: the books differ; 130: interrupted before they were checked.
    Raises the errors of the embedded servers, and ChildDied with the end of its log when a process ends.
    """
    stop = Stop()
    with _signals(stop), contextlib.ExitStack() as stack:
        code = _run(options, stack, stop, clock=clock, console=console)
    return code


def _run(
    options: Options,
    stack: contextlib.ExitStack,
    stop: Stop,
    *,
    clock: Callable[[], datetime],
    console: Console,
) -> int:
    """Everything that is started goes onto the stack, so it ends in the opposite order."""
    began = time.monotonic()
    console.print("starting PostgreSQL and Valkey …")
    embedded = servers.EmbeddedServers(
        data_dir=options.data_dir,
        max_connections=servers.connections_needed(worker_children=WORKER_CHILDREN),
    )
    stack.enter_context(embedded)
    environ = embedded.environ()
    settings = load_settings(environ)
    db.configure(settings)
    db.set_application_role("dev")
    stack.callback(db.close_databases)
    folder = stack.enter_context(_folder(options, embedded))
    children = Children(environ, logs=folder, guard=embedded.guard)
    stop.at_once = lambda: _end_at_once(embedded, children)
    stack.callback(children.stop)
    stack.callback(console.print, "stopping …")
    if not stop.is_set():
        console.print("creating roles, schema, plans and users …")
        users = _prepare(embedded, settings, now=clock())
    if not stop.is_set():
        console.print("starting the worker with beat, and Flower …")
        children.start()
        children.wait_until_ready(stopping=stop.is_set)
    if stop.is_set():
        return INTERRUPTED
    _say_where(console, embedded, children, folder=folder, environ=environ)
    console.print(f"ready after {time.monotonic() - began:.1f} s")
    play = Play(settings, children, stop, clock=clock, console=console)
    stack.callback(play.close)
    return play.go(options, users)


def _prepare(
    embedded: servers.EmbeddedServers, settings: Settings, *, now: datetime
) -> list[seed.SeededUser]:
    """What `db init` does, and then the seeds, by the logins that an application would use."""
    _provision.provision(settings)
    embedded.admit_app()
    with db.platform_session() as session:
        seed.upsert_plans(session)
        users = seed.upsert_users(session, count=USERS, now=now)
    for user in users[:USERS_WITH_CONTENT]:
        with db.user_data_session(user_id=user.id) as session:
            seed.upsert_content(session, user)
    return users


@contextlib.contextmanager
def _folder(options: Options, embedded: servers.EmbeddedServers) -> Iterator[Path]:
    """Where logs and the settings file lie: kept in the data folder, else gone at the end."""
    if options.data_dir is not None:
        folder = options.data_dir.absolute() / "run"
        folder.mkdir(mode=0o700, exist_ok=True)
        yield folder
        return
    place = _processes.Workplace(guard=embedded.guard)
    try:
        yield place.folder
    finally:
        place.close()


def _end_at_once(embedded: servers.EmbeddedServers, children: Children) -> None:
    """The second Ctrl-C: no farewells. The watchman removes what is left behind."""
    for process in children.processes:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        embedded.postgres.kill(signal.SIGQUIT)
        embedded.valkey.kill(signal.SIGKILL)


def _say_where(
    console: Console,
    embedded: servers.EmbeddedServers,
    children: Children,
    *,
    folder: Path,
    environ: Mapping[str, str],
) -> None:
    """Passwords included: they are random, all listens on loopback only, and the operator needs them."""
    file = folder / "usage-worker.env"
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as handle:
        handle.writelines(f"export {name}={shlex.quote(value)}\n" for name, value in environ.items())
    lines = {
        "Flower": f"{children.flower_url}  user {FLOWER_USER}, password {children.flower_password}",
        "platform database": f"psql '{embedded.postgres.url(servers.PLATFORM_DATABASE)}'",
        "user-data database": f"psql '{embedded.postgres.url(servers.USER_DATA_DATABASE)}'",
        "stream and broker": f"redis-cli -u '{embedded.valkey.url()}'",
        "second terminal": f". {shlex.quote(str(file))}   then: usage-worker status",
        "logs": str(folder),
    }
    for name, text in lines.items():
        console.print(f"  [bold]{name:<19}[/bold] {escape(text)}", soft_wrap=True, highlight=False)


class Play:
    """The traffic of one run and what is watched meanwhile."""

    def __init__(
        self,
        settings: Settings,
        children: Children,
        stop: Stop,
        *,
        clock: Callable[[], datetime],
        console: Console,
    ) -> None:
        self._settings = settings
        self._children = children
        self._stop = stop
        self._clock = clock
        self._console = console
        self._emitter = Emitter(settings.producer)
        self._client = _client.connect(settings.producer, for_emit=False)
        self._emitted = traffic.Emitted()
        self._shown_at = 0.0

    def close(self) -> None:
        """This function will close the connections to the stream."""
        self._emitter.close()
        self._client.close()

    def go(self, options: Options, users: list[seed.SeededUser]) -> int:
        """This function will emit, watch, and where asked to check the books; returns the exit code."""
        with db.platform_session() as session:
            before = _books.ledger(session)
        began = time.monotonic()
        with _board.Board(self._console, total=options.events) as board:
            self._emit(options, users, board)
            if options.exit_when_done:
                self._wait(lambda: self._is_drained(before), board, seconds=DRAIN_SECONDS)
                drained = time.monotonic() - began
                self._wait(self._jobs_are_done, board, seconds=JOBS_SECONDS)
            else:
                while not self._stop.is_set():
                    self._watch(board, pause=REFRESH_SECONDS)
            if not self._stop.is_set():
                self._refresh(board)
        if not options.exit_when_done:
            return 0
        return INTERRUPTED if self._stop.is_set() else self._close_the_books(before, seconds=drained)

    def _emit(self, options: Options, users: list[seed.SeededUser], board: _board.Board) -> None:
        generator = traffic.Traffic(users, seed=secrets.randbits(64))
        pace = random.Random()  # noqa: S311 how long customers think
        left = options.events
        while not self._stop.is_set() and (left is None or left > 0):
            burst = generator.burst(most=left if left is not None else 60, now=self._clock())
            traffic.emit(burst, self._emitter, self._client, self._settings.producer, self._emitted)
            if left is None:
                self._watch(board, pause=min(2.0, pace.expovariate(2)))
            else:
                left -= burst.count
                self._watch(board, pause=0)

    def _watch(self, board: _board.Board, *, pause: float) -> None:
        """Shows the status twice a second and fails when a process is gone."""
        self._children.check()
        if time.monotonic() - self._shown_at >= REFRESH_SECONDS and not self._stop.is_set():
            self._refresh(board)
        if pause:
            self._stop.wait(pause)

    def _refresh(self, board: _board.Board) -> None:
        with db.platform_session() as session:
            now = _board.status(session, self._settings, self._client, now=self._clock())
        board.show(self._emitted, now)
        self._shown_at = time.monotonic()

    def _wait(self, done: Callable[[], bool], board: _board.Board, *, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._stop.is_set() and not done():
            if time.monotonic() > deadline:
                # The comparison that follows says what is missing.
                return
            self._watch(board, pause=0.1)

    def _is_drained(self, before: _books.Ledger) -> bool:
        with db.platform_session() as session:
            return _books.ledger(session).since(before).counted >= self._emitted.events

    def _jobs_are_done(self) -> bool:
        return all(run is not None and run.outcome == "done" for run in self._last_runs().values())

    def _last_runs(self) -> dict[str, jobs.LastRun | None]:
        with db.platform_session() as session:
            found = {run.job: run for run in jobs.last_runs(session)}
        return {job: found.get(job) for job in JOBS}

    def _close_the_books(self, before: _books.Ledger, *, seconds: float) -> int:
        with db.platform_session() as session:
            booked = _books.ledger(session).since(before)
            differences = _books.differences(session, self._settings, self._client)
        lines = _books.compare(self._emitted, booked)
        table = Table(title="The books", title_justify="left", header_style="bold")
        table.add_column("what")
        for column in ("expected", "found", ""):
            table.add_column(column, justify="right")
        for line in lines:
            table.add_row(
                line.what, f"{line.expected:,}", f"{line.found:,}", "ok" if line.agrees else "DIFFERS"
            )
        for one in differences:
            where = "" if one.shard is None else f" (shard {one.shard})"
            table.add_row(f"{one.check}{where}", f"{one.expected:,}", f"{one.found:,}", "DIFFERS")
        self._console.print(table)
        late = [job for job, run in self._last_runs().items() if run is None or run.outcome != "done"]
        for job, one_run in self._last_runs().items():
            self._console.print(f"  {job:<24} {_board.describe(one_run) if one_run else 'has not run'}")
        letters = booked.dead_letters.total()
        self._console.print(
            f"emitted {self._emitted.events:,} = {booked.rows:,} rows + {booked.duplicates:,} duplicates + "
            f"{letters:,} dead letters, accounted for in {seconds:.1f} s",
            soft_wrap=True,
        )
        if differences or late or not all(line.agrees for line in lines):
            self._console.print("[bold red]the books differ[/bold red]" if not late else f"not done: {late}")
            return 1
        self._console.print("[bold green]the books agree[/bold green]; roll-ups equal the log")
        return 0
