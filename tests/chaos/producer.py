"""One producer: a process that emits, as an app would, and sends again whatever was not acknowledged."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from producers import Emitter, StreamUnavailable, UsageEvent
from producers import _stream as wire
from producers._config import EmitterConfig
from producers._events import build
from tests.chaos.ledger import Ledger, Read
from tests.chaos.traffic import CANARY, Event, Kind, Step, Traffic

_PAUSE_SECONDS = 0.1


class Producer:
    """Sends the steps of one Traffic in order, at a steady rate."""

    def __init__(self, traffic: Traffic, config: EmitterConfig, ledger: Path, *, rate: float) -> None:
        self._traffic = traffic
        self._config = config
        self._done = set(Read(ledger).acknowledged)
        self._ledger = Ledger(ledger)
        self._rate = rate
        self._emitter = Emitter(config)
        self._raw = redis.Redis.from_url(
            config.redis_url, socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0)
        )

    def run(self) -> None:
        """This function will send every step that this ledger does not have as acknowledged."""
        started, sent = time.monotonic(), 0
        for step in self._traffic.steps():
            if step.number in self._done:
                continue
            self._ledger.tried(step.number)
            attempts = self._send(step)
            self._ledger.acknowledged(step.number, attempts=attempts)
            sent += max(step.count, 1)
            ahead = sent / self._rate - (time.monotonic() - started)
            # After an outage it catches up as fast as it can, as a queue of waiting requests would.
            if ahead > 0:
                time.sleep(ahead)
        self._ledger.close()

    def _send(self, step: Step) -> int:
        match step.kind:
            case Kind.FRAME:
                return self._frame([self._traffic.event(step.first + at) for at in range(step.count)])
            case Kind.AGAIN:
                return self._frame([self._traffic.event(step.target + at) for at in range(2)])
            case Kind.SINGLES:
                return sum(self._single(self._traffic.event(step.first + at)) for at in range(step.count))
            case Kind.LATE:
                return self._single(self._traffic.event(step.first, late=True))
            case Kind.VOID | Kind.CORRECTION:
                return self._again([_adjustment(self._traffic.adjustment(step))])
            case Kind.MIXED:
                return self._by_hand(step, ((b"data", self._traffic.mixed(step)),))
            case Kind.BAD:
                return self._by_hand(step, self._traffic.bad(step).fields)
            case Kind.CONFLICT:
                return self._by_hand(step, self._traffic.conflict(step).fields)

    def _frame(self, events: list[Event]) -> int:
        try:
            with self._emitter.batch() as batch:
                for event in events:
                    batch.emit(**_arguments(event))  # type: ignore[arg-type]  # a TypedDict's worth of values
        except StreamUnavailable as error:
            return 1 + self._again(list(error.events))
        return 1

    def _single(self, event: Event) -> int:
        try:
            self._emitter.emit(
                **_arguments(event),  # type: ignore[arg-type]  # a TypedDict's worth of values
                metadata={"request": event.event_id.hex, "api_key": CANARY},
            )
        except StreamUnavailable as error:
            return 1 + self._again(list(error.events))
        return 1

    def _again(self, missing: list[UsageEvent]) -> int:
        attempts = 0
        while missing:
            attempts += 1
            try:
                with self._emitter.batch() as batch:
                    for event in missing:
                        batch.add(event)
                return attempts
            except StreamUnavailable as error:
                missing = list(error.events)
                time.sleep(_PAUSE_SECONDS)
        return attempts

    def _by_hand(self, step: Step, fields: tuple[tuple[bytes, bytes], ...]) -> int:
        shard = wire.shard_of(self._traffic.shard_text(step), self._config.shards)
        key = wire.stream_key(self._config.stream, shard)
        words = [part for pair in fields for part in pair]
        return _until_done(
            lambda: self._raw.execute_command("XADD", key, "*", *words)  # type: ignore[no-untyped-call]  # redis-py: untyped
        )


def _until_done(act: Callable[[], object]) -> int:
    attempts = 1
    while True:
        try:
            act()
        except (redis.RedisError, OSError):
            attempts += 1
            time.sleep(_PAUSE_SECONDS)
        else:
            return attempts


def _arguments(event: Event) -> dict[str, object]:
    return {
        "event_id": event.event_id,
        "user_id": event.user_id,
        "clerk_id": event.clerk_id,
        "feature": event.feature,
        "provider": event.provider,
        "model": event.model,
        "input_tokens": event.input_tokens,
        "output_tokens": event.output_tokens,
        "cost_usd": event.cost_usd,
        "occurred_at": event.occurred_at,
    }


def _adjustment(event: Event) -> UsageEvent:
    values: dict[str, object] = {
        "event_id": event.event_id,
        "user_id": event.user_id,
        "clerk_id": event.clerk_id,
        "corrects": event.corrects,
        "occurred_at": event.occurred_at,
    }
    if event.void:
        values["void"] = True
    else:
        values |= {
            "input_tokens": event.input_tokens,
            "output_tokens": event.output_tokens,
            "cost_usd": event.cost_usd,
        }
    return build({name: value for name, value in values.items() if value is not None})


def main(arguments: list[str]) -> None:
    """This function will run one producer as the arguments say, with REDIS_URL from the environment."""
    parser = argparse.ArgumentParser()
    for name in ("seed", "producer", "events", "frame"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--base", required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    given = parser.parse_args(arguments)
    traffic = Traffic(
        seed=given.seed,
        producer=given.producer,
        events=given.events,
        frame=given.frame,
        base=dt.datetime.fromisoformat(given.base),
    )
    environ = dict(os.environ)  # noqa: TID251  a process of the suite, started with an environment of its own
    Producer(traffic, EmitterConfig.from_env(environ), given.ledger, rate=given.rate).run()


if __name__ == "__main__":
    main(sys.argv[1:])
