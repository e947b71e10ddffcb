"""The product's Celery app with failpoints around its drain: `celery -A tests.chaos.app worker`."""

from __future__ import annotations

import os
from pathlib import Path

from tests.chaos.failpoints import Failpoints
from worker.app import app

__all__ = ["app"]

_environ = os.environ  # noqa: TID251  a process of the suite, started with an environment of its own
Failpoints(
    Path(_environ["CHAOS_FAILPOINTS"]), {int(port) for port in _environ["CHAOS_PORTS"].split(",")}
).install()
