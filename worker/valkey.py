"""The worker's end of a stream on Redis or Valkey: raw replies, one table of errors, the server's policy.

Replies stay as the server sent them: bytes, in lists. Folding an entry's fields into a dict would lose the
first of two `data` fields, and decoding would let one entry that is not UTF-8 fail the whole reply for ever.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.entries import Adopted, EntryId, GroupMissing, GroupState, RawEntry
from worker.errors import ConfigurationError, TransientError

Client = redis.Redis | redis.RedisCluster
OLDEST_VERSION: Final = (7, 0)
FIRST_ID: Final = "0-0"


class StreamTrouble(TransientError):
    """The stream's server did not answer, or not now: look where it stands and read again."""


class Trouble(enum.StrEnum):
    """What a failed command tells its caller to do."""

    AGAIN = "again"
    NO_GROUP = "no_group"
    CONFIGURATION = "configuration"


# The first word of a server's error reply. Whatever is not here is a set-up that no second try will mend:
# WRONGTYPE, NOAUTH, NOPERM, WRONGPASS, an unknown command, CROSSSLOT.
_AGAIN: Final = frozenset(
    {
        "ASK",
        "BUSY",
        "CLUSTERDOWN",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "MOVED",
        "NOREPLICAS",
        "OOM",
        "READONLY",
        "TRYAGAIN",
        "UNBLOCKED",
    }
)


def trouble_of(exc: redis.RedisError) -> Trouble:
    """This function will say what a failed command asks for, by the server's error code where it has one."""
    if isinstance(exc, redis.AuthenticationError | redis.exceptions.AuthorizationError):
        return Trouble.CONFIGURATION
    if isinstance(exc, redis.ConnectionError | redis.TimeoutError):
        return Trouble.AGAIN
    # redis-py cuts the code off where it has a class for it.
    if isinstance(
        exc,
        redis.ReadOnlyError
        | redis.BusyLoadingError
        | redis.OutOfMemoryError
        | redis.exceptions.ClusterDownError
        | redis.exceptions.ClusterError
        | redis.exceptions.RedisClusterException
        | redis.exceptions.AskError
        | redis.exceptions.TryAgainError
        | redis.exceptions.MasterDownError,
    ):
        return Trouble.AGAIN
    if isinstance(exc, redis.ResponseError):
        code = str(exc).partition(" ")[0]
        if code in ("NOGROUP", "-NOGROUP"):
            return Trouble.NO_GROUP
        # A stream that is deleted under a blocked reader unblocks it with a text of its own.
        if code.lstrip("-") in _AGAIN or "no longer exists" in str(exc):
            return Trouble.AGAIN
        return Trouble.CONFIGURATION
    return Trouble.AGAIN


class Pending(NamedTuple):
    """What a group was given and has not acknowledged."""

    entries: int
    lowest_id: str | None


@dataclass(frozen=True, slots=True)
class StreamFigures:
    """What the server knows of one stream: entries ever added, and those above a position."""

    key: str
    added: int
    above: int


def _raw(reply: Any, **_options: Any) -> Any:
    return reply


_RAW_COMMANDS: Final = ("XREAD", "XAUTOCLAIM", "XPENDING", "XRANGE")
# How many pending entries are taken over at once.
_ADOPTED_AT_ONCE: Final = 1000


