"""`usage-worker db backup` and `db restore`: both databases, by pg_dump and pg_restore, with proof.

Row-level security binds the owner too: a dump that does not ask for it is refused, and one that asks holds
only what the policies show. So the rows of every table are counted in the very snapshot that the dump reads,
and once more after a restore.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql

from worker.database_url import Database, DatabaseURL
from worker.db import _admin, _migrations, _programs
from worker.errors import ConfigurationError, UsageWorkerError
from worker.models import policies
from worker.settings import DatabaseSettings, DatabaseTarget

MANIFEST: Final = "manifest.json"
FORMAT_VERSION: Final = 1

# The schema itself belongs to the database's owner, and its rights to `db init`.
_NOT_RESTORED: Final = (" SCHEMA - public ", " ACL - SCHEMA public ", " COMMENT - SCHEMA public ")


_HIDING: Final = """
SELECT relation.relname
FROM pg_class AS relation
WHERE relation.relnamespace = 'public'::regnamespace AND relation.relkind IN ('r', 'p')
  AND row_security_active(relation.oid)
  AND (
      NOT EXISTS (
          SELECT FROM pg_policy AS policy
          WHERE policy.polrelid = relation.oid AND policy.polpermissive AND policy.polcmd IN ('*', 'r')
            AND %s::regrole::oid = ANY (policy.polroles)
            AND pg_get_expr(policy.polqual, policy.polrelid) = 'true'
      )
      OR EXISTS (
          SELECT FROM pg_policy AS policy
          WHERE policy.polrelid = relation.oid AND NOT policy.polpermissive
      )
  )
ORDER BY relation.relname
"""


class RowsDiffer(UsageWorkerError):
    """A restored database does not hold the rows that were backed up."""


class NotEmpty(ConfigurationError):
    """The database that should be restored holds something already."""


@dataclass(frozen=True, slots=True)
class DatabaseBackup:
    """One database of a backup: its file, how far it was migrated, and how many rows each table had."""

    database: Database
    file: str
    sha256: str
    revision: str
    rows: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup folder holds. The databases are dumped one after the other, each in one snapshot."""

    format_version: int
    created_at: str
    databases: tuple[DatabaseBackup, ...]


