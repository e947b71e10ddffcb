"""What the compared systems store: the same row in the same table, by psycopg, without roll-ups.

Runs in the compared systems' own environment: nothing of the product is imported.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

_COLUMNS = (
    "id, user_id, feature, provider, model, input_tokens, output_tokens, tokens_used, cost_usd, "
    "cost_reported_usd, cost_source, payload_hash, occurred_at, received_at, duration_ms, status, shard"
)
_ROW = "(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, 'reported', %s, %s, %s, %s, %s, 0)"
_ONE = f"INSERT INTO platform_usage_logs ({_COLUMNS}) VALUES {_ROW} ON CONFLICT (id) DO NOTHING"  # noqa: S608  fixed text


class Sink:
    """One connection in autocommit mode, opened at its first use and so after any fork."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: psycopg.Connection[Any] | None = None

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """The connection."""
        if self._connection is None:
            self._connection = psycopg.connect(self._url, autocommit=True)
        return self._connection

    def store(self, event: dict[str, Any]) -> None:
        """This function will store one event, unless its id is known."""
        self.connection.execute(_ONE, _row(event))

    def store_many(self, events: Sequence[dict[str, Any]]) -> None:
        """This function will store events by executemany, in one transaction."""
        with self.connection.transaction(), self.connection.cursor() as cursor:
            cursor.executemany(_ONE, [_row(event) for event in events])

    def store_rows(self, events: Sequence[dict[str, Any]]) -> None:
        """This function will store events by one INSERT with many rows, as an ORM's create_many does."""
        values = [value for event in events for value in _row(event)]
        self.connection.execute(_ONE.replace(_ROW, ", ".join([_ROW] * len(events))).encode(), values)


def read_events(path: str) -> list[dict[str, Any]]:
    """This function will read the events that are to be emitted, one per line."""
    return [json.loads(line) for line in Path(path).read_bytes().splitlines()]


def ready() -> None:
    """This function will tell the benchmark that the program waits for work."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def _row(event: dict[str, Any]) -> tuple[object, ...]:
    digest = hashlib.blake2b(event["event_id"].encode(), digest_size=16).digest()
    return (
        event["event_id"],
        event["user_id"],
        event["feature"],
        event["provider"],
        event["model"],
        event["input_tokens"],
        event["output_tokens"],
        event["input_tokens"] + event["output_tokens"],
        event["cost_usd"],
        event["cost_usd"],
        digest,
        event["occurred_at"],
        datetime.now(UTC),  # noqa: TID251  a program of its own, with the clock of its own
        event["duration_ms"],
        event["status"],
    )
