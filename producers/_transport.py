"""Carries packed commands to the server that holds a key, over connections that are kept open between calls.

A client's own `xadd` spends more time in the client than on the way; here a command is packed by hand and
sent over a connection that this transport keeps for itself. The repetitions are ours too, so that they are
few, bounded in time, and carry the same bytes.
"""

import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from redis import Redis, RedisCluster
from redis import exceptions as redis_errors
from redis.connection import ConnectionPool

from producers._client import Client, connect
from producers._config import EmitterConfig
from producers._fast_socket import FastSocket

MAX_ATTEMPTS: Final = 4
DEADLINE_SECONDS: Final = 4.0
MAX_IDLE: Final = 64
# The name of the server where there is only one; the nodes of a cluster have their own.
_ONLY: Final = ""
# A connection unused for longer is looked at before it is trusted: firewalls forget them.
TRUSTED_SECONDS: Final = 15.0

# What the server says while another one takes over or it starts: asked again, it may say something else.
_PASSING = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.TryAgainError,
    redis_errors.ClusterDownError,
    redis_errors.AskError,
)
# These are connection errors for redis-py, and will not pass by themselves.
_FINAL = (redis_errors.AuthenticationError, redis_errors.AuthorizationError, redis_errors.MaxConnectionsError)


@dataclass(slots=True)
class Request:
    """Packed commands about one key, sent together on one connection; the replies are filled in."""

    key: str
    packed: bytes
    reply_count: int
    replies: list[object] = field(default_factory=list)

    @property
    def error(self) -> Exception | None:
        """The first error among the replies."""
        for reply in self.replies:
            if isinstance(reply, Exception):
                return reply
        return None

    @property
    def moving_to(self) -> redis_errors.AskError | None:
        """The answer of a node whose slot is on its way to another one, which takes the command if asked."""
        error = self.error
        return error if type(error) is redis_errors.AskError else None

    @property
    def done(self) -> bool:
        """Whether every command was answered without an error."""
        return len(self.replies) == self.reply_count and self.error is None


@dataclass(slots=True)
class Lease:
    """A connection in use, and the pool that it goes back to."""

    connection: Any
    pool: ConnectionPool
    used_at: float
    fast: FastSocket | None

    def discard(self) -> None:
        """This function will close it, with whatever may still be on its way."""
        self.connection.disconnect()
        if self.fast is not None:
            self.fast.close()
        self.pool.release(self.connection)


