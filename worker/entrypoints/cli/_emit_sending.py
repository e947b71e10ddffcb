"""What `usage-worker emit` does with lines: batches to the stream, refusals to the eye, and counts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any, BinaryIO

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from producers import Emitter, UsageEvent
from producers import _events as events
from worker.entrypoints._clock import utcnow
from worker.entrypoints.cli import _output
from worker.entrypoints.cli._emit_state import HashingSource, StateFile
from worker.entrypoints.cli._events_file import Line
from worker.settings import Settings

MOST_REFUSALS_SHOWN = 100

# The worker's own limits may be others; what is far from the usual ones is worth a word before it is refused.
_MAX_AGE = timedelta(days=Settings.model_fields["usage_max_age_days"].default)
_MAX_FUTURE = timedelta(seconds=Settings.model_fields["usage_max_future_seconds"].default)


@dataclass(slots=True)
class Tally:
    """What became of the events of one call."""

    dry_run: bool = False
    emitted: int = 0
    refused: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    refusals: list[dict[str, Any]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    outside_window: Counter[str] = field(default_factory=Counter)
    tokens_used: int = 0
    cost_usd: Decimal = Decimal(0)
    without_cost: int = 0
    resumed_at_line: int | None = None
    event_id: str | None = None

    def add(self, sent: Sequence[UsageEvent]) -> None:
        """This function will count events that were acknowledged, or would have been sent."""
        now = utcnow()
        self.emitted += len(sent)
        for event in sent:
            self.tokens_used += event.tokens_used
            if event.cost_usd is None:
                self.without_cost += 1
            else:
                self.cost_usd += event.cost_usd
            problem = events.age_problem(event, received_at=now, max_age=_MAX_AGE, max_future=_MAX_FUTURE)
            if problem is not None:
                self.outside_window[problem] += 1

    def report(self, *, as_json: bool) -> None:
        """This function will say what happened: the counts first, and more where there is more to say."""
        for problem, count in sorted(self.outside_window.items()):
            _output.say(
                f"{count:,} events are {problem.replace('_', ' ')}: a worker with the usual "
                "USAGE_MAX_AGE_DAYS and USAGE_MAX_FUTURE_SECONDS puts them aside."
            )
        if as_json:
            _output.write_json(self._document())
        elif self.event_id:
            click.echo(self.event_id)
        else:
            self._show()

    def _document(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "emitted": 0 if self.dry_run else self.emitted,
            "refused": self.refused,
            "refusals": self.refusals,
            "reasons": dict(self.reasons),
            "skipped": dict(self.skipped),
            "tokens_used": self.tokens_used,
            "cost_usd": self.cost_usd,
            "without_cost": self.without_cost,
            "outside_window": dict(self.outside_window),
        }
        if self.dry_run:
            document["would_emit"] = self.emitted
        if self.resumed_at_line is not None:
            document["resumed_at_line"] = self.resumed_at_line
        return document | ({"event_id": self.event_id} if self.event_id else {})

    def _show(self) -> None:
        word = "would emit" if self.dry_run else "emitted"
        click.echo(f"{word} {self.emitted:,}, refused {self.refused:,}")
        if self.dry_run:
            cost = f"cost {self.cost_usd:f} USD, unknown for {self.without_cost:,}"
            click.echo(f"tokens {self.tokens_used:,}, {cost}")
        for name, counts in (("refused", self.reasons), ("skipped", self.skipped)):
            if counts:
                click.echo(f"{name}: " + ", ".join(f"{reason} {n:,}" for reason, n in counts.most_common()))


def interrupted(tally: Tally, *, may_repeat: bool) -> str:
    """This function will say how to go on after Ctrl-C."""
    if tally.dry_run:
        return f"interrupted; {tally.emitted:,} events were judged, nothing was sent"
    done = f"interrupted; {tally.emitted:,} events were acknowledged, and perhaps the batch in hand. "
    if may_repeat:
        return done + "Run the same command again: it goes on, and nothing counts twice."
    return done + (
        "Lines that carry an event_id or an idempotency_key may be sent again; others would count twice "
        "(with --state FILE from the beginning on, they would not)."
    )


class Sending:
    """Sends what is good in batches, reports what is not, and keeps the state file behind the stream."""

    def __init__(self, emitter: Emitter | None, tally: Tally, batch_size: int) -> None:
        self._emitter = emitter
        self._tally = tally
        self._batch_size = batch_size
        self._waiting: list[UsageEvent] = []
        self._file: StateFile | None = None
        self._source: HashingSource | None = None
        self._lines = 0

    def resume(self, file: StateFile, source: HashingSource) -> None:
        """This function will keep `file` up to date with what has been sent of `source`."""
        self._file, self._source = file, source
        self._lines = file.state.lines
        if file.state.offset:
            self._tally.resumed_at_line = file.state.lines + 1
            _output.say(f"goes on after line {file.state.lines:,}")

    def run(self, lines: Iterable[Line], source: BinaryIO) -> None:
        """This function will send all lines; StreamUnavailable passes through."""
        last: Line | None = None
        with _progress(source) as (progress, bar):
            for last in lines:
                self._take(last)
                if len(self._waiting) >= self._batch_size:
                    self._flush()
                elapsed = progress.tasks[bar].elapsed or 0
                rate = self._tally.emitted / elapsed if elapsed else 0
                progress.update(bar, advance=last.size_bytes, events=self._tally.emitted, rate=rate)
            if last is not None and last.reason is not None and not last.complete and self._source:
                # Its writer may be in the middle of it: the next run reads it from its beginning.
                self._source.step_back()
                self._lines -= 1
            self._flush()

    def _take(self, line: Line) -> None:
        tally = self._tally
        self._lines = line.number
        if line.event is not None:
            self._waiting.append(line.event)
        elif line.skipped is not None:
            tally.skipped[line.skipped] += 1
        elif line.reason is not None:
            tally.refused += 1
            tally.reasons[line.reason] += 1
            if len(tally.refusals) < MOST_REFUSALS_SHOWN:
                tally.refusals.append({"line": line.number, "reason": line.reason, "detail": line.detail})
                _output.say(f"line {line.number}: {line.reason}: {line.detail}")

    def _flush(self) -> None:
        if self._waiting:
            if self._emitter is not None:
                with self._emitter.batch() as batch:
                    for event in self._waiting:
                        batch.add(event)
            self._tally.add(self._waiting)
            self._waiting.clear()
        if self._file is not None and self._source is not None:
            self._file.advance(self._source, lines=self._lines)


@contextmanager
def _progress(source: BinaryIO) -> Iterator[tuple[Progress, TaskID]]:
    """A bar on stderr where somebody looks at it; by bytes, for nobody has counted the lines."""
    console = Console(stderr=True)
    columns = (
        BarColumn(),
        TextColumn("{task.fields[events]:,} events, {task.fields[rate]:,.0f}/s"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress, progress.add_task("emit", total=_size_of(source), events=0, rate=0.0)


def _size_of(source: BinaryIO) -> int | None:
    try:
        return os.fstat(source.fileno()).st_size or None
    except (OSError, ValueError):
        return None
