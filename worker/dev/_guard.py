"""The watchman of processes: a script of its own, started beside the process that owns them.

It reads orders from its standard input. When that input ends without the order `leave`, the owner is dead
(a `kill -9` leaves no other trace), and the watchman stops what the owner was running and removes the
folders that the owner would have removed. It imports the standard library only, because it is started as
`python -I -S _guard.py` and has to be there within milliseconds.
"""

import os
import select
import shutil
import signal
import sys
import time

GRACE_SECONDS = 4.0


class Watched:
    """One process, held by a pidfd where the system has them, so that a reused pid is never hit."""

    def __init__(self, pid: int, signals: list[int]) -> None:
        self.pid = pid
        self.signals = signals
        self.handle: int | None = None
        if sys.platform == "linux":
            try:
                self.handle = os.pidfd_open(pid)
            except OSError:
                self.handle = None

    def send(self, number: int) -> None:
        try:
            if self.handle is not None and sys.platform == "linux":
                signal.pidfd_send_signal(self.handle, number)
            else:
                os.kill(self.pid, number)
        except OSError:
            pass

    def is_alive(self) -> bool:
        if self.handle is not None:
            return not select.select([self.handle], [], [], 0)[0]
        try:
            os.kill(self.pid, 0)
        except OSError:
            return False
        return True


def stop_all(watched: list[Watched]) -> None:
    """This function will walk every process through its signals, each with some seconds to obey."""
    rounds = max((len(one.signals) for one in watched), default=0)
    for step in range(rounds):
        for one in watched:
            if step < len(one.signals) and one.is_alive():
                one.send(one.signals[step])
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline and any(one.is_alive() for one in watched):
            time.sleep(0.05)
    for one in watched:
        # Each watched process leads a group of its own: what it forked goes with it.
        try:
            os.killpg(one.pid, signal.SIGKILL)
        except OSError:
            pass


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watched: dict[int, Watched] = {}
    folders: list[str] = []
    for line in sys.stdin.buffer:
        order, _, rest = line.decode("utf-8", "surrogateescape").rstrip("\n").partition(" ")
        if order == "watch":
            pid, *signals = (int(part) for part in rest.split(","))
            watched[pid] = Watched(pid, signals)
        elif order == "forget":
            watched.pop(int(rest), None)
        elif order == "folder":
            folders.append(rest)
        elif order == "leave":
            return 0
    stop_all(list(reversed(watched.values())))
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
