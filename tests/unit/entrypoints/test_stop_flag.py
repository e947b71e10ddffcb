"""The flag that a signal in the parent raises for its children."""

from __future__ import annotations

import os
import time

import pytest

from worker.entrypoints._process import StopFlag


def _answer_of_child(flag: StopFlag, *, parent_ends: bool = False) -> bool:
    """Forks a child that waits for the flag; whether it saw it within five seconds."""
    read, write = os.pipe()
    middle = os.fork()
    if middle == 0:
        # With `parent_ends` a grandchild watches this process, which is gone at once.
        if parent_ends and os.fork() != 0:
            time.sleep(0.3)
            os._exit(0)
        flag.watch_parent()
        deadline = time.monotonic() + 5
        while not flag.is_set() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.write(write, b"1" if flag.is_set() else b"0")
        os._exit(0)
    os.close(write)
    if not parent_ends:
        time.sleep(0.1)
        flag.set()
    answer = os.read(read, 1)
    os.close(read)
    os.waitpid(middle, 0)
    return answer == b"1"


# The children here take no lock that a thread of this process could have held.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
class TestStopFlag:
    def test_is_not_set_at_first(self) -> None:
        flag = StopFlag()
        flag.watch_parent()
        assert not flag.is_set()

    def test_reaches_a_child_that_was_forked_before(self) -> None:
        assert _answer_of_child(StopFlag())

    def test_is_set_for_a_child_whose_parent_was_killed(self) -> None:
        assert _answer_of_child(StopFlag(), parent_ends=True)
