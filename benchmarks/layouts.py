"""One plain table, hash partitions, or months with a table of ids: the same rows into each, in turns.

Plain SQL, so that only the layout differs: known ids are left out first, then INSERT ... SELECT in batches
of 5,000, as the drain does. Every row has a random id and one of some thousand users. The tables grow through
the rounds; the last round is the largest size. `--events` is how many rows each table has in the end.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Final

from benchmarks.growth import TUNING
from benchmarks.measure import Case, Figure, Report, Sample, compare
from benchmarks.world import World

BATCH: Final = 5000
MEASURED: Final = 100_000
WARM_UP: Final = 2
PLAIN: Final = "one plain table"
HASH: Final = "16 hash partitions by id"
MONTHS: Final = "months, and a table of ids"
SMALL: Final = 500_000
_COLUMNS: Final = (
    "id uuid NOT NULL, user_id uuid NOT NULL, feature varchar(128) NOT NULL, provider varchar(128), "
    "model varchar(256), input_tokens bigint, output_tokens bigint, tokens_used bigint NOT NULL, "
    "cost_usd numeric(24, 12), cost_source varchar(16) NOT NULL, payload_hash bytea NOT NULL, "
    "occurred_at timestamptz NOT NULL, received_at timestamptz NOT NULL, shard smallint NOT NULL"
)
_CREATE: Final = f"""
    CREATE TABLE layout_plain ({_COLUMNS}, PRIMARY KEY (id));
    CREATE INDEX ON layout_plain (user_id, occurred_at);
    CREATE TABLE layout_hash ({_COLUMNS}, PRIMARY KEY (id)) PARTITION BY HASH (id);
    CREATE INDEX ON layout_hash (user_id, occurred_at);
    CREATE TABLE layout_months ({_COLUMNS}) PARTITION BY RANGE (occurred_at);
    CREATE INDEX ON layout_months (user_id, occurred_at);
    CREATE TABLE layout_ids (id uuid PRIMARY KEY, occurred_at timestamptz NOT NULL);
    CREATE UNLOGGED TABLE layout_new (n integer, {_COLUMNS});
    CREATE INDEX ON layout_new (n);
    DO $$ BEGIN
        FOR part IN 0..15 LOOP
            EXECUTE format('CREATE TABLE layout_hash_%s PARTITION OF layout_hash
                            FOR VALUES WITH (MODULUS 16, REMAINDER %s)', part, part);
        END LOOP;
        FOR part IN -2..1 LOOP
            EXECUTE format('CREATE TABLE layout_months_%s PARTITION OF layout_months
                            FOR VALUES FROM (%L) TO (%L)', part + 2,
                           date_trunc('month', now()) + part * interval '1 month',
                           date_trunc('month', now()) + (part + 1) * interval '1 month');
        END LOOP;
    END $$;
"""
_NEW: Final = """
    INSERT INTO layout_new
    SELECT n, gen_random_uuid(), md5('user' || floor(power(random(), 3) * 5000))::uuid,
           (ARRAY['blog_writer', 'chat_assistant', 'research'])[1 + n % 3], 'openai',
           (ARRAY['gpt-4o-mini', 'gpt-4o'])[1 + n % 2], 800 + n % 1000, 400 + n % 700,
           1200 + n % 1000 + n % 700, 0.000394800000 + n % 1000 * 0.000001, 'reported',
           decode(md5(n::text), 'hex'), now() - interval '2 days' * random(), now(), 0
      FROM generate_series(1, {rows}) AS n
"""
_ROW: Final = (
    "id, user_id, feature, provider, model, input_tokens, output_tokens, tokens_used, cost_usd, cost_source, "
    "payload_hash, occurred_at, received_at, shard"
)
# OFFSET keeps the planner from joining by a scan of the whole table, as in the drain's own statement.
_DIRECT: Final = """
    INSERT INTO {table} ({row})
    SELECT {row} FROM layout_new AS new
     WHERE n BETWEEN {first} AND {last}
       AND NOT EXISTS (SELECT FROM {table} AS known WHERE known.id = new.id OFFSET 0)
     ORDER BY id
"""
_WITH_IDS: Final = """
    WITH fresh AS (
        INSERT INTO layout_ids SELECT id, occurred_at FROM layout_new
         WHERE n BETWEEN {first} AND {last} ORDER BY id
        ON CONFLICT (id) DO NOTHING RETURNING id
    )
    INSERT INTO {table} ({row})
    SELECT {row} FROM layout_new JOIN fresh USING (id) WHERE n BETWEEN {first} AND {last} ORDER BY id
"""
_STATEMENTS: Final = {PLAIN: _DIRECT, HASH: _DIRECT, MONTHS: _WITH_IDS}
_TABLES: Final = {
    PLAIN: ("layout_plain",),
    HASH: ("layout_hash",),
    MONTHS: ("layout_months", "layout_ids"),
}


def run(rounds: int, events: int) -> Report:
    """This function will measure each layout around half a million rows and again around `events`."""
    with World(TUNING) as world:
        world.admin.execute(_CREATE)
        layouts = Layouts(world)
        samples: dict[str, list[Sample]] = {}
        for rows in (SMALL, events):
            layouts.grow(rows - (WARM_UP + rounds // 2) * MEASURED)
            cases: dict[str, Case] = {
                f"{name}, {rows:,} rows": partial(layouts.measure, name) for name in _STATEMENTS
            }
            report = compare(
                cases,
                reference=f"{PLAIN}, {rows:,} rows",
                rounds=rounds,
                progress=lambda line: sys.stderr.write(f"{line}\n"),
            )
            samples |= report.samples
        return Report(f"{PLAIN}, {SMALL:,} rows", samples, figures_of(events), notes=world.notes())


def figures_of(rows: int) -> list[Figure]:
    """This function will compare each layout with itself when small, and with the plain table."""
    figures = [
        Figure(
            name=f"{name}: rate at {rows:,} / at {SMALL:,}",
            case=f"{name}, {rows:,} rows",
            reference=f"{name}, {SMALL:,} rows",
        )
        for name in _STATEMENTS
    ]
    figures += [
        Figure(
            name=f"{name} / {PLAIN} at {rows:,}: {title}",
            case=f"{name}, {rows:,} rows",
            reference=f"{PLAIN}, {rows:,} rows",
            metric=metric,
            higher=False,
        )
        for name in (HASH, MONTHS)
        for metric, title in (("cpu_us", "CPU"), ("wal_bytes", "WAL"), ("table_bytes", "table"))
    ]
    return figures


class Layouts:
    """The three tables; each round writes rows of its own into the one that is measured."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rows = dict.fromkeys(_STATEMENTS, 0)

    def grow(self, rows: int) -> None:
        """This function will write until each table has `rows` rows, and then write out what is dirty."""
        while min(self._rows.values()) < rows:
            for name in _STATEMENTS:
                self._write(name, max(0, min(MEASURED, rows - self._rows[name])))
            sys.stderr.write(f"{self._rows[PLAIN]:,} rows in each\n")
        self._world.admin.execute("CHECKPOINT")
        # Each page's first change after a checkpoint costs an image: they are not what is compared.
        for _ in range(WARM_UP):
            for name in _STATEMENTS:
                self._write(name, MEASURED)

    def measure(self, name: str) -> Sample:
        """This function will write rows into one layout and measure it."""
        world = self._world
        self._prepare(MEASURED)
        with world.measure() as meter:
            began = time.perf_counter()
            self._insert(name, MEASURED)
            seconds = time.perf_counter() - began
        sizes = world.admin.execute(
            "SELECT sum(pg_indexes_size(relid)), sum(pg_table_size(relid)) FROM ("
            "SELECT root::regclass AS relid FROM unnest(%s::text[]) AS root "
            "UNION SELECT part.relid FROM unnest(%s::text[]) AS root, "
            "pg_partition_tree(root::regclass) AS part) AS parts",
            [list(_TABLES[name])] * 2,
        ).fetchone()
        index, table = sizes or (0, 0)
        rows = self._rows[name]
        return {
            **meter.span.sample(seconds, MEASURED),
            "index_bytes": float(index) / rows,
            "table_bytes": float(table) / rows,
        }

    def _write(self, name: str, rows: int) -> None:
        self._prepare(rows)
        self._insert(name, rows)

    def _prepare(self, rows: int) -> None:
        self._world.admin.execute("TRUNCATE layout_new")
        self._world.admin.execute(_NEW.format(rows=rows).encode())
        self._world.admin.execute("ANALYZE layout_new")

    def _insert(self, name: str, rows: int) -> None:
        for first in range(1, rows + 1, BATCH):
            self._world.admin.execute(self._statement(name, first))
        self._rows[name] += rows

    @staticmethod
    def _statement(name: str, first: int) -> bytes:
        last = first + BATCH - 1
        return _STATEMENTS[name].format(table=_TABLES[name][0], row=_ROW, first=first, last=last).encode()
