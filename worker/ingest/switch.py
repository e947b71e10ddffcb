"""The switch of a shard: pausing and resuming it, and what its row says about trouble, floods and proof."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from worker.entries import EntryId


@dataclass(frozen=True, slots=True)
class Supervision:
    """What stands in a shard's row beside its counters.

    `last_…` is how far it was processed, `audited_…` how far the books are proved. `suspect_id` is the entry
    that was being processed alone, `flood_…` what the running window of the breaker has counted.
    """

    shard: int
    last_entry_id: str
    last_correction_id: str
    audited_entry_id: str
    audited_correction_id: str
    audited_at: datetime | None
    paused_at: datetime | None
    paused_by: str | None
    paused_reason: str | None
    flood_since: datetime | None
    flood_events: int
    flood_refused: int
    crashes: int
    suspect_id: str | None
    suspect_deliveries: int

    @property
    def is_paused(self) -> bool:
        """Whether no drain may take the shard."""
        return self.paused_at is not None

    def processed(self, *, correction: bool) -> EntryId:
        """This function will return the highest entry processed on one of the two streams."""
        return EntryId.parse(self.last_correction_id if correction else self.last_entry_id)

    def audited(self, *, correction: bool) -> EntryId:
        """This function will return the highest entry of one stream that the books have proved."""
        return EntryId.parse(self.audited_correction_id if correction else self.audited_entry_id)


_SUPERVISION: Final = text("""
    SELECT shard, last_entry_id, last_correction_id, audited_entry_id, audited_correction_id, audited_at,
           paused_at, paused_by, paused_reason, flood_since, flood_events, flood_refused,
           crashes, suspect_id, suspect_deliveries
      FROM ingest_positions
     ORDER BY shard
""")


def supervision(session: Session) -> dict[int, Supervision]:
    """This function will return every shard that was ever drained or paused, by its number."""
    return {row["shard"]: Supervision(**row) for row in session.execute(_SUPERVISION).mappings()}


# The row's lock makes true that a batch is committed before the pause, or not before the shard is resumed.
_PAUSE: Final = text("""
    INSERT INTO ingest_positions AS position (shard, paused_at, paused_by, paused_reason)
    SELECT shard, clock_timestamp(), :by, :reason FROM unnest(CAST(:shards AS smallint[])) AS one (shard)
     ORDER BY shard
    ON CONFLICT (shard) DO UPDATE
       SET paused_at = excluded.paused_at, paused_by = excluded.paused_by,
           paused_reason = excluded.paused_reason
     WHERE position.paused_at IS NULL
    RETURNING shard
""")
_RESUME: Final = text("""
    UPDATE ingest_positions
       SET paused_at = NULL, paused_by = NULL, paused_reason = NULL,
           flood_since = NULL, flood_events = 0, flood_refused = 0
     WHERE shard = ANY(:shards) AND paused_at IS NOT NULL
    RETURNING shard
""")


def pause(session: Session, shards: Collection[int], *, by: str, reason: str | None) -> list[int]:
    """This function will pause shards, and return those that were not paused before.

    Once the caller has committed, no batch of theirs is committed until they are resumed; their entries wait
    in the streams. One that is paused already keeps its reason.
    """
    values = {"shards": sorted(shards), "by": by, "reason": reason}
    return sorted(session.execute(_PAUSE, values).scalars())


def resume(session: Session, shards: Collection[int]) -> list[int]:
    """This function will let shards go on, forget their counted flood, and return those that were paused."""
    return sorted(session.execute(_RESUME, {"shards": sorted(shards)}).scalars())
