"""`usage-worker emit`: usage events to the stream, through the emitter that apps use."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from producers import Emitter, InvalidConfiguration, InvalidEvent, StreamUnavailable, UsageEvent
from worker.entrypoints import _exits
from worker.entrypoints._clock import utcnow
from worker.entrypoints.cli import _output
from worker.entrypoints.cli._events_file import Line, read_lines
from worker.errors import ConfigurationError, ServiceUnreachable

MOST_REFUSALS_SHOWN = 100


@dataclass(slots=True)
class Tally:
    """What became of the events of one call."""

    emitted: int = 0
    refused: int = 0
    refusals: list[dict[str, Any]] = field(default_factory=list)
    event_id: str | None = None


@click.command()
@click.option("--file", "source", type=click.File("rb"), help="JSON lines, one event each; - is stdin.")
@click.option(
    "--batch-size", type=click.IntRange(1, 5000), default=500, show_default=True, help="With --file."
)
@click.option("--user", "user_id", help="The user's id (UUID).")
@click.option("--clerk", "clerk_id", help="The user's clerk_id, in place of --user.")
@click.option("--feature", help="What was used, as in blog_writer.")
@click.option("--provider", help="As in openai.")
@click.option("--model", help="As in gpt-4o-mini.")
@click.option("--input-tokens", type=int, help="Includes cached tokens.")
@click.option("--output-tokens", type=int)
@click.option("--cache-read-tokens", type=int)
@click.option("--cache-write-tokens", type=int)
@click.option("--reasoning-tokens", type=int)
@click.option("--tokens", "tokens_used", type=int, help="Only where the split is unknown.")
@click.option("--cost", "cost_usd", help="US dollars, as in 0.000395; absent means unknown.")
@click.option("--at", "occurred_at", help="RFC 3339 with offset; default: now.")
@click.option("--duration-ms", type=int)
@click.option("--status", type=click.Choice(["ok", "error"]))
@click.option("--metadata", help="A JSON object.")
@click.option("--event-id", help="The event's id (UUID); default: a new one.")
@click.option("--key", "idempotency_key", help="Any string: the same user and key are the same event.")
@_output.json_option
def command(source: BinaryIO | None, batch_size: int, as_json: bool, **usage: Any) -> int:
    """Send one usage event, or a file of them, and wait until the server has acknowledged it.

    \b
      usage-worker emit --user 0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11 --feature blog_writer \\
          --input-tokens 812 --output-tokens 455 --cost 0.000395
      usage-worker emit --file events.jsonl

    A line of a file has the fields of the wire format (docs/events.md); event_id and occurred_at are filled
    in where they are absent. Lines that carry event_id or idempotency_key may be sent again without harm. A
    bad line is reported with its number and reason, the others are sent, and the exit code is 1. Needs
    REDIS_URL only; exit code 3 when the stream does not acknowledge.
    """
    given = {name: value for name, value in usage.items() if value is not None}
    if (source is None) == (not given):
        raise click.UsageError("give --file, or one event by --user, --feature and its tokens")
    try:
        emitter = Emitter.from_env()
    except InvalidConfiguration as error:
        raise ConfigurationError("\n".join(error.problems)) from error
    with emitter:
        tally = Tally()
        try:
            if source is None:
                _send_one(emitter, given, tally)
            else:
                _send_file(emitter, source, batch_size, tally)
        except StreamUnavailable as error:
            raise ServiceUnreachable(
                "REDIS_URL",
                f"{error} (acknowledged before that: {tally.emitted:,})",
                "start Redis or Valkey there, or correct REDIS_URL; events that carry an event_id or an "
                "idempotency_key may be sent again.",
            ) from error
    _report(tally, as_json)
    return _exits.FINDINGS if tally.refused else _exits.GOOD


def _send_one(emitter: Emitter, given: dict[str, Any], tally: Tally) -> None:
    try:
        if "metadata" in given:
            given["metadata"] = json.loads(given["metadata"])
        tally.event_id = str(emitter.emit(**given))
        tally.emitted = 1
    except json.JSONDecodeError as error:
        raise click.BadParameter(f"no JSON: {error}", param_hint="--metadata") from None
    except InvalidEvent as error:
        raise click.UsageError(f"{error.reason}: {error.field}: {error.detail}") from None


def _send_file(emitter: Emitter, source: BinaryIO, batch_size: int, tally: Tally) -> None:
    waiting: list[UsageEvent] = []
    with _progress(source) as (progress, bar):
        for line in read_lines(source, now=utcnow()):
            if line.event is None:
                _refuse(line, tally)
            else:
                waiting.append(line.event)
            if len(waiting) >= batch_size:
                _send(emitter, waiting, tally)
            progress.update(bar, advance=line.size_bytes, events=tally.emitted)
        _send(emitter, waiting, tally)
        progress.update(bar, events=tally.emitted)


def _send(emitter: Emitter, waiting: list[UsageEvent], tally: Tally) -> None:
    if not waiting:
        return
    with emitter.batch() as batch:
        for event in waiting:
            batch.add(event)
    tally.emitted += len(waiting)
    waiting.clear()


def _refuse(line: Line, tally: Tally) -> None:
    tally.refused += 1
    if len(tally.refusals) < MOST_REFUSALS_SHOWN:
        tally.refusals.append({"line": line.number, "reason": line.reason, "detail": line.detail})
        _output.say(f"line {line.number}: {line.reason}: {line.detail}")


@contextmanager
def _progress(source: BinaryIO) -> Iterator[tuple[Progress, TaskID]]:
    """A bar on stderr where somebody looks at it; by bytes, for nobody has counted the lines."""
    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.fields[events]:,} events"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress, progress.add_task("emit", total=_size_of(source), events=0)


def _size_of(source: BinaryIO) -> int | None:
    try:
        return os.fstat(source.fileno()).st_size or None
    except (OSError, ValueError):
        return None


def _report(tally: Tally, as_json: bool) -> None:
    if as_json:
        document = {"emitted": tally.emitted, "refused": tally.refused, "refusals": tally.refusals}
        _output.write_json(document | ({"event_id": tally.event_id} if tally.event_id else {}))
    elif tally.event_id:
        click.echo(tally.event_id)
    else:
        click.echo(f"emitted {tally.emitted:,}, refused {tally.refused:,}")
