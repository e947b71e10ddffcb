"""The only code that reads a database URL: parse, refuse at the door, write out for every reader."""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import os.path
import re
from collections.abc import Mapping
from typing import Final, Literal
from urllib.parse import quote

from sqlalchemy.engine import URL

from worker._database_url_text import Refused, create, parse, shown
from worker.errors import ConfigurationError

_TRANSACTION_POOLER_PORT: Final = 6543


class Database(enum.StrEnum):
    """The two databases of the product."""

    PLATFORM = "platform"
    USER_DATA = "user_data"

    @property
    def prefix(self) -> str:
        """This property will be what the database's variables begin with, `PLATFORM` or `USER_DATA`."""
        return self.name

    @property
    def example(self) -> str:
        """This property will be a URL that works for this database once its password is filled in."""
        return f"postgresql://alwrity_app:PASSWORD@localhost:5432/alwrity_{self.value}"


class PoolMode(enum.StrEnum):
    """Who keeps a server connection, and for how long; declared by the operator, never guessed."""

    SESSION = "session"
    TRANSACTION = "transaction"


@dataclasses.dataclass(frozen=True, repr=False)
class DatabaseURL:
    """One PostgreSQL database and the login for it. Neither `repr` nor `redacted` shows the password."""

    sqlalchemy: URL
    variable: str = dataclasses.field(default="the URL", compare=False)

    @classmethod
    def parse(cls, text: str, *, variable: str, example: str = Database.PLATFORM.example) -> DatabaseURL:
        """This function will read a URL, or raise ConfigurationError that names `variable` and an example."""
        try:
            return cls(parse(text.strip()), variable)
        except Refused as refused:
            raise ConfigurationError(
                f"{variable}: {refused}.\n  Found:   {shown(text)}\n  Example: {variable}={example}"
            ) from None

    @property
    def host(self) -> str:
        """This property will be the host name, the address, or the directory of the socket."""
        return self.sqlalchemy.host or self.query("host") or ""

    @property
    def port(self) -> int:
        """This property will be the port, PostgreSQL's 5432 where the URL names none."""
        return self.sqlalchemy.port or 5432

    @property
    def database(self) -> str:
        """This property will be the name of the database."""
        return self.sqlalchemy.database or ""

    @property
    def username(self) -> str | None:
        """This property will be the login, None where a socket's peer authentication supplies it."""
        return self.sqlalchemy.username

    @property
    def libpq(self) -> str:
        """This property will be the URL for psql, pg_dump and psycopg, password included: never log it."""
        return self._render(self.sqlalchemy.password)

    @property
    def redacted(self) -> str:
        """This property will be the URL for people, with `***` in place of the password."""
        return self._render(None if self.sqlalchemy.password is None else "***")

    def query(self, name: str) -> str | None:
        """This function will return one parameter after the `?`, None where it is absent."""
        value = self.sqlalchemy.query.get(name)
        return value if isinstance(value, str) else None

    def same_database_as(self, other: DatabaseURL) -> bool:
        """This function will say whether both URLs reach one database, by whatever name and login.

        localhost and its addresses are one host, an absent port is 5432, and a Supabase project is one
        server whether it is reached directly or through either of its poolers.
        """
        return self._identity() == other._identity()

    def same_server_as(self, other: DatabaseURL) -> bool:
        """This function will say whether both name the same host and port, so the same pooler or none."""
        return (_host_key(self.host), self.port) == (_host_key(other.host), other.port)

    def with_login(self, username: str, password: str | None) -> DatabaseURL:
        """This function will return the same database under another login."""
        return dataclasses.replace(
            self, sqlalchemy=self.sqlalchemy.set(username=username)._replace(password=password)
        )

    def with_database(self, name: str) -> DatabaseURL:
        """This function will return the same server and login with another database."""
        return dataclasses.replace(self, sqlalchemy=self.sqlalchemy.set(database=name))

    def __repr__(self) -> str:
        return f"DatabaseURL({self.redacted!r})"

    __str__ = __repr__

    def _identity(self) -> tuple[str, int, str]:
        project = _supabase_project(self)
        return (project, 0, self.database) if project else (_host_key(self.host), self.port, self.database)

    def _render(self, password: str | None) -> str:
        url = self.sqlalchemy
        secret = "" if password is None else ":" + quote(password, safe="*")
        login = f"{quote(url.username or '', safe='')}{secret}@" if url.username else ""
        host = f"[{url.host}]" if url.host and ":" in url.host else url.host or ""
        port = f":{url.port}" if url.port and url.host else ""
        query = dict(url.query)
        if url.port and not url.host:
            query["port"] = str(url.port)
        tail = "&".join(f"{name}={quote(str(value), safe='/')}" for name, value in sorted(query.items()))
        path = quote(url.database or "", safe="")
        return f"postgresql://{login}{host}{port}/{path}{'?' + tail if tail else ''}"


