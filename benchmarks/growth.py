"""The real drain on a table of half a million rows and on one of ten million, in turns, with random ids."""

from __future__ import annotations

import itertools
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta

from benchmarks import figures
from benchmarks.child import Child
from benchmarks.data import Dataset, users
from benchmarks.measure import Case, Report, Sample, compare
from benchmarks.world import World

SMALL_ROWS = 500_000
LARGE_ROWS = 10_000_000
CHUNK = 250_000
USERS = 5000
SPAN = timedelta(days=30)
# So many events are drained before the first round: each page's first change after a checkpoint costs an
# image of the page, which a table that is written to all day pays once per checkpoint and not per event.
WARM_UP = 4
# Both tables lie in the cache of the operating system; what does not fit into shared_buffers is copied.
TUNING = {"shared_buffers": "1GB", "max_wal_size": "12GB", "autovacuum": "off"}
FILL = """
    INSERT INTO platform_usage_logs (id, user_id, feature, provider, model, input_tokens, output_tokens,
                                     tokens_used, cost_usd, cost_reported_usd, cost_source, payload_hash,
                                     occurred_at, received_at, duration_ms, status, shard)
    SELECT id, (%(users)s::uuid[])[1 + floor(power(random(), 3) * %(count)s)::int],
           (ARRAY['blog_writer', 'chat_assistant', 'research'])[1 + n %% 3], 'openai',
           (ARRAY['gpt-4o-mini', 'gpt-4o'])[1 + n %% 2], 800 + n %% 1000, 400 + n %% 700,
           1200 + n %% 1000 + n %% 700, 0.000394800000 + n %% 1000 * 0.000001,
           0.000394800000 + n %% 1000 * 0.000001, 'reported', decode(md5(id::text), 'hex'),
           now() - %(span)s::interval * (1 - n::float8 / %(rows)s),
           now() - %(span)s::interval * (1 - n::float8 / %(rows)s), 150 + n %% 9000, 'ok', 0
      FROM (SELECT gen_random_uuid() AS id, n FROM generate_series(%(first)s::int, %(last)s::int) AS n) AS new
"""


def run(rounds: int, events: int) -> Report:
    """This function will fill two databases and then drain `events` events into each, in turns."""
    with World(TUNING) as world:
        small = Site(world, events, rows=SMALL_ROWS - (WARM_UP + rounds // 2) * events)
        large = Site(world.beside("bench_large", valkey=1), events, rows=LARGE_ROWS)
        notes = world.notes()
        for name, site in ((figures.SMALL, small), (figures.LARGE, large)):
            site.fill(name)
            notes.append(site.warm_up(name))
        cases: dict[str, Case] = {figures.SMALL: small.drain, figures.LARGE: large.drain}
        return compare(
            cases,
            reference=figures.SMALL,
            rounds=rounds,
            figures=figures.GROWTH,
            events=dict.fromkeys(cases, events),
            notes=notes,
            progress=lambda line: sys.stderr.write(f"{line}\n"),
        )


class Site:
    """One database with its own stream and drain."""

    def __init__(self, world: World, events: int, *, rows: int) -> None:
        self._world, self._events, self._rows = world, events, max(rows, 0)
        self._drainer: Child = world.child("benchmarks.drainer")
        self._seeds = itertools.count(1)

    def fill(self, name: str) -> None:
        """This function will write the rows that are there before, in the order of time, with random ids."""
        admin, began = self._world.admin, time.monotonic()
        admin.execute("SET synchronous_commit = off")
        known = [*users(), *(uuid.UUID(int=number, version=4) for number in range(USERS))][:USERS]
        for first, last in chunks(self._rows, CHUNK):
            admin.execute(
                FILL,
                {
                    "users": known,
                    "count": USERS,
                    "span": SPAN,
                    "rows": self._rows,
                    "first": first,
                    "last": last,
                },
            )
            sys.stderr.write(f"{name}: {last:,} rows after {time.monotonic() - began:.0f} s\n")
        admin.execute("RESET synchronous_commit")
        admin.execute("VACUUM (ANALYZE) platform_usage_logs")
        admin.execute("CHECKPOINT")

    def warm_up(self, name: str) -> str:
        """This function will drain until most pages have had their first change, and say what that cost."""
        first, *_ = [self.drain() for _ in range(WARM_UP)]
        return (
            f"{name}: the first {self._events:,} events after a checkpoint wrote "
            f"{first['wal_image_bytes']:,.0f} B of page images per event"
        )

    def drain(self) -> Sample:
        """This function will drain events with new random ids."""
        world, before = self._world, self._world.counted()
        world.client.flushdb()
        world.load(Dataset(self._events, seed=next(self._seeds), random_ids=True).frames)
        with world.measure(worker=self._drainer.pid) as meter:
            began = time.time()
            self._drainer.send("drain")
            world.wait(world.counted, before + self._events)
        ended = world.committed_at("ingest_positions")
        self._drainer.send("stop")
        self._drainer.answer()
        return {**meter.span.sample(ended - began, self._events), **self._sizes()}

    def _sizes(self) -> dict[str, float]:
        row = self._world.admin.execute(
            "SELECT count(*), pg_indexes_size('platform_usage_logs'), pg_table_size('platform_usage_logs') "
            "FROM platform_usage_logs"
        ).fetchone()
        if row is None:
            return {}
        return {"rows": row[0], "index_bytes": row[1] / row[0], "table_bytes": row[2] / row[0]}


def chunks(rows: int, size: int) -> Iterator[tuple[int, int]]:
    """This function will cut 1 to `rows` into (first, last) of at most `size`."""
    for first in range(1, rows + 1, size):
        yield first, min(rows, first + size - 1)
