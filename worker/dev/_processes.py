"""Processes that somebody owns: started in a group of their own, stopped within bounds, never left behind."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

GUARD_SCRIPT = Path(__file__).with_name("_guard.py")


def free_port() -> int:
    """This function will name a loopback TCP port that was free a moment ago (somebody may take it since)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Guard:
    """A watchman beside this process: if this process dies, even by SIGKILL, it stops and removes for it."""

    def __init__(self, *, hold: IO[bytes] | None = None) -> None:
        """Starts the watchman. `hold`: an open, locked file that it keeps open as long as it works."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(  # noqa: S603 our own script
            [sys.executable, "-I", "-S", str(GUARD_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            pass_fds=[hold.fileno()] if hold else (),
            start_new_session=True,
        )

    def _order(self, text: str) -> None:
        with self._lock:
            if self._process is None or self._process.stdin is None:
                return
            # A watchman that was killed is no reason to fail the run that it watches.
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(text.encode("utf-8", "surrogateescape") + b"\n")
                self._process.stdin.flush()

    @property
    def pid(self) -> int | None:
        """The watchman's process id, None once it was dismissed."""
        return self._process.pid if self._process else None

    def watch(self, pid: int, signals: Sequence[int]) -> None:
        """This function will have the process stopped with these signals, in turn, when this one dies."""
        self._order(f"watch {pid}," + ",".join(str(int(number)) for number in signals))

    def forget(self, pid: int) -> None:
        """This function will end the watch over a process that was stopped in order."""
        self._order(f"forget {pid}")

    def remove(self, folder: Path) -> None:
        """This function will have the folder removed when this process dies without leaving in order."""
        self._order(f"folder {folder}")

    def leave(self) -> None:
        """This function will dismiss the watchman; nothing is stopped or removed by it."""
        self._order("leave")
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(BrokenPipeError):
            if process.stdin is not None:
                process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def descendants(pid: int) -> list[int]:
    """This function will list the process ids below a process, nearest first (empty when it has none)."""
    children: dict[int, list[int]] = {}
    if Path("/proc/self/stat").exists():
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, IndexError, ValueError):
                    # The name in parentheses may hold anything, so the fields are counted from its end.
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    children.setdefault(parent, []).append(int(entry.name))
    else:
        command = ["/bin/ps", "-A", "-o", "pid=,ppid="]
        listing = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 a fixed command
        for line in listing.stdout.splitlines():
            child, parent = (int(part) for part in line.split())
            children.setdefault(parent, []).append(child)
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(0), [])
        found.extend(below)
        waiting.extend(below)
    return found


class OwnedProcess:
    """A child process with a log file, in a session of its own so that a Ctrl-C reaches its owner first."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        guard: Guard,
        env: Mapping[str, str],
        cwd: Path,
        signals: Sequence[int] = (signal.SIGTERM, signal.SIGKILL),
        account: tuple[int, int] | None = None,
    ) -> None:
        """Starts it. `signals`: the ways to ask it to stop, mildest first. `account`: the uid and gid to use.

        Raises OSError when the program cannot be executed.
        """
        self.log = log
        self._guard = guard
        self._signals = tuple(signals)
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 the callers' own fixed programs
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
                user=account[0] if account else None,
                group=account[1] if account else None,
                extra_groups=[] if account else None,
            )
        guard.watch(self._process.pid, (*self._signals, signal.SIGKILL))

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code (negative: the signal that ended it), None while it runs."""
        return self._process.poll()

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self.returncode is None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """This function will send one signal to the process itself, not to what it forked."""
        if self.running:
            os.kill(self.pid, number)

    def wait(self, timeout: float) -> bool:
        """This function will wait up to `timeout` seconds and say whether the process has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=timeout)
        return not self.running

    def ask(self, step: int = 0) -> None:
        """This function will send the stop signal of one step (0: the mildest) and not wait."""
        self.kill(self._signals[min(step, len(self._signals) - 1)])

    def stop(self, timeout: float = 5.0) -> int:
        """This function will stop it, each signal with `timeout` seconds, and return its exit code."""
        below = descendants(self.pid) if self.running else []
        for pid in (self.pid, *below):
            # A process that was paused obeys nothing but SIGKILL.
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)
        for number in self._signals:
            self.kill(number)
            if self.wait(timeout):
                break
        else:
            self.kill(signal.SIGKILL)
            self._process.wait()
        self._sweep()
        return self._process.returncode

    def _sweep(self) -> None:
        """What it forked goes with it, also when it was killed and could not see to that itself."""
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        self._guard.forget(self.pid)

    def pause(self) -> None:
        """This function will stop the clock of the process and of all that it forked (SIGSTOP)."""
        for pid in (self.pid, *descendants(self.pid)):
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """This function will let a paused process and all that it forked go on (SIGCONT)."""
        for pid in (self.pid, *descendants(self.pid)):
            os.kill(pid, signal.SIGCONT)

    def log_tail(self, lines: int = 20) -> str:
        """This function will return the last lines of what the process wrote."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""


class Workplace:
    """A private temp folder with a watchman; both are gone after `close`, however this process ends."""

    def __init__(self, *, guard: Guard | None = None, below: Path | None = None) -> None:
        """Makes the folder in the temp folder, or in `below`. `guard`: one that serves others too."""
        self.folder = Path(tempfile.mkdtemp(prefix="usage-worker-", dir=below))
        self.guard = guard or Guard()
        self._own = None if guard else self.guard
        self.guard.remove(self.folder)

    def close(self) -> None:
        """This function will remove the folder and dismiss the watchman."""
        _remove(self.folder)
        if self._own is not None:
            self._own.leave()


def _remove(folder: Path) -> None:
    """Many at once: a busy disk lets each of a cluster's 1,500 files wait, together that is seconds."""
    files = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(_unlink, files))
    shutil.rmtree(folder, ignore_errors=True)


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def wait_until(condition: Callable[[], bool], *, timeout: float, interval: float = 0.02) -> bool:
    """This function will ask every `interval` seconds, up to `timeout`, and say whether it came true."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval)
    return True