def backup(settings: DatabaseSettings, directory: Path, *, now: datetime) -> Manifest:
    """This function will dump both databases into a new or empty folder, beside a manifest.

    Raises ConfigurationError when the folder holds something, pg_dump is not found, or a database was never
    migrated; ProgramFailed when a dump fails.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if any(directory.iterdir()):
        raise ConfigurationError(f"{directory} is not empty. Next step: name a new folder for the backup.")
    databases = tuple(_dump(settings.database(database), directory) for database in Database)
    manifest = Manifest(FORMAT_VERSION, now.isoformat(), databases)
    # Written last: a folder without it is no backup.
    (directory / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    return manifest


def restore(settings: DatabaseSettings, directory: Path, *, force: bool = False) -> Manifest:
    """This function will bring both databases to a backup's state, then to this release's revision.

    `usage-worker db init` has to have run. Tables that hold rows are replaced only with `force`; each
    database is restored in one transaction, so a failure leaves it as it was. Raises NotEmpty,
    ConfigurationError (no backup, a damaged file, a newer release's), ProgramFailed and RowsDiffer.
    """
    manifest = read_manifest(directory)
    for each in manifest.databases:
        _check(settings.database(each.database), each, directory, force=force)
    for each in manifest.databases:
        _load(settings.database(each.database), each, directory)
        _migrations.migrate(settings.database(each.database))
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """This function will read what a backup folder says about itself, or raise ConfigurationError."""
    path = directory / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{directory} is no backup: {MANIFEST} cannot be read ({error}).") from error
    if not isinstance(found, dict) or found.get("format_version") != FORMAT_VERSION:
        raise ConfigurationError(f"{path}: this release reads format {FORMAT_VERSION} only.")
    databases = tuple(
        DatabaseBackup(**{**each, "database": Database(each["database"])}) for each in found["databases"]
    )
    return Manifest(FORMAT_VERSION, found["created_at"], databases)


def _dump(target: DatabaseTarget, directory: Path) -> DatabaseBackup:
    path = directory / f"{target.database.value}.dump"
    url = target.migration_url
    with _admin.connect(url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        _become_owner(connection)
        revision = _migrations.current_revision(connection, target.database)
        if revision is None:
            raise ConfigurationError(
                f"{url.variable}: {url.redacted} was never migrated: nothing to back up."
            )
        _refuse_hidden_rows(connection, url)
        rows = _row_counts(connection, target.database)
        snapshot = connection.execute("SELECT pg_export_snapshot()").fetchall()[0][0]
        options = [
            "--format=custom",
            "--enable-row-security",
            "--no-owner",
            "--schema=public",
            f"--role={policies.OWNER}",
            f"--snapshot={snapshot}",
            "--lock-wait-timeout=30s",
            f"--file={path}",
        ]
        with _programs.connection_options(url) as where:
            _programs.run("pg_dump", [*options, *where], server_version=connection.info.server_version)
    path.chmod(0o600)
    return DatabaseBackup(target.database, path.name, _sha256(path), revision, rows)


def _check(target: DatabaseTarget, each: DatabaseBackup, directory: Path, *, force: bool) -> None:
    """This function will refuse what must not be restored, before anything is touched."""
    path = directory / each.file
    if path.parent != directory or not path.is_file() or _sha256(path) != each.sha256:
        raise ConfigurationError(f"{path} is missing or damaged: it is not the file that was backed up.")
    if each.revision > _migrations.head_of(each.database):
        raise ConfigurationError(
            f"{path.name} was made at revision {each.revision}, which this release does not know. "
            "Next step: restore with the release that made it, or with a newer one."
        )
    url = target.migration_url
    with _admin.connect(url) as connection:
        _become_owner(connection)
        unknown = sorted(set(_tables(connection, target.database)) - set(each.rows))
        rows = sum(_row_counts(connection, target.database).values())
    if unknown:
        raise NotEmpty(
            f"{url.variable}: {url.redacted} holds tables that the backup does not know: "
            f"{', '.join(unknown)}. Next step: restore into a database that `usage-worker db init` has just "
            "prepared."
        )
    if rows and not force:
        raise NotEmpty(
            f"{url.variable}: {url.redacted} holds {rows} rows. Next step: restore into an empty database, "
            "or add --force to replace them."
        )


def _load(target: DatabaseTarget, each: DatabaseBackup, directory: Path) -> None:
    url = target.migration_url
    path = directory / each.file
    with _admin.connect(url) as connection:
        version = connection.info.server_version
    with tempfile.TemporaryDirectory(prefix="usage-worker-restore-") as scratch:
        wanted = Path(scratch) / "contents"
        listed = _programs.run("pg_restore", ["--list", str(path)], server_version=version)
        lines = [
            line for line in listed.splitlines() if not any(entry in f"{line} " for entry in _NOT_RESTORED)
        ]
        wanted.write_text("\n".join(lines) + "\n", encoding="utf-8")
        options = [
            "--single-transaction",
            "--exit-on-error",
            "--clean",
            "--if-exists",
            "--enable-row-security",
            "--no-owner",
            f"--role={policies.OWNER}",
            f"--use-list={wanted}",
        ]
        with _programs.connection_options(url) as where:
            _programs.run("pg_restore", [*options, *where, str(path)], server_version=version)
    with _admin.connect(url) as connection:
        _become_owner(connection)
        found = _row_counts(connection, each.database)
    if found != each.rows:
        tables = sorted(table for table in each.rows if found.get(table) != each.rows[table])
        raise RowsDiffer(
            f"{url.redacted} does not hold the rows that were backed up: "
            + ", ".join(f"{table} has {found.get(table)} of {each.rows[table]}" for table in tables)
        )


def _become_owner(connection: psycopg.Connection[Any]) -> None:
    connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(policies.OWNER)))
    # The snapshot has to stay open for as long as the dump takes.
    connection.execute("SET idle_in_transaction_session_timeout TO 0")


def _refuse_hidden_rows(connection: psycopg.Connection[Any], url: DatabaseURL) -> None:
    """This function will refuse where a policy hides rows from usage_owner: dump and count miss them."""
    hidden = [row[0] for row in connection.execute(_HIDING, [policies.OWNER])]
    if hidden:
        raise ConfigurationError(
            f"{url.variable}: {policies.OWNER} does not see every row of {', '.join(hidden)}, so a backup "
            "would silently lack them. Next step: bring the policies back with setup_row_level_security()."
        )


def _tables(connection: psycopg.Connection[Any], database: Database) -> list[str]:
    rows = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') "
        "AND NOT relispartition AND relname <> %s ORDER BY relname",
        [policies.VERSION_TABLES[database]],
    )
    return [row[0] for row in rows]


def _row_counts(connection: psycopg.Connection[Any], database: Database) -> dict[str, int]:
    counts = {}
    for table in _tables(connection, database):
        query = sql.SQL("SELECT count(*) FROM public.{}").format(sql.Identifier(table))
        counts[table] = int(connection.execute(query).fetchall()[0][0])
    return counts


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
