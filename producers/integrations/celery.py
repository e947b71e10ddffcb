"""Celery: a task works for the user for whom it was sent, and each pool process has an emitter of its own.

`usage = install(app, emitter=BufferedEmitter.from_env)`, once, where the app is made; `usage.emitter` in the
tasks.
"""

import importlib
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

from producers._face import UsageEmitter
from producers.integrations._context import current_usage, usage_context
from producers.integrations._reporting import named

__all__ = ["CeleryUsage", "install"]

_USER_HEADER: Final = "usage_user_id"
_FEATURE_HEADER: Final = "usage_feature"
_HEADERS: Final = (_USER_HEADER, _FEATURE_HEADER)
# Where a running task's context waits for its end: on the request, which is the task's own in every pool.
_ENTERED: Final = "_usage_context"
_INSTALLED: Final = "_usage_installed"


class CeleryUsage:
    """What `install` connected: the emitter of this process, and the way to disconnect."""

    def __init__(self, app: Any, emitter: Callable[[], UsageEmitter]) -> None:
        """This function will keep the app and how an emitter is made; `install` connects them."""
        self._app = app
        self._make = emitter
        self._lock = threading.Lock()
        self._current: tuple[int, UsageEmitter] | None = None
        signals = importlib.import_module("celery.signals")
        self._receivers = (
            (signals.before_task_publish, self._publish),
            (signals.task_prerun, self._begin),
            (signals.task_postrun, self._end),
            (signals.worker_process_init, self._open),
            (signals.worker_process_shutdown, self._close),
            # The threads of a pool without processes end with the worker itself.
            (signals.worker_shutdown, self._close),
        )

    @property
    def emitter(self) -> UsageEmitter:
        """The emitter of this process; it is made with the first use, never before a fork."""
        with self._lock:
            if self._current is None or self._current[0] != os.getpid():
                self._current = (os.getpid(), self._make())
            return self._current[1]

    def connect(self) -> None:
        """This function will connect the signals.

        Raises RuntimeError for an app that is connected already: its tasks' contexts would be entered twice.
        """
        if getattr(self._app, _INSTALLED, None) is not None:
            raise RuntimeError(f"usage is installed already for {self._app!r}: keep what install returned")
        setattr(self._app, _INSTALLED, self)
        for signal, receiver in self._receivers:
            signal.connect(receiver, weak=False)

    def disconnect(self) -> None:
        """This function will let go of the signals and close the emitter of this process."""
        for signal, receiver in self._receivers:
            signal.disconnect(receiver)
        if getattr(self._app, _INSTALLED, None) is self:
            setattr(self._app, _INSTALLED, None)
        self._close()

    def _publish(self, headers: dict[str, Any] | None = None, **_: Any) -> None:
        if headers is None:
            return
        around = current_usage()
        for name, value in zip(_HEADERS, (around.user, around.feature), strict=True):
            if value is not None and headers.get(name) is None:
                headers[name] = value

    def _begin(self, task: Any = None, **_: Any) -> None:
        if task is None or task.app is not self._app:
            return
        user, feature = (_header(task.request, name) for name in _HEADERS)
        if task.request.is_eager and user is None and feature is None:
            return  # it runs inside of its caller, in the caller's context
        # Entered also without a user: what a task before left behind must not be taken for this one's.
        who = named(user) or {}
        entered: AbstractContextManager[object] = usage_context(
            user_id=who.get("user_id"), clerk_id=who.get("clerk_id"), feature=feature, inherit=False
        )
        entered.__enter__()
        setattr(task.request, _ENTERED, entered)

    def _end(self, task: Any = None, **_: Any) -> None:
        entered = getattr(task.request, _ENTERED, None) if task is not None else None
        if entered is not None:
            setattr(task.request, _ENTERED, None)
            entered.__exit__(None, None, None)

    def _open(self, **_: Any) -> None:
        self.emitter  # noqa: B018 made now, in the child, so that a wrong setting shows at the start

    def _close(self, **_: Any) -> None:
        """A pool process ends without `atexit`: what waits in a buffer is delivered here."""
        with self._lock:
            current, self._current = self._current, None
        if current is not None and current[0] == os.getpid():
            current[1].close()


def install(app: Any, *, emitter: Callable[[], UsageEmitter]) -> CeleryUsage:
    """This function will give the tasks of a Celery app the `usage_context` of whoever sends them.

    A task that is sent inside of a `usage_context`, or by another task, takes user and feature along in the
    headers `usage_user_id` and `usage_feature`; `apply_async(headers={…})` may state them. `emitter` makes an
    emitter (as `BufferedEmitter.from_env` does): it is called in each process, after the fork, and the
    emitter is closed, which delivers what waits, when the process ends.
    """
    usage = CeleryUsage(app, emitter)
    usage.connect()
    return usage


def _header(request: Any, name: str) -> str | None:
    value = getattr(request, name, None)
    if value is None:
        value = (getattr(request, "headers", None) or {}).get(name)
    return value if isinstance(value, str) and value else None
