"""The kinds of failure, named by what the caller does next: stop, again, put aside.

A room names its own failures where it raises them and derives them from one of these kinds.
"""

from __future__ import annotations

import inspect


class UsageWorkerError(Exception):
    """Something in usage-worker failed."""

    def __init__(self, *args: object) -> None:
        # The docstring is the message of an error that says everything by its name. All arguments stay
        # positional, so that a copy made from `args` (pickle, a Celery result) is the same error.
        super().__init__(*(args or (inspect.cleandoc(type(self).__doc__ or "").partition("\n")[0],)))


class ConfigurationError(UsageWorkerError):
    """The configuration is wrong: stop, and say what to set instead (exit code 2)."""


class TransientError(UsageWorkerError):
    """The same call can succeed later: nothing was acknowledged, do it again."""


class PermanentError(UsageWorkerError):
    """The same call will never succeed: put its input aside."""


class ServiceUnreachable(TransientError):
    """A service that is needed does not answer (exit code 3).

    `service` is the variable that names it (`PLATFORM_DATABASE_URL`), `problem` what was seen there,
    without any password, `next_step` what to do about it.
    """

    def __init__(self, service: str, problem: str, next_step: str) -> None:
        super().__init__(service, problem, next_step)
        self.service = service
        self.problem = problem
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.service}: {self.problem}\nNext step: {self.next_step}"
