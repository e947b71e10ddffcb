"""The few settings of an emitter, read from the environment once.

The worker reads the same variables through this module, so that both sides agree about the server, the
stream's name and its shards.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Self
from urllib.parse import parse_qsl, unquote, urlsplit

MAX_SHARDS = 1024

_EXAMPLE_URL = "redis://default:PASSWORD@localhost:6379/0"
_SCHEMES = ("redis", "rediss", "unix")
# Keys of a Redis URL's query that would change what the client hands back or how it waits.
_OWN_BUSINESS = frozenset(
    {"decode_responses", "encoding", "encoding_errors", "protocol", "client_name", "health_check_interval"}
)
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"", "0", "false", "no", "off"})
_STREAM_NAME = re.compile(r"[A-Za-z0-9_.:\-]{1,200}")
_SENTINEL = re.compile(r"(?:[^\s@,]*@)?(?:\[[0-9A-Fa-f:.]+\]|[^\s@,:\[\]/]+):([0-9]{1,5})")


class InvalidConfiguration(ValueError):
    """A setting of the emitter is missing or contradictory; `problems` has one sentence for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class MissingConfiguration(InvalidConfiguration):
    """A setting that has no default is not there; the message names it and gives an example."""


def redacted(text: str) -> str:
    """This function will return `text` with the credentials of every URL in it replaced by `***`."""
    # Up to the last @ before whitespace: an unescaped @ or / inside a password must not end the search.
    hidden = re.sub(r"(?<=://)\S*@", "***@", text)
    return re.sub(r"(?i)\b(password|username)=[^&\s]*", r"\1=***", hidden)


@dataclass(frozen=True, slots=True)
class EmitterConfig:
    """Where the stream lives and how an emitter writes to it."""

    redis_url: str = field(repr=False)
    stream: str = "usage:events"
    shards: int = 1
    cluster: bool = False
    sentinels: tuple[str, ...] = field(default=(), repr=False)
    durability: Literal["server", "fsync"] = "server"
    spool_dir: str | None = None

    def __post_init__(self) -> None:
        problems = [problem for check in _CHECKS if (problem := check(self)) is not None]
        if problems:
            raise InvalidConfiguration(problems)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """This function will read the settings from `environ` (default: the process's environment).

        Raises MissingConfiguration when only REDIS_URL is absent, otherwise InvalidConfiguration with every
        problem in one message; passwords are never part of it.
        """
        # The one place in this package that reads the environment.
        source = os.environ if environ is None else environ  # noqa: TID251 - see the line above
        url = source.get("REDIS_URL", "").strip()
        problems: list[str] = []
        if not url:
            problems.append(f"REDIS_URL is not set; it names the server of the stream, as in {_EXAMPLE_URL}")
        shards = _shards(source.get("USAGE_STREAM_SHARDS", "1"), problems)
        cluster = _switch("REDIS_CLUSTER", source.get("REDIS_CLUSTER", ""), problems)
        durability = _durability(source.get("USAGE_DURABILITY", ""), problems)
        sentinels = tuple(
            part.strip() for part in source.get("REDIS_SENTINELS", "").split(",") if part.strip()
        )
        if not url and len(problems) == 1:
            raise MissingConfiguration(problems)
        try:
            config = cls(
                redis_url=url or _EXAMPLE_URL,
                stream=source.get("USAGE_STREAM", "").strip() or "usage:events",
                shards=shards,
                cluster=cluster,
                sentinels=sentinels,
                durability=durability,
                spool_dir=source.get("USAGE_SPOOL_DIR", "").strip() or None,
            )
        except InvalidConfiguration as error:
            problems.extend(error.problems)
        if problems:
            raise InvalidConfiguration(problems)
        return config

    @property
    def redacted_url(self) -> str:
        """The Redis URL without its credentials, for messages."""
        return redacted(self.redis_url)

    @property
    def sentinel_service(self) -> str:
        """The name under which the Sentinels know the primary: the host of REDIS_URL."""
        return _host_of(self.redis_url)


def _shards(text: str, problems: list[str]) -> int:
    wanted = text.strip() or "1"
    if re.fullmatch(r"[0-9]{1,4}", wanted) and 1 <= int(wanted) <= MAX_SHARDS:
        return int(wanted)
    problems.append(
        f"USAGE_STREAM_SHARDS is {wanted!r}; it must be a whole number from 1 to {MAX_SHARDS}, as in 4"
    )
    return 1


def _switch(name: str, text: str, problems: list[str]) -> bool:
    word = text.strip().lower()
    if word not in _TRUE and word not in _FALSE:
        problems.append(f"{name} is {text!r}; write true or false")
    return word in _TRUE


