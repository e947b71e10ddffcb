"""How the threads of one drain share the interpreter."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_TURN_SECONDS: Final = 0.0002


@contextmanager
def at_work() -> Iterator[None]:
    """This context will keep the collector away, and make turns short.

    A batch is thousands of small objects without cycles: looking for some takes a tenth of the time.
    And the thread that talks to the database gets its turn within a fraction of a millisecond: it needs
    little, and the database waits for it.
    """
    had_collector, interval = gc.isenabled(), sys.getswitchinterval()
    gc.disable()
    sys.setswitchinterval(_TURN_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        if had_collector:
            gc.enable()
