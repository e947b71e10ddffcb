"""Seals: a window that was proved is closed, old ones are verified in turn, and small ones are put together.

How many there are depends on the rows and not on the time: seals older than a day are merged with their
neighbours as long as a merged window has at most a million rows, so that verifying one stays cheap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from worker.audits import books_queries as queries
from worker.audits.books_queries import COUNTERS, Cut, Seal, Sums
from worker.audits.books_stream import StreamState

MERGE_AFTER: Final = timedelta(days=1)
MOST_ROWS: Final = 1_000_000

_SUM_COLUMNS: Final = ("row_count", "tokens_used", "cost_usd", "id_xor", "content_xor")
_COLUMNS: Final = (
    "shard",
    "since",
    "cut_at",
    "last_entry_id",
    "last_correction_id",
    "events_passed",
    "corrections_passed",
    *COUNTERS,
    *_SUM_COLUMNS,
    "letter_count",
    "sealed_at",
    "verified_at",
    "accepted_reason",
)
# A repricing holds the shard's row as well: what it did since the cut may be missing in the sums, or not.
_REPRICED: Final = text("""
    SELECT EXISTS (SELECT FROM usage_repricing_events
                    WHERE shard = :shard AND repriced_at >= :cut_at
                      AND stored_at > :since AND stored_at <= :cut_at)
""")
_LOCK: Final = text("SELECT shard FROM ingest_positions WHERE shard = :shard FOR UPDATE")
_INSERT: Final = text(
    f"INSERT INTO usage_seals ({', '.join(_COLUMNS)}) VALUES ({', '.join(f':{name}' for name in _COLUMNS)})"  # noqa: S608  names of ours
)
# It never moves back: what was proved stays proved, and may be trimmed already.
_AUDITED: Final = text("""
    UPDATE ingest_positions
       SET audited_entry_id = :last_entry_id, audited_correction_id = :last_correction_id,
           audited_at = :cut_at
     WHERE shard = :shard AND (audited_at IS NULL OR audited_at <= :cut_at)
