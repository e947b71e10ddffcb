"""`usage-worker dev` as an operator runs it, from the first line to nothing left behind."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
import redis

from worker.dev import _processes

READY_SECONDS = 90
STOP_SECONDS = 10


def is_alive(pid: int) -> bool:
    """A zombie that nobody has reaped yet counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Dev:
    """One run, what it has said so far, and every process that it has started."""

    def __init__(self, *arguments: str, place: Path) -> None:
        self.place = place
        self.output = place / "output.txt"
        self.pids: set[int] = set()
        with self.output.open("wb") as handle:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker", "dev", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                cwd=place,
                env={"PATH": "/usr/bin:/bin", "TMPDIR": str(place / "tmp"), "LC_ALL": "C.UTF-8"},
                start_new_session=True,
            )

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def look(self) -> None:
        self.pids |= {self.process.pid, *_processes.descendants(self.process.pid)}

    def wait_until_ready(self) -> None:
        def settled() -> bool:
            self.look()
            return self.process.poll() is not None or "ready after" in self.said()

        assert _processes.wait_until(settled, timeout=READY_SECONDS, interval=0.2)
        assert self.process.poll() is None, self.said()

    def wait_for_end(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.said()
            self.look()
            time.sleep(0.05)
        return self.process.returncode

    def settings(self) -> dict[str, str]:
        """What a second terminal reads from the file that the run names."""
        found = re.search(r"second terminal +\. (\S+)", self.said())
        assert found is not None
        file = Path(found.group(1))
        assert file.stat().st_mode & 0o777 == 0o600
        words = (shlex.split(line)[1] for line in file.read_text().splitlines())
        return {name: value for name, _, value in (word.partition("=") for word in words)}

    def pid_of(self, *words: str) -> int:
        """The first process of the run whose command line has these words."""
        for pid in sorted(self.pids):
            command = Path(f"/proc/{pid}/cmdline").read_text().split("\0") if is_alive(pid) else []
            if all(word in command for word in words):
                return pid
        raise AssertionError(f"no process with {words}")

    def nothing_is_left(self, *, timeout: float = 0) -> bool:
        return _processes.wait_until(
            lambda: not any(is_alive(pid) for pid in self.pids) and not list((self.place / "tmp").iterdir()),
            timeout=timeout,
        )


class StartDev(Protocol):
    def __call__(self, *arguments: str) -> Dev: ...


@pytest.fixture
def dev() -> Iterator[StartDev]:
    """Starts runs whose temp folder every user reaches, so that all they leave behind can be seen there."""
    runs: list[Dev] = []
    place = _processes.Workplace()
    place.folder.chmod(0o711)
    (place.folder / "tmp").mkdir()
    (place.folder / "tmp").chmod(0o1777)

    def start(*arguments: str) -> Dev:
        runs.append(Dev(*arguments, place=place.folder))
        return runs[-1]

    yield start
    for one in runs:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
            one.nothing_is_left(timeout=15)
    place.close()


class TestExit:
    def test_checks_the_books_and_leaves_nothing_behind(self, dev: StartDev) -> None:
        run = dev("--events", "2000", "--exit")
        assert run.wait_for_end(150) == 0, run.said()
        account = re.search(
            r"emitted 2,000 = ([\d,]+) rows \+ (\d+) duplicates \+ (\d+) dead letters", run.said()
        )
        assert account is not None, run.said()
        rows, duplicates, letters = (int(part.replace(",", "")) for part in account.groups())
        assert rows + duplicates + letters == 2000
        assert duplicates > 0
        assert letters > 0
        assert "the books agree" in run.said()
        for job in ("subscriptions.reconcile", "audits.rls", "audits.pool"):
            assert re.search(rf"{job} +done ", run.said()), run.said()
        assert len(run.pids) > 10
        assert run.nothing_is_left()

    def test_goes_on_with_kept_data(self, dev: StartDev) -> None:
        for _ in range(2):
            # Relative: the working folder is one that every user reaches.
            run = dev("--events", "300", "--exit", "--data-dir", "kept")
            assert run.wait_for_end(150) == 0, run.said()
            assert "the books agree" in run.said()
            assert run.nothing_is_left()
        kept = {path.name: path.stat().st_mode & 0o777 for path in (run.place / "kept").iterdir()}
        assert kept.keys() == {"lock", "passwords.json", "postgres", "run", "valkey"}
        assert (kept["passwords.json"], kept["run"], kept["valkey"]) == (0o600, 0o700, 0o700)

    def test_needs_a_number_of_events(self, dev: StartDev) -> None:
        run = dev("--exit")
        assert run.wait_for_end(30) == 2
        assert "--exit needs --events" in run.said()


class TestStop:
    def test_is_over_in_time_and_leaves_nothing_behind(self, dev: StartDev) -> None:
        run = dev()
        run.wait_until_ready()
        run.process.send_signal(signal.SIGINT)
        assert run.wait_for_end(STOP_SECONDS) == 0, run.said()
        assert run.nothing_is_left()

    def test_is_obeyed_while_everything_still_starts(self, dev: StartDev) -> None:
        run = dev()
        assert _processes.wait_until(lambda: "creating roles" in run.said(), timeout=60)
        run.look()
        run.process.send_signal(signal.SIGTERM)
        assert run.wait_for_end(STOP_SECONDS) == 130, run.said()
        assert run.nothing_is_left()

    def test_does_not_wait_when_it_is_asked_for_twice(self, dev: StartDev) -> None:
        run = dev()
        run.wait_until_ready()
        # A worker that cannot obey would take its six seconds.
        os.kill(run.pid_of("worker", "--beat"), signal.SIGSTOP)
        run.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        run.process.send_signal(signal.SIGINT)
        assert run.wait_for_end(2) == 130
        assert run.nothing_is_left(timeout=15)

    def test_of_a_run_that_was_killed_is_done_by_its_watchman(self, dev: StartDev) -> None:
        run = dev()
        run.wait_until_ready()
        run.process.kill()
        run.process.wait()
        assert run.nothing_is_left(timeout=20)


class TestTrouble:
    def test_of_a_worker_that_was_killed_is_reported_with_its_log(self, dev: StartDev) -> None:
        run = dev()
        run.wait_until_ready()
        os.kill(run.pid_of("worker", "--beat"), signal.SIGKILL)
        assert run.wait_for_end(30) == 1, run.said()
        assert "The worker process was killed by signal 9. Its log ends with" in run.said()
        assert "Traceback" not in run.said()
        assert run.nothing_is_left()

    def test_of_the_books_is_a_difference_and_exit_1(self, dev: StartDev) -> None:
        run = dev("--events", "30000", "--exit")
        run.wait_until_ready()
        # Not before the run has opened its account.
        assert _processes.wait_until(lambda: "accounted for" in run.said(), timeout=30)
        event = (
            '{"event_id":"0190a5d2-7f4e-4c3a-9b1d-2f6e8a7c5b43","clerk_id":"user_dev00000",'
            '"feature":"blog_writer","tokens_used":1,"occurred_at":"2999-01-01T00:00:00Z"}'
        )
        with redis.Redis.from_url(run.settings()["REDIS_URL"]) as stranger:
            stranger.xadd("usage:events:{0}", {"data": event})
        assert run.wait_for_end(150) == 1, run.said()
        assert re.search(r"dead letters: in_future +│ +0 │ +1 │ +DIFFERS", run.said()), run.said()
        assert run.nothing_is_left()
