"""What became of the events of one delivery."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol
from uuid import UUID

from producers._delivery import StreamUnavailable
from producers._fast import Encoded

Item = tuple[Encoded, Any]
"""An event that waits, and who waits for it: None where nobody does."""


class Delivers(Protocol):
    """What the thread needs of a Delivery."""

    def deliver(self, events: Sequence[Encoded]) -> None:
        """This function will return once each event is safe, or raise StreamUnavailable with the others."""
        ...

    def close(self) -> None:
        """This function will close the connections."""
        ...


Settle = Callable[[Sequence[Item], Sequence[Item], Exception | None], Sequence[Item]]
"""Told (delivered, failed, error), returns those of the failed that are to be tried again."""


def keep_failed(delivered: Sequence[Item], failed: Sequence[Item], error: Exception | None) -> Sequence[Item]:
    """This function will have all that failed tried again: nobody waits for it."""
    del delivered, error
    return failed


def split(items: Sequence[Item], error: StreamUnavailable) -> tuple[list[Item], list[Item]]:
    """This function will tell what was delivered from what was not; without names it is all of it."""
    missing: set[UUID] = {event.event_id for event in error.events}
    delivered: list[Item] = []
    failed: list[Item] = []
    for item in items:
        (failed if item[0].event_id in missing or not missing else delivered).append(item)
    return delivered, failed


def unexpected(problem: Exception) -> StreamUnavailable:
    """This function will make the error of an exception that a delivery should not raise."""
    error = StreamUnavailable(f"the events could not be sent: {type(problem).__name__}")
    error.__cause__ = problem
    return error


def out_of_time() -> StreamUnavailable:
    """This function will make the error of what is given up."""
    return StreamUnavailable("the emitter was closed before the stream acknowledged the event")