""")
_VERIFIED: Final = text(
    "UPDATE usage_seals SET verified_at = :now WHERE shard = :shard AND cut_at = :cut_at AND since = :since"
)
_RESEAL: Final = text(
    f"UPDATE usage_seals SET {', '.join(f'{name} = :{name}' for name in _SUM_COLUMNS)},"  # noqa: S608
    " verified_at = :now, accepted_reason = :reason"
    " WHERE shard = :shard AND cut_at = :cut_at AND since = :since AND content_xor = :sealed_content"
)
_DELETE: Final = text("DELETE FROM usage_seals WHERE shard = :shard AND cut_at = :cut_at")


def seal(
    session: Session,
    cut: Cut,
    *,
    streams: Sequence[StreamState],
    sums: Sums,
    letter_count: int,
    now: datetime,
    accepted_reason: str | None = None,
) -> bool:
    """This function will close the window that ends at `cut`, and say that the books are proved up to there.

    False: another run has sealed the shard since the cut was made, or a cost in the window was set anew,
    and nothing was written. A window in which nothing happened adds no seal. The lock makes true that seals
    of a shard follow one another without a gap.
    """
    session.execute(_LOCK, {"shard": cut.shard})
    last = queries.last_seal(session, shard=cut.shard) or queries.unsealed(cut.shard)
    if last.cut_at != cut.before.cut_at:
        return False
    window = {"shard": cut.shard, "since": cut.before.cut_at, "cut_at": cut.cut_at}
    if session.execute(_REPRICED, window).scalar_one():
        return False
    events, corrections = streams
    made = Seal(
        shard=cut.shard,
        since=cut.before.cut_at,
        cut_at=cut.cut_at,
        last_entry_id=cut.events_at,
        last_correction_id=cut.corrections_at,
        events_passed=events.passed,
        corrections_passed=corrections.passed,
        counters=cut.counters,
        sums=sums,
        letter_count=letter_count,
        sealed_at=now,
        verified_at=now,
        accepted_reason=accepted_reason,
    )
    if accepted_reason or not _is_still(made, cut.before):
        session.execute(_INSERT, _row(made))
    session.execute(
        _AUDITED,
        {
            "shard": cut.shard,
            "last_entry_id": str(cut.events_at),
            "last_correction_id": str(cut.corrections_at),
            "cut_at": cut.cut_at,
        },
    )
    return True


def _is_still(made: Seal, before: Seal) -> bool:
    unchanged = replace(
        made,
        since=before.since,
        cut_at=before.cut_at,
        sums=before.sums,
        letter_count=before.letter_count,
        sealed_at=before.sealed_at,
        verified_at=before.verified_at,
        accepted_reason=before.accepted_reason,
    )
    return unchanged == before and made.sums == Sums() and made.letter_count == 0


def _row(made: Seal) -> dict[str, Any]:
    return {
        **{name: getattr(made, name) for name in _COLUMNS if hasattr(made, name)},
        **made.counters,
        **_sums(made.sums),
        "last_entry_id": str(made.last_entry_id),
        "last_correction_id": str(made.last_correction_id),
    }


def _sums(sums: Sums) -> dict[str, Any]:
    return {name: getattr(sums, name) for name in _SUM_COLUMNS}


def verified(session: Session, sealed: Seal, *, now: datetime) -> None:
    """This function will note that a window still holds what was sealed."""
    session.execute(
        _VERIFIED, {"shard": sealed.shard, "cut_at": sealed.cut_at, "since": sealed.since, "now": now}
    )


def reseal(session: Session, sealed: Seal, sums: Sums, *, now: datetime, reason: str) -> None:
    """This function will accept what a window holds now in place of what was sealed, with a reason.

    Nothing is written where a repricing has changed the seal meanwhile: the next run looks again.
    """
    session.execute(
        _RESEAL,
        {
            **_sums(sums),
            "shard": sealed.shard,
            "cut_at": sealed.cut_at,
            "since": sealed.since,
            "now": now,
            "reason": reason,
            "sealed_content": sealed.sums.content_xor,
        },
    )


def due(session: Session, *, before: datetime, most_rows: int, limit: int = 100) -> list[Seal]:
    """This function will return what to verify: the seal that waited longest, and more while that is cheap.

    Seals that were made at `before` or later are left out: the run that asks has just read their rows.
    """
    chosen: list[Seal] = []
    for one in queries.longest_unverified(session, before=before, limit=limit):
        if chosen and sum(each.sums.row_count for each in (*chosen, one)) > most_rows:
            break
        chosen.append(one)
    return chosen


def merge(session: Session, *, shard: int, now: datetime, most_rows: int = MOST_ROWS) -> int:
    """This function will put neighbouring seals older than a day together; returns how many are gone.

    What an operator accepted stays a seal of its own, as the record of it.
    """
    session.execute(_LOCK, {"shard": shard})
    old = [one for one in queries.seals(session, shard=shard) if one.cut_at <= now - MERGE_AFTER]
    gone = 0
    for group in _groups(old, most_rows):
        if len(group) == 1:
            continue
        for one in group:
            session.execute(_DELETE, {"shard": shard, "cut_at": one.cut_at})
        session.execute(_INSERT, _row(together(group)))
        gone += len(group) - 1
    return gone


def _groups(sealed: Sequence[Seal], most_rows: int) -> Iterator[list[Seal]]:
    group: list[Seal] = []
    for one in sealed:
        fits = sum(each.sums.row_count for each in (*group, one)) <= most_rows
        if group and not (fits and one.accepted_reason is None and group[-1].accepted_reason is None):
            yield group
            group = []
        group.append(one)
    if group:
        yield group


def together(group: Sequence[Seal]) -> Seal:
    """This function will return the one seal that says of neighbouring windows what theirs said."""
    last = group[-1]
    id_xor = content_xor = 0
    for one in group:
        id_xor ^= one.sums.id_xor.int
        content_xor ^= one.sums.content_xor
    return replace(
        last,
        since=group[0].since,
        sums=Sums(
            row_count=sum(one.sums.row_count for one in group),
            tokens_used=sum((one.sums.tokens_used for one in group), Sums().tokens_used),
            cost_usd=sum((one.sums.cost_usd for one in group), Sums().cost_usd),
            id_xor=UUID(int=id_xor),
            content_xor=content_xor,
        ),
        letter_count=sum(one.letter_count for one in group),
        verified_at=min(one.verified_at for one in group),
    )
