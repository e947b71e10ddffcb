"""The text of a database URL: what is read, what is refused, and what to write instead."""

from __future__ import annotations

import difflib
import ipaddress
import re
from typing import Final
from urllib.parse import unquote

from sqlalchemy.engine import URL

DRIVER: Final = "postgresql+psycopg"
_SCHEMES: Final = ("postgres", "postgresql", DRIVER)
_SSLMODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

# libpq's parameters that mean the same here. Everything else is refused by its name.
_NUMBERS: Final = frozenset(
    "connect_timeout keepalives keepalives_idle keepalives_interval keepalives_count tcp_user_timeout".split()
)
_ACCEPTED: Final = _NUMBERS | frozenset(
    "sslmode sslrootcert sslcert sslkey sslcrl sslcrldir sslnegotiation sslsni sslcertmode channel_binding "
    "ssl_min_protocol_version ssl_max_protocol_version require_auth requirepeer gssencmode gsslib krbsrvname "
    "gssdelegation target_session_attrs passfile options host port".split()
)
_TRANSACTION = "remove it and set DB_POOL_MODE=transaction"
_POOL = "remove it and set DB_POOL_SIZE, DB_MAX_OVERFLOW and DB_POOL_TIMEOUT"
_INSTEAD: Final = {
    name: advice
    for names, advice in (
        ("pgbouncer", f"it is Prisma's word for a transaction pooler: {_TRANSACTION}"),
        (
            "supa",
            f"it only marks where Supabase's URL was copied from: remove it (port 6543: {_TRANSACTION})",
        ),
        ("pool_mode", "remove it and set DB_POOL_MODE"),
        ("connection_limit pool_size max_overflow pool_timeout", _POOL),
        ("statement_timeout", "remove it and set DB_STATEMENT_TIMEOUT_MS"),
        (
            "prepare_threshold prepareThreshold statement_cache_size prepared_statement_cache_size",
            _TRANSACTION,
        ),
        ("ssl sslaccept", "libpq's word is sslmode: write sslmode=require, or verify-full with sslrootcert"),
        ("sslpassword", "use a key without a passphrase that only the worker can read"),
        ("schema search_path currentSchema", "remove it: the tables live in the schema public"),
        ("application_name fallback_application_name", "remove it: it is usage-worker:<role>:<pid>"),
        ("client_encoding", "remove it: it is always UTF-8"),
        ("user password dbname", "write it in front of the ?: postgresql://USER:PASSWORD@HOST:PORT/NAME"),
        ("hostaddr", "write the address in place of the host name"),
        ("service", "write host, port, user and database out"),
        ("load_balance_hosts", "name one host"),
    )
    for name in names.split()
}


class Refused(ValueError):
    """The text is not a URL this product accepts; the message holds nothing of a password."""


def shown(text: str) -> str:
    """This function will show as much of a refused URL as can hold no secret, at least its scheme."""
    scheme, separator, rest = text.strip().partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+:.-]{0,40}", scheme):
        return "(not shown: it is not a URL, and it may hold a password)"
    before_query, mark, _query_text = rest.partition("?")
    authority, slash, path = before_query.partition("/")
    login, at, hostport = authority.rpartition("@")
    # An @ anywhere else, or a : without one, may mean that half of a password stands in the wrong place.
    if rest.count("@") > authority.count("@") or "@" in login or (not at and ":" in authority):
        return f"{scheme}://… (the rest is not shown, it may hold a password)"
    username, colon, _password = login.partition(":")
    return f"{scheme}://{username}{colon and ':***'}{at}{hostport}{slash}{path}{mark and '?…'}"


def parse(text: str) -> URL:
    """This function will read a URL, or raise Refused with the reason and what to write instead."""
    scheme, separator, rest = text.partition("://")
    if text[:1] in "'\"`":
        raise Refused("it begins with a quotation mark; write the value without quotes")
    if re.search(r"\[YOUR-[^\]]*\]|<[^>]*>", text):
        raise Refused("it still holds a placeholder such as [YOUR-PASSWORD]; fill it in")
    if not separator:
        raise Refused("it is not a URL, which begins with postgresql://")
    _check_scheme(scheme)
    if re.search(r"[\s\x00-\x1f\x7f]", text):
        raise Refused("it holds a space or a control character; percent-encode it (a space is %20)")
    rest, _, query_text = rest.partition("?")
    authority, _, path = rest.partition("/")
    if "@" in path or "@" in query_text or authority.count("@") > 1:
        raise Refused(
            "an @, / or ? in user name or password has to be percent-encoded (@ is %40, / is %2F, ? is %3F)"
        )
    login, at, hostport = authority.rpartition("@")
    username, colon, password = login.partition(":")
    host, port = _split_host(hostport)
    return create(
        _decode(username) if at else None,
        _decode(password) if colon else None,
        _decode(host),
        port,
        _decode(path),
        _query(query_text),
    )


