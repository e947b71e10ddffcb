"""The stream's server, as the entry points open it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import redis

from producers import _client
from producers._config import redacted
from worker import valkey
from worker.errors import ConfigurationError, ServiceUnreachable, TransientError
from worker.settings import Settings


@contextlib.contextmanager
def stream_client(settings: Settings) -> Iterator[valkey.Client]:
    """This function will open a client in bytes mode and close it.

    A server that does not answer becomes ServiceUnreachable, also for commands inside the block; one that
    refuses a command ConfigurationError.
    """
    try:
        client = _client.connect(settings.producer, for_emit=False)
        try:
            yield client
        finally:
            client.close()
    except redis.RedisError as error:
        raise _named(valkey.translate(error), settings) from error
    except valkey.StreamTrouble as error:
        raise _named(error, settings) from error


def check_server(settings: Settings) -> list[str]:
    """This function will refuse a server that is down or may lose events, and return warnings in words."""
    with stream_client(settings) as client:
        return valkey.check_server(client)


def _named(error: TransientError | ConfigurationError, settings: Settings) -> Exception:
    if isinstance(error, ConfigurationError):
        return error
    return ServiceUnreachable(
        "REDIS_URL",
        f"{settings.producer.redacted_url}: the server does not answer ({redacted(str(error))})",
        "start Redis or Valkey there, or correct REDIS_URL.",
    )
