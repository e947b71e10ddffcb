"""What has to be true at the end of a run, whatever was done to it. Each answers with what is wrong."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Final

from tests.chaos import monitor
from tests.chaos.evidence import Evidence, is_whole
from tests.chaos.traffic import CANARY, Kind
from tests.chaos.world import entry

_SHOWN: Final = 20
# What is refused for good; the others wait for something that comes.
_WAITING: Final = ("unknown_user", "unknown_target", "poison")


def I1_no_loss(evidence: Evidence) -> list[str]:
    """Every acknowledged event is a row, and what could not become one is kept."""
    reasons = {str(letter.event_id): letter.reason for letter in evidence.letters if letter.is_open}
    lost = [
        f"{event_id}: {emitted.history()}, dead letter: {reasons.get(event_id, 'none')}"
        for event_id, emitted in evidence.emitted.items()
        if emitted.acknowledged and event_id not in evidence.rows
    ]
    kept = {letter.raw for letter in evidence.letters}
    lost += [
        f"refused bytes not kept: {bad.reason} {bad.raw[:60]!r}"
        for bad, acknowledged in evidence.bad
        if acknowledged and bad.raw not in kept
    ]
    return _some(lost)


def I2_no_invention(evidence: Evidence) -> list[str]:
    """There is no row and no dead letter of what nobody sent."""
    found = [f"row {event_id}: never emitted" for event_id in evidence.rows.keys() - evidence.emitted.keys()]
    sent = {bad.raw for bad, _ in evidence.bad}
    found += [
        f"dead letter {letter.letter_id}: {letter.reason}, bytes never sent: {letter.raw[:60]!r}"
        for letter in evidence.letters
        if letter.is_open and letter.raw not in sent
    ]
    return _some(found)


def I3_no_double(evidence: Evidence) -> list[str]:
    """No event is two rows, or a row and an open dead letter, unless it is another one's conflict."""
    found = []
    if evidence.row_count != len(evidence.rows):
        found.append(f"{evidence.row_count} rows with {len(evidence.rows)} ids")
    found += [
        f"{letter.event_id}: a row and an open letter ({letter.reason})"
        for letter in evidence.letters
        if letter.is_open and letter.reason != "conflict" and str(letter.event_id) in evidence.rows
    ]
    return _some(found)


def I4_money_exact(evidence: Evidence) -> list[str]:
    """Every row is its event to the last digit, and so are the sums per user and feature."""
    found = [
        f"{event_id}: {evidence.rows[event_id]!r} instead of {emitted.line!r}; {emitted.history()}"
        for event_id, emitted in evidence.emitted.items()
        if event_id in evidence.rows and evidence.rows[event_id] != emitted.line
    ]
    stored = {
        (str(user), feature): [count, tokens, output, int((cost or Decimal(0)).scaleb(12))]
        for user, feature, count, tokens, output, cost in evidence.stored_sums
    }
    found += [
        f"{key}: {stored.get(key)} instead of {evidence.sums.get(key)} (events, input, output, 1e-12 dollars)"
        for key in sorted(stored.keys() | evidence.sums.keys())
        if stored.get(key) != evidence.sums.get(key)
    ]
    return _some(found)


def I5_rollups_equal(evidence: Evidence) -> list[str]:
    """The roll-ups are the aggregation of the log."""
    return _some(map(str, evidence.differences))


def I6_rollups_equal_at_every_moment(evidence: Evidence) -> list[str]:
    """They were so in every snapshot that was taken while faults happened."""
    if not evidence.monitor.samples.taken:
        return ["no snapshot was taken"]
    return _some(evidence.monitor.samples.differences)


def I7_nothing_left(evidence: Evidence) -> list[str]:
    """Every entry is behind the position and the group, and nothing is pending or was deleted unread."""
    found = []
    by_shard = {row["shard"]: row for row in evidence.positions}
    for key, stream in evidence.streams.items():
        shard = int(key.partition("{")[2].rstrip("}"))
        name = "last_correction_id" if "corrections" in key else "last_entry_id"
        group, tail = evidence.groups.get(key), stream["last-generated-id"].decode()
        position = str(by_shard[shard][name]) if shard in by_shard else "0-0"
        if stream["length"] and entry(position) < entry(tail):
            found.append(f"{key}: position {position}, last entry {tail}")
        if group is None:
            found.append(f"{key}: no group")
        elif group["pending"] or group["lag"]:
            found.append(f"{key}: pending {group['pending']}, lag {group['lag']}")
        elif entry(group["last-delivered-id"].decode()) < entry(tail):
            found.append(f"{key}: the group stands at {group['last-delivered-id']!r}, last entry {tail}")
    found += [
        f"{name}: {line[:200]}"
        for name, text in evidence.logs.items()
        for line in text.splitlines()
        if "were deleted from the stream" in line
    ]
    return _some(found)


def I8_deliveries_conserved(evidence: Evidence) -> list[str]:
    """Entries added are entries counted; events counted are rows, duplicates and dead letters."""
    found = []
    for row in evidence.positions:
        added = sum(
            int(stream["entries-added"])
            for key, stream in evidence.streams.items()
            if f"{{{row['shard']}}}" in key
        )
        if added != row["entries"]:
            found.append(f"shard {row['shard']}: {added} entries added, {row['entries']} counted")
        answers = sum(row[name] for name in ("accepted", "duplicates", "conflicts", "rejected"))
        if answers != row["events"]:
            found.append(f"shard {row['shard']}: {row['events']} events, {answers} answers")
        if row["paused_at"] is not None:
            found.append(f"shard {row['shard']}: paused by {row['paused_by']}")
    found += _recovered(evidence)
    stored = sum(row["accepted"] + row["recovered"] + row["replayed"] for row in evidence.positions)
    if stored != evidence.row_count:
        found.append(f"{stored} events counted as stored, {evidence.row_count} rows")
    refused = sum(row["conflicts"] + row["rejected"] for row in evidence.positions)
    if refused != len(evidence.letters):
        found.append(f"{refused} events counted as refused, {len(evidence.letters)} dead letters")
    if evidence.commands.get("audit books"):
        found.append(f"audit of the books: {evidence.commands['audit books']}")
    return _some(found)


