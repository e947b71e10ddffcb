"""The emitter: what an app calls to say that something was used."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple, Required, Self, TypedDict, Unpack
from uuid import UUID

from redis import exceptions as redis_errors

from producers import _fields as rules
from producers._config import EmitterConfig, InvalidConfiguration, redacted
from producers._events import InvalidEvent, UsageEvent, build
from producers._fast import Encoded, encoded, written
from producers._ids import keyed_event_id, new_event_id, now_ns, utcnow, void_event_id
from producers._stream import correction_key, pack, shard_of, stream_key
from producers._transport import Request, Transport
from producers._transport import pack as pack_command

_WAIT_FOR_FSYNC = pack_command(b"WAITAOF", b"1", b"0", b"1500")
# What goes out before replies are read: enough for one round trip, little enough for any server's buffers.
_MAX_BYTES_IN_FLIGHT = 4 * 1024 * 1024


class Usage(TypedDict, total=False):
    """The arguments of `emit`; `user_id` or `clerk_id`, `feature`, and tokens are required."""

    user_id: UUID | str | None
    clerk_id: str | None
    feature: Required[str]
    provider: str | None
    model: str | None
    input_tokens: int | None
    output_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    tokens_used: int | None
    cost_usd: Decimal | float | str | None
    occurred_at: datetime | str | None
    duration_ms: int | None
    status: Literal["ok", "error"] | None
    metadata: Mapping[str, Any] | None
    hold_id: str | None
    producer_id: str | None
    seq: int | None
    event_id: UUID | str | None
    idempotency_key: str | None


_ARGUMENTS = Usage.__required_keys__ | Usage.__optional_keys__


class StreamUnavailable(Exception):
    """The server did not acknowledge the events in `events`: whether it has them is unknown.

    Sending them again with `Emitter.send` is safe, since each keeps its id.
    """

    def __init__(self, message: str, events: Sequence[UsageEvent] = ()) -> None:
        super().__init__(message)
        self.events = tuple(events)


class _Target(NamedTuple):
    """A stream, and what stands before the data of every XADD to it."""

    key: str
    prefix: bytes

    @classmethod
    def of(cls, key: str) -> Self:
        name = key.encode()
        return cls(key, b"*5\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$1\r\n*\r\n$4\r\ndata\r\n" % (len(name), name))


class Batch:
    """Collects events until its `with` block ends; then they are sent together."""

    def __init__(self) -> None:
        self._collected: list[Encoded] = []

    def emit(self, **usage: Unpack[Usage]) -> UUID:
        """This function will add an event, with the arguments of `Emitter.emit`, and return its id."""
        made = written(now_ns(), **usage) or encoded(event_of(usage))
        self._collected.append(made)
        return made.event_id

    def add(self, event: UsageEvent) -> UUID:
        """This function will add an event that was made before and return its id."""
        self._collected.append(encoded(event))
        return event.event_id

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

    def __init__(self, config: EmitterConfig) -> None:
        """This function will prepare an emitter; it connects with the first event.

        Raises InvalidConfiguration for a setting that this release cannot keep.
        """
        if config.spool_dir is not None:
            raise InvalidConfiguration(
                [
                    "USAGE_SPOOL_DIR is set, but this release has no spool, and events would not be kept on "
                    "disk as it promises: unset it (an emit that the server does not acknowledge raises "
                    "StreamUnavailable)"
                ]
            )
        self._config = config
        self._transport: Transport | None = Transport(config)
        shards = range(config.shards)
        self._events = [_Target.of(stream_key(config.stream, shard)) for shard in shards]
        self._corrections = [_Target.of(correction_key(config.stream, shard)) for shard in shards]
        self._syncs = config.durability == "fsync"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """This function will make an emitter from REDIS_URL and its companions in the environment."""
        return cls(EmitterConfig.from_env(environ))

    def emit(self, **usage: Unpack[Usage]) -> UUID:
        """This function will send one event and return its id once the server has acknowledged it.

        `event_id` and `occurred_at` are fixed before the first attempt, so that a repetition is the same
        event; an `idempotency_key` makes the id from the user and the key. Raises InvalidEvent before
        anything is sent, or StreamUnavailable, after some 4 seconds at most where the server is silent.
        """
        made = written(now_ns(), **usage) or encoded(event_of(usage))
        self._deliver([(self._request(self._target_of(made), made.data), (made,))])
        return made.event_id

    def send(self, event: UsageEvent) -> UUID:
        """This function will send an event that was made before, or whose acknowledgement is missing."""
        made = encoded(event)
        self._deliver([(self._request(self._target_of(made), made.data), (made,))])
        return made.event_id

    @contextmanager
    def batch(self) -> Iterator[Batch]:
        """This function will collect events and send them in one round trip when the block ends.

        Nothing is sent when the block raises. Frames are cut at 500 events and 1 MiB, one shard each. A
        StreamUnavailable has the events of those frames that were not acknowledged.
        """
        batch = Batch()
        yield batch
        self._deliver(self._frames(batch._collected))

    def void(
        self, event_id: UUID | str, *, user_id: UUID | str | None = None, clerk_id: str | None = None
    ) -> UUID:
        """This function will send the reversal of this user's event; sent again, it is the same reversal."""
        target = rules.uuid_value(event_id, "event_id", "invalid_event_id")
        fields = {"user_id": user_id, "clerk_id": clerk_id, "corrects": target, "void": True}
        return self.send(build({**fields, "event_id": void_event_id(target), "occurred_at": utcnow()}))

    def close(self) -> None:
        """This function will close the connections; a later `emit` raises StreamUnavailable."""
        transport, self._transport = self._transport, None
        if transport is not None and transport.pid == os.getpid():
            transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _target_of(self, made: Encoded) -> _Target:
        targets = self._corrections if made.is_correction else self._events
        return targets[shard_of(made.user_text, len(targets)) if len(targets) > 1 else 0]

    def _request(self, target: _Target, data: bytes) -> Request:
        packed = b"%b$%d\r\n%b\r\n" % (target.prefix, len(data), data)
        if self._syncs:
            return Request(target.key, packed + _WAIT_FOR_FSYNC, 2)
        return Request(target.key, packed, 1)

    def _frames(self, collected: Iterable[Encoded]) -> list[tuple[Request, Sequence[Encoded]]]:
        members_of: dict[str, list[Encoded]] = {}
        targets: dict[str, _Target] = {}
        for made in collected:
            target = self._target_of(made)
            if target.key not in targets:
                targets[target.key] = target
                members_of[target.key] = []
            members_of[target.key].append(made)
        frames: list[tuple[Request, Sequence[Encoded]]] = []
        for key, target in targets.items():
            members = members_of[key]
            position = 0
            for data, count in pack([made.data for made in members]):
                frames.append((self._request(target, data), members[position : position + count]))
                position += count
        return frames

    def _deliver(self, frames: Sequence[tuple[Request, Sequence[Encoded]]]) -> None:
        transport = self._transport
        if transport is None:
            unsent = [made.event for _, members in frames for made in members]
            raise StreamUnavailable("this emitter is closed", unsent)
        if transport.pid != os.getpid():
            # After a fork the parent's sockets are the parent's.
            transport = self._transport = Transport(self._config)
        rest: Callable[[], None] | None = None
        if len(frames) == 1:
            rest = transport.start(frames[0][0])
            if rest is None:
                return
        try:
            for requests in _in_flight([request for request, _ in frames]):
                transport.deliver(requests, rest)
                if self._syncs:
                    _check_fsync(requests)
        except (redis_errors.RedisError, OSError) as error:
            missing = [made.event for request, members in frames if not request.done for made in members]
            raise StreamUnavailable(self._message(error, len(missing)), missing) from error

    def _message(self, error: Exception, count: int) -> str:
        said = redacted(str(error)) or type(error).__name__
        if "WAITAOF" in said:
            said += " (USAGE_DURABILITY=fsync needs Redis >= 7.2 or Valkey, with appendonly yes)"
        place = f"the stream at {self._config.redacted_url} (REDIS_URL)"
        return f"{place} did not acknowledge {count} event(s): {said}"


