"""The state file: ids by place, another file told, the old or the new state and nothing between."""

from __future__ import annotations

import io
import json
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from worker.entrypoints.cli._emit_state import HashingSource, StateFile
from worker.entrypoints.cli._events_file import read_lines
from worker.errors import ConfigurationError

NOW = datetime(2026, 11, 21, 2, 3, tzinfo=UTC)
LINE = b'{"user_id":"0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11","feature":"chat","tokens_used":5}\n'


def ids(file: StateFile, data: bytes) -> list[str]:
    """The ids of what a run would send from where the state says."""
    source = HashingSource(io.BytesIO(data))
    source.skip(file.state, "x")
    lines = read_lines(source, now=NOW, run_id=file.state.run_id, start=file.state.offset)
    return [str(line.event.event_id) for line in lines if line.event is not None]


class TestStateFile:
    def test_equal_lines_are_events_of_their_own_and_the_same_ones_each_time(self, tmp_path: Path) -> None:
        file = StateFile(tmp_path / "state")
        first = ids(file, LINE * 3)
        assert len(set(first)) == 3
        assert ids(StateFile(tmp_path / "state"), LINE * 3) == first
        assert not set(first) & set(ids(StateFile(tmp_path / "other"), LINE * 3))

    def test_goes_on_where_it_was_with_the_ids_that_lines_always_had(self, tmp_path: Path) -> None:
        file = StateFile(tmp_path / "state")
        all_ids = ids(file, LINE * 5)
        source = HashingSource(io.BytesIO(LINE * 5))
        for _ in range(2):
            source.readline()
        file.advance(source, lines=2)
        again = StateFile(tmp_path / "state")
        assert (again.state.offset, again.state.lines) == (2 * len(LINE), 2)
        assert ids(again, LINE * 5) == all_ids[2:]

    @pytest.mark.parametrize("data", [b"", LINE, LINE + b"x" * len(LINE) + LINE])
    def test_another_file_is_refused(self, tmp_path: Path, data: bytes) -> None:
        file = StateFile(tmp_path / "state")
        source = HashingSource(io.BytesIO(LINE * 2))
        while source.readline():
            pass
        file.advance(source, lines=2)
        with pytest.raises(ConfigurationError, match="another file"):
            ids(file, data)
        assert ids(file, LINE * 3)

    def test_a_last_line_without_end_may_be_read_again(self, tmp_path: Path) -> None:
        source = HashingSource(io.BytesIO(LINE + LINE[:20]))
        for _ in range(4):
            source.readline(30)
        for _ in range(3):
            source.readline()
        source.step_back()
        file = StateFile(tmp_path / "state")
        file.advance(source, lines=1)
        assert file.state.offset == len(LINE)
        assert len(ids(file, LINE * 2)) == 1

    def test_what_follows_a_line_without_end_is_a_line_of_its_own(self, tmp_path: Path) -> None:
        file = StateFile(tmp_path / "state")
        source = HashingSource(io.BytesIO(LINE + LINE[:-1]))
        while source.readline():
            pass
        file.advance(source, lines=2)
        source = HashingSource(io.BytesIO(LINE + LINE[:-1] + b"{"))
        source.skip(file.state, "x")
        source.readline()
        source.step_back()
        assert source.offset == file.state.offset

    def test_two_that_begin_at_once_agree(self, tmp_path: Path) -> None:
        found: list[str] = []
        barrier = threading.Barrier(2)

        def begin() -> None:
            barrier.wait()
            found.append(str(StateFile(tmp_path / "state").state.run_id))

        for _ in range(20):
            (tmp_path / "state").unlink(missing_ok=True)
            found.clear()
            begin_one = threading.Thread(target=begin)
            begin_one.start()
            begin()
            begin_one.join()
            assert found[0] == found[1]

    @pytest.mark.parametrize("content", ["", "{}", "[]", '{"version": 2}', '{"version": 1, "run_id": "x"}'])
    def test_what_is_no_state_is_refused(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "state").write_text(content, encoding="utf-8")
        with pytest.raises(ConfigurationError, match="is no state"):
            StateFile(tmp_path / "state")

    def test_a_directory_that_cannot_be_written_is_refused_before_anything_is_sent(
        self, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigurationError, match="cannot be written"):
            StateFile(tmp_path / "missing" / "state")

    def test_leaves_no_other_file(self, tmp_path: Path) -> None:
        StateFile(tmp_path / "state")
        assert [path.name for path in tmp_path.iterdir()] == ["state"]
        assert json.loads((tmp_path / "state").read_text())["offset"] == 0
