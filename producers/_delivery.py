"""The sending half of every emitter: an event is acknowledged, safe in the spool, or told of."""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from redis import exceptions as redis_errors

from producers._config import EmitterConfig, InvalidConfiguration
from producers._events import UsageEvent
from producers._fast import Encoded
from producers._lifecycle import warm_up
from producers._routes import Frame, NotKept, Routes
from producers._transport import Transport

if TYPE_CHECKING:
    from producers._spool_sender import Sender


class StreamUnavailable(Exception):
    """The server did not acknowledge the events in `events`: whether it has them is unknown.

    Nor does the spool have them, where there is one. Sending them again with `Emitter.send` is safe, since
    each keeps its id.
    """

    def __init__(self, message: str, events: Sequence[UsageEvent] = ()) -> None:
        super().__init__(message)
        self.events = tuple(events)


class Delivery:
    """Brings encoded events to their streams; threads may share it, and a forked child connects anew.

    With a spool an event that the stream does not take at once is written to the disk, and sent later. Then a
    single delivery takes `budget_ms` at most, two fifths of it for the stream, as far as the disk keeps up;
    a batch has as much for each 500 events, a second at most. Without one the stream has some 4 seconds.
    """

    def __init__(self, config: EmitterConfig, *, budget_ms: int = 50, spool_max_mb: float = 1024) -> None:
        """This function will prepare the delivery; it connects with the first event.

        `spool_max_mb` bounds the spool's directory, in MiB. Raises InvalidConfiguration for a budget below
        1 ms, and for a spool's directory that cannot be used.
        """
        warm_up()
        if budget_ms < 1:
            raise InvalidConfiguration([f"budget_ms is {budget_ms!r}; it is at least 1, as in 50"])
        self._config = config
        self._routes = Routes(config)
        self._is_closed = False
        self._transport = Transport(config)
        # By process; a dict for its atomic setdefault.
        self._senders: dict[int, Sender] = {}
        self._sender: Sender | None = None
        if config.spool_dir is not None:
            self._sender = _sender(config, self._routes, budget_ms, spool_max_mb)

    def deliver(self, events: Sequence[Encoded]) -> None:
        """This function will return once each event is acknowledged by the server or safe in the spool.

        One event becomes an entry of its own; several become frames of at most 500 events and 1 MiB, per
        shard. Raises StreamUnavailable with the events that neither has.
        """
        if len(events) == 1:
            self.deliver_one(events[0])
        elif events:
            self._check_open(events)
            if self._sender is None:
                transport = self._transport_here()
                self._finish(transport, self._routes.frames(events), None)
            else:
                try:
                    self._sender_here(self._sender).deliver(events)
                except NotKept as failure:
                    raise self._neither(failure) from failure

    def deliver_one(self, event: Encoded) -> None:
        """This function will do what `deliver` does for a single event."""
        if self._is_closed:
            self._check_open((event,))
        if self._sender is None:
            request = self._routes.single(event)
            transport = self._transport_here()
            rest = transport.start(request)
            if rest is not None:
                self._finish(transport, [Frame(request, (event,))], rest)
        else:
            try:
                self._sender_here(self._sender).deliver_one(event)
            except NotKept as failure:
                raise self._neither(failure) from failure

    def close(self) -> None:
        """This function will close the connections; a later delivery raises StreamUnavailable.

        Where the stream answers, it has two seconds to take what is in the spool. The rest stays on the disk,
        for the next emitter or for `usage-worker spool flush`.
        """
        if self._is_closed:
            return
        self._is_closed = True
        for one in (self._sender, self._transport):
            if one is not None and one.pid == os.getpid():
                one.close()

    def _check_open(self, events: Sequence[Encoded]) -> None:
        if self._is_closed:
            raise StreamUnavailable("this emitter is closed", [made.event for made in events])

    def _transport_here(self) -> Transport:
        transport = self._transport
        if transport.pid != os.getpid():
            # After a fork the parent's sockets are the parent's.
            transport = self._transport = Transport(self._config)
        return transport

    def _sender_here(self, sender: "Sender") -> "Sender":
        if sender.pid != os.getpid():
            # So are its thread and its files. Two threads may come here; one of them is first.
            sender = self._sender = self._senders.setdefault(os.getpid(), sender.again())
        return sender

    def _finish(
        self, transport: Transport, frames: Sequence[Frame[Encoded]], rest: Callable[[], None] | None
    ) -> None:
        try:
            self._routes.send(transport, [request for request, _ in frames], rest)
        except (redis_errors.RedisError, OSError) as error:
            missing = [made.event for request, members in frames if not request.done for made in members]
            raise StreamUnavailable(self._routes.refusal(error, len(missing)), missing) from error

    def _neither(self, failure: NotKept) -> StreamUnavailable:
        lost = [made.event for made in failure.events if isinstance(made, Encoded)]
        said = self._routes.refusal(failure.reason, len(lost))
        return StreamUnavailable(f"{said}; and the spool did not keep them: {failure}", lost)


def _sender(config: EmitterConfig, routes: Routes, budget_ms: int, spool_max_mb: float) -> "Sender":
    # Its locks are those of POSIX, and most emitters have no spool.
    from producers import _spool_sender  # noqa: PLC0415 - see above

    return _spool_sender.Sender(config, routes, budget_ms=budget_ms, spool_max_mb=spool_max_mb)
