"""`usage-worker emit`: usage events to the stream, through the emitter that apps use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import click

from producers import Emitter, InvalidConfiguration, InvalidEvent, StreamUnavailable
from worker.entrypoints import _exits
from worker.entrypoints._clock import utcnow
from worker.entrypoints.cli import _output
from worker.entrypoints.cli._emit_sending import Sending, Tally, interrupted
from worker.entrypoints.cli._emit_state import HashingSource, StateFile
from worker.entrypoints.cli._events_file import make_event, read_lines
from worker.entrypoints.cli._exports import FORMATS, Owner, read_export
from worker.errors import ConfigurationError, ServiceUnreachable

# What may stand beside an export: whose it is, what for, and when, where the export does not say.
_OF_EXPORTS = {"user_id", "clerk_id", "feature", "occurred_at"}
_USERS_EXAMPLE = '{"proj_abc": "0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11", "wrkspc_x": "user_2abc"}'


@click.command()
@click.option("--file", "source", type=click.File("rb"), help="JSON lines, one event each; - is stdin.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["jsonl", *FORMATS]),
    default="jsonl",
    show_default=True,
    help="What --file is: events, or a provider's usage export (docs/emit.md).",
)
@click.option(
    "--state",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With events: remember here how far it came, and go on there. Made where it is not.",
)
@click.option(
    "--user-map",
    type=click.File("rb"),
    help="With an export: a JSON object, from its projects, keys, workspaces … to users.",
)
@click.option("--source-name", help="With an export: the provider's account, where you have several.")
@click.option("--dry-run", is_flag=True, help="Judge everything, send nothing.")
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
def command(
    source: BinaryIO | None,
    kind: str,
    state: Path | None,
    user_map: BinaryIO | None,
    source_name: str | None,
    dry_run: bool,
    batch_size: int,
    as_json: bool,
    **usage: Any,
) -> int:
    """Send one usage event, or a file of them, and wait until the server has acknowledged it.

    \b
      usage-worker emit --user 0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11 --feature blog_writer \\
          --input-tokens 812 --output-tokens 455 --cost 0.000395
      usage-worker emit --file events.jsonl --state events.state
      usage-worker emit --file usage.json --format openai --feature llm --user-map users.json --dry-run

    A line of a file has the fields of the wire format (docs/events.md); event_id and occurred_at are filled
    in where they are absent. Lines that carry event_id or idempotency_key may be sent again without harm, and
    so may all lines with --state, and all exports. A bad line is reported with its number and reason, the
    others are sent, and the exit code is 1. Needs REDIS_URL only; exit code 3 when the stream does not
    acknowledge, 130 after Ctrl-C.
    """
    given = {name: value for name, value in usage.items() if value is not None}
    is_export = kind != "jsonl"
    _check_usage(
        given,
        has_file=source is not None,
        is_export=is_export,
        stray={"--state": state is not None and (source is None or is_export or dry_run)}
        | {"--user-map": user_map is not None and not is_export}
        | {"--source-name": source_name is not None and not is_export},
    )
    tally = Tally(dry_run=dry_run)
    emitter = None if dry_run else _emitter()
    try:
        if source is None:
            _send_one(emitter, given, tally)
        elif is_export:
            owner = _owner(given, user_map, source_name)
            sending = Sending(emitter, tally, batch_size)
            sending.run(read_export(source, format=kind, owner=owner, now=utcnow()), source)
        else:
            _send_lines(Sending(emitter, tally, batch_size), source, state)
    except StreamUnavailable as error:
        raise ServiceUnreachable(
            "REDIS_URL",
            f"{error} (acknowledged before that: {tally.emitted:,})",
            "start Redis or Valkey there, or correct REDIS_URL; "
            + (
                "then run the same command again: what is sent already counts once."
                if is_export or state is not None
                else "events that carry an event_id or an idempotency_key may be sent again."
            ),
        ) from error
    except KeyboardInterrupt:
        _output.say(interrupted(tally, may_repeat=is_export or state is not None))
        raise
    finally:
        if emitter is not None:
            emitter.close()
    tally.report(as_json=as_json)
    return _exits.FINDINGS if tally.refused else _exits.GOOD


def _check_usage(
    given: Mapping[str, Any], *, has_file: bool, is_export: bool, stray: Mapping[str, bool]
) -> None:
    if is_export:
        if not has_file:
            raise click.UsageError("--format goes with --file")
        others = sorted(given.keys() - _OF_EXPORTS)
        if others:
            raise click.UsageError(f"an export says {', '.join(others)} itself")
        if "feature" not in given:
            raise click.UsageError("an export does not say what it was used for: give --feature")
    elif has_file == bool(given):
        raise click.UsageError("give --file, or one event by --user, --feature and its tokens")
    for option, is_stray in stray.items():
        if is_stray:
            goes_with = "--file of events, and not with --dry-run" if option == "--state" else "an export"
            raise click.UsageError(f"{option} goes with {goes_with}")


def _emitter() -> Emitter:
    try:
        return Emitter.from_env()
    except InvalidConfiguration as error:
        raise ConfigurationError("\n".join(error.problems)) from error


def _send_one(emitter: Emitter | None, given: dict[str, Any], tally: Tally) -> None:
    try:
        if "metadata" in given:
            given["metadata"] = json.loads(given["metadata"])
        event = make_event({"occurred_at": utcnow(), **given})
    except json.JSONDecodeError as error:
        raise click.BadParameter(f"no JSON: {error}", param_hint="--metadata") from None
    except InvalidEvent as error:
        raise click.UsageError(f"{error.reason}: {error.field}: {error.detail}") from None
    if emitter is not None:
        emitter.send(event)
    tally.event_id = str(event.event_id)
    tally.add([event])


def _send_lines(sending: Sending, source: BinaryIO, path: Path | None) -> None:
    if path is None:
        sending.run(read_lines(source, now=utcnow()), source)
        return
    file = StateFile(path)
    hashing = HashingSource(source)
    hashing.skip(file.state, str(path))
    sending.resume(file, hashing)
    lines = read_lines(
        hashing,
        now=utcnow(),
        run_id=file.state.run_id,
        start=file.state.offset,
        number=file.state.lines,
    )
    sending.run(lines, source)


def _owner(given: Mapping[str, Any], user_map: BinaryIO | None, source_name: str | None) -> Owner:
    if "user_id" in given and "clerk_id" in given:
        raise click.UsageError("give --user or --clerk, not both")
    users: object = {}
    if user_map is not None:
        try:
            users = json.loads(user_map.read())
        except ValueError as error:
            raise click.BadParameter(f"no JSON: {error}", param_hint="--user-map") from None
    if not isinstance(users, dict) or not all(isinstance(user, str) and user for user in users.values()):
        raise click.BadParameter(f"expected an object as in {_USERS_EXAMPLE}", param_hint="--user-map")
    return Owner(
        feature=given["feature"],
        users=users,
        everybody=given.get("user_id") or given.get("clerk_id"),
        occurred_at=given.get("occurred_at"),
        source=source_name,
    )