def _check_scheme(scheme: str) -> None:
    if scheme in _SCHEMES:
        return
    dialect, plus, driver = scheme.lower().partition("+")
    if dialect in ("postgres", "postgresql") and plus:
        raise Refused(
            f"it asks for the driver {driver[:20]}, but psycopg 3 is the only one, for sync and async; write "
            "postgresql://"
        )
    if dialect in ("postgres", "postgresql", "jdbc:postgresql"):
        raise Refused("the scheme has to be written postgresql://")
    raise Refused(f"{dialect[:20]} is not PostgreSQL, and there is no other database it could fall back to")


def _split_host(hostport: str) -> tuple[str, str]:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]*\]|[^:\[\]]*)(?::([^:]*))?", hostport)
    if match is None:
        raise Refused(
            "host and port cannot be read; one host, an IPv6 address in brackets: @[::1]:5432/"
            if "," not in hostport
            else "it names several hosts; name one (a proxy, a pooler or a DNS name that follows the primary)"
        )
    return match[1], match[2] or ""


def _query(text: str) -> dict[str, str]:
    query: dict[str, str] = {}
    for pair in filter(None, text.split("&")):
        name, _, value = pair.partition("=")
        name = _decode(name)
        if name in query:
            raise Refused(f"the parameter {name} is given twice")
        if name in _INSTEAD:
            raise Refused(f"the parameter {name} is not understood here; {_INSTEAD[name]}")
        if name not in _ACCEPTED:
            close = difflib.get_close_matches(name, _ACCEPTED, n=1)
            hint = f"did you mean {close[0]}?" if close else "remove it"
            raise Refused(f"the parameter {name[:40]!r} is unknown; {hint}")
        if not value:
            raise Refused(f"the parameter {name} has no value")
        query[name] = _decode(value)
    return query


def _decode(text: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise Refused("a % that stands for itself has to be percent-encoded: %25")
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise Refused("its percent-encoding is not UTF-8") from None
    if "\x00" in decoded:
        raise Refused("it holds a NUL character (%00)")
    return decoded


def create(
    username: str | None, password: str | None, host: str, port: str, database: str, query: dict[str, str]
) -> URL:
    """This function will check what a URL and its parts have in common, and build SQLAlchemy's value."""
    if ("host" in query and host) or ("port" in query and port):
        raise Refused("host or port is named twice, before and after the ?")
    host, port = query.pop("host", host).strip("[]"), query.pop("port", port)
    if not host:
        raise Refused("the host is missing")
    socket = host.startswith("/")
    if "," in host:
        raise Refused(
            "it names several hosts; name one (a proxy, a pooler or a DNS name that follows the primary)"
        )
    if not socket and not _is_host(host):
        raise Refused("the host is neither a name, an address, nor the directory of a socket")
    # The text of a bad port is not repeated: in a URL without @ it can be the password.
    if port and not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise Refused("the port has to be a number from 1 to 65535")
    if not username and not socket:
        raise Refused("the user name is missing")
    if not database:
        raise Refused("the name of the database is missing after the host")
    mode = query.get("sslmode")
    if mode is not None and mode not in _SSLMODES:
        close = difflib.get_close_matches(mode.replace("_", "-"), _SSLMODES, n=1) or ["require"]
        raise Refused(
            f"sslmode={mode[:20]} does not exist; write sslmode={close[0]} (one of {', '.join(_SSLMODES)})"
        )
    for name in sorted(_NUMBERS & query.keys()):
        if not (query[name].isascii() and query[name].isdigit()):
            raise Refused(f"the parameter {name} has to be a whole number")
    if socket:
        query["host"] = host
    return URL.create(
        DRIVER,
        username or None,
        password or None,
        None if socket else host,
        int(port) if port else None,
        database,
        query,
    )


def _is_host(host: str) -> bool:
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            return False
        return True
    return re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?", host) is not None
