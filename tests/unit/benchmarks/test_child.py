"""A child answers orders, stops when told, and ends with its parent's end of the pipe."""

from __future__ import annotations

import contextlib
import signal

import psutil
import pytest

from benchmarks.child import Child


class TestChild:
    def test_ends_when_there_are_no_more_orders(self) -> None:
        with Child("benchmarks.sqlqueue", {}) as child:
            process = psutil.Process(child.pid)
            assert process.is_running()
        assert not process.is_running()

    def test_that_dies_is_not_waited_for(self) -> None:
        child = Child("benchmarks.sqlqueue", {})
        psutil.Process(child.pid).send_signal(signal.SIGKILL)
        with pytest.raises(SystemExit, match="ended with -9"):
            child.answer()
        with contextlib.suppress(BrokenPipeError):
            child.close()
