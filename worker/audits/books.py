"""The books: what came into the streams is what was counted, what was counted is what stands in the log.

An audit cuts a window for each shard: under the lock of its row it reads counters, positions and the time,
and lets go at once. Rows are stored under the same lock, so those of the window are exactly the ones between
the cut before and this one, however many drains are at work. The window is then held against the counters,
the streams and the roll-ups, and sealed when all agree; the next run begins where the seal ends, so a run
costs what came since and not what there is. A few old seals are verified each time, in turn.

A window that does not agree is not sealed: the next run looks at it again, together with what came since.
The streams are trimmed only behind what is sealed.

The numbers that emitters give their events are taken in behind the seals; see `books_gaps`.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import chain
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from worker.audits import books_checks, books_costs, books_gaps, books_names, books_seals, findings
from worker.audits import books_queries as queries
from worker.audits.books_checks import Window
from worker.audits.books_costs import BothCosts
from worker.audits.books_names import Span
from worker.audits.books_queries import Cut, Seal, Sums
from worker.audits.books_stream import BookStreams
from worker.audits.findings import AuditReport, Finding
from worker.models.vocabulary import Severity
from worker.rollups import queries as rollups

__all__ = ["CHECK_IDS", "BookStreams", "audit"]

CHECK_IDS: Final = (*books_checks.CHECK_IDS, *books_costs.CHECK_IDS, *books_gaps.CHECK_IDS)
"""Every check that a run answers."""
OpenSession = Callable[[], AbstractContextManager[Session]]
VERIFIED_ROWS: Final = 1_000_000
"""How many rows of old windows one run reads again."""
_STATEMENT_SECONDS: Final = 600
_FULL_STATEMENT_SECONDS: Final = 3600
_CHUNK: Final = timedelta(days=31)
# Of how many roll-ups that differ the rows are read one by one.
_KEYS_READ: Final = 5
# How often a window is summed up again while costs in it are being set anew.
_READINGS: Final = 5


@dataclass(slots=True)
class _Run:
    """What one run was given, and what it has come to."""

    open_session: OpenSession
    streams: BookStreams
    clock: Callable[[], datetime]
    full: bool
    accept: str | None
    found: list[Finding] = field(default_factory=list)
    drained: dict[int, datetime] = field(default_factory=dict)
    costs: list[BothCosts] = field(default_factory=list)
    rows: int = 0
    sealed: int = 0
    verified: int = 0
    merged: int = 0

    @contextlib.contextmanager
    def patient(self) -> Iterator[Session]:
        """A session whose statements may take long: they hold no lock that anybody waits for."""
        seconds = _FULL_STATEMENT_SECONDS if self.full else _STATEMENT_SECONDS
        with self.open_session() as session:
            session.execute(
                text("SELECT set_config('statement_timeout', :limit, true)"), {"limit": f"{seconds}s"}
            )
            yield session


def audit(
    open_session: OpenSession,
    streams: BookStreams,
    *,
    clock: Callable[[], datetime],
    full: bool = False,
    accept: str | None = None,
    verified_rows: int = VERIFIED_ROWS,
    numbers_grace: timedelta = books_gaps.GRACE,
    divergence_percent: Decimal = books_costs.DIVERGENCE_PERCENT,
    run_id: UUID | None = None,
) -> AuditReport:
    """This function will judge the books since the last seals, seal what agrees, and verify some old seals.

    `open_session` opens a session that commits at the end, of a login that may write seals (usage_auditor or
    usage_worker). `full` verifies every seal and compares the whole log. `accept` is an operator's reason to
    seal the windows although they differ, and to give up numbers that are missing: the findings are still in
    this run's report, and no longer in the next. A number may arrive by `numbers_grace` later than a higher
    one; reported and computed costs of a model may differ by `divergence_percent`. Raises what is wrong with
    either server (TransientError, ConfigurationError).
    """
    run = _Run(open_session, streams, clock, full, accept)
    started_at = clock()
    with open_session() as session:
        shards = queries.shards(session)
    for shard in shards:
        _audit_shard(run, shard)
    run.found += books_costs.judge(run.costs, percent=divergence_percent)
    numbers = books_gaps.audit(
        run.patient, streams, drained=run.drained, full=full, accept=accept, grace=numbers_grace
    )
    _verify(run, shards, verified_rows, before=started_at)
    if full:
        _compare_everything(run)
    for shard in shards:
        _merge(run, shard)
    return AuditReport(
        run_id=run_id or uuid.uuid4(),
        # A full run sees more, so what it found is not gone when the next hourly one does not see it.
        kind="books_full" if full else "books",
        database=books_checks.DATABASE,
        started_at=started_at,
        finished_at=clock(),
        checks=[
            *(
                findings.answer(check_id, _without_repeats(run.found, check_id))
                for check_id in (*books_checks.CHECK_IDS, *books_costs.CHECK_IDS)
            ),
            *numbers.checks,
        ],
        measurements={
            "shards": len(shards),
            "rows": run.rows,
            "sealed": run.sealed,
            "verified": run.verified,
            "merged": run.merged,
            "accepted": accept,
            **numbers.measurements,
        },
    )


def _without_repeats(found: Sequence[Finding], check_id: str) -> list[Finding]:
    once: dict[str, Finding] = {}
    for one in found:
        if one.check_id == check_id:
            once.setdefault(one.fingerprint, one)
    return list(once.values())


def _audit_shard(run: _Run, shard: int) -> None:
    with run.open_session() as session:
        cut = queries.cut(session, shard=shard)
    window = _window(run, cut)
    run.drained[shard] = books_gaps.drained_to(window)
    found = books_checks.judge(window)
    run.found += found
    run.rows += window.sums.row_count
    differs = any(one.severity is not Severity.INFO for one in found)
    if differs and run.accept is None:
        return
    with run.open_session() as session:
        run.sealed += books_seals.seal(
            session,
            cut,
            streams=window.streams,
            sums=window.sums,
            letter_count=window.letter_count,
            now=run.clock(),
            accepted_reason=run.accept if differs else None,
        )


def _window(run: _Run, cut: Cut) -> Window:
    # The counters were read before: what is drained meanwhile changes neither side of a sentence.
    states = run.streams.states(cut.shard, events_at=cut.events_at, corrections_at=cut.corrections_at)
    with run.patient() as session:
        window = Window(
            cut=cut,
            streams=(states[0], states[1]),
            sums=queries.window_sums(session, cut.ends),
            letter_count=queries.window_letters(session, cut.ends),
            rollups=queries.touched_differences(session, cut.ends),
        )
        run.costs += books_costs.both_costs(session, cut.ends)
        if window.rollups:
            rows = (queries.key_content(session, one.key) for one in window.rollups[:_KEYS_READ])
            window.altered = books_names.altered(chain.from_iterable(rows))
        span = _span(cut.before, cut)
        if window.missing_entries > 0:
            window.retained = _retained(run, span)
        went_by = window.retained is not None and window.retained > span.entry_count
        if window.is_named or went_by:
            window.names = books_names.of_window(session, run.streams, span)
    return window


def _span(before: Seal, cut: Cut) -> Span:
    return Span(
        ends=cut.ends,
        events_above=before.last_entry_id,
        events_up_to=cut.events_at,
        corrections_above=before.last_correction_id,
        corrections_up_to=cut.corrections_at,
        entry_count=cut.grown("entries"),
    )


def _retained(run: _Run, span: Span) -> int:
    events, corrections = run.streams.keys(span.ends.shard)
    return run.streams.retained(
        events, above=span.events_above, up_to=span.events_up_to
    ) + run.streams.retained(corrections, above=span.corrections_above, up_to=span.corrections_up_to)


def _verify(run: _Run, shards: Sequence[int], most_rows: int, *, before: datetime) -> None:
    with run.open_session() as session:
        if run.full:
            due = [one for shard in shards for one in queries.seals(session, shard=shard)]
        else:
            due = books_seals.due(session, before=before, most_rows=most_rows)
    for sealed in due:
        _verify_one(run, sealed)


def _verify_one(run: _Run, sealed: Seal) -> None:
    with run.patient() as session:
        looked_at = _steady_sums(session, sealed)
        if looked_at is None:
            return
        sealed, sums = looked_at
        differing = queries.touched_differences(session, sealed.ends)
        run.verified += 1
        run.found += books_checks.rollups(differing)
        if sums == sealed.sums:
            books_seals.verified(session, sealed, now=run.clock())
            return
        names = None
        if sums.row_count < sealed.sums.row_count - 1:
            names = _names_of(run, session, sealed)
        altered = books_names.altered(queries.window_content(session, sealed.ends))
        run.found.append(books_checks.unsealed_change(sealed, sums, names=names, altered=altered))
        if run.accept is not None:
            books_seals.reseal(session, sealed, sums, now=run.clock(), reason=run.accept)


def _steady_sums(session: Session, sealed: Seal) -> tuple[Seal, Sums] | None:
    """A seal and the sums of its window as of one moment.

    A repricing changes both in one transaction: sums that lie between two equal readings of the seal belong
    to it. None: the seal was merged, or costs in the window are being set anew; the next run verifies it.
    """
    before: Seal | None = sealed
    for _ in range(_READINGS):
        if before is None:
            return None
        sums = queries.window_sums(session, before.ends)
        now = queries.seals(session, shard=before.shard)
        after = next((one for one in now if one.ends == before.ends), None)
        if sums == before.sums or (after is not None and after.sums == before.sums):
            return before, sums
        before = after
    return None


def _names_of(run: _Run, session: Session, sealed: Seal) -> books_names.Names:
    # The seal before says where the window's entries begin; while they are retained, they can be read.
    earlier = [one for one in queries.seals(session, shard=sealed.shard) if one.cut_at <= sealed.since]
    before = earlier[-1] if earlier else queries.unsealed(sealed.shard)
    span = Span(
        ends=sealed.ends,
        events_above=before.last_entry_id,
        events_up_to=sealed.last_entry_id,
        corrections_above=before.last_correction_id,
        corrections_up_to=sealed.last_correction_id,
        entry_count=sealed.counters["entries"] - before.counters["entries"],
    )
    return books_names.of_window(session, run.streams, span)


def _compare_everything(run: _Run) -> None:
    with run.patient() as session:
        for shard, rows, counted in queries.rows_by_shard(session):
            run.found += books_checks.of_whole_shard(shard, rows=rows, counted=counted)
        ends = queries.span(session)
    if ends is None:
        return
    start, last = ends
    while start <= last:
        end = min(start + _CHUNK, last + timedelta(hours=1))
        with run.patient() as session:
            run.found += books_checks.rollups(rollups.differences(session, start=start, end=end))
        start = end


def _merge(run: _Run, shard: int) -> None:
    # A window that differs keeps its ends, so that its finding stands under one name.
    if any(one.check_id == "books.sealed" for one in run.found):
        return
    with run.open_session() as session:
        run.merged += books_seals.merge(session, shard=shard, now=run.clock())
