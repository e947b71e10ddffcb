"""Ends and forks of the process: what is still open is closed in time, and a child begins with nothing."""

import atexit
import codecs
import os
import sys
import weakref
from functools import cache
from typing import Protocol

from redis import Connection


class Living(Protocol):
    """What has to be closed at the end and begun anew after a fork."""

    exit_timeout: float

    def retire(self, timeout: float) -> None:
        """This function will begin to close, and not wait."""
        ...

    def end(self) -> None:
        """This function will wait until it is closed, and tell what was lost."""
        ...

    def begin_anew(self) -> None:
        """This function will forget what the parent of this process has to do."""
        ...


# Weak, so that an emitter which nobody holds any more can go.
_LIVE: "weakref.WeakSet[Living]" = weakref.WeakSet()
_promised_in: set[int] = set()


def watch(living: Living) -> None:
    """This function will have it closed when the process ends, and begun anew in a child."""
    warm_up()
    _LIVE.add(living)


@cache
def warm_up() -> None:
    """This function will load what redis-py loads with its first connection.

    That one is made in a thread: a child forked meanwhile would wait for these imports for ever.
    """
    codecs.lookup("idna")
    Connection()  # type: ignore[no-untyped-call]  # redis-py has no annotation here


def close_all() -> None:
    """This function will close everything at once, each within its time."""
    everything = list(_LIVE)
    for living in everything:
        living.retire(living.exit_timeout)
    for living in everything:
        living.end()


def promise_end() -> None:
    """This function will see to the end of a child of multiprocessing.

    It ends without atexit; what is registered with multiprocessing itself is called instead.
    """
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is None or multiprocessing.parent_process() is None or os.getpid() in _promised_in:
        return
    _promised_in.clear()
    _promised_in.add(os.getpid())
    sys.modules["multiprocessing.util"].Finalize(None, close_all, exitpriority=0)


def _begin_anew() -> None:
    for living in list(_LIVE):
        living.begin_anew()


atexit.register(close_all)
os.register_at_fork(after_in_child=_begin_anew)
