"""`usage-worker ingest`: the switch of each shard, and the retention by hand."""

from __future__ import annotations

import click

from worker.entrypoints import _exits, retaining
from worker.entrypoints._clock import utcnow
from worker.entrypoints.cli import _output
from worker.entrypoints.cli._options import settings
from worker.ingest import retention
from worker.settings import Settings

shard_option = click.option("--shard", type=click.IntRange(0), help="Only this one; default: all.")


@click.group()
def command() -> None:
    """Pause and resume the ingest of a shard, and trim the streams."""


@command.command()
@shard_option
@click.option("--reason", help="Why; `usage-worker status` shows it.")
@_output.json_option
def pause(shard: int | None, reason: str | None, as_json: bool) -> None:
    """Stop draining; events wait in the stream, and nothing is lost.

    Once this returns, nothing more is committed. A shard that is paused already keeps its reason.
    """
    bound = settings()
    wanted = chosen_shards(bound, shard)
    changed = retaining.pause(wanted, reason=reason)
    _answer("paused", changed, wanted, as_json)


@command.command()
@shard_option
@_output.json_option
def resume(shard: int | None, as_json: bool) -> None:
    """Go on draining, also after a flood of refused events has paused a shard.

    What was refused meanwhile waits under `usage-worker dead-letters`.
    """
    bound = settings()
    wanted = chosen_shards(bound, shard)
    changed = retaining.resume(wanted)
    _answer("resumed", changed, wanted, as_json)


@command.command()
@click.option("--dry-run", is_flag=True, help="Show up to where entries may go; delete nothing.")
@_output.json_option
def trim(dry_run: bool, as_json: bool) -> int:
    """Delete what is older than USAGE_STREAM_RETENTION_HOURS, and more above USAGE_STREAM_MAX_MB.

    The worker does the same every minute. Only entries go that are processed, acknowledged and proved by the
    books audit. Exit code 1: the streams take too much memory, and nothing more may be trimmed.
    """
    result = retaining.trim(settings(), now=utcnow(), dry_run=dry_run)
    if as_json:
        _output.write_json(
            {
                "short": result.is_short,
                "trimmed": result.trimmed,
                "memory_bytes": result.memory_bytes,
                "streams": [
                    {**_output.plain(one), "free_up_to": str(one.free_up_to)} for one in result.streams
                ],
            }
        )
    else:
        _output.write_table(
            "May be trimmed" if dry_run else "Trimmed",
            ("stream", "trimmed", "left", "megabytes", "free up to", "held by"),
            [
                (
                    one.stream,
                    one.trimmed,
                    one.length,
                    round(one.memory_bytes / retention.MEGABYTE, 1),
                    str(one.free_up_to),
                    one.held_by,
                )
                for one in result.streams
            ],
        )
        if result.is_short:
            _output.say("The streams take more than USAGE_STREAM_MAX_MB.")
    return _exits.FINDINGS if result.is_short else _exits.GOOD


def chosen_shards(bound: Settings, shard: int | None) -> list[int]:
    """This function will return the one shard that was named, or all; a number that is none is refused."""
    if shard is None:
        return list(range(bound.usage_stream_shards))
    if shard >= bound.usage_stream_shards:
        raise click.UsageError(
            f"there is no shard {shard}: USAGE_STREAM_SHARDS is {bound.usage_stream_shards}, counted from 0"
        )
    return [shard]


def _answer(what: str, changed: list[int], wanted: list[int], as_json: bool) -> None:
    unchanged = [shard for shard in wanted if shard not in changed]
    if as_json:
        _output.write_json({what: changed, "unchanged": unchanged})
        return
    for shard in wanted:
        click.echo(f"shard {shard}: {what}" if shard in changed else f"shard {shard}: as it was")
