"""`usage-worker dev`: everything on embedded servers."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from worker import log
from worker.dev import run
from worker.entrypoints._clock import utcnow


@click.command()
@click.option(
    "--events",
    type=click.IntRange(min=1),
    help="Emit this many events, as fast as the stream takes them; default: a gentle stream without an end.",
)
@click.option(
    "--exit",
    "exit_when_done",
    is_flag=True,
    help="With --events: wait until all is stored, check the books, and leave (1: they differ).",
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the servers' data in this folder and use it again; default: nothing is kept.",
)
def command(events: int | None, exit_when_done: bool, data_dir: Path | None) -> int:
    """Run everything on embedded servers: PostgreSQL, Valkey, a worker with beat, Flower, and traffic.

    It needs no settings and reads none. Ctrl-C stops all of it; a second Ctrl-C does not wait.
    """
    if exit_when_done and events is None:
        raise click.UsageError("--exit needs --events: a stream without an end is never done")
    log.configure_logging(environment="development", level="WARNING")
    options = run.Options(events=events, exit_when_done=exit_when_done, data_dir=data_dir)
    return run.run(options, clock=utcnow, console=Console(highlight=False))
