"""The one place where a failed connection becomes a named error with a next step."""

from __future__ import annotations

import re
from typing import Final

import psycopg

from worker.database_url import DatabaseURL
from worker.errors import ConfigurationError, ServiceUnreachable, TransientError

_STOP: Final = ConfigurationError
_AGAIN: Final = ServiceUnreachable

# What libpq, PostgreSQL, PgBouncer and Supavisor say, what it means, and what to do. Words, because a
# connection that was never made carries no SQLSTATE. The first match counts; a server that speaks another
# language matches nothing, and then its own words are shown.
_TABLE: Final[tuple[tuple[str, type[ConfigurationError] | type[ServiceUnreachable], str, str], ...]] = (
    (
        r"password authentication failed|no password supplied|SASL authentication failed|Wrong password",
        _STOP,
        "the server refused the user name or the password",
        "correct the login in {variable}; a special character in the password has to be percent-encoded "
        "(@ is %40, % is %25).",
    ),
    (
        r"Tenant or user not found|tenant/user .* not found",
        _STOP,
        "the pooler does not know this project or user",
        "copy the user name from the dashboard: behind Supabase's pooler it is postgres.<project-ref>.",
    ),
    (
        r"role \"[^\"]*\" does not exist|is not permitted to log in",
        _STOP,
        "the server has no such login",
        "create the login, or correct the user name in {variable}.",
    ),
    (
        r"database \"[^\"]*\" does not exist|no such database",
        _STOP,
        "the server has no database of this name, and it is never created silently",
        'correct the name in {variable}, or let an administrator run CREATE DATABASE "{database}"; then run '
        "`usage-worker db init`.",
    ),
    (
        r"permission denied for database",
        _STOP,
        "the login may not connect to this database",
        'run `usage-worker db init`, or let an administrator run GRANT CONNECT ON DATABASE "{database}".',
    ),
    (
        r"server does not support SSL, but SSL was required",
        _STOP,
        "sslmode asks for TLS, but the server does not offer it",
        "switch TLS on at the server, or on a network that is trusted write sslmode=disable in {variable}.",
    ),
    (
        r"no pg_hba.conf entry .*no encryption|SSL (connection )?is required|SSL/TLS required",
        _STOP,
        "the server does not admit this login from here without TLS",
        "add sslmode=require to {variable}; if that is not it, add a line to the server's pg_hba.conf.",
    ),
    (
        r"no pg_hba.conf entry|pg_hba.conf rejects",
        _STOP,
        "the server does not admit this login from here",
        "add a line for it to the server's pg_hba.conf, or correct user and database in {variable}.",
    ),
    (
        r"certificate file \"[^\"]*\"|private key file|could not (read|load) .*certificate",
        _STOP,
        "a certificate file that sslmode needs cannot be used",
        "correct sslrootcert (or sslcert, sslkey) in {variable}; this process has to be able to read it.",
    ),
    (
        r"certificate verify failed|server certificate for .* does not match",
        _STOP,
        "the server's certificate is not one that sslrootcert vouches for",
        "point sslrootcert in {variable} to the authority that signed it, and use the host name in it.",
    ),
    (
        r"unsupported startup parameter|unrecognized configuration parameter",
        _STOP,
        "the server or its pooler refused a connection parameter",
        "correct or remove options in {variable}.",
    ),
    (
        r"too many clients already|remaining connection slots|too many connections for|"
        r"[Mm]ax client|no more connections allowed",
        _AGAIN,
        "the server has no free connection",
        "lower DB_POOL_SIZE, DB_MAX_OVERFLOW or the number of processes, or raise the limit of the "
        "server, the database or the role.",
    ),
    (
        r"could not translate host name|failed to resolve host",
        _AGAIN,
        "the host name is unknown here",
        "correct the host in {variable}, or this machine's DNS.",
    ),
    (
        r"Network is unreachable|No route to host",
        _AGAIN,
        "there is no network route to the host",
        "check the network; Supabase's direct host has IPv6 only, its session pooler has IPv4 too.",
    ),
    (
        r"Connection refused|No such file or directory",
        _AGAIN,
        "nothing listens there",
        "start PostgreSQL, or correct host and port in {variable}.",
    ),
    (
        r"timeout expired|timed out",
        _AGAIN,
        "the server did not answer in time",
        "check host, port and firewall; DB_CONNECT_TIMEOUT is the number of seconds waited for.",
    ),
    (
        r"the database system is |terminating connection due to administrator command|server_login_retry",
        _AGAIN,
        "PostgreSQL is starting or stopping",
        "wait for it; its log says more.",
    ),
    (
        r"server closed the connection unexpectedly|Connection reset|could not receive data|"
        r"expected authentication request|invalid response to SSL negotiation",
        _AGAIN,
        "something answers there, but not as PostgreSQL does",
        "check that {variable} names PostgreSQL's port, and see the server's log.",
    ),
)
_PREFIX: Final = re.compile(r"^connection [a-z ]+: connection to server [^\n]*? failed: (?:FATAL:\s+)?")


def connection_failure(error: psycopg.Error, url: DatabaseURL) -> ConfigurationError | ServiceUnreachable:
    """This function will turn what the driver said about a connection into one message without a password.

    What an operator has to correct becomes a ConfigurationError (exit code 2), what can pass by itself a
    ServiceUnreachable (exit code 3); both name the variable, the redacted URL and the next step.
    """
    # libpq's hints begin with a tab; the next step says it better.
    lines = [line for line in str(error).splitlines() if not line.startswith("\t")]
    words = " ".join(_PREFIX.sub("", "\n".join(lines)).split())[:300]
    for pattern, kind, problem, next_step in _TABLE:
        if re.search(pattern, words):
            step = next_step.format(variable=url.variable, database=url.database)
            return _named(kind, url, f"{problem} ({words}).", step)
    return _named(_AGAIN, url, f"no connection ({words}).", f"check {url.variable} and the server's log.")


def _named(
    kind: type[ConfigurationError] | type[ServiceUnreachable], url: DatabaseURL, problem: str, next_step: str
) -> ConfigurationError | ServiceUnreachable:
    text = f"{problem}\n  Found:   {url.redacted}"
    if issubclass(kind, ServiceUnreachable):
        return kind(url.variable, text, next_step)
    return kind(f"{url.variable}: {text}\nNext step: {next_step}")


class PoolExhausted(TransientError):
    """Every connection of this process's pool stayed in use for the whole waiting time."""

    def __init__(
        self, variable: str, size: int, overflow: int, timeout_seconds: float, worker_pool: bool = False
    ) -> None:
        super().__init__(variable, size, overflow, timeout_seconds, worker_pool)
        self.variable = variable
        self.size = size
        self.overflow = overflow
        self.timeout_seconds = timeout_seconds
        self.worker_pool = worker_pool

    def __str__(self) -> str:
        made_of = (
            f"USAGE_WORKER_POOL_SIZE={self.size}"
            if self.worker_pool
            else f"DB_POOL_SIZE={self.size} + DB_MAX_OVERFLOW={self.overflow}"
        )
        return (
            f"{self.variable}: all {self.size + self.overflow} connections of this process are in use "
            f"({made_of}), and none came back within DB_POOL_TIMEOUT={self.timeout_seconds:g} s.\n"
            "Next step: close sessions sooner (no network call inside a transaction), or raise the pool "
            "where the server's max_connections allows it."
        )
