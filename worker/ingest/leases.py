"""The lease of a shard: who may write it, and what is noted about those who vanished over it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from worker.entries import EntryId
from worker.ingest.effects import LeaseLost, ShardPaused


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write one shard, and where its two streams stand.

    It is as good as the epoch in the shard's row: each take-over adds one, and no batch is committed under
    another. `lease_until` in the row only says when somebody else may take over.
    """

    shard: int
    epoch: int
    events_at: EntryId
    corrections_at: EntryId
    is_careful: bool = False
    is_paused: bool = False
    suspect_id: str | None = None

    def position(self, *, correction: bool) -> EntryId:
        """This function will return the highest entry processed on one of the two streams."""
        return self.corrections_at if correction else self.events_at


_CREATE: Final = text("INSERT INTO ingest_positions (shard) VALUES (:shard) ON CONFLICT (shard) DO NOTHING")
# The time is the database's, so that no two hosts need to agree about it. A holder that gave the shard back
# is not in the row any more: one that stands there still has vanished, perhaps over what it was reading.
_TAKE: Final = text("""
    UPDATE ingest_positions
       SET epoch = epoch + 1, holder = :holder, lease_until = clock_timestamp() + :duration,
           crashes = crashes + (holder IS NOT NULL)::int,
           careful_left = CASE WHEN holder IS NOT NULL AND crashes + 1 >= :careful_after
                               THEN greatest(careful_left, :careful_events) ELSE careful_left END,
           updated_at = now()
     WHERE shard = :shard AND (lease_until IS NULL OR lease_until <= clock_timestamp())
       AND paused_at IS NULL
    RETURNING epoch, last_entry_id, last_correction_id, careful_left, suspect_id
""")
_PAUSED: Final = text("SELECT paused_at IS NOT NULL FROM ingest_positions WHERE shard = :shard")
_RENEW: Final = text("""
    UPDATE ingest_positions SET lease_until = clock_timestamp() + :duration
     WHERE shard = :shard AND epoch = :epoch
    RETURNING epoch, last_entry_id, last_correction_id, careful_left, suspect_id, paused_at
""")
_SUSPECT: Final = text("""
    UPDATE ingest_positions
       SET suspect_id = :entry, suspect_epoch = :epoch,
           suspect_deliveries = CASE WHEN suspect_id IS DISTINCT FROM :entry THEN 1
                                     WHEN suspect_epoch = :epoch THEN greatest(suspect_deliveries, 1)
                                     ELSE suspect_deliveries + 1 END
     WHERE shard = :shard AND epoch = :epoch
    RETURNING suspect_deliveries
""")
_RELEASE: Final = text("""
    UPDATE ingest_positions
       SET holder = NULL, lease_until = NULL, updated_at = now(), suspect_epoch = NULL,
           suspect_deliveries = suspect_deliveries
                                - (suspect_deliveries > 0 AND suspect_epoch IS NOT DISTINCT FROM epoch)::int
     WHERE shard = :shard AND epoch = :epoch
""")


def acquire_lease(
    session: Session,
    *,
    shard: int,
    holder: str,
    duration: timedelta,
    careful_after: int = 2,
    careful_events: int = 0,
) -> Lease | None:
    """This function will take the shard for `duration`, or return None while somebody else has it.

    Once the caller has committed, nobody who held the shard before can commit a batch: their epoch is over.
    When `careful_after` holders have vanished without a batch in between, the next `careful_events` events
    are to be taken one entry at a time. Raises ShardPaused.
    """
    session.execute(_CREATE, {"shard": shard})
    parameters = {
        "shard": shard,
        "holder": holder,
        "duration": duration,
        "careful_after": careful_after,
        "careful_events": careful_events,
    }
    row = session.execute(_TAKE, parameters).one_or_none()
    if row is None:
        if session.execute(_PAUSED, {"shard": shard}).scalar_one():
            raise ShardPaused
        return None
    return Lease(
        shard,
        row.epoch,
        EntryId.parse(row.last_entry_id),
        EntryId.parse(row.last_correction_id),
        is_careful=row.careful_left > 0,
        suspect_id=row.suspect_id,
    )


def renew_lease(session: Session, lease: Lease, *, duration: timedelta) -> Lease:
    """This function will lengthen the lease and return it with the positions of now.

    Raises LeaseLost, or ShardPaused when somebody paused the shard meanwhile.
    """
    parameters = {"shard": lease.shard, "epoch": lease.epoch, "duration": duration}
    row = session.execute(_RENEW, parameters).one_or_none()
    if row is None:
        raise LeaseLost
    if row.paused_at is not None:
        raise ShardPaused
    return replace(
        lease,
        events_at=EntryId.parse(row.last_entry_id),
        corrections_at=EntryId.parse(row.last_correction_id),
        is_careful=row.careful_left > 0,
        suspect_id=row.suspect_id,
    )


def note_suspect(session: Session, lease: Lease, *, entry: str) -> int:
    """This function will note that `entry` is about to be processed alone, and return how many leases did.

    A batch that is committed clears the note, and whoever gives the shard back was not killed by the entry;
    a process that dies over it leaves the note. Raises LeaseLost.
    """
    parameters = {"shard": lease.shard, "epoch": lease.epoch, "entry": entry}
    noted = session.execute(_SUSPECT, parameters).scalar_one_or_none()
    if noted is None:
        raise LeaseLost
    return int(noted)


def release_lease(session: Session, lease: Lease) -> None:
    """This function will give the shard back; nothing happens when it was lost."""
    session.execute(_RELEASE, {"shard": lease.shard, "epoch": lease.epoch})
