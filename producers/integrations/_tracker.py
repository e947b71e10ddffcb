"""Emits what the calls of a tracked client used: one event for each response, and never a broken call."""

import asyncio
import inspect
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from producers._emitter import Emitter
from producers._face import AsyncUsageEmitter, UsageEmitter
from producers.integrations._context import current_usage
from producers.integrations._reporting import OnError, named
from producers.integrations._usage import is_pending, usages_of

UNKNOWN: Final = "responses_without_usage"
"""The unit that stands for a response that does not say what it used: it has no price, and is never 0."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracker:
    """Whom and what the calls of a client are counted for, and where they are told."""

    emitter: UsageEmitter | AsyncUsageEmitter
    user: Mapping[str, str] = field(default_factory=dict)
    feature: str | None = None
    provider: str | None = None
    asks_for_usage: bool = True
    strict: bool = False
    on_error: OnError | None = None
    clock: Callable[[], float] = time.perf_counter

    @property
    def must_be_awaited(self) -> bool:
        """Whether the emitter is one for asyncio."""
        return inspect.iscoroutinefunction(self.emitter.emit)

    def emit(self, events: list[dict[str, Any]]) -> None:
        """This function will emit events; a failure goes no further, unless the tracker is strict."""
        for event in events:
            try:
                self.emitter.emit(**event)
            except Exception as error:  # noqa: BLE001 the app has its answer: usage must not undo that
                self.failed(error)

    async def aemit(self, events: list[dict[str, Any]]) -> None:
        """This function will do the same without blocking the event loop."""
        if isinstance(self.emitter, Emitter):
            # It waits for the server's answer: in a thread of its own, where there is a loop to be blocked.
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                self.emit(events)
            else:
                await asyncio.to_thread(self.emit, events)
        elif not self.must_be_awaited:
            self.emit(events)
        else:
            for event in events:
                try:
                    await self.emitter.emit(**event)  # type: ignore[misc]  # one for asyncio, see above
                except Exception as error:  # noqa: BLE001 as in `emit`
                    self.failed(error)

    def failed(self, error: Exception) -> None:
        """This function will log that usage was not recorded and tell `on_error`, or raise where strict."""
        if self.strict:
            raise error
        _log.warning("usage was not recorded: %s: %s", type(error).__name__, error)
        if self.on_error is None:
            return
        try:
            self.on_error(error)
        except Exception:  # noqa: BLE001 the last resort must not break the caller either
            _log.warning("on_error itself failed", exc_info=True)


class Call:
    """One call of a tracked client, from its start to the end of its answer.

    The user and the feature are those of the moment it began: a stream may be read anywhere.
    """

    def __init__(self, tracker: Tracker, *, provider: str | None, requested_model: object = None) -> None:
        """This function will note who calls, and when."""
        around = current_usage()
        self.tracker = tracker
        self._provider = tracker.provider or provider
        self._requested_model = requested_model if isinstance(requested_model, str) else None
        self._who = named(around.user) or tracker.user
        self._feature = around.feature or tracker.feature
        self._started = tracker.clock()

    def events_of(
        self, answer: object, *, is_complete: bool = True, is_timed: bool = True
    ) -> list[dict[str, Any]]:
        """This function will make the events of an answer, in the form that `emit` takes."""
        try:
            # Bedrock's prices are those of the name that was asked for: it has the region in it.
            model = self._requested_model if self._provider == "aws" else None
            found = usages_of(answer, provider=self._provider, model=model)
            if not found:
                return [] if is_pending(answer) else [self._unknown(answer, is_complete=is_complete)]
            return [self._completed(event, is_complete=is_complete, is_timed=is_timed) for event in found]
        except Exception as error:  # noqa: BLE001 as in `emit`
            self.tracker.failed(error)
            return []

    def _unknown(self, answer: object, *, is_complete: bool) -> dict[str, Any]:
        images = answer.get("data") if isinstance(answer, Mapping) else getattr(answer, "data", None)
        is_image = isinstance(images, list) and _has_created(answer)
        event: dict[str, Any] = {
            "tokens_used": 0,
            "units": {"images": len(images)} if is_image and images else {UNKNOWN: 1},
            "status": "ok",
        }
        for name, value in (
            ("provider", self._provider),
            ("model", _text(answer, "model")),
            ("idempotency_key", _text(answer, "id") or _text(answer, "_request_id")),
        ):
            if value is not None:
                event[name] = value
        return self._completed(event, is_complete=is_complete, is_timed=True)

    def _completed(self, event: dict[str, Any], *, is_complete: bool, is_timed: bool) -> dict[str, Any]:
        event |= self._who
        event["feature"] = self._feature
        if "model" not in event and self._requested_model is not None:
            event["model"] = self._requested_model
        if is_timed:
            event["duration_ms"] = max(0, round((self.tracker.clock() - self._started) * 1000))
        if not is_complete:
            event["status"] = "error"
            event["metadata"] = {**event.get("metadata", {}), "incomplete": True}
        return event


def _has_created(answer: object) -> bool:
    created = answer.get("created") if isinstance(answer, Mapping) else getattr(answer, "created", None)
    return isinstance(created, int)


def _text(answer: object, name: str) -> str | None:
    found = answer.get(name) if isinstance(answer, Mapping) else getattr(answer, name, None)
    return found if isinstance(found, str) and found else None