class StreamReader:
    """The commands of one consumer of one group; every failure comes out as one of our own kinds.

    The client must be in bytes mode. It is made to try each command once: who repeats, and when, is decided
    in one place.
    """

    def __init__(self, client: Client, *, group: str, consumer: str) -> None:
        self._client = client
        self.group = group
        self.consumer = consumer
        client.set_retry(Retry(NoBackoff(), 0))
        _keep_raw(client)

    def create_groups(self, keys: Iterable[str]) -> None:
        """This function will create the group at the first entry of each stream; an existing one stays."""
        for key in keys:
            try:
                self._client.xgroup_create(
                    key, self.group, id="0", mkstream=True, entries_read=self._trimmed(key)
                )
            except redis.ResponseError as exc:
                if not str(exc).startswith("BUSYGROUP"):
                    raise translate(exc) from exc
            except redis.RedisError as exc:
                raise translate(exc) from exc

    def _trimmed(self, key: str) -> int:
        """How many entries stood before the first one: the server counts the group's lag from there."""
        try:
            info = self._client.xinfo_stream(key)
        except redis.ResponseError as exc:
            if "no such key" in str(exc):
                return 0
            raise
        return int(info["entries-added"]) - int(info["length"])

    def read(
        self, cursors: Mapping[str, str], *, count: int, block_ms: int | None
    ) -> dict[str, list[RawEntry]]:
        """This function will return the entries above each stream's cursor, at most `count` of each stream.

        It waits up to `block_ms` milliseconds for the first one, with None not at all; then it returns {}.
        The group is not asked: it costs the server nine times as much to keep a list of what it gave whom.
        """
        wait = () if block_ms is None else ("BLOCK", block_ms)
        reply = self._execute("XREAD", "COUNT", count, *wait, "STREAMS", *cursors, *cursors.values())
        if not reply:
            return {}
        pairs = reply.items() if isinstance(reply, dict) else reply
        return {bytes(key).decode(): cast("list[RawEntry]", entries) for key, entries in pairs}

    def states(self, keys: Iterable[str]) -> dict[str, GroupState]:
        """This function will say where the group stands on each stream, or raise GroupMissing."""
        return {key: self._state_of(self._groups(key)) for key in keys}

    def advance(
        self, key: str, entry_id: str, *, entries_read: int | None, expected: EntryId
    ) -> GroupState | None:
        """This function will move the group to a committed entry, and return where it stood before.

        None, and it stays where it is, when the stream went back in time: its group stands before
        `expected`, or the entry is gone. The server computes the group's lag from `entries_read`.
        """
        look = self._client.pipeline(transaction=False)
        look.xinfo_groups(key)
        look.execute_command("XRANGE", key, entry_id, entry_id)
        try:
            groups, standing = look.execute(raise_on_error=False)
        except redis.RedisError as exc:
            raise translate(exc) from exc
        for reply in (groups, standing):
            if isinstance(reply, redis.RedisError):
                raise _missing_or(reply)
        if not standing or self._state_of(groups).last_delivered < expected:
            return None
        counted = () if entries_read is None else ("ENTRIESREAD", entries_read)
        pipe = self._client.pipeline(transaction=False)
        pipe.xinfo_groups(key)
        pipe.execute_command("XGROUP SETID", key, self.group, entry_id, *counted)
        try:
            groups, moved = pipe.execute(raise_on_error=False)
        except redis.RedisError as exc:
            raise translate(exc) from exc
        for reply in (groups, moved):
            if isinstance(reply, redis.RedisError):
                raise _missing_or(reply)
        return self._state_of(groups)

    def adopt(self, key: str) -> Adopted:
        """This function will take over what any consumer of the group holds, however short it was idle.

        Whoever read it cannot commit it any more: that takes the lease.
        """
        cursor, entry_ids, deleted = FIRST_ID, list[str](), list[str]()
        while True:
            following, ids, gone = self._execute(
                "XAUTOCLAIM", key, self.group, self.consumer, 0, cursor, "COUNT", _ADOPTED_AT_ONCE, "JUSTID"
            )
            entry_ids += [bytes(entry_id).decode() for entry_id in ids]
            deleted += [bytes(entry_id).decode() for entry_id in gone]
            cursor = bytes(following).decode()
            if cursor == FIRST_ID:
                return Adopted(entry_ids, deleted)

    def pending(self, key: str) -> Pending:
        """This function will return how many entries the whole group holds unacknowledged, and the lowest."""
        count, lowest, _highest, _consumers = self._execute("XPENDING", key, self.group)
        return Pending(int(count), None if lowest is None else bytes(lowest).decode())

    def acknowledge(self, key: str, entry_ids: Sequence[str]) -> int:
        """This function will acknowledge committed entries, and return how many of them were pending."""
        acknowledged = 0
        for start in range(0, len(entry_ids), 1000):
            acknowledged += int(self._execute("XACK", key, self.group, *entry_ids[start : start + 1000]))
        return acknowledged

    def figures(self, key: str, *, position: str) -> StreamFigures:
        """This function will count the entries ever added to a stream, and those above `position`.

        Both are of the moment of one command, so they belong together. A caller that compares them with
        counts in the database reads position and counts there first, in one snapshot: what the drain has
        done since changes neither side. A stream that does not exist has had no entry.
        """
        try:
            info = self._client.xinfo_stream(key)
        except redis.ResponseError as exc:
            if "no such key" in str(exc):
                return StreamFigures(key=key, added=0, above=0)
            raise translate(exc) from exc
        except redis.RedisError as exc:
            raise translate(exc) from exc
        last = _text(info["last-generated-id"])
        above, start, page = 0, position, 200
        while True:
            entries: list[RawEntry] = self._execute("XRANGE", key, f"({start}", last, "COUNT", page)
            above += len(entries)
            if len(entries) < page:
                break
            start = entries[-1][0].decode()
        return StreamFigures(key=key, added=int(info["entries-added"]), above=above)

    def _groups(self, key: str) -> Any:
        try:
            return self._client.xinfo_groups(key)
        except redis.RedisError as exc:
            raise _missing_or(exc) from exc

    def _state_of(self, groups: Iterable[Mapping[str, Any]]) -> GroupState:
        for group in groups:
            if _text(group["name"]) == self.group:
                read = group["entries-read"]
                return GroupState(
                    EntryId.parse(group["last-delivered-id"]),
                    None if read is None else int(read),
                    int(group["pending"]),
                )
        raise GroupMissing

    def _execute(self, *args: Any) -> Any:
        try:
            if isinstance(self._client, redis.RedisCluster):
                # A node that joined since has a connection of its own.
                _keep_raw(self._client)
            return self._client.execute_command(*args)  # type: ignore[no-untyped-call]  # redis-py: untyped
        except redis.RedisError as exc:
            raise translate(exc) from exc


