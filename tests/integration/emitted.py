"""What emitters have brought to a stream, and processes that emit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import redis

from producers._stream import decode
from worker.dev import servers

USAGE: dict[str, Any] = {
    "user_id": UUID("7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11"),
    "feature": "blog_writer",
    "input_tokens": 812,
    "output_tokens": 455,
}
KEY = "usage:events:{0}"


def ids_in(client: redis.Redis, key: str = KEY) -> list[UUID]:
    """This function will return the ids of all events in one stream, in its order, repetitions included."""
    found: list[tuple[bytes, dict[bytes, bytes]]] = client.xrange(key)  # type: ignore[assignment]  # bytes mode
    decoded = [one for _, fields in found for one in decode(fields[b"data"], correction="corrections" in key)]
    assert [one.detail for one in decoded if one.event is None] == []
    return [one.event_id for one in decoded if one.event_id is not None]


def numbers_in(client: redis.Redis, key: str = KEY) -> dict[str, list[int]]:
    """This function will return the numbers of each producer, sorted, without repetitions."""
    found: list[tuple[bytes, dict[bytes, bytes]]] = client.xrange(key)  # type: ignore[assignment]  # bytes mode
    numbers: dict[str, set[int]] = {}
    for _, fields in found:
        for one in decode(fields[b"data"]):
            assert one.event is not None
            assert one.event.seq is not None
            numbers.setdefault(str(one.event.producer_id), set()).add(one.event.seq)
    return {name: sorted(series) for name, series in numbers.items()}


def until(true: Callable[[], object], *, seconds: float = 10) -> None:
    """This function will wait until `true` says so; raises AssertionError when the time is over."""
    give_up_at = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up_at, "it did not happen in time"
        time.sleep(0.01)


def spawn(script: str, server: servers.ValkeyServer, *arguments: str) -> subprocess.Popen[str]:
    """This function will start a script that finds the server in its environment."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *arguments],
        env={"REDIS_URL": server.url(), "PATH": os.defpath},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], *, code: int = 0) -> list[UUID]:
    """This function will wait for a script and return the ids that it has written."""
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (code, "")
    return [UUID(line) for line in stdout.split()]
