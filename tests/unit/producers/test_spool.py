"""The spool's directory: what `keep` returned for is there, for exactly one reader at a time."""

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from producers import InvalidConfiguration
from producers import _spool as spool
from producers import _spool_format as layout
from producers import _spool_segment as segments
from producers._spool import Spool, SpoolFailed, state_of
from producers._spool_format import Kept


def kept(number: int, size: int = 0) -> Kept:
    return Kept(b'{"n":%d,"x":"%b"}' % (number, b"x" * size), f"user_{number % 3}", number % 5 == 0)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "spool"


@pytest.fixture
def one(directory: Path) -> Iterator[Spool]:
    made = new(directory)
    yield made
    made.close()


def new(directory: Path, *, max_mb: float = 1024) -> Spool:
    made = Spool(str(directory), max_mb=max_mb)
    made.prepare()
    return made


def drained(of: Spool, *, own: bool = True) -> list[Kept]:
    """What a replay would send; all of it is acknowledged."""
    found: list[Kept] = []
    for segment in of.segments(own=own):
        for stretch in segment.stretches(2, 10**6):
            found += stretch.events
            segment.advance(stretch.end)
        assert of.done(segment)
    return found


def names(directory: Path, suffix: str = ".spool") -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.suffix == suffix)


class TestKeep:
    def test_keeps_in_order_and_leaves_nothing_behind(self, one: Spool, directory: Path) -> None:
        events = [kept(number) for number in range(20)]
        one.keep(events[:1])
        one.keep(events[1:15])
        for event in events[15:]:
            one.keep([event])
        assert one.holds_events
        assert drained(one) == events
        assert not one.holds_events
        assert list(directory.iterdir()) == []

    def test_is_for_the_owner_only(self, one: Spool, directory: Path) -> None:
        one.keep([kept(1)])
        for segment in one.segments():
            segment.advance(segment.size)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
        assert len(list(directory.iterdir())) == 2

    def test_is_on_the_disk_before_it_returns(self, one: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
        synced: list[int] = []

        def fdatasync(descriptor: int) -> None:
            synced.append(os.fstat(descriptor).st_size)

        monkeypatch.setattr(segments, "_fdatasync", fdatasync)
        for number in range(3):
            one.keep([kept(number)])
            (path,) = one.directory.glob("*.spool")
            assert synced[-1] == path.stat().st_size

    def test_shares_an_fsync_among_threads(self, one: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []

        def fdatasync(descriptor: int) -> None:
            calls.append(os.fstat(descriptor).st_size)
            time.sleep(0.02)

        one.keep([kept(0)])
        monkeypatch.setattr(segments, "_fdatasync", fdatasync)
        threads = [threading.Thread(target=one.keep, args=([kept(number)],)) for number in range(1, 41)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - began < 0.5
        assert 1 <= len(calls) < 10
        assert len(drained(one)) == 41

    def test_begins_another_segment_when_one_is_full(
        self, one: Spool, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(spool, "_SEGMENT_BYTES", 2000)
        events = [kept(number, 300) for number in range(40)]
        one.keep(events[:30])
        for event in events[30:]:
            one.keep([event])
        assert len(names(directory)) > 5
        assert all(path.stat().st_size <= 2000 for path in directory.glob("*.spool"))
        assert drained(one) == events
        assert list(directory.iterdir()) == []


class TestStretches:
    def test_of_a_segment_that_nothing_was_synced_to_are_none(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        segment = segments.Segment.create(directory)
        assert list(segment.stretches(10, 1000)) == []
        segment.release()


class TestBound:
    def test_is_told_and_nothing_is_dropped(self, directory: Path) -> None:
        small = new(directory, max_mb=0.01)
        events = [kept(number, 900) for number in range(30)]
        accepted: list[Kept] = []

        def keep_all() -> None:
            for event in events:
                small.keep([event])
                accepted.append(event)

        with pytest.raises(SpoolFailed, match=r"the spool is full.*spool_max_mb"):
            keep_all()
        assert 8 <= len(accepted) <= 11
        assert sum(path.stat().st_size for path in directory.iterdir()) <= 10486
        assert drained(small) == accepted
        small.keep(events[:1])
        small.close()

    def test_holds_for_all_processes_together(self, directory: Path) -> None:
        first, second = new(directory, max_mb=0.01), new(directory, max_mb=0.01)
        first.keep([kept(1, 6000)])
        with pytest.raises(SpoolFailed, match="full"):
            second.keep([kept(2, 5000)])
        second.keep([kept(3, 500)])
        first.close()
        second.close()

    @pytest.mark.parametrize("max_mb", [0, -1, float("nan"), float("inf")])
    def test_has_to_be_one(self, directory: Path, max_mb: float) -> None:
        with pytest.raises(InvalidConfiguration, match="spool_max_mb"):
            Spool(str(directory), max_mb=max_mb)


class TestDisk:
    def test_a_write_that_ends_in_the_middle_leaves_no_trace(
        self, one: Spool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one.keep([kept(1)])
        write = os.write
        room = [30]

        def narrow(descriptor: int, data: Any) -> int:
            if not room[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            count = write(descriptor, bytes(data)[: room[0]])
            room[0] -= count
            return count

        with monkeypatch.context() as patched:
            patched.setattr(os, "write", narrow)
            with pytest.raises(SpoolFailed, match=r"USAGE_SPOOL_DIR.*ENOSPC"):
                one.keep([kept(2)])
            # Neither can it be cut off again: then nothing more goes into that file.
            room[0] = 30
            patched.setattr(
                os, "ftruncate", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error"))
            )
            with pytest.raises(SpoolFailed, match="ENOSPC"):
                one.keep([kept(3)])
        one.keep([kept(4)])
        assert drained(one) == [kept(1), kept(4)]

    def test_an_fsync_that_fails_is_told_and_not_tried_again_on_that_file(
        self, one: Spool, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one.keep([kept(1)])

        def fails(_: int) -> None:
            raise OSError(errno.EIO, "I/O error")

        with monkeypatch.context() as patched:
            patched.setattr(segments, "_fdatasync", fails)
            with pytest.raises(SpoolFailed, match="EIO"):
                one.keep([kept(2)])
        one.keep([kept(3)])
        assert len(names(directory)) == 2
        assert drained(one) == [kept(1), kept(2), kept(3)]
        assert list(directory.iterdir()) == []

    @pytest.mark.parametrize("spoil", ["file", "parent is a file", "not writable", "another owner"])
    def test_a_directory_of_no_use_is_refused_by_name(
        self, tmp_path: Path, spoil: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place = tmp_path / "spool"
        if spoil == "file":
            place.write_text("")
        elif spoil == "parent is a file":
            place.write_text("")
            place = place / "deeper"
        elif spoil == "not writable":
            place.mkdir()

            def refuse(*_: object, **__: object) -> int:
                # As root the mode of a directory refuses nothing.
                raise PermissionError(errno.EACCES, "Permission denied")

            monkeypatch.setattr(os, "open", refuse)
        else:
            place.mkdir()
            monkeypatch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(InvalidConfiguration, match=r"USAGE_SPOOL_DIR is .*cannot be kept"):
            new(place)


class TestAdoption:
    def test_is_of_what_nobody_holds(self, one: Spool, directory: Path) -> None:
        other = new(directory)
        other.keep([kept(1), kept(2)])
        assert drained(one) == []
        assert [held.held for held in state_of(directory).segments] == [True]
        other.close()
        assert [(held.held, held.events) for held in state_of(directory).segments] == [(False, 2)]
        assert drained(one) == [kept(1), kept(2)]
        assert list(directory.iterdir()) == []

    def test_goes_on_where_the_other_one_ended(self, one: Spool, directory: Path) -> None:
        other = new(directory)
        other.keep([kept(number) for number in range(6)])
        (segment,) = other.segments()
        stretch = next(iter(segment.stretches(4, 10**6)))
        segment.advance(stretch.end)
        assert not other.done(segment)
        other.close()
        assert state_of(directory).segments[0].events == 2
        assert drained(one) == [kept(4), kept(5)]

    @pytest.mark.parametrize("position", [b"", b"x" * 12, layout.position_record(10**9)])
    def test_takes_a_position_for_what_it_is_worth(
        self, one: Spool, directory: Path, position: bytes
    ) -> None:
        other = new(directory)
        other.keep([kept(1)])
        other.close()
        (path,) = directory.iterdir()
        path.with_suffix(".pos").write_bytes(position)
        # Behind the end nothing is left; what cannot be read is the beginning.
        assert drained(one) == ([] if len(position) == 12 and position != b"x" * 12 else [kept(1)])
        assert list(directory.iterdir()) == []

    def test_is_by_one_of_many(self, directory: Path) -> None:
        for number in range(30):
            other = new(directory)
            other.keep([kept(number)])
            other.close()
        found: list[Kept] = []
        together = threading.Barrier(4)

        def adopt() -> None:
            mine = new(directory)
            together.wait()
            found.extend(drained(mine, own=False))

        threads = [threading.Thread(target=adopt) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == sorted(kept(number) for number in range(30))
        assert list(directory.iterdir()) == []

    def test_leaves_a_newer_format_alone(
        self, one: Spool, directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(layout, "VERSION", 2)
            other = new(directory)
            other.keep([kept(1)])
            other.close()
        assert drained(one) == []
        assert "has version 2, this release knows 1" in caplog.text
        assert len(names(directory)) == 1
        assert state_of(directory).segments[0].bytes > 0

    def test_of_a_new_file_that_is_empty_yet(self, one: Spool, directory: Path) -> None:
        (directory / "00000000000000000001-1-aa.spool").touch()
        assert drained(one) == []
        assert list(directory.iterdir()) == []


class TestDamage:
    def test_at_any_byte_harms_no_other_event_and_is_set_aside(
        self, one: Spool, directory: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        other = new(directory)
        events = [kept(number) for number in range(3)]
        other.keep(events)
        other.close()
        (path,) = directory.iterdir()
        whole = path.read_bytes()
        ends = [layout.HEADER_BYTES]
        for event in events:
            ends.append(ends[-1] + len(layout.record(event)))
        path.unlink()
        for place in range(len(whole)):
            for cut in (True, False):
                data = bytearray(whole)
                data[place] ^= 0xFF
                content = whole[:place] if cut else bytes(data)
                path.write_bytes(content)
                hit = sum(end <= place for end in ends) - 1
                expected = [e for index, e in enumerate(events) if (index < hit if cut else index != hit)]
                assert drained(one) == expected, (place, cut)
                lost = b"".join(left.read_bytes() for left in sorted(directory.iterdir()))
                good = b"".join(layout.record(event) for event in expected)
                header = layout.HEADER_BYTES if hit >= 0 else 0
                # Every byte went to the stream or is still there.
                assert len(lost) == len(content) - header - len(good), (place, cut)
                assert names(directory) == names(directory, ".pos") == []
                for left in directory.iterdir():
                    left.unlink()
        assert "user_" not in caplog.text

    def test_is_counted(self, one: Spool, directory: Path) -> None:
        other = new(directory)
        other.keep([kept(1), kept(2), kept(3)])
        other.close()
        (path,) = directory.iterdir()
        data = bytearray(path.read_bytes())
        data[layout.HEADER_BYTES + len(layout.record(kept(1))) + 20] ^= 1
        path.write_bytes(data)
        (state,) = state_of(directory).segments
        assert (state.events, state.damaged_bytes) == (2, len(layout.record(kept(2))))
        assert drained(one) == [kept(1), kept(3)]
        after = state_of(directory)
        assert (after.quarantined_files, after.quarantined_bytes) == (1, len(layout.record(kept(2))))


class TestFork:
    def test_a_child_does_not_keep_the_files_of_its_parent(self, directory: Path) -> None:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            # This one writes, forks, and dies; its child lives on and emits nothing.
            mine = new(directory)
            mine.keep([kept(1)])
            grandchild = os.fork()
            if grandchild == 0:
                os.close(reading)
                os.write(writing, b"x")
                time.sleep(30)
                os._exit(0)
            os.write(writing, b"%d\n" % grandchild)
            os._exit(0)
        os.close(writing)
        os.waitpid(pid, 0)
        said = b""
        while b"x" not in said or b"\n" not in said:
            said += os.read(reading, 100)
        os.close(reading)
        try:
            mine = new(directory)
            assert drained(mine) == [kept(1)]
        finally:
            os.kill(int(said.replace(b"x", b"")), 9)

    def test_a_child_writes_a_segment_of_its_own(self, directory: Path) -> None:
        mine = new(directory)
        mine.keep([kept(1)])
        pid = os.fork()
        if pid == 0:
            theirs = Spool(str(directory), max_mb=1)
            theirs.keep([kept(2)])
            os._exit(0 if len(names(directory)) == 2 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        mine.keep([kept(3)])
        assert sorted(drained(mine)) == [kept(1), kept(2), kept(3)]