class DatabaseURLBuilder:
    """Builds the URLs of both databases from the environment's variables: a URL, or its parts."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        # A password may begin or end with a space; everything else was only pasted with one.
        self._environ = {
            name: value if name.endswith("_POSTGRES_PASSWORD") else value.strip()
            for name, value in environ.items()
            if value.strip()
        }

    def build(
        self, database: Database, kind: Literal["", "OWNER", "AUDIT", "DIRECT"] = ""
    ) -> DatabaseURL | None:
        """This function will build one URL of a database, None where its variables are absent or blank.

        `kind` names the login (`OWNER`, `AUDIT`) or the way around the pooler (`DIRECT`); only the plain
        URL can be written in parts. Raises ConfigurationError, naming the variable, what was found
        (without its password) and an example that works.
        """
        variable = f"{database.prefix}_DATABASE_{kind + '_' if kind else ''}URL"
        text = self._environ.get(variable)
        parts = {} if kind else self._parts(database)
        if text and parts:
            raise ConfigurationError(
                f"{variable} and {', '.join(sorted(parts))} are both set, so it is named twice.\n"
                f"  Keep one of them, for example {variable}={database.example}"
            )
        if text:
            url = DatabaseURL.parse(text, variable=variable, example=database.example)
        elif parts:
            url = self._from_parts(database, parts)
        else:
            return None
        self._check_pooler_port(database, kind, url)
        return url

    def pool_mode(self, database: Database) -> PoolMode:
        """This function will read the declared pool mode: the database's own, or that of both."""
        variable = f"{database.prefix}_DB_POOL_MODE"
        if variable not in self._environ:
            variable = "DB_POOL_MODE"
        text = self._environ.get(variable, PoolMode.SESSION)
        try:
            return PoolMode(text)
        except ValueError:
            raise ConfigurationError(
                f"{variable}: found {text!r}, but a pool mode is `session` (direct, or a session pooler) or "
                f"`transaction`.\n  Example: {variable}=transaction"
            ) from None

    @staticmethod
    def variables(database: Database) -> list[str]:
        """This function will name every variable that says something about one database."""
        kinds = [f"{database.prefix}_DATABASE_{kind}URL" for kind in ("", "OWNER_", "AUDIT_", "DIRECT_")]
        return [*kinds, *_part_names(database), f"{database.prefix}_DB_POOL_MODE"]

    def _parts(self, database: Database) -> dict[str, str]:
        names = _part_names(database)
        return {name: self._environ[name] for name in names if name in self._environ}

    def _from_parts(self, database: Database, parts: Mapping[str, str]) -> DatabaseURL:
        stem = f"{database.prefix}_POSTGRES_"
        missing = [stem + part for part in ("HOST", "USER", "DB") if stem + part not in parts]
        if missing:
            raise ConfigurationError(
                f"{', '.join(missing)}: missing, beside {', '.join(sorted(parts))}.\n"
                f"  Example: {stem}HOST=localhost {stem}PORT=5432 {stem}USER=alwrity_app "
                f"{stem}PASSWORD=… {stem}DB=alwrity_{database.value}"
            )
        host, port = parts[stem + "HOST"], parts.get(stem + "PORT", "")
        query = {"sslmode": parts[stem + "SSLMODE"]} if stem + "SSLMODE" in parts else {}
        try:
            url = create(
                parts[stem + "USER"], parts.get(stem + "PASSWORD"), host, port, parts[stem + "DB"], query
            )
        except Refused as refused:
            raise ConfigurationError(
                f"{stem}…: {refused}.\n  Found:   {stem}HOST={host} {stem}PORT={port or '(absent)'}\n"
                f"  Example: {stem}HOST=localhost {stem}PORT=5432"
            ) from None
        return DatabaseURL(url, f"{stem}HOST, _PORT, _USER, _PASSWORD, _DB")

    def _check_pooler_port(self, database: Database, kind: str, url: DatabaseURL) -> None:
        if url.port != _TRANSACTION_POOLER_PORT:
            return
        if kind == "DIRECT":
            raise ConfigurationError(
                f"{url.variable}: port 6543 is a transaction pooler, and this URL is to go around it.\n"
                f"  Found:   {url.redacted}\n  Example: the same host's direct or session port, 5432"
            )
        if self.pool_mode(database) is PoolMode.SESSION:
            raise ConfigurationError(
                f"{url.variable}: port 6543 is a transaction pooler, but the pool mode is `session`.\n"
                f"  Found:   {url.redacted}\n"
                f"  Example: {database.prefix}_DB_POOL_MODE=transaction (or the session pooler's port 5432)"
            )


def _part_names(database: Database) -> list[str]:
    parts = ("HOST", "PORT", "USER", "PASSWORD", "DB", "SSLMODE")
    return [f"{database.prefix}_POSTGRES_{part}" for part in parts]


def _host_key(host: str) -> str:
    """This function will return one spelling for every spelling of a host."""
    if host.startswith("/"):
        return os.path.normpath(host)
    host = host.lower().rstrip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "localhost" if host in ("localhost", "localhost.localdomain", "ip6-localhost") else host
    return "localhost" if address.is_loopback else str(address)


def _supabase_project(url: DatabaseURL) -> str | None:
    """This function will name a URL's Supabase project, many of which share the host of a pooler."""
    host = url.host.lower()
    direct = re.fullmatch(r"db\.([a-z0-9]+)\.supabase\.(?:co|com)", host)
    if direct:
        return f"supabase project {direct[1]}"
    if host.endswith(".pooler.supabase.com"):
        option = re.search(r"reference=([a-z0-9]+)", url.query("options") or "")
        project = option[1] if option else (url.username or "").rpartition(".")[2]
        return f"supabase project {project}"
    return None
