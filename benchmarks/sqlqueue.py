"""A queue in PostgreSQL, drained by one SQL statement: the strongest rival, and all in one server.

`put` is its emit: a durable INSERT. The statement takes a batch with SKIP LOCKED, drops known ids, stores the
rest and adds it to the roll-ups. As a program it is the process that repeats the statement.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from typing import Final

import psycopg

from benchmarks import child
from producers._emitter import Usage
from producers._ids import new_event_id, utcnow

BATCH: Final = 5000
_IDLE_SECONDS: Final = 0.005
CREATE: Final = """
    CREATE TABLE IF NOT EXISTS bench_queue (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        payload jsonb NOT NULL
    )
"""
_PUT: Final = "INSERT INTO bench_queue (payload) VALUES (%s)"
_PUT_MANY: Final = "INSERT INTO bench_queue (payload) SELECT unnest(%s::text[])::jsonb"
_DRAIN: Final = """
    WITH taken AS (
        DELETE FROM bench_queue
         WHERE id IN (SELECT id FROM bench_queue ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED)
        RETURNING payload
    ), fresh AS (
        INSERT INTO platform_usage_logs (id, user_id, feature, provider, model, input_tokens, output_tokens,
                                         tokens_used, cost_usd, cost_reported_usd, cost_source, payload_hash,
                                         occurred_at, received_at, duration_ms, status, shard)
        SELECT event_id, user_id, feature, provider, model, input_tokens, output_tokens,
               input_tokens + output_tokens, cost_usd, cost_usd, 'reported',
               decode(md5(payload::text), 'hex'), occurred_at, clock_timestamp(), duration_ms, status, 0
          FROM taken
         CROSS JOIN LATERAL jsonb_to_record(payload) AS event (
               event_id uuid, user_id uuid, feature text, provider text, model text, input_tokens bigint,
               output_tokens bigint, cost_usd numeric, occurred_at timestamptz, duration_ms bigint,
               status text)
        ON CONFLICT (id) DO NOTHING
        RETURNING user_id, feature, provider, model, occurred_at, input_tokens, output_tokens, tokens_used,
                  cost_usd
    ), added AS (
        INSERT INTO usage_hourly AS hourly (user_id, feature, provider, model, hour, events, input_tokens,
                                            output_tokens, tokens_used, cost_usd)
        SELECT user_id, feature, provider, model, date_trunc('hour', occurred_at, 'UTC'), count(*),
               sum(input_tokens), sum(output_tokens), sum(tokens_used), sum(cost_usd)
          FROM fresh
         GROUP BY 1, 2, 3, 4, 5
         ORDER BY 1, 2, 3, 4, 5
        ON CONFLICT (user_id, feature, provider, model, hour) DO UPDATE
           SET events = hourly.events + excluded.events,
               input_tokens = hourly.input_tokens + excluded.input_tokens,
               output_tokens = hourly.output_tokens + excluded.output_tokens,
               tokens_used = hourly.tokens_used + excluded.tokens_used,
               cost_usd = hourly.cost_usd + excluded.cost_usd
    )
    SELECT count(*) FROM taken
"""


def put(connection: psycopg.Connection, usages: Iterable[Usage]) -> None:
    """This function will store events durably in the queue, with ids and times of their own."""
    payloads = [
        json.dumps({"event_id": new_event_id(), "occurred_at": utcnow(), **usage}, default=str)
        for usage in usages
    ]
    if len(payloads) == 1:
        connection.execute(_PUT, payloads)
    else:
        connection.execute(_PUT_MANY, [payloads])


def drain(url: str, stopped: threading.Event) -> child.Answer:
    """This function will drain the queue until it is told to stop."""
    batches = 0
    with psycopg.connect(url, autocommit=True) as connection:
        while not stopped.is_set():
            row = connection.execute(_DRAIN, [BATCH]).fetchone()
            if row is None or not row[0]:
                time.sleep(_IDLE_SECONDS)
            else:
                batches += 1
    return {"batches": batches}


def main() -> None:
    """This function will take orders until there are no more."""
    child.serve({"drain": lambda url, stopped: drain(url, stopped)})


if __name__ == "__main__":
    main()