def event_of(usage: Usage) -> UsageEvent:
    """This function will make the event of a call: its id and time are settled here, once."""
    strangers = sorted(usage.keys() - _ARGUMENTS)
    if strangers:
        raise TypeError(f"emit() got an unexpected argument {strangers[0]!r}")
    fields: dict[str, object] = dict(usage)
    key = fields.pop("idempotency_key", None)
    if key is not None and fields.get("event_id") is not None:
        raise InvalidEvent("invalid_event_id", "event_id", "give event_id or idempotency_key, not both")
    if fields.get("occurred_at") is None:
        fields["occurred_at"] = utcnow()
    if key is not None or fields.get("event_id") is None:
        fields["event_id"] = new_event_id()
    event = build(fields)
    if key is None:
        return event
    if not isinstance(key, str) or not key:
        raise InvalidEvent("invalid_event_id", "idempotency_key", "expected a string that is not empty")
    try:
        return event.model_copy(update={"event_id": keyed_event_id(event.user_text, key)})
    except UnicodeEncodeError:
        raise InvalidEvent(
            "invalid_event_id", "idempotency_key", "expected text that UTF-8 can hold"
        ) from None


def _in_flight(requests: Sequence[Request]) -> Iterator[list[Request]]:
    chunk: list[Request] = []
    size = 0
    for request in requests:
        if chunk and size + len(request.packed) > _MAX_BYTES_IN_FLIGHT:
            yield chunk
            chunk, size = [], 0
        chunk.append(request)
        size += len(request.packed)
    if chunk:
        yield chunk


def _check_fsync(requests: Sequence[Request]) -> None:
    for request in requests:
        answer = request.replies[1]
        if not isinstance(answer, list) or not answer or int(answer[0]) < 1:
            request.replies.pop()
            raise redis_errors.TimeoutError(
                "WAITAOF: the server has the event, but did not confirm its fsync in time"
            )
