"""Sends what a spool holds, oldest first, and deletes what was acknowledged."""

from collections.abc import Callable, Sequence
from typing import Final

from redis import exceptions as redis_errors

from producers._routes import Addressed, AnAddressed, Frame, Routes
from producers._spool import Spool, SpoolFailed
from producers._spool_segment import Segment, Stretch
from producers._transport import Transport

_EVENTS_AT_ONCE: Final = 1000
_BYTES_AT_ONCE: Final = 1024 * 1024


class Replay:
    """One pass over the segments.

    What is refused because of its key alone (a missing permission for one stream, a key of another type) must
    not hold up the rest, nor have the rest sent again and again: it is put behind, and waits on the disk.
    """

    def __init__(self, routes: Routes, transport: Transport, spool: Spool) -> None:
        self._routes = routes
        self._transport = transport
        self._spool = spool
        self.segments = 0
        """That were sent to their end and deleted."""
        self.events = 0
        """That were acknowledged."""
        self.damaged_bytes = 0
        self.refusal: redis_errors.RedisError | None = None
        """Why some wait on although the server answers."""

    def run(self, *, own: bool, go_on: Callable[[], bool]) -> None:
        """This function will send what waits, until `go_on`, asked after each run of events, says no.

        Raises a redis error where the stream is away, or OSError where the disk fails.
        """
        for segment in self._spool.segments(own=own):
            try:
                if not self._send_all(segment, go_on):
                    break
            finally:
                self.damaged_bytes += segment.quarantined
                segment.quarantined = 0
                self.segments += self._spool.done(segment)

    def _send_all(self, segment: Segment, go_on: Callable[[], bool]) -> bool:
        sent = 0
        for stretch in segment.stretches(_EVENTS_AT_ONCE, _BYTES_AT_ONCE):
            refused = self._send(stretch)
            if refused:
                if not sent and len(refused) == len(stretch.events) and stretch.end >= segment.synced:
                    # Nothing else is in it: it waits where it is.
                    return go_on()
                try:
                    self._spool.keep(refused)
                except SpoolFailed:
                    return go_on()
            sent += len(stretch.events) - len(refused)
            segment.advance(stretch.end)
            if not go_on():
                return False
        return True

    def _send(self, stretch: Stretch) -> Sequence[Addressed]:
        frames = self._routes.frames(stretch.events)
        try:
            self._routes.send(self._transport, [frame.request for frame in frames])
        except redis_errors.RedisError as error:
            refused = _refused(frames)
            if refused is None:
                raise
            self.refusal = error
        else:
            refused = []
        self.events += len(stretch.events) - len(refused)
        return refused


def is_about_a_key(error: Exception | None) -> bool:
    """This function will tell whether the server refuses one key and may well take others."""
    return isinstance(error, redis_errors.NoPermissionError) or str(error).startswith("WRONGTYPE")


def _refused(frames: Sequence[Frame[AnAddressed]]) -> list[AnAddressed] | None:
    """The events that were refused because of their keys; None where there is another reason."""
    refused: list[AnAddressed] = []
    for request, events in frames:
        if request.done:
            continue
        if not is_about_a_key(request.error):
            return None
        refused.extend(events)
    return refused
