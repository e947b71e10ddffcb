"""The sentences of the books, each judged from figures that were read before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from worker.audits import books_names
from worker.audits.books_names import Names
from worker.audits.books_queries import COUNTERS, Cut, Seal, Sums
from worker.audits.books_stream import StreamState
from worker.audits.findings import Finding
from worker.models.vocabulary import Severity
from worker.rollups.queries import SUMS, Difference

DATABASE: Final = "platform"
CHECK_IDS: Final = (
    "books.entries",
    "books.trimmed_unread",
    "books.stream_recreated",
    "books.position_beyond_stream",
    "books.counters",
    "books.events",
    "books.rows",
    "books.dead_letters",
    "books.rollups",
    "books.sealed",
    "books.recovered",
)
"""Every check that a run answers."""

_ACCEPT: Final = "When nothing can be mended any more: usage-worker audit books --accept REASON"
_RECOVER: Final = "Let the producers send these events again; what came is not counted twice. "


@dataclass(slots=True, kw_only=True)
class Window:
    """One shard's window as it was read: the cut, both streams, the rows, the letters, the roll-ups.

    `retained` is how many entries of the window the streams still have, asked only when entries are missing;
    `names` is there only when rows or letters do not agree.
    """

    cut: Cut
    streams: tuple[StreamState, StreamState]
    sums: Sums
    letter_count: int
    rollups: Sequence[Difference] = ()
    altered: Sequence[str] = ()
    retained: int | None = None
    names: Names | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def missing_entries(self) -> int:
        """Entries that went by without being counted; below zero: more were counted than ever came."""
        events, corrections = self.streams
        before = self.cut.before
        passed = events.passed + corrections.passed - before.events_passed - before.corrections_passed
        return passed - self.cut.grown("entries")

    @property
    def recreated(self) -> list[str]:
        """The keys of streams that have had fewer entries, or lower ids, than when the last seal was made."""
        before = self.cut.before
        known = (
            (before.events_passed, before.last_entry_id),
            (before.corrections_passed, before.last_correction_id),
        )
        return [
            stream.key
            for stream, (passed, last_id) in zip(self.streams, known, strict=True)
            if stream.added < passed or stream.last_id < last_id
        ]

    @property
    def expected_rows(self) -> int:
        """The rows that the counters say were stored in the window."""
        return self.cut.grown("accepted", "recovered", "replayed")

    @property
    def refused(self) -> int:
        """The events that the counters say were refused in the window."""
        return self.cut.grown("conflicts", "rejected")

    @property
    def is_named(self) -> bool:
        """Whether there is something to name: then the window's entries have to be read again."""
        return self.expected_rows != self.sums.row_count or self.letter_count < self.refused


def judge(window: Window) -> list[Finding]:
    """This function will judge every sentence about one window."""
    found = [*_counters(window), *_events(window), *_rows(window), *_letters(window), *_recovered(window)]
    recreated = list(_recreated(window))
    found += recreated or [*_beyond(window), *_entries(window)]
    found += rollups(window.rollups, window.altered)
    return found


def finding(check_id: str, what: str, severity: Severity, message: str, remediation: str) -> Finding:
    """This function will make one finding of the books; `what` is the object."""
    return Finding(
        check_id=check_id,
        severity=severity,
        database=DATABASE,
        object=what,
        message=message,
        remediation=remediation,
    )


def _shard(window: Window) -> str:
    return f"shard {window.cut.shard}"


