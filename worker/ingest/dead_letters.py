"""Dead letters: put through the same path again after a fix, or given up. Nothing here commits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.orm import Session

from worker.errors import PermanentError
from worker.ingest import operations, queries, rules
from worker.ingest.queries import DeadLetter
from worker.ingest.rules import AgeLimits, Outcome, Received
from worker.pricing.book import Prices

AT_ONCE: Final = 500


class NothingSelected(PermanentError):
    """Name the dead letters by id, by reason or by time."""


class OneLetterOnly(PermanentError):
    """Corrected bytes belong to one dead letter: name exactly one id."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which open dead letters are meant: all conditions given hold together; stored in [since, until)."""

    ids: Sequence[UUID] | None = None
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def conditions(self) -> dict[str, object]:
        """This function will return what was given, by name, or raise NothingSelected."""
        given: dict[str, object] = {
            "ids": None if self.ids is None else list(self.ids),
            "reason": self.reason,
            "since": self.since,
            "until": self.until,
        }
        given = {name: value for name, value in given.items() if value is not None}
        if not given:
            raise NothingSelected
        return given


@dataclass(frozen=True, slots=True)
class Replayed:
    """What one step of a replay did. `after` is where the next step goes on; None: that was all."""

    tried: int = 0
    accepted: int = 0
    duplicates: int = 0
    refused: int = 0
    after: tuple[datetime, UUID] | None = None


# Only the conditions that are given stand in the statement, so that ids are looked up in their index.
_CONDITIONS: Final = {
    "ids": "id = ANY(:ids)",
    "reason": "reason = :reason",
    "since": "stored_at >= :since",
    "until": "stored_at < :until",
    "after": "(received_at, id) > (:after_at, :after_id)",
    "bytes": "(raw IS NOT NULL OR corrected_raw IS NOT NULL)",
}
_TAKE: Final = """
    SELECT {columns} FROM usage_dead_letters
     WHERE replayed_at IS NULL AND discarded_at IS NULL AND {conditions}
     ORDER BY received_at, id
     LIMIT :limit
       FOR UPDATE SKIP LOCKED
""".replace("{columns}", queries.LETTER_COLUMNS)
_DISCARD: Final = """
    UPDATE usage_dead_letters SET discarded_at = :now
     WHERE replayed_at IS NULL AND discarded_at IS NULL AND {conditions}
"""
# Every drain's batch begins with its shard's row, so none is in its transaction while this one is: neither
# can wait for the other with half of its locks taken. That is why a step is short.
_STOP_DRAINS: Final = text("SELECT shard FROM ingest_positions ORDER BY shard FOR UPDATE")
_ANSWER: Final = text("""
    UPDATE usage_dead_letters
       SET replayed_at = :replayed_at, reason = :reason, detail = :detail, replay_count = replay_count + 1,
           corrected_raw = :corrected_raw, event_id = :event_id, user_id = :user_id, clerk_id = :clerk_id,
           target_id = :target_id
     WHERE id = :id
""")
_COUNT: Final = text("UPDATE ingest_positions SET replayed = replayed + :stored WHERE shard = :shard")


def replay(
    session: Session,
    *,
    selection: Selection,
    limits: AgeLimits,
    prices: Prices,
    now: datetime,
    corrected: bytes | None = None,
    after: tuple[datetime, UUID] | None = None,
    limit: int = AT_ONCE,
) -> Replayed:
    """This function will put up to `limit` open dead letters through the path that refused them.

    Age is measured from the time the entry was received. An event that is accepted, or known already, closes
    its letter; one that is refused again keeps it open under the new reason. `corrected` takes the place of
    one letter's bytes, which stay beside it. The letter of a whole frame is closed when the frame can be
    read; each bad event in it becomes a letter of its own. Doing it twice adds nothing. The caller commits
    after each step and goes on with `after` until it is None.
    """
    if corrected is not None and (selection.ids is None or len(selection.ids) != 1):
        raise OneLetterOnly
    parameters = {**selection.conditions(), "limit": limit}
    conditions = set(parameters) - {"limit"}
    if corrected is None:
        conditions.add("bytes")
    if after is not None:
        conditions.add("after")
        parameters["after_at"], parameters["after_id"] = after
    letters = [DeadLetter(**row) for row in session.execute(_where(_TAKE, conditions), parameters).mappings()]
    if letters:
        session.execute(_STOP_DRAINS)
    counts = dict.fromkeys(("accepted", "duplicates", "refused"), 0)
    for (stream, shard), together in _by_stream(letters).items():
        _replay_together(
            session,
            together,
            stream=stream,
            shard=shard,
            limits=limits,
            prices=prices,
            now=now,
            corrected=corrected,
            counts=counts,
        )
    last = letters[-1] if len(letters) == limit else None
    return Replayed(tried=len(letters), after=None if last is None else (last.received_at, last.id), **counts)


