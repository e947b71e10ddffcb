"""`usage-worker outbox`: the relay of an app's outbox, and what waits there."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import psycopg

from producers import EmitterConfig, InvalidConfiguration, StreamUnavailable, outbox
from worker import log
from worker.database_url import DatabaseURL
from worker.db._failures import connection_failure
from worker.entrypoints import _exits
from worker.entrypoints.cli import _output
from worker.errors import ConfigurationError, ServiceUnreachable

VARIABLE = "USAGE_OUTBOX_DATABASE_URL"
EXAMPLE = "postgresql://my_relay:PASSWORD@localhost:5432/my_app"

url_option = click.option(
    "--url",
    envvar=VARIABLE,
    show_envvar=True,
    help="The app's database; better in the environment, since others can see a command line.",
)
table_option = click.option("--table", default="usage_outbox", show_default=True, help="Or schema.table.")


@click.group()
def command() -> None:
    """Send what an app has written into its outbox (docs/outbox.md), and show what waits there."""


@command.command()
@url_option
@table_option
@click.option("--once", is_flag=True, help="Send what waits now, then end.")
@click.option("--batch-size", type=click.IntRange(1, 10_000), default=500, show_default=True)
@_output.json_option
def relay(url: str | None, table: str, once: bool, batch_size: int, as_json: bool) -> None:
    """Send committed events of an outbox to the stream, until SIGTERM or Ctrl-C.

    Each is deleted once the stream has acknowledged it; a relay that is killed before that sends it again
    under the same id, which counts once. Any number of relays may run. Needs REDIS_URL and the app's
    database. While one of them is away it waits, and tries again; with --once, exit code 3.
    """
    log.configure_logging(environment="outbox", level="WARNING")
    found = _database(url)
    try:
        config = EmitterConfig.from_env()
    except InvalidConfiguration as error:
        raise ConfigurationError("\n".join(error.problems)) from error
    settled = 0

    def count(rows: int) -> None:
        nonlocal settled
        settled += rows

    with (
        _explained(found, table),
        outbox.Relay(_connector(found), config, table=_table(table), batch_size=batch_size) as carrier,
        _stopping() as stop,
    ):
        if once:
            while not stop.is_set() and (rows := carrier.run_once()):
                count(rows)
        else:
            carrier.run(stop, on_round=count, errors=(psycopg.Error, ServiceUnreachable))
    if as_json:
        _output.write_json({"settled": settled})
    else:
        click.echo(f"settled {settled:,}")


@command.command()
@url_option
@table_option
@_output.json_option
def status(url: str | None, table: str, as_json: bool) -> int:
    """Show how many events wait, for how long, and which rows were refused; exit code 1 for the latter."""
    found = _database(url)
    with _explained(found, table), _connector(found)() as connection:
        seen = outbox.status(connection, _table(table))
    if as_json:
        _output.write_json(
            {
                "waiting": seen.waiting,
                "oldest_seconds": seen.oldest_seconds,
                "refused": seen.refused,
                "refusals": seen.refusals,
            }
        )
    else:
        _output.write_table(
            f"Outbox {table}",
            ("waiting", "oldest, seconds", "refused", "reasons"),
            [
                (
                    seen.waiting,
                    None if seen.oldest_seconds is None else round(seen.oldest_seconds, 1),
                    seen.refused,
                    ", ".join(f"{reason} {count}" for reason, count in seen.refusals.items()) or None,
                )
            ],
        )
    return _exits.FINDINGS if seen.refused else _exits.GOOD


@command.command()
@table_option
def ddl(table: str) -> None:
    """Print the statement that creates the table, for the app's own migrations or for psql."""
    click.echo(f"{outbox.ddl(_table(table)).rstrip()};")


def _database(text: str | None) -> DatabaseURL:
    if text is None or not text.strip():
        raise ConfigurationError(
            f"{VARIABLE}: missing; it names the app's database.\n  Example: {VARIABLE}={EXAMPLE}"
        )
    return DatabaseURL.parse(text, variable=VARIABLE, example=EXAMPLE)


def _table(name: str) -> str:
    try:
        outbox.ddl(name)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--table") from None
    return name


def _connector(url: DatabaseURL) -> Callable[[], psycopg.Connection[Any]]:
    def connect() -> psycopg.Connection[Any]:
        try:
            return psycopg.connect(
                url.libpq,
                # Works behind a transaction pooler too.
                prepare_threshold=None,
                application_name="usage-worker:outbox",
                connect_timeout=int(url.query("connect_timeout") or 10),
            )
        except psycopg.Error as error:
            raise connection_failure(error, url) from error

    return connect


@contextmanager
def _explained(url: DatabaseURL, table: str) -> Iterator[None]:
    """What the stream or the database says becomes one message with a next step."""
    try:
        yield
    except StreamUnavailable as error:
        raise ServiceUnreachable(
            "REDIS_URL", str(error), "start Redis or Valkey there, or correct REDIS_URL; the events stay."
        ) from error
    except psycopg.errors.UndefinedTable as error:
        raise ConfigurationError(
            f"{VARIABLE}: there is no table {table} in {url.redacted}\n"
            f"Next step: create it with `usage-worker outbox ddl`, or name another one with --table."
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"{VARIABLE}: the login may not use {table} in {url.redacted}\n"
            f"Next step: GRANT SELECT, DELETE, UPDATE (refused) ON {table} TO {url.username};"
        ) from error
    except psycopg.OperationalError as error:
        raise connection_failure(error, url) from error


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set: the round in hand is finished."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