def _entries(window: Window) -> Iterator[Finding]:
    missing = window.missing_entries
    if not missing:
        return
    cut = window.cut
    told = "; ".join(
        f"{stream.key}: {stream.added} added, {stream.above} in flight" for stream in window.streams
    )
    told = f"{told}; {cut.counters['entries']} counted, since the last seal {cut.grown('entries')}"
    if missing > 0 and window.retained is not None and window.retained <= cut.grown("entries"):
        ends = ", ".join(
            f"{stream.key} begins at {stream.first_id or 'nothing'}, deleted up to {stream.deleted_id}"
            for stream in window.streams
            if stream.added
        )
        yield finding(
            "books.trimmed_unread",
            _shard(window),
            Severity.CRITICAL,
            f"{missing} entries were taken out of the stream before they were read ({ends}; {told})",
            "find who trims or deletes: MAXLEN, XTRIM, XDEL. " + _RECOVER + _ACCEPT,
        )
        return
    if missing > 0:
        message = f"{missing} entries went by without being counted ({told})"
        if window.names is not None and window.names.missing:
            message += f"; not in the log: {books_names.told(window.names.missing)}"
    else:
        message = f"{-missing} more entries were counted than ever came ({told})"
    yield finding(
        "books.entries",
        _shard(window),
        Severity.CRITICAL,
        message,
        "look for a group that was moved, a stream that lost what it had acknowledged, a changed counter. "
        + _ACCEPT,
    )


def _recreated(window: Window) -> Iterator[Finding]:
    before = window.cut.before
    for key in window.recreated:
        stream = next(one for one in window.streams if one.key == key)
        yield finding(
            "books.stream_recreated",
            key,
            Severity.CRITICAL,
            f"the stream is not the one that was sealed at {before.cut_at.isoformat()}: {stream.added}"
            f" entries were ever added, the last is {stream.last_id}. It was deleted, flushed, or restored"
            " from before",
            "entries that were unread at that moment are lost. " + _RECOVER + _ACCEPT,
        )


def _beyond(window: Window) -> Iterator[Finding]:
    cut = window.cut
    for stream, position in zip(window.streams, (cut.events_at, cut.corrections_at), strict=True):
        if position > stream.last_id:
            yield finding(
                "books.position_beyond_stream",
                stream.key,
                Severity.CRITICAL,
                f"the position is {position}, but the stream's last entry is {stream.last_id}: entries that"
                " come with lower ids are stored, but counted as recovered",
                "the stream failed over to a copy that lagged, or lost its end. " + _RECOVER + _ACCEPT,
            )


def _counters(window: Window) -> Iterator[Finding]:
    cut = window.cut
    fallen = [
        f"{name} {cut.before.counters[name]} → {cut.counters[name]}"
        for name in COUNTERS
        if cut.counters[name] < cut.before.counters[name]
    ]
    if fallen:
        yield finding(
            "books.counters",
            _shard(window),
            Severity.CRITICAL,
            f"counters went back since they were sealed: {', '.join(fallen)}",
            "they only ever grow: find who wrote to ingest_positions, or what was restored. " + _ACCEPT,
        )


def _events(window: Window) -> Iterator[Finding]:
    answered = ("accepted", "duplicates", "conflicts", "rejected")
    cut = window.cut
    if cut.grown("events") != cut.grown(*answered):
        parts = " + ".join(f"{cut.grown(name)} {name}" for name in answered)
        yield finding(
            "books.events",
            _shard(window),
            Severity.CRITICAL,
            f"{cut.grown('events')} events were counted, but {parts} = {cut.grown(*answered)}",
            "a counter was changed: compare ingest_positions with the log. " + _ACCEPT,
        )


def _rows(window: Window) -> Iterator[Finding]:
    expected, found, names = window.expected_rows, window.sums.row_count, window.names
    if expected == found:
        return
    message = f"{expected} rows were counted since the last seal, the log has {found}"
    if names is not None and names.missing:
        message += f"; missing: {books_names.told(names.missing)}"
    if names is not None and names.invented and found > expected:
        message += f"; came in no entry: {books_names.told(names.invented)}"
    if names is not None and not (names.missing or (names.invented and found > expected)):
        message += (
            "; every event that came in its entries is in the log, so it is the counter"
            if names.complete
            else f"; of its entries the stream still has {names.entry_count}, and nothing of these is missing"
        )
    yield finding(
        "books.rows",
        _shard(window),
        Severity.CRITICAL,
        message,
        "what is missing and still in the stream comes back with usage-worker recover; a row that came in no"
        " entry was written by hand. " + _ACCEPT,
    )


