"""From entries to a batch: ordinary events as finished rows, the others read by the contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from worker.entries import EntryId, RawEntry
from worker.ingest import rules
from worker.ingest.plain import Decoder
from worker.ingest.plain_batch import Plain
from worker.ingest.rules import AgeLimits, Batch


@dataclass(slots=True)
class PlainPart:
    """The plain events of a batch, spelled out while the database is still busy with the batch before.

    `rows` and `sums` are COPY text; `known` counts those that the database turns out to have already.
    """

    plain: Plain
    rows: bytes
    sums: bytes
    known: int = 0

    @classmethod
    def of(cls, plain: Plain) -> PlainPart:
        """This function will spell out what is in `plain`."""
        return cls(plain, plain.text().encode(), plain.sums_text().encode())


def prepare(
    decoder: Decoder, entries: Sequence[RawEntry], *, position: EntryId, limits: AgeLimits, now: datetime
) -> Batch | None:
    """This function will decode entries of the stream of events that all lie above the position.

    Ordinary events become finished rows at once; the others are read by the contract. None: ids stand more
    than once in a way that the order decides, so that all of them have to be read by the contract.
    """
    plain, others = Plain(), list[rules.Received]()
    data, arrivals = list[bytes](), list[datetime]()
    milliseconds, received_at = -1, now
    for raw_id, fields in entries:
        if _is_data(fields):
            stamp = int(raw_id.partition(b"-")[0])
            if stamp != milliseconds:
                milliseconds, received_at = stamp, EntryId(stamp, 0).received_at(now=now)
            data.append(fields[1])
            arrivals.append(received_at)
    answers = iter(decoder.take_many(data, arrivals, plain))
    for raw_id, fields in entries:
        taken = next(answers) if _is_data(fields) else None
        if taken is not None and not taken:
            continue
        entry_id = EntryId.parse(raw_id)
        read = rules.read_entry(
            fields,
            entry_id=str(entry_id),
            received_at=entry_id.received_at(now=now),
            counted=True,
            limits=limits,
            correction=False,
        )
        others += read if taken is None else [read[index] for index in taken]
    if plain.clash:
        return None
    undecided = {str(event.event_id) for event in others if event.outcome is None}
    if undecided and not undecided.isdisjoint(plain.ids):
        return None
    return Batch(
        events=others,
        position=position,
        last_id=EntryId.parse(entries[-1][0]),
        entry_count=len(entries),
        plain=PlainPart.of(plain) if plain.count else None,
        entries=entries,
    )


def _is_data(fields: Sequence[bytes]) -> bool:
    return len(fields) == 2 and fields[0] == rules.FIELD
