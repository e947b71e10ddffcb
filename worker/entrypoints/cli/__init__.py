"""The command line: a small file per group, imported when one of its commands is used."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib import metadata

import click

# What `usage-worker --help` shows, so that it need not import SQLAlchemy and the rest to say it.
COMMANDS = {
    "audit": ("audit", "Audit row-level security and connection pools."),
    "db": ("database", "Create, migrate, check, back up and adopt the two databases."),
    "dead-letters": ("dead_letters", "Show, replay and discard events that were put aside."),
    "dev": ("dev", "Run everything on embedded servers, with realistic traffic."),
    "emit": ("emit", "Send usage events to the stream, one or a file of them."),
    "ingest": ("ingest", "Pause and resume a shard, and trim the streams."),
    "outbox": ("outbox", "Send what an app has written into its outbox, and show what waits."),
    "prices": ("prices", "Show and add prices, and set costs anew when a price came later."),
    "recover": ("recover", "Process retained entries again, after a loss in the database."),
    "spool": ("spool", "Show and send usage events that emitters have kept on the disk."),
    "status": ("status", "Show queue depth, lag, leases, counts, dead letters and jobs."),
    "subscriptions": ("subscriptions", "Reconcile subscriptions."),
    "usage": ("usage", "Show what a user used, from the roll-ups."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module when that command is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """This function will name the commands."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """This function will import and return the command, or return None for a name that is none."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"{__name__}.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """This function will list the commands with their lines from the table above."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in sorted(COMMANDS)])


@click.group(
    name="usage-worker",
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(metadata.version("usage-worker"), prog_name="usage-worker")
def command() -> None:
    """Turn usage events into exactly one row each, and look after what follows.

    Settings come from the environment (.env.example lists them all): PLATFORM_DATABASE_URL,
    USER_DATA_DATABASE_URL and REDIS_URL are required, and each command asks only for those that it needs.

    \b
    First steps:
      usage-worker dev                        everything on embedded servers, nothing to set up
      usage-worker db init                    schemas, roles and grants on your own servers
      celery -A worker.app worker -B          the worker, with its schedule
      usage-worker emit --user ID --feature blog_writer --input-tokens 812 --output-tokens 455
      usage-worker status

    \b
    Exit codes: 0 good, 1 findings or a difference, 2 wrong usage or configuration,
    3 a needed service is unreachable.
    """


def run(arguments: Sequence[str]) -> int:
    """This function will run the command line and return the exit code; errors of our kinds pass through."""
    try:
        result = command.main(args=list(arguments), prog_name="usage-worker", standalone_mode=False)
    except click.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return result if isinstance(result, int) else 0