def _recovered(evidence: Evidence) -> list[str]:
    """Rows from entries that were processed before: only what had been refused until something else came."""
    named = [
        event_id
        for text in evidence.logs.values()
        for line in text.splitlines()
        if "at or below the position" in line
        for event_id in json.loads(line)["event_ids"]
    ]
    counted = sum(row["recovered"] for row in evidence.positions)
    found = []
    if counted > len(named):
        found.append(f"{counted} rows from below the position, the logs name {len(named)}")
    for event_id in named:
        emitted = evidence.emitted.get(event_id)
        if emitted is None or emitted.kind not in (Kind.VOID, Kind.CORRECTION, Kind.LATE):
            history = "never emitted" if emitted is None else emitted.history()
            found.append(f"{event_id}: a row only when its entry was read again; {history}")
    return found


def I9_rows_immutable(evidence: Evidence) -> list[str]:
    """A row that was seen during the run is the same at its end."""
    return _some(
        f"{event_id}: {evidence.sampled.get(event_id)} instead of {row}"
        for event_id, row in evidence.monitor.samples.rows.items()
        if evidence.sampled.get(event_id) != row
    )


def I10_dead_letters_whole(evidence: Evidence) -> list[str]:
    """Dead letters have the bytes that were sent and the right reason; a replay does its work once."""
    reasons = {bad.raw: bad.reason for bad, _ in evidence.bad}
    found = []
    for letter in evidence.letters:
        if not is_whole(letter):
            found.append(f"{letter.letter_id}: bytes and their hash differ")
        expected = reasons.get(letter.raw)
        if letter.is_open and letter.reason in _WAITING:
            found.append(
                f"{letter.letter_id}: {letter.reason} still open after its replay: {letter.raw[:80]!r}"
            )
        elif expected is not None and letter.reason != expected:
            found.append(f"{letter.letter_id}: {letter.reason} instead of {expected}")
    if evidence.commands.get("replay again"):
        found.append(f"a second replay did something: {evidence.commands['replay again']}")
    return _some(found)


def I11_recovers_in_time(evidence: Evidence) -> list[str]:
    """After each fault, what came after it was processed within 60 s, and at the end everything was."""
    found = []
    for record in evidence.monitor.records:
        seconds = record.recovery_seconds
        if record.problem or record.ended is None:
            continue
        if seconds is None or seconds > monitor.LIMIT_SECONDS:
            shown = "never" if seconds is None else f"after {seconds:.1f} s"
            found.append(f"{record.planned.what} at {record.began:.1f} s: recovered {shown}")
    if evidence.settle_seconds is None:
        found.append("the streams were never drained")
    elif evidence.settle_seconds > monitor.LIMIT_SECONDS:
        found.append(f"drained {evidence.settle_seconds:.1f} s after the last event")
    return _some(found)


def I12_jobs_once(evidence: Evidence) -> list[str]:
    """A window of a periodic job is worked through once, with two beats as with one."""
    found = []
    attempts = Counter({(row["job"], row["window_start"]): row["attempts"] for row in evidence.job_runs})
    found += [f"{key}: {count} attempts" for key, count in attempts.items() if count > 3]
    claimed: Counter[str] = Counter()
    for (job, _), count in attempts.items():
        claimed[job] += count
    for kind in ("rls", "pool"):
        runs = Counter(row["database"] for row in evidence.audit_runs if row["kind"] == kind)
        found += [
            f"audits.{kind}: {count} runs of {database}, {claimed[f'audits.{kind}']} were claimed"
            for database, count in runs.items()
            if count > claimed[f"audits.{kind}"]
        ]
    if not evidence.job_runs:
        found.append("no periodic job ran")
    if evidence.commands.get("reconcile again"):
        found.append(f"a second reconciliation did something: {evidence.commands['reconcile again']}")
    return _some(found)


def I13_no_secret_in_logs(evidence: Evidence) -> list[str]:
    """No log has a password, or a value that a producer ought not to have sent."""
    secrets = [*evidence.secrets, CANARY]
    return _some(
        f"{name}: a secret stands in line {number}"
        for name, text in evidence.logs.items()
        if any(secret in text for secret in secrets)
        for number, line in enumerate(text.splitlines(), 1)
        if any(secret in line for secret in secrets)
    )


Invariant = Callable[[Evidence], list[str]]
INVARIANTS: Final[tuple[Invariant, ...]] = (
    I1_no_loss,
    I2_no_invention,
    I3_no_double,
    I4_money_exact,
    I5_rollups_equal,
    I6_rollups_equal_at_every_moment,
    I7_nothing_left,
    I8_deliveries_conserved,
    I9_rows_immutable,
    I10_dead_letters_whole,
    I11_recovers_in_time,
    I12_jobs_once,
    I13_no_secret_in_logs,
)


def _some(found: Iterable[str]) -> list[str]:
    every = list(found)
    return every if len(every) <= _SHOWN else [*every[:_SHOWN], f"... and {len(every) - _SHOWN} more"]
