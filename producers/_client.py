"""Opens the Redis or Valkey client that a configuration describes: one server, a cluster, or Sentinel."""

import os
from typing import Any

from redis import Redis, RedisCluster
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.connection import ConnectionPool, parse_url
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry
from redis.sentinel import Sentinel

from producers._config import EmitterConfig

EMIT_TIMEOUT_SECONDS = 2.0
CONNECT_TIMEOUT_SECONDS = 2.0
# Above every blocking read of the worker (at most a second), so that a silent server is noticed.
READ_TIMEOUT_SECONDS = 10.0

Client = Redis | RedisCluster


def connect(config: EmitterConfig, *, for_emit: bool) -> Client:
    """This function will return a client in bytes mode; nothing is sent before its first command.

    Only with REDIS_CLUSTER are nodes asked at once, and a redis error may come from here. With `for_emit` the
    client never repeats a command by itself: the emitter does, with the same event ids.
    """
    options: dict[str, Any] = {
        "decode_responses": False,
        "socket_timeout": EMIT_TIMEOUT_SECONDS if for_emit else READ_TIMEOUT_SECONDS,
        "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "client_name": f"usage-{'emitter' if for_emit else 'worker'}:{os.getpid()}",
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0)
        if for_emit
        else Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), 2),
        # A cloud vendor's announcements of maintenance; other servers answer the handshake with an error.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    if config.cluster:
        return RedisCluster.from_url(config.redis_url, **options)
    if config.sentinels:
        return _through_sentinels(config, options)
    return Redis.from_pool(ConnectionPool.from_url(config.redis_url, **options))


def _through_sentinels(config: EmitterConfig, options: dict[str, Any]) -> Redis:
    server = _url_options(config.redis_url)
    for found_by_sentinel in ("host", "port"):
        server.pop(found_by_sentinel, None)
    # parse_url tells TLS by a connection class, which Sentinel chooses itself.
    server.pop("connection_class", None)
    tls = config.redis_url.lower().startswith("rediss:")
    addresses, credentials = _sentinel_addresses(config)
    asking = {
        "socket_timeout": CONNECT_TIMEOUT_SECONDS,
        "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "maint_notifications_config": options["maint_notifications_config"],
        **credentials,
        **({name: value for name, value in server.items() if name.startswith("ssl_")} if tls else {}),
    }
    if tls:
        asking["ssl"] = server["ssl"] = True
    # redis-py has no annotations for Sentinel.
    sentinel: Any = Sentinel(addresses, sentinel_kwargs=asking)  # type: ignore[no-untyped-call]  # see above
    client: Redis = sentinel.master_for(config.sentinel_service, **{**server, **options})
    return client


def _sentinel_addresses(config: EmitterConfig) -> tuple[list[tuple[str, int]], dict[str, str]]:
    """Hosts, and the credentials of the first that states some: Sentinels of one group share them."""
    addresses: list[tuple[str, int]] = []
    credentials: dict[str, str] = {}
    for sentinel in config.sentinels:
        parts = _url_options(f"redis://{sentinel}")
        addresses.append((str(parts["host"]), int(parts["port"])))
        for name in ("username", "password"):
            if parts.get(name) and name not in credentials:
                credentials[name] = str(parts[name])
    return addresses, credentials


def _url_options(url: str) -> dict[str, Any]:
    options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]  # redis-py has no annotation here
    return options
