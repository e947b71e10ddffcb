"""What emitters with a buffer say about their events."""

from dataclasses import dataclass

from producers._delivery import StreamUnavailable
from producers._events import UsageEvent


class BufferFull(StreamUnavailable):
    """As many events wait as the buffer may hold; those in `events` were not taken.

    Sending them later with `send` is safe, since they keep their ids.
    """


@dataclass(frozen=True, slots=True)
class Report:
    """What became of the events that an emitter took, in this process."""

    accepted: int
    delivered: int
    """Acknowledged by the server, or safe in the spool."""
    failed: tuple[UsageEvent, ...] = ()
    """Given up when the time was over. The server may have some of them: `send` with the same ids is safe."""


@dataclass(frozen=True, slots=True)
class Stats:
    """How an emitter does at this moment, in this process."""

    accepted: int
    delivered: int
    waiting: int
    failed_attempts: int
    """In a row, up to now; 0 while all is well."""


def buffer_full(capacity: int) -> str:
    """This function will say why an event was not taken."""
    return f"{capacity} usage events wait already: the stream takes them too slowly, or not at all"