def replay_waiting(
    session: Session, *, limits: AgeLimits, prices: Prices, now: datetime, limit: int = AT_ONCE
) -> Replayed:
    """This function will replay the events whose user or target has come since they were put aside."""
    waiting = queries.waiting_letters(session, limit=limit)
    if not waiting:
        return Replayed()
    return replay(
        session, selection=Selection(ids=waiting), limits=limits, prices=prices, now=now, limit=limit
    )


def _where(statement: str, conditions: Iterable[str]) -> TextClause:
    return text(
        statement.replace("{conditions}", " AND ".join(_CONDITIONS[name] for name in sorted(conditions)))
    )


def discard(session: Session, *, selection: Selection, now: datetime) -> int:
    """This function will give up open dead letters, keep their bytes, and return how many they were."""
    conditions = selection.conditions()
    result = session.execute(_where(_DISCARD, conditions), {**conditions, "now": now})
    return int(result.rowcount)  # type: ignore[attr-defined]  # a DML result, which text() cannot know


def _by_stream(letters: Sequence[DeadLetter]) -> dict[tuple[str, int], list[DeadLetter]]:
    groups: dict[tuple[str, int], list[DeadLetter]] = {}
    for letter in letters:
        groups.setdefault((letter.stream, letter.shard), []).append(letter)
    # Events before corrections: a target and what corrects it may wait for the same step.
    return dict(sorted(groups.items(), key=lambda group: (rules.is_correction_key(group[0][0]), group[0])))


def _replay_together(
    session: Session,
    letters: Sequence[DeadLetter],
    *,
    stream: str,
    shard: int,
    limits: AgeLimits,
    prices: Prices,
    now: datetime,
    corrected: bytes | None,
    counts: dict[str, int],
) -> None:
    correction = rules.is_correction_key(stream)
    read = [
        (
            letter,
            rules.read_letter(
                corrected or letter.corrected_raw or letter.raw or b"",
                entry_id=letter.stream_id,
                index=letter.entry_index,
                received_at=letter.received_at,
                limits=limits,
                correction=correction,
            ),
        )
        for letter in letters
    ]
    events = [event for _, some in read for event in some]
    operations.settle(session, events, shard=shard, correction=correction, prices=prices)
    frames = [
        event
        for letter, some in read
        if letter.entry_index == rules.WHOLE_ENTRY
        for event in some
        if event.index != rules.WHOLE_ENTRY
    ]
    operations.put_aside(session, frames, stream=stream, shard=shard)
    for letter, some in read:
        _answer(session, letter, some, now=now, corrected=corrected)
    for event in events:
        match event.outcome:
            case Outcome.ACCEPTED:
                counts["accepted"] += 1
            case Outcome.DUPLICATE:
                counts["duplicates"] += 1
            case _:
                counts["refused"] += 1
    stored = sum(event.outcome is Outcome.ACCEPTED for event in events)
    session.execute(_COUNT, {"stored": stored, "shard": shard})


def _answer(
    session: Session,
    letter: DeadLetter,
    events: Sequence[Received],
    *,
    now: datetime,
    corrected: bytes | None,
) -> None:
    first = events[0]
    is_frame = letter.entry_index == rules.WHOLE_ENTRY and first.index != rules.WHOLE_ENTRY
    refused = not is_frame and first.outcome in (Outcome.CONFLICT, Outcome.REJECTED)
    # An entry without exactly one `data` has no bytes to judge: it stays what it was.
    unreadable = refused and letter.reason == "malformed_entry" and first.index == rules.WHOLE_ENTRY
    session.execute(
        _ANSWER,
        {
            "id": letter.id,
            "replayed_at": None if refused else now,
            "reason": first.reason if refused and not unreadable else letter.reason,
            "detail": first.detail if refused and not unreadable else letter.detail,
            "corrected_raw": letter.corrected_raw if corrected is None else corrected,
            "event_id": letter.event_id if is_frame else first.event_id or letter.event_id,
            "user_id": letter.user_id if is_frame else first.user_id or letter.user_id,
            "clerk_id": letter.clerk_id if is_frame else rules.storable(first.clerk_id) or letter.clerk_id,
            "target_id": letter.target_id if is_frame else first.target_id or letter.target_id,
        },
    )
