"""What a run left behind: in the producers' ledgers, the stream, the database and the logs."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psycopg

from tests.chaos.ledger import Read
from tests.chaos.monitor import Monitor
from tests.chaos.traffic import Bad, Event, Kind, Traffic
from tests.chaos.world import GROUP, World, keys

# A row as its event determines it, to the last digit: exactly what `line` writes.
_ROWS: Final = """
    COPY (SELECT id, user_id, feature, coalesce(provider, ''), coalesce(model, ''), input_tokens,
                 output_tokens, tokens_used, coalesce(cost_usd::text, ''), cost_source,
                 (extract(epoch FROM occurred_at) * 1000)::bigint, coalesce(corrects::text, ''), void
            FROM platform_usage_logs) TO STDOUT (FORMAT csv)
"""
_SUMS: Final = """
    SELECT user_id, feature, count(*), sum(input_tokens), sum(output_tokens), sum(cost_usd)
      FROM platform_usage_logs GROUP BY 1, 2
"""


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter as the database has it."""

    letter_id: str
    reason: str
    raw: bytes
    raw_sha256: bytes
    event_id: UUID | None
    stream_id: str
    is_open: bool


@dataclass(frozen=True, slots=True)
class Emitted:
    """One event that was emitted: the row it has to become, and what is known of its way."""

    line: bytes
    producer: int
    step: int
    kind: Kind
    acknowledged: bool

    def history(self) -> str:
        """This function will say where it came from."""
        answer = "acknowledged" if self.acknowledged else "never acknowledged"
        return f"producer {self.producer} step {self.step} ({self.kind}), {answer}"


@dataclass
class Evidence:
    """Everything that the invariants are about, read once at the end."""

    monitor: Monitor
    emitted: dict[str, Emitted] = field(default_factory=dict)
    sums: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    bad: list[tuple[Bad, bool]] = field(default_factory=list)
    attempts: Counter[str] = field(default_factory=Counter)
    rows: dict[str, bytes] = field(default_factory=dict)
    row_count: int = 0
    stored_sums: list[tuple[Any, ...]] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    positions: list[dict[str, Any]] = field(default_factory=list)
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    differences: list[tuple[Any, ...]] = field(default_factory=list)
    sampled: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    job_runs: list[dict[str, Any]] = field(default_factory=list)
    audit_runs: list[dict[str, Any]] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)
    settle_seconds: float | None = None
    commands: dict[str, str] = field(default_factory=dict)


def line(event: Event) -> bytes:
    """This function will write the row that an event has to become, as CSV like PostgreSQL's."""
    cost = "" if event.cost is None else _money(event.cost)
    # What a correction states is its own; what it does not, its target has.
    source = "unpriced" if event.cost is None else "reported"
    milliseconds = round(event.occurred_at.timestamp() * 1000)
    fields = (
        str(event.event_id),
        str(event.owner),
        event.feature,
        event.provider or '""',
        event.model or '""',
        str(event.input_tokens),
        str(event.output_tokens),
        str(event.input_tokens + event.output_tokens),
        cost or '""',
        source,
        str(milliseconds),
        '""' if event.corrects is None else str(event.corrects),
        "t" if event.void else "f",
    )
    return ",".join(fields).encode()


def _money(units: int) -> str:
    sign, units = ("-", -units) if units < 0 else ("", units)
    return f"{sign}{units // 10**12}.{units % 10**12:012d}"


def read_emitted(evidence: Evidence, producers: Sequence[tuple[Traffic, Path]]) -> None:
    """This function will make every event again that a producer tried to send."""
    for producer, (traffic, path) in enumerate(producers):
        ledger = Read(path)
        for step in traffic.steps():
            if step.number not in ledger.tried:
                continue
            acknowledged = step.number in ledger.acknowledged
            evidence.attempts[step.kind] += 1
            for event in traffic.rows(step):
                evidence.emitted[str(event.event_id)] = Emitted(
                    line(event), producer, step.number, step.kind, acknowledged
                )
                _add(evidence.sums, event)
            letter = traffic.letter(step)
            if letter is not None:
                evidence.bad.append((letter, acknowledged))


def _add(sums: dict[tuple[str, str], list[int]], event: Event) -> None:
    total = sums.setdefault((str(event.owner), event.feature), [0, 0, 0, 0])
    total[0] += 1
    total[1] += event.input_tokens
    total[2] += event.output_tokens
    total[3] += event.cost or 0


def read_stored(evidence: Evidence, world: World) -> None:
    """This function will read what the database and the stream hold."""
    with world.database() as database:
        evidence.rows, evidence.row_count = _rows(database)
        evidence.stored_sums = [tuple(row) for row in database.execute(_SUMS).fetchall()]
        evidence.letters = [
            Letter(*row)
            for row in database.execute(
                "SELECT id::text, reason, raw, raw_sha256, event_id, stream_id,"
                " replayed_at IS NULL AND discarded_at IS NULL FROM usage_dead_letters"
            ).fetchall()
        ]
        evidence.positions = _dicts(database, "SELECT * FROM ingest_positions ORDER BY shard")
        evidence.job_runs = _dicts(database, "SELECT * FROM job_runs")
        evidence.audit_runs = _dicts(database, "SELECT * FROM audit_runs")
        evidence.sampled = _again(database, list(evidence.monitor.samples.rows))
    client = world.stream()
    try:
        for key, _ in keys():
            if not client.exists(key):
                continue
            evidence.streams[key] = dict(client.xinfo_stream(key))
            for group in client.xinfo_groups(key):
                if group["name"] == GROUP.encode():
                    evidence.groups[key] = dict(group)
    finally:
        client.close()


def read_logs(evidence: Evidence, world: World, logs: Path) -> None:
    """This function will read what the programs wrote, and what must never stand in there."""
    evidence.logs = {path.name: path.read_text(errors="replace") for path in sorted(logs.glob("*.log"))}
    evidence.secrets = [*world.passwords.values(), world.valkey.password, world.postgres.password]


def _rows(database: psycopg.Connection[Any]) -> tuple[dict[str, bytes], int]:
    rows: dict[str, bytes] = {}
    count = 0
    buffer = io.BytesIO()
    with database.cursor().copy(_ROWS) as copy:
        for data in copy:
            buffer.write(data)
    buffer.seek(0)
    for text in buffer:
        row = text.rstrip(b"\n")
        rows[row[:36].decode()] = row
        count += 1
    return rows, count


def _again(database: psycopg.Connection[Any], ids: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    found = database.execute(
        "SELECT id, payload_hash, cost_usd, stored_at FROM platform_usage_logs WHERE id = ANY(%s::uuid[])",
        [list(ids)],
    )
    return {str(row[0]): tuple(row) for row in found.fetchall()}


def _dicts(database: psycopg.Connection[Any], query: str) -> list[dict[str, Any]]:
    cursor = database.execute(query.encode())
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def is_whole(letter: Letter) -> bool:
    """This function will say whether a letter's bytes are those that its hash was made of."""
    return hashlib.sha256(letter.raw).digest() == letter.raw_sha256
