"""What one worker process holds: its settings and the flag that tells it to stop."""

from __future__ import annotations

import mmap
import os

from worker.errors import ConfigurationError
from worker.settings import Settings


class StopFlag:
    """One byte of memory that a parent and the children it forks share.

    A signal reaches the main process only; a drain in a child learns of it by reading this byte, which costs
    nothing, so it can look at every turn. A child whose parent was killed stops too: nobody would read its
    result.
    """

    def __init__(self) -> None:
        # Anonymous and shared: mapped before the fork, seen by every child.
        self._byte = mmap.mmap(-1, 1)
        self._parent: int | None = None

    def set(self) -> None:
        """This function will tell every process that shares the flag to stop; safe in a signal handler."""
        self._byte[0] = 1

    def watch_parent(self) -> None:
        """This function will make this process stop as well when the parent that it has now is gone."""
        self._parent = os.getppid()

    def is_set(self) -> bool:
        """This function will say whether this process should leave as soon as its transaction is whole."""
        return self._byte[0] == 1 or (self._parent is not None and os.getppid() != self._parent)


STOP = StopFlag()
_bound: list[Settings] = []


def bind(settings: Settings) -> None:
    """This function will make `settings` those of the tasks of this process and of the children it forks."""
    _bound[:] = [settings]


def settings() -> Settings:
    """This function will return what `bind` was given, or raise ConfigurationError without it."""
    if not _bound:
        raise ConfigurationError(
            "the Celery app has no settings yet: start it as `celery -A worker.app worker`"
        )
    return _bound[0]