def _missing_or(exc: redis.RedisError) -> TransientError | ConfigurationError:
    # A stream that does not exist has no group either.
    return GroupMissing() if "no such key" in str(exc) or "requires the key" in str(exc) else translate(exc)


def _keep_raw(client: Client) -> None:
    for node in nodes(client):
        for command in _RAW_COMMANDS:
            node.set_response_callback(command, _raw)


def translate(exc: redis.RedisError) -> TransientError | ConfigurationError:
    """This function will return the error of ours that says what to do about a failed command."""
    match trouble_of(exc):
        case Trouble.NO_GROUP:
            return GroupMissing()
        case Trouble.CONFIGURATION:
            return ConfigurationError(f"REDIS_URL: the server refused a command: {exc}")
        case Trouble.AGAIN:
            return StreamTrouble(f"{type(exc).__name__}: {exc}")


def nodes(client: Client) -> Iterator[redis.Redis]:
    """This function will yield the connection of each primary: one, or those of a cluster."""
    if isinstance(client, redis.RedisCluster):
        for node in client.get_primaries():  # type: ignore[no-untyped-call]  # redis-py: untyped
            yield client.get_redis_connection(node)
    else:
        yield client


def check_server(client: Client) -> list[str]:
    """This function will refuse a server that may throw events away, and return warnings in words.

    ConfigurationError: an eviction policy other than `noeviction`, or a server older than 7.0. A warning: no
    append-only file, or a CONFIG that this login may not read (INFO is asked instead).
    """
    warnings: list[str] = []
    for node in nodes(client):
        try:
            warnings += _check_node(node)
        except redis.RedisError as exc:
            raise translate(exc) from exc
    return list(dict.fromkeys(warnings))


def _check_node(node: redis.Redis) -> list[str]:
    warnings: list[str] = []
    info = {_text(name): _text(value) for name, value in node.info("all").items()}
    version = info.get("valkey_version") or info.get("redis_version") or "0"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_VERSION:
        raise ConfigurationError(
            f"REDIS_URL: the server is version {version}; usage-worker needs Redis >= 7.0 or Valkey"
        )
    policy, append_only = info.get("maxmemory_policy"), info.get("aof_enabled") == "1"
    try:
        config = {_text(name): _text(value) for name, value in node.config_get("maxmemory-policy").items()}
        policy = config.get("maxmemory-policy", policy)
    except redis.ResponseError:
        warnings.append("REDIS_URL: this login may not read CONFIG; persistence and eviction come from INFO")
    if policy is None:
        warnings.append("REDIS_URL: the eviction policy could not be read; it must be noeviction")
    elif policy != "noeviction":
        raise ConfigurationError(
            f"REDIS_URL: the server evicts keys (maxmemory-policy {policy}), so it may delete the stream "
            "with every unread event. Set it on the server: maxmemory-policy noeviction"
        )
    if not append_only:
        warnings.append(
            "REDIS_URL: the server keeps no append-only file, so a restart loses every unread event. "
            "Set it on the server: appendonly yes"
        )
    return warnings


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
