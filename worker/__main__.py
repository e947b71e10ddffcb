"""The console script `usage-worker`, also `python -m worker`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence

from worker.entrypoints import _exits
from worker.errors import UsageWorkerError

# What the extra [worker] brings. They are looked up, not imported: `usage-worker --help` stays quick.
EXTRA = (
    "alembic",
    "celery",
    "click",
    "psycopg",
    "rich",
    "sqlalchemy",
    "structlog",
)


def missing_packages() -> list[str]:
    """This function will name the packages of the extra [worker] that are not installed."""
    return [name for name in EXTRA if importlib.util.find_spec(name) is None]


def main(arguments: Sequence[str] | None = None) -> int:
    """This function will run the command line and return its exit code: 0, 1, 2, 3, or 130 when interrupted.

    An error of a known kind becomes one message on stderr; anything else is a bug and keeps its traceback.
    """
    if missing := missing_packages():
        _exits.complain(
            f"{', '.join(missing)} not installed; the command line and the worker come with an extra: "
            'pip install "usage-worker[worker]"'
        )
        return _exits.WRONG_USAGE
    commands = importlib.import_module("worker.entrypoints.cli")
    try:
        return int(commands.run(sys.argv[1:] if arguments is None else list(arguments)))
    except UsageWorkerError as error:
        _exits.complain(error)
        return _exits.exit_code_of(error)
    except KeyboardInterrupt:
        return _exits.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
