"""What a process says and returns when it cannot go on; it serves the bare install too."""

from __future__ import annotations

import sys

from worker.errors import ConfigurationError, ServiceUnreachable, UsageWorkerError

GOOD = 0
FINDINGS = 1
WRONG_USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130


def exit_code_of(error: UsageWorkerError) -> int:
    """This function will return the documented exit code for an error of one of our kinds."""
    if isinstance(error, ServiceUnreachable):
        return UNREACHABLE
    if isinstance(error, ConfigurationError):
        return WRONG_USAGE
    return FINDINGS


def complain(error: object) -> None:
    """This function will write one message to stderr, under the program's name, without a traceback."""
    sys.stderr.write(f"usage-worker: {error}\n")
    sys.stderr.flush()
