"""The status of a run as a table that an operator can watch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

import redis
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy.orm import Session

from producers import _stream as wire
from worker import valkey
from worker.dev.traffic import Emitted
from worker.ingest import queries as ingest
from worker.jobs import queries as jobs
from worker.settings import Settings

PLAIN_LINE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Status:
    """What is going on at one moment."""

    at: datetime
    depth: int
    events: int
    accepted: int
    duplicates: int
    conflicts: int
    rejected: int
    letters: Counter[str]
    runs: tuple[jobs.LastRun, ...]


def status(session: Session, settings: Settings, client: valkey.Client, *, now: datetime) -> Status:
    """This function will read the stream's depth, the counters, dead letters, and the jobs' last runs."""
    positions = ingest.positions(session)
    return Status(
        at=now,
        depth=sum(_depth(client, settings, shard) for shard in range(settings.usage_stream_shards)),
        events=sum(one.events for one in positions),
        accepted=sum(one.accepted for one in positions),
        duplicates=sum(one.duplicates for one in positions),
        conflicts=sum(one.conflicts for one in positions),
        rejected=sum(one.rejected for one in positions),
        letters=Counter(ingest.open_letters_by_reason(session)),
        runs=tuple(jobs.last_runs(session)),
    )


def _depth(client: valkey.Client, settings: Settings, shard: int) -> int:
    """Entries that nobody has read, and entries read but not acknowledged."""
    key = wire.stream_key(settings.usage_stream, shard)
    try:
        groups = client.xinfo_groups(key)
    except redis.ResponseError:
        return 0  # no entry was ever added
    for group in groups:
        if group["name"] == settings.usage_consumer_group.encode():
            return int(group["lag"] or 0) + int(group["pending"])
    return int(client.xlen(key))


class Board:
    """Shows the status: a live table in a terminal, a line now and then in a pipe."""

    def __init__(self, console: Console, *, total: int | None) -> None:
        """`total`: how many events will be emitted, None for a stream without an end."""
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        )
        self._emitted = self._progress.add_task("emitted ", total=total)
        self._stored = self._progress.add_task("accounted for", total=total)
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._first: Status | None = None
        self._last: Status | None = None
        self._rate = 0.0
        self._next_line: datetime | None = None

    def __enter__(self) -> Board:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, emitted: Emitted, now: Status) -> None:
        """This function will show a new status."""
        self._first = self._first or now
        if self._last is not None and (seconds := (now.at - self._last.at).total_seconds()) > 0:
            fresh = (now.events - self._last.events) / seconds
            self._rate = fresh if self._rate == 0 else 0.7 * self._rate + 0.3 * fresh
        self._last = now
        accounted = now.events - self._first.events
        if not self._console.is_terminal:
            self._plain(emitted, now, accounted)
            return
        self._progress.update(self._emitted, completed=emitted.events)
        self._progress.update(self._stored, completed=accounted)
        self._live.update(Group(self._progress, self._table(now)), refresh=True)

    def _plain(self, emitted: Emitted, now: Status, accounted: int) -> None:
        if self._next_line is not None and (now.at - self._next_line).total_seconds() < PLAIN_LINE_SECONDS:
            return
        self._next_line = now.at
        self._console.print(
            f"emitted {emitted.events:,} · accounted for {accounted:,} · waiting {now.depth:,} · "
            f"dead letters {now.letters.total():,} · {self._rate:,.0f} events/s"
        )

    def _table(self, now: Status) -> RenderableType:
        table = Table(show_header=False, title_justify="left", min_width=60)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        table.add_row("waiting on the stream", f"{now.depth:,} entries")
        table.add_row("rows", f"{now.accepted:,}  ({self._rate:,.0f} events/s)")
        table.add_row("duplicates", f"{now.duplicates:,}")
        letters = ", ".join(f"{reason} {count}" for reason, count in now.letters.most_common())
        table.add_row("dead letters", letters or "none")
        for run in now.runs:
            table.add_row(run.job, f"{_ago(run, now.at)}  {describe(run)}")
        return table


def _ago(run: jobs.LastRun, now: datetime) -> str:
    if run.finished_at is None:
        return "running"
    return f"{max(0, int((now - run.finished_at).total_seconds()))} s ago"


def describe(run: jobs.LastRun) -> str:
    """This function will put a run's outcome and counts into one line."""
    counts = ", ".join(f"{name} {count}" for name, count in (run.counts or {}).items() if count)
    return f"{run.outcome or ''}  {counts}".strip()