def _letters(window: Window) -> Iterator[Finding]:
    # A replayed frame leaves a letter for each bad event in it, so there may be more, never fewer.
    if window.letter_count >= window.refused:
        return
    message = (
        f"{window.refused} events were refused since the last seal, {window.letter_count} were put aside"
    )
    if window.names is not None and window.names.unlettered:
        message += f"; without a dead letter: {books_names.told(window.names.unlettered)}"
    yield finding(
        "books.dead_letters",
        _shard(window),
        Severity.CRITICAL,
        message,
        "dead letters are never deleted: find who did. Their bytes are in the stream while it lasts. "
        + _ACCEPT,
    )


def _recovered(window: Window) -> Iterator[Finding]:
    count = window.cut.grown("recovered")
    if count:
        yield finding(
            "books.recovered",
            _shard(window),
            Severity.INFO,
            f"{count} new rows came since the last seal from entries at or below the position",
            "expected after `recover` or a failover of the stream; the drain's log names the events",
        )


def rollups(differences: Sequence[Difference], altered: Sequence[str] = ()) -> Iterator[Finding]:
    """This function will make one finding of each roll-up that is not what the log says."""
    for one in differences:
        key = one.key
        amounts = ", ".join(_amounts(one))
        what = " ".join(part or "''" for part in (str(key.user_id), key.feature, key.provider, key.model))
        message = f"roll-up ≠ log: {amounts}"
        if altered:
            message += f"; rows that were changed: {books_names.told(altered)}"
        yield finding(
            "books.rollups",
            f"{what} {key.hour.isoformat()}",
            Severity.CRITICAL,
            message,
            "if the log is right, worker.rollups.operations.rebuild(session, start=…, end=…) of that hour",
        )


def _amounts(one: Difference) -> Iterator[str]:
    for name in SUMS:
        rolled = None if one.rollup is None else one.rollup[name]
        logged = None if one.log is None else one.log[name]
        if rolled != logged:
            yield f"{name} {_figure(rolled)} ≠ {_figure(logged)}"


def _figure(value: Decimal | None) -> str:
    return "no row" if value is None else f"{value:f}"


def unsealed_change(sealed: Seal, now: Sums, *, names: Names | None, altered: Sequence[str]) -> Finding:
    """This function will make the finding of a window that no longer holds what was sealed."""
    then = sealed.sums
    parts = [
        f"{what} {before:f} → {after:f}"
        for what, before, after in (
            ("rows", Decimal(then.row_count), Decimal(now.row_count)),
            ("tokens", then.tokens_used, now.tokens_used),
            ("cost", then.cost_usd, now.cost_usd),
        )
        if before != after
    ]
    message = (
        f"the rows stored in ({sealed.since.isoformat()}, {sealed.cut_at.isoformat()}] are not those that"
    )
    message += f" were sealed: {', '.join(parts) or 'their content differs'}"
    one = str(_id_between(then, now))
    if now.row_count == then.row_count - 1:
        message += f"; gone: {one}"
    elif now.row_count == then.row_count + 1:
        message += f"; new: {one}"
    elif names is not None and names.missing:
        message += f"; gone: {books_names.told(names.missing)}"
    if altered:
        message += f"; changed: {books_names.told(altered)}"
    return finding(
        "books.sealed",
        f"shard {sealed.shard}, window to {sealed.cut_at.isoformat()}",
        Severity.CRITICAL,
        message,
        "nobody may change or delete a row of the log: find who did, restore it from a backup. " + _ACCEPT,
    )


def _id_between(then: Sums, now: Sums) -> object:
    # Every other id cancels itself out.
    return type(then.id_xor)(int=then.id_xor.int ^ now.id_xor.int)


def of_whole_shard(shard: int, *, rows: int, counted: int) -> Iterator[Finding]:
    """This function will judge all rows of a shard that was ever named against its counters."""
    if rows != counted:
        yield finding(
            "books.rows",
            f"shard {shard}, all time",
            Severity.CRITICAL,
            f"{counted} rows were ever counted, the log has {rows}",
            "the windows' findings name ids; a row outside of every window has a time that is not its own",
        )