def _durability(text: str, problems: list[str]) -> Literal["server", "fsync"]:
    word = text.strip().lower()
    if word == "fsync":
        return "fsync"
    if word not in ("", "server"):
        problems.append(f"USAGE_DURABILITY is {text!r}; write server or fsync")
    return "server"


def _host_of(url: str) -> str:
    """The host as it was written: `urlsplit().hostname` would lower-case a Sentinel's service name."""
    netloc = urlsplit(url).netloc.rpartition("@")[2]
    host = netloc if netloc.startswith("[") else netloc.partition(":")[0]
    return unquote(host)


def _url_problem(config: EmitterConfig) -> str | None:
    url = config.redis_url
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in _SCHEMES:
        found = f"{scheme}://…" if separator else f"{len(url)} characters without a scheme"
        return (
            f"REDIS_URL is {found}; it must begin with redis://, rediss:// or unix://, as in {_EXAMPLE_URL}"
        )
    if re.search(r"\s", url):
        return f"REDIS_URL is {scheme}://… with white space in it; write it without, as in {_EXAMPLE_URL}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return (
            # What stands where the host should may well be a password.
            f"REDIS_URL is {scheme}://…; its host or port cannot be read "
            "(escape @ : / in a password as %40 %3A %2F)"
        )
    if scheme.lower() == "unix":
        if not parts.path.strip("/"):
            return (
                f"REDIS_URL is {redacted(url)}; a socket needs its path, as in unix:///run/valkey/valkey.sock"
            )
    elif not _host_of(url) or port == 0:
        return f"REDIS_URL is {redacted(url)}; it names no host, as in {_EXAMPLE_URL}"
    elif not re.fullmatch(r"/?(?:[0-9]{1,6})?", parts.path):
        return (
            f"REDIS_URL is {redacted(url)}; after the host comes a database number or nothing, "
            f"as in {_EXAMPLE_URL}"
        )
    taken = sorted({key for key, _ in parse_qsl(parts.query, keep_blank_values=True)} & _OWN_BUSINESS)
    if taken:
        return f"REDIS_URL sets {', '.join(taken)} in its query; the emitter decides that itself: remove it"
    return None if rest else f"REDIS_URL is empty after {scheme}://, write {_EXAMPLE_URL}"


def _stream_problem(config: EmitterConfig) -> str | None:
    name = config.stream
    if not _STREAM_NAME.fullmatch(name):
        return (
            f"USAGE_STREAM is {name[:80]!r}; use letters, digits and _ . : - only "
            "(the shard is added in braces), as in usage:events"
        )
    if name.rpartition(":")[2] == "corrections":
        return (
            f"USAGE_STREAM is {name!r}; its last part is taken by the stream of corrections, use usage:events"
        )
    return None


def _shards_problem(config: EmitterConfig) -> str | None:
    if 1 <= config.shards <= MAX_SHARDS:
        return None
    return f"USAGE_STREAM_SHARDS is {config.shards}; it must be from 1 to {MAX_SHARDS}"


def _topology_problem(config: EmitterConfig) -> str | None:
    if config.cluster and config.sentinels:
        return "REDIS_CLUSTER and REDIS_SENTINELS are both set; a server is found in one way, remove one"
    socket = config.redis_url.lower().startswith("unix:")
    if (config.cluster or config.sentinels) and socket:
        variable = "REDIS_CLUSTER" if config.cluster else "REDIS_SENTINELS"
        return f"REDIS_URL is a socket and {variable} is set; nodes are reached by host and port"
    if config.cluster and _database_of(config.redis_url) not in ("", "0"):
        return f"REDIS_URL is {config.redacted_url}; a cluster has database 0 only, remove the number"
    return None


def _database_of(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return dict(parse_qsl(parts.query)).get("db", parts.path.strip("/"))


def _sentinel_problem(config: EmitterConfig) -> str | None:
    for sentinel in config.sentinels:
        match = _SENTINEL.fullmatch(sentinel)
        if match is None or not 1 <= int(match.group(1)) <= 65535:
            return (
                f"REDIS_SENTINELS has {redacted('://' + sentinel)[3:]!r}; write host:port, separated by "
                "commas, as in sentinel-1:26379,sentinel-2:26379, and the service's name as the host "
                "of REDIS_URL"
            )
    return None


_CHECKS: tuple[Callable[[EmitterConfig], str | None], ...] = (
    _url_problem,
    _stream_problem,
    _shards_problem,
    _topology_problem,
    _sentinel_problem,
)
