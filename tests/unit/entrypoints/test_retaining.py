"""What the commands of recovery say, and what the record of a trimming holds."""

from __future__ import annotations

import pytest

from worker.entries import EntryId
from worker.entrypoints import retaining, schedule
from worker.entrypoints.cli import recover
from worker.errors import TransientError
from worker.ingest import retention
from worker.ingest.effects import ShardPaused
from worker.ingest.recovery import ShardBusy, ShardMoved
from worker.ingest.retention import Trimmed, Trimming
from worker.settings import load_settings

ENVIRON = {
    "PLATFORM_DATABASE_URL": "postgresql://worker:secret@localhost:5432/alwrity_platform",
    "USER_DATA_DATABASE_URL": "postgresql://worker:secret@localhost:5432/alwrity_user_data",
    "REDIS_URL": "redis://default:secret@localhost:6379/0",
}


class TestNextSteps:
    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (ShardPaused, "the shard is paused: usage-worker ingest resume"),
            (ShardBusy, "another recovery has the shard"),
            (ShardMoved, "somebody took the shard meanwhile"),
        ],
    )
    def test_say_what_to_do(self, error: type[TransientError], words: str) -> None:
        assert recover.NEXT_STEPS[error].startswith(words)


class TestCountsOf:
    def test_fits_into_a_line(self) -> None:
        one = Trimmed("usage:events:{0}", 0, EntryId(5, 0), retention.AUDIT, 7, 3, 2 * retention.MEGABYTE)
        other = Trimmed("usage:events:{1}", 1, EntryId(5, 0), retention.GROUP, 1, 3, retention.MEGABYTE)
        trimming = Trimming(streams=(one, other), is_short=True, waits_for_audit=True)
        assert retaining.counts_of(trimming) == {"trimmed": 8, "megabytes": 3, "short": True}


class TestSchedule:
    def test_trims_every_minute_one_of_many_beats(self) -> None:
        [job] = [job for job in schedule.periodic_tasks(load_settings(ENVIRON)) if job.task == "ingest.trim"]
        assert (job.period.total_seconds(), job.claimed) == (60, True)
        assert job.expires_seconds < 60
