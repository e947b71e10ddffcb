"""What the tests of worker.db share."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass

from worker.settings import DatabaseSettings

Bind = Callable[..., DatabaseSettings]
"""Binds worker.db for a login (`app` unless named); keywords are further variables."""


@dataclass(frozen=True)
class Tenants:
    """Two users; each has one profile, whose business name is their own id, and one row of `users`."""

    one: uuid.UUID
    two: uuid.UUID
