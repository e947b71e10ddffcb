"""`usage-worker dead-letters`: events that were put aside, and what to do with them."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, BinaryIO

import click

from worker import db
from worker.entrypoints import _exits, draining, pricing
from worker.entrypoints._clock import utcnow
from worker.entrypoints.cli import _output
from worker.entrypoints.cli._options import MOMENT, settings
from worker.ingest import dead_letters as letters
from worker.ingest import queries as ingest
from worker.ingest.queries import DeadLetter, LetterState

STATES = ("open", "replayed", "discarded", "all")
COLUMNS = ("id", "stored_at", "reason", "detail", "stream", "stream_id", "entry_index", "user_id", "state")
MOST_SHOWN = 4000


@click.group()
def command() -> None:
    """Show, replay and discard events that were put aside.

    Each keeps its bytes as they came and the reason (docs/events.md lists the reasons).
    """


@command.command("list")
@click.option("--reason", help="Only this reason code, as in unknown_user.")
@click.option("--since", type=MOMENT, help="Stored at or after.")
@click.option("--until", type=MOMENT, help="Stored before.")
@click.option("--state", type=click.Choice(STATES), default="open", show_default=True)
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@_output.json_option
def list_command(
    reason: str | None, since: datetime | None, until: datetime | None, state: str, limit: int, as_json: bool
) -> None:
    """List dead letters, the newest first."""
    settings()
    wanted: LetterState | None = None
    match state:
        case "open" | "replayed" | "discarded":
            wanted = state
    with db.platform_session() as session:
        found = ingest.dead_letters(
            session, reason=reason, since=since, until=until, state=wanted, limit=limit
        )
    if as_json:
        _output.write_json([_facts(letter) for letter in found])
        return
    rows = [[getattr(letter, column) for column in COLUMNS] for letter in found]
    _output.write_table(f"Dead letters, {state}", COLUMNS, rows)


@command.command()
@click.argument("letter_id", type=click.UUID)
@click.option(
    "--raw", "raw_file", type=click.File("wb"), help="Write the bytes as received here; - is stdout."
)
@_output.json_option
def show(letter_id: uuid.UUID, raw_file: BinaryIO | None, as_json: bool) -> None:
    """Show one dead letter with its bytes, escaped: nothing in them reaches the terminal as a control."""
    settings()
    with db.platform_session() as session:
        letter = ingest.dead_letter(session, letter_id)
    if letter is None:
        raise click.UsageError(f"there is no dead letter {letter_id}")
    if raw_file is not None:
        raw_file.write(letter.raw or b"")
        return
    if as_json:
        _output.write_json(_facts(letter) | _contents(letter))
        return
    rows: list[tuple[str, object]] = list((_facts(letter) | _contents(letter, MOST_SHOWN)).items())
    _output.write_table(f"Dead letter {letter_id}", ("what", "is"), rows)


@command.command()
@click.argument("letter_ids", type=click.UUID, nargs=-1)
@click.option("--reason", help="All open ones with this reason code.")
@click.option("--since", type=MOMENT, help="Stored at or after.")
@click.option("--until", type=MOMENT, help="Stored before.")
@click.option(
    "--with", "corrected", type=click.File("rb"), help="Corrected bytes for one id; the original stays."
)
@_output.json_option
def replay(
    letter_ids: tuple[uuid.UUID, ...],
    reason: str | None,
    since: datetime | None,
    until: datetime | None,
    corrected: BinaryIO | None,
    as_json: bool,
) -> int:
    """Put open dead letters through the same path again, after a fix. Doing it twice adds nothing.

    Exit code 1: some were refused again; they stay, under their new reason.
    """
    bound = settings()
    selection = _selection(letter_ids, reason, since, until)
    data = corrected.read() if corrected is not None else None
    if data is not None and len(letter_ids) != 1:
        raise click.UsageError("--with goes with exactly one id")
    total = {"tried": 0, "accepted": 0, "duplicates": 0, "refused": 0}
    after: tuple[datetime, uuid.UUID] | None = None
    prices = pricing.load(bound)
    while True:
        with db.platform_session() as session:
            step = letters.replay(
                session,
                selection=selection,
                limits=draining.age_limits(bound),
                prices=prices,
                now=utcnow(),
                corrected=data,
                after=after,
            )
        for name in total:
            total[name] += getattr(step, name)
        after = step.after
        if after is None:
            break
    _answer(total, as_json)
    return _exits.FINDINGS if total["refused"] else _exits.GOOD


@command.command()
@click.argument("letter_ids", type=click.UUID, nargs=-1)
@click.option("--reason", help="All open ones with this reason code.")
@click.option("--since", type=MOMENT, help="Stored at or after.")
@click.option("--until", type=MOMENT, help="Stored before.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_output.json_option
def discard(
    letter_ids: tuple[uuid.UUID, ...],
    reason: str | None,
    since: datetime | None,
    until: datetime | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Give up open dead letters; their bytes stay, they are only no longer open."""
    selection = _selection(letter_ids, reason, since, until)
    settings()
    if not yes:
        click.confirm("Discard them?", abort=True, err=True)
    with db.platform_session() as session:
        count = letters.discard(session, selection=selection, now=utcnow())
    _answer({"discarded": count}, as_json)


def _selection(
    ids: tuple[uuid.UUID, ...], reason: str | None, since: datetime | None, until: datetime | None
) -> letters.Selection:
    if not (ids or reason or since or until):
        raise click.UsageError("say which: ids, --reason, --since or --until")
    return letters.Selection(ids=ids or None, reason=reason, since=since, until=until)


def _facts(letter: DeadLetter) -> dict[str, Any]:
    names = (*COLUMNS, "shard", "event_id", "clerk_id", "target_id", "received_at", "raw_sha256")
    more = ("replayed_at", "discarded_at", "replay_count")
    return {name: getattr(letter, name) for name in (*names, *more)}


def _contents(letter: DeadLetter, most: int | None = None) -> dict[str, Any]:
    """The bytes twice: as hex, which is exact, and as text for the eye; at most the first `most` of them."""
    found: dict[str, Any] = {}
    for name, data in (("raw", letter.raw), ("corrected_raw", letter.corrected_raw)):
        found[f"{name}_hex"] = None if data is None else data[:most].hex()
        found[f"{name}_text"] = (
            None
            if data is None
            else _output.printable(data[:most].decode("utf-8", errors="backslashreplace"))
        )
        found[f"{name}_bytes"] = None if data is None else len(data)
    return found


def _answer(counts: dict[str, int], as_json: bool) -> None:
    if as_json:
        _output.write_json(counts)
    else:
        click.echo(", ".join(f"{name} {count:,}" for name, count in counts.items()))
