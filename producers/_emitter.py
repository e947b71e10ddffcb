"""The emitter: what an app calls to say that something was used."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Self, Unpack
from uuid import UUID

from producers._config import EmitterConfig
from producers._delivery import Delivery, StreamUnavailable
from producers._events import UsageEvent
from producers._fast import Encoded, encoded
from producers._making import Maker, Usage, event_of, void_of

__all__ = ["Batch", "Emitter", "StreamUnavailable", "Usage", "event_of"]


class Batch:
    """Collects events until its `with` block ends; then they are sent together."""

    def __init__(self, maker: Maker | None = None) -> None:
        self._maker = maker or Maker()
        self._collected: list[Encoded] = []

    def emit(self, **usage: Unpack[Usage]) -> UUID:
        """This function will add an event, with the arguments of `Emitter.emit`, and return its id."""
        made = self._maker.make(**usage)
        self._collected.append(made)
        return made.event_id

    def add(self, event: UsageEvent) -> UUID:
        """This function will add an event that was made before and return its id."""
        self._collected.append(encoded(event))
        return event.event_id

    @property
    def collected(self) -> list[Encoded]:
        """The events as they will be sent, in the order of the calls."""
        return self._collected

    @property
    def events(self) -> list[UsageEvent]:
        """The events, in the order of the calls."""
        return [made.event for made in self._collected]

    @property
    def event_ids(self) -> list[UUID]:
        """The ids of the events, in the order of the calls."""
        return [made.event_id for made in self._collected]


class Emitter:
    """Writes usage events to the stream and returns once the server has acknowledged them.

    One per process is enough: it may be shared by threads, and after a fork it opens its own connections.
    """

    def __init__(self, config: EmitterConfig, *, budget_ms: int = 50, spool_max_mb: float = 1024) -> None:
        """This function will prepare an emitter; it connects with the first event.

        With a spool (USAGE_SPOOL_DIR), `budget_ms` is what an `emit` may take, and `spool_max_mb` bounds the
        directory, in MiB. Raises InvalidConfiguration for a directory in which events cannot be kept.
        """
        self._maker = Maker()
        self._delivery = Delivery(config, budget_ms=budget_ms, spool_max_mb=spool_max_mb)
        # Looked up once: `emit` is called for every use of a model.
        self._make = self._maker.make
        self._deliver_one = self._delivery.deliver_one

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        budget_ms: int = 50,
        spool_max_mb: float = 1024,
    ) -> Self:
        """This function will make an emitter from REDIS_URL and its companions in the environment."""
        return cls(EmitterConfig.from_env(environ), budget_ms=budget_ms, spool_max_mb=spool_max_mb)

    def emit(self, **usage: Unpack[Usage]) -> UUID:
        """This function will send one event and return its id once the server or the spool has it for sure.

        `event_id` and `occurred_at` are fixed before the first attempt, so that a repetition is the same
        event; an `idempotency_key` makes the id from the user and the key. Raises InvalidEvent before
        anything is sent. Without a spool it raises StreamUnavailable, after some 4 seconds at most where the
        server is silent; with one, only where the spool cannot keep the event either.
        """
        made = self._make(**usage)
        self._deliver_one(made)
        return made.event_id

    def send(self, event: UsageEvent) -> UUID:
        """This function will send an event that was made before, or whose acknowledgement is missing."""
        self._deliver_one(encoded(event))
        return event.event_id

    @contextmanager
    def batch(self) -> Iterator[Batch]:
        """This function will collect events and send them in one round trip when the block ends.

        Nothing is sent when the block raises. Frames are cut at 500 events and 1 MiB, one shard each. A
        StreamUnavailable has the events of those frames that were not acknowledged.
        """
        batch = Batch(self._maker)
        yield batch
        self._delivery.deliver(batch.collected)

    def void(
        self, event_id: UUID | str, *, user_id: UUID | str | None = None, clerk_id: str | None = None
    ) -> UUID:
        """This function will send the reversal of this user's event; sent again, it is the same reversal."""
        return self.send(void_of(event_id, user_id=user_id, clerk_id=clerk_id))

    def close(self) -> None:
        """This function will close the connections; a later `emit` raises StreamUnavailable."""
        self._delivery.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
