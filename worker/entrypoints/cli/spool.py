"""`usage-worker spool`: what emitters have kept on the disk, and its way to the stream."""

from __future__ import annotations

from pathlib import Path

import click

from producers import EmitterConfig, InvalidConfiguration, StreamUnavailable
from producers import _spool as spool
from producers import _spool_flush as flushing
from worker.entrypoints.cli import _output
from worker.errors import ConfigurationError, ServiceUnreachable

COLUMNS = ("name", "events", "bytes", "damaged_bytes", "age_seconds", "held")

directory_option = click.option(
    "--dir",
    "directory",
    envvar="USAGE_SPOOL_DIR",
    show_envvar=True,
    type=click.Path(path_type=Path),
    help="The spool's directory.",
)


@click.group()
def command() -> None:
    """Show and send usage events that emitters have kept on the disk (docs/spool.md)."""


@command.command()
@directory_option
@_output.json_option
def status(directory: Path | None, as_json: bool) -> None:
    """Show the segments of a spool: events that wait, their age, and whether a process holds them.

    A held segment is sent by the process that holds it. Files under `quarantined` hold bytes that were no
    whole event: events of a damaged disk, or a write that a power cut ended.
    """
    found = _found(directory)
    try:
        state = spool.state_of(found)
    except OSError as error:
        raise _unreadable(found, error) from error
    document = {
        "directory": str(found),
        "segments": [one._asdict() for one in state.segments],
        "events": sum(one.events for one in state.segments),
        "bytes": sum(one.bytes for one in state.segments),
        "oldest_seconds": max((round(one.age_seconds, 1) for one in state.segments), default=None),
        "quarantined": {"files": state.quarantined_files, "bytes": state.quarantined_bytes},
    }
    if as_json:
        _output.write_json(document)
        return
    _output.write_table(
        "segments",
        COLUMNS,
        [
            (one.name, one.events, one.bytes, one.damaged_bytes, round(one.age_seconds), one.held)
            for one in state.segments
        ],
    )
    click.echo(f"{document['events']:,} events wait, {document['bytes']:,} bytes")
    if state.quarantined_files:
        _output.say(
            f"{state.quarantined_files} files hold {state.quarantined_bytes:,} bytes that were no whole "
            f"event: {found}/*.bad"
        )


@command.command()
@directory_option
@_output.json_option
def flush(directory: Path | None, as_json: bool) -> None:
    """Send every segment that no living process holds, and delete it once the stream has acknowledged it.

    Needs REDIS_URL, and the same USAGE_STREAM and USAGE_STREAM_SHARDS as the apps. Safe beside emitters and
    beside another flush, and safe to repeat: each event keeps its id. Exit code 3 when the stream does not
    take them.
    """
    found = _found(directory)
    try:
        config = EmitterConfig.from_env()
    except InvalidConfiguration as error:
        raise ConfigurationError("\n".join(error.problems)) from error
    try:
        done = flushing.flush(config, found)
    except StreamUnavailable as error:
        raise ServiceUnreachable(
            "REDIS_URL", str(error), "nothing is lost; flush again when the stream takes events."
        ) from error
    except OSError as error:
        raise _unreadable(found, error) from error
    if as_json:
        _output.write_json(done._asdict())
        return
    click.echo(f"{done.events:,} events of {done.segments:,} segments sent")
    if done.held:
        _output.say(f"{done.held:,} segments are held by living processes, which send them themselves")
    if done.damaged_bytes:
        _output.say(f"{done.damaged_bytes:,} bytes were no whole event: see {found}/*.bad")


def _found(directory: Path | None) -> Path:
    if directory is None or not str(directory).strip():
        raise ConfigurationError(
            "USAGE_SPOOL_DIR is not set; name the directory of the spool there or with --dir, as in "
            "/var/spool/usage-myapp"
        )
    if not directory.is_dir():
        raise ConfigurationError(f"USAGE_SPOOL_DIR is {str(directory)!r}, which is no directory")
    return directory


def _unreadable(directory: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"USAGE_SPOOL_DIR is {str(directory)!r}: {error.strerror or error}; run this as the user of the apps"
    )
