"""`usage-worker recover`: retained entries through the same path once more, after a loss in the database."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any

import click

from worker.entrypoints import _exits, retaining
from worker.entrypoints.cli import _output
from worker.entrypoints.cli._options import MOMENT, settings
from worker.entrypoints.cli.ingest import chosen_shards, shard_option
from worker.errors import TransientError
from worker.ingest.effects import ShardPaused
from worker.ingest.recovery import Recovered, ShardBusy, ShardMoved

COLUMNS = ("shard", "entries", "events", "recovered", "duplicates", "refused", "parked", "rebuilt_hours")
# What is no fault of a server, and what to do about it.
NEXT_STEPS: dict[type[TransientError], str] = {
    ShardPaused: "the shard is paused: usage-worker ingest resume, then recover again",
    ShardBusy: "another recovery has the shard: wait until it ends",
    ShardMoved: "somebody took the shard meanwhile; what is committed stands: recover again for the rest",
}


@click.command()
@click.option(
    "--since", type=MOMENT, required=True, help="From entries on that the stream's server took then."
)
@shard_option
@click.option("--dry-run", is_flag=True, help="Show what would be recovered; write nothing.")
@click.option(
    "--wait",
    type=click.FloatRange(0, 3600),
    default=60.0,
    show_default=True,
    help="Seconds for another recovery.",
)
@_output.json_option
def command(since: datetime, shard: int | None, dry_run: bool, wait: float, as_json: bool) -> int:
    """Process retained entries again, after rows were lost in the database. Doing it twice adds nothing.

    A drain gives the shard up at once and goes on afterwards. `recovered` events are rows again, `refused`
    ones are dead letters, as they were. Entries behind the position are not counted again, and entries above
    it are the drain's: after a restore, it reads from the restored position by itself.

    Exit code 1: a shard could not be recovered, or entries since then are gone from its stream.
    """
    bound = settings()
    results: list[Recovered] = []
    failures: dict[int, str] = {}
    for one in chosen_shards(bound, shard):
        try:
            results += retaining.recover(bound, shards=[one], since=since, dry_run=dry_run, wait_seconds=wait)
        except tuple(NEXT_STEPS) as error:
            failures[one] = NEXT_STEPS[type(error)]
    gaps = [one for one in results if not one.is_complete]
    if as_json:
        _output.write_json(
            {
                "since": since,
                "dry_run": dry_run,
                "shards": [_facts(one) for one in results],
                "failed": failures,
            }
        )
    else:
        _output.write_table(
            "Would be recovered" if dry_run else "Recovered",
            COLUMNS,
            [[getattr(one, name) for name in COLUMNS] for one in results],
        )
    for number, words in failures.items():
        _output.say(f"shard {number}: {words}")
    for gap in gaps:
        first = "nothing is left" if gap.first_entry_at is None else f"the first is of {gap.first_entry_at}"
        _output.say(f"shard {gap.shard}: older entries are gone from the stream, {first}")
    return _exits.FINDINGS if failures or gaps else _exits.GOOD


def _facts(one: Recovered) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(one) if field.name != "hours"]
    return {name: getattr(one, name) for name in names}
