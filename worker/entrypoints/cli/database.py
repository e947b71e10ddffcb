"""`usage-worker db`: the two databases themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from worker import db, log
from worker.database_url import Database
from worker.db import _adopt, _backup, _health, _migrations, _provision
from worker.entrypoints import _exits
from worker.entrypoints._clock import utcnow
from worker.entrypoints.cli import _output
from worker.settings import DatabaseSettings, load_database_settings

DATABASES = {"platform": (Database.PLATFORM,), "user-data": (Database.USER_DATA,), "both": tuple(Database)}

which = click.option(
    "--database", type=click.Choice(list(DATABASES)), default="both", show_default=True, help="Which one."
)


@click.group()
def command() -> None:
    """Create, migrate, check, back up and adopt the two databases.

    Everything that writes here uses the owner's login (PLATFORM_DATABASE_OWNER_URL and
    USER_DATA_DATABASE_OWNER_URL). No command asks for REDIS_URL.
    """


def _settings() -> DatabaseSettings:
    settings = load_database_settings()
    db.configure(settings)
    db.set_application_role("cli")
    log.configure_logging(environment=settings.environment, level="WARNING")
    return settings


@command.command()
@_output.json_option
def init(as_json: bool) -> None:
    """Make group roles, memberships, grants and schema of both databases; run again, it changes nothing.

    Where the owner's login may not create roles, it lists the statements that an administrator has to run.
    """
    report = _provision.provision(_settings())
    if as_json:
        _output.write_json(report)
        return
    for statement in report.done:
        click.echo(f"done: {_output.printable(statement)}")
    for note in report.notes:
        _output.say(f"note: {note}")
    for database, revision in report.revisions.items():
        click.echo(f"{database.value}: at revision {revision}")


@command.command()
@_output.json_option
def check(as_json: bool) -> int:
    """Check both databases: connectivity, latency, pool mode, migration head; one line each.

    Exit code 1: a database is not at head. 2: a setting is wrong. 3: a database does not answer.
    """
    settings = _settings()
    document: dict[str, dict[str, object]] = {}
    code = _exits.GOOD
    for name, way in db.test_connections().items():
        target = settings.database(Database(name))
        answer: dict[str, object] = {**way, "current_revision": None, "head_revision": None, "at_head": None}
        if way["status"] == "connected":
            state = _migrations.heads(target)
            answer |= {
                "current_revision": state.current,
                "head_revision": state.head,
                "at_head": state.at_head,
            }
            if not state.at_head:
                code = max(code, _exits.FINDINGS)
                step = "init" if state.current is None else "migrate"
                _output.say(f"{target.url.variable}: not at head; next step: usage-worker db {step}")
        code = max(code, _code_of(way), *([_code_of(way["direct"])] if way["direct"] else []))
        document[name] = answer
    if as_json:
        _output.write_json(document)
    else:
        columns = ("status", "latency_ms", "pool_mode", "current_revision", "head_revision", "url")
        _output.write_table(
            "Databases",
            ("database", *columns),
            [(name, *(answer[column] for column in columns)) for name, answer in document.items()],
        )
    return code


def _code_of(way: _health.Way) -> int:
    if way["status"] == "connected":
        return _exits.GOOD
    _exits.complain(way["error"])
    return _exits.WRONG_USAGE if way["status"] == "misconfigured" else _exits.UNREACHABLE


@command.command()
@_output.json_option
def info(as_json: bool) -> None:
    """Describe both databases: server, login, size, revisions, this process's pool."""
    _settings()
    found = db.get_database_info()
    if as_json:
        _output.write_json(found)
        return
    for name, facts in found.items():
        rows = [(what, str(value)) for what, value in _flat(facts).items()]
        _output.write_table(name, ("what", "is"), rows)


def _flat(facts: Mapping[str, object]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": item for inner, item in value.items()}
        else:
            flat[name] = value
    return flat


@command.command()
@which
@click.option("--revision", default="head", show_default=True)
def migrate(database: str, revision: str) -> None:
    """Bring the schema up to a revision, under one lock: two migrators at once do it once."""
    settings = _settings()
    for each in DATABASES[database]:
        _migrations.migrate(settings.database(each), revision)
        click.echo(f"{each.value}: at revision {_migrations.heads(settings.database(each)).current}")


@command.command()
@click.argument("revision")
@click.option(
    "--database", type=click.Choice(["platform", "user-data"]), required=True, help="One at a time, by name."
)
@click.confirmation_option(prompt="A downgrade drops what later revisions made, with its rows. Go on?")
def downgrade(revision: str, database: str) -> None:
    """Take one database back to REVISION; `base` drops every table of ours, but no role."""
    settings = _settings()
    target = settings.database(DATABASES[database][0])
    _migrations.downgrade(target, revision)
    click.echo(f"{target.database.value}: at revision {_migrations.heads(target).current or '(none)'}")


@command.command()
@click.argument("directory", type=click.Path(path_type=Path))
@_output.json_option
def backup(directory: Path, as_json: bool) -> None:
    """Dump both databases into a new DIRECTORY, with a manifest of their row counts. Needs pg_dump."""
    manifest = _backup.backup(_settings(), directory, now=utcnow())
    _show(manifest, as_json)


@command.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--force", is_flag=True, help="Also where tables hold rows already: they are replaced.")
@_output.json_option
def restore(directory: Path, force: bool, as_json: bool) -> None:
    """Bring both databases to the state of a backup and compare the row counts. Needs pg_restore."""
    manifest = _backup.restore(_settings(), directory, force=force)
    _show(manifest, as_json)


def _show(manifest: _backup.Manifest, as_json: bool) -> None:
    if as_json:
        _output.write_json(manifest)
        return
    for each in manifest.databases:
        _output.write_table(
            f"{each.database.value}: {each.file}, revision {each.revision}",
            ("table", "rows"),
            list(each.rows.items()),
        )


@command.command()
@which
@click.option("--dry-run", is_flag=True, help="Compare only; stamp nothing.")
@_output.json_option
def adopt(database: str, dry_run: bool, as_json: bool) -> int:
    """Take over existing databases: compare them with the baseline, stamp a database where nothing differs.

    Exit code 1: there are differences; they are listed, and nothing was changed.
    """
    _settings()
    found = [_adopt.adopt(each, dry_run=dry_run) for each in DATABASES[database]]
    if as_json:
        _output.write_json(found)
    else:
        for each in found:
            _output.write_table(
                f"{each.database.value}: differences", ("difference",), [(line,) for line in each.differences]
            )
            if each.stamped:
                click.echo(f"{each.database.value}: adopted at revision {each.stamped}")
    return _exits.FINDINGS if any(each.differences for each in found) else _exits.GOOD