class Transport:
    """The connections of one emitter in one process; the emitter makes another one after a fork."""

    def __init__(self, config: EmitterConfig, *, attempts: int = MAX_ATTEMPTS) -> None:
        self._config = config
        self._attempts = attempts
        self._client: Client | None = None
        self._closed = False
        self._connecting = threading.Lock()
        # By server; deque.append and deque.pop are atomic, so that emitting takes no lock.
        self._near: deque[Lease] = deque()
        self._idle: dict[str, deque[Lease]] = {_ONLY: self._near}
        # Cluster nodes that are receiving their first slot: the client's map does not have them yet.
        self._arriving: dict[str, ConnectionPool] = {}
        self.pid = os.getpid()

    def start(self, request: Request) -> Callable[[], None] | None:
        """This function will send one request where a connection is at hand, which was in use just now.

        None means that it was acknowledged, as it nearly always is at once. Else the rest of this first
        attempt is for `deliver` to do.
        """
        if request.reply_count != 1:
            return partial(self._attempt, [request])
        try:
            lease = self._near.pop()
        except IndexError:
            return partial(self._attempt, [request])
        now = time.monotonic()
        if lease.fast is None or now - lease.used_at > TRUSTED_SECONDS:
            self._near.append(lease)
            return partial(self._attempt, [request])
        try:
            if lease.fast.exchange(request.packed) is None:
                return partial(self._finish, lease, request)
        except OSError as error:
            lease.discard()
            return partial(_fail, error)
        except BaseException:
            lease.discard()
            raise
        lease.used_at = now
        self._keep(self._near, lease)
        return None

    def deliver(self, requests: Sequence[Request], rest: Callable[[], None] | None = None) -> None:
        """This function will send the requests and fill in their replies, in one round trip per server.

        `rest` is what `start` left to do. Raises the redis error that remains when the attempts or 4 seconds
        are used up; requests that are `done` then were acknowledged, of the others it is unknown.
        """
        give_up_at = time.monotonic() + DEADLINE_SECONDS
        waiting = requests
        for attempt in range(1, self._attempts + 1):
            try:
                if attempt == 1 and rest is not None:
                    rest()
                else:
                    self._attempt(waiting)
                for request in waiting:
                    if (error := request.error) is not None:
                        raise error
                return
            except redis_errors.RedisError as error:
                if not self._may_pass(error) or attempt == self._attempts or time.monotonic() > give_up_at:
                    raise
                waiting = [request for request in requests if not request.done]
                self._look_again(error)
                if attempt > 1:
                    # The first repetition is at once: most often an idle connection was closed meanwhile.
                    time.sleep(min(0.05 * 2**attempt, 0.5) * (0.5 + random.random() / 2))  # noqa: S311 - jitter, no secret

    def lease(self) -> Lease | None:
        """This function will open a connection for the caller; None for a cluster. Raises a redis error."""
        client = self._client or self._connect()
        if not isinstance(client, Redis):
            return None
        pool = client.connection_pool
        connection = pool.get_connection()
        return Lease(connection, pool, 0.0, FastSocket.of(connection))

    def ask(self) -> None:
        """This function will ask the server whether it is there; raises a redis error."""
        try:
            (self._client or self._connect()).ping()
        except redis_errors.RedisClusterException as error:
            raise redis_errors.ClusterDownError(str(error)) from error

    def close(self) -> None:
        """This function will close every idle connection; the ones in use are closed when they come back."""
        self._closed = True
        self._client = None
        self._forget_idle()

    def _may_pass(self, error: redis_errors.RedisError) -> bool:
        if isinstance(error, _FINAL):
            return False
        if isinstance(error, redis_errors.ReadOnlyError):
            return bool(self._config.cluster or self._config.sentinels)
        return isinstance(error, _PASSING)

    def _attempt(self, requests: Sequence[Request]) -> None:
        client = self._client or self._connect()
        if isinstance(client, Redis):
            self._exchange(_ONLY, client.connection_pool, requests)
            return
        groups: dict[str, tuple[ConnectionPool, list[Request]]] = {}
        for request in requests:
            name, pool = self._home_of(client, request)
            groups.setdefault(name, (pool, []))[1].append(request)
        for name, (pool, group) in groups.items():
            self._exchange(name, pool, group)

    def _connect(self) -> Client:
        with self._connecting:
            if self._client is None:
                try:
                    self._client = connect(self._config, for_emit=True)
                except redis_errors.RedisClusterException as error:
                    # No RedisError in redis-py's own tree, though it only says that no node answered.
                    raise redis_errors.ConnectionError(str(error)) from error
            return self._client

    def _home_of(self, client: Any, request: Request) -> tuple[str, ConnectionPool]:
        moving = request.moving_to
        if moving is not None:
            return self._pool_at(client, str(moving.host), int(moving.port))
        try:
            node = client.get_node_from_key(request.key)
        except redis_errors.RedisClusterException as error:
            raise redis_errors.ClusterDownError(str(error)) from error
        return str(node.name), client.get_redis_connection(node).connection_pool

    def _pool_at(self, client: Any, host: str, port: int) -> tuple[str, ConnectionPool]:
        name = f"{host}:{port}"
        node = client.get_node(host=host, port=port)
        if node is not None:
            return name, client.get_redis_connection(node).connection_pool
        if name not in self._arriving:
            known: ConnectionPool = client.get_redis_connection(client.get_random_node()).connection_pool
            options = {**known.connection_kwargs, "host": host, "port": port}
            self._arriving[name] = ConnectionPool(connection_class=known.connection_class, **options)
        return name, self._arriving[name]

    def _exchange(self, name: str, pool: ConnectionPool, requests: Sequence[Request]) -> None:
        idle = self._idle.get(name)
        if idle is None:
            idle = self._idle.setdefault(name, deque())
        lease = self._lease(idle, pool)
        try:
            _talk(lease, requests)
        except BaseException:
            # Also when a signal or a green thread's timeout got in between: a reply may still be on its way,
            # and the next command would take it for its own.
            lease.discard()
            raise
        lease.used_at = time.monotonic()
        self._keep(idle, lease)

    def _finish(self, lease: Lease, request: Request) -> None:
        """Waits for the reply to what `start` has sent."""
        try:
            request.replies = [_reply(lease.connection)]
        except BaseException:
            lease.discard()
            raise
        lease.used_at = time.monotonic()
        self._keep(self._near, lease)

    def _keep(self, idle: deque[Lease], lease: Lease) -> None:
        if len(idle) < MAX_IDLE and not self._closed:
            idle.append(lease)
        else:
            lease.discard()

    def _lease(self, idle: deque[Lease], pool: ConnectionPool) -> Lease:
        while True:
            try:
                lease = idle.pop()
            except IndexError:
                connection = pool.get_connection()
                return Lease(connection, pool, 0.0, FastSocket.of(connection))
            if lease.pool is pool and (time.monotonic() - lease.used_at < TRUSTED_SECONDS or is_quiet(lease)):
                return lease
            lease.discard()

    def _look_again(self, error: redis_errors.RedisError) -> None:
        """After a failure every idle connection is suspect, and the key may have moved."""
        self._forget_idle()
        client = self._client
        if isinstance(client, RedisCluster) and type(error) is not redis_errors.AskError:
            # Its map of slots may be old; a new client asks again. Other threads may still be using this one,
            # so it is left to them and to the garbage collector.
            self._client = None

    def _forget_idle(self) -> None:
        for idle in list(self._idle.values()):
            while idle:
                try:
                    lease = idle.pop()
                except IndexError:
                    break
                lease.discard()


def pack(*words: bytes) -> bytes:
    """This function will return one command in the server's protocol."""
    return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


def is_quiet(lease: Lease) -> bool:
    """This function will tell whether nothing waits on it: nobody is known to have closed it."""
    try:
        return not lease.connection.can_read()
    except (redis_errors.RedisError, OSError):
        return False


def _talk(lease: Lease, requests: Sequence[Request]) -> None:
    connection = lease.connection
    asking = [request.moving_to is not None for request in requests]
    packed = [
        _ASKING + request.packed if ask else request.packed
        for request, ask in zip(requests, asking, strict=True)
    ]
    connection.send_packed_command(packed, check_health=False)
    for request, ask in zip(requests, asking, strict=True):
        if ask:
            _reply(connection)
        request.replies = [_reply(connection) for _ in range(request.reply_count)]


def _fail(error: OSError) -> None:
    """Its errors are those of redis-py, which tell whether to try again."""
    if isinstance(error, TimeoutError):
        raise redis_errors.TimeoutError("Timeout on the socket: the server is silent") from error
    raise redis_errors.ConnectionError(f"Error {error.errno} on the socket: {error.strerror}") from error


def _reply(connection: Any) -> object:
    """An error is an answer too: the replies behind it must still be read."""
    try:
        return connection.read_response()
    except redis_errors.ResponseError as error:
        return error


_ASKING: Final = pack(b"ASKING")
