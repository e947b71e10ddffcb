"""What a run put in and what came out of it, to the last event."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from producers import _stream as wire
from worker import valkey
from worker.dev.traffic import Emitted
from worker.ingest import queries as ingest
from worker.models.platform import PlatformUsageLog, UsageDeadLetter
from worker.settings import Settings


@dataclass(frozen=True, slots=True)
class Ledger:
    """The counts of the platform database at one moment."""

    counted: int
    rows: int
    duplicates: int
    dead_letters: Counter[str]

    def since(self, before: Ledger) -> Ledger:
        """This function will return what has come in since an earlier moment."""
        return Ledger(
            self.counted - before.counted,
            self.rows - before.rows,
            self.duplicates - before.duplicates,
            self.dead_letters - before.dead_letters,
        )


def ledger(session: Session) -> Ledger:
    """This function will read the counts; dead letters of every state count, by reason."""
    positions = ingest.positions(session)
    letters = session.execute(
        select(UsageDeadLetter.reason, func.count()).group_by(UsageDeadLetter.reason)
    ).all()
    return Ledger(
        counted=sum(position.events for position in positions),
        rows=session.execute(select(func.count()).select_from(PlatformUsageLog)).scalar_one(),
        duplicates=sum(position.duplicates for position in positions),
        dead_letters=Counter({reason: count for reason, count in letters}),
    )


@dataclass(frozen=True, slots=True)
class Line:
    """One comparison of the final account."""

    what: str
    expected: int
    found: int

    @property
    def agrees(self) -> bool:
        """Whether both sides are the same."""
        return self.expected == self.found


def compare(emitted: Emitted, booked: Ledger) -> list[Line]:
    """This function will hold what was emitted against what was booked, in total and kind by kind."""
    letters = booked.dead_letters
    return [
        Line(
            "emitted = rows + duplicates + dead letters",
            emitted.events,
            booked.rows + booked.duplicates + letters.total(),
        ),
        Line("rows", emitted.rows, booked.rows),
        Line("duplicates", emitted.duplicates, booked.duplicates),
        *(
            Line(f"dead letters: {reason}", emitted.dead_letters[reason], letters[reason])
            for reason in sorted(emitted.dead_letters.keys() | letters.keys())
            if emitted.dead_letters[reason] or letters[reason]
        ),
    ]


def differences(
    session: Session, settings: Settings, client: valkey.Client
) -> Sequence[ingest.BookDifference]:
    """This function will compare streams, counters, log and roll-ups over all that was ever stored."""
    reader = valkey.StreamReader(client, group=settings.usage_consumer_group, consumer="books")

    def figures(shard: int, entry: str, correction: str) -> list[valkey.StreamFigures]:
        return [
            reader.figures(wire.stream_key(settings.usage_stream, shard), position=entry),
            reader.figures(wire.correction_key(settings.usage_stream, shard), position=correction),
        ]

    return ingest.books(session, figures=figures)
