"""Which stream an event belongs to, and the packed commands that put events there."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

from redis import exceptions as redis_errors

from producers._config import EmitterConfig, redacted
from producers._stream import correction_key, pack, shard_of, stream_key
from producers._transport import Request, Transport
from producers._transport import pack as pack_command

_WAIT_FOR_FSYNC = pack_command(b"WAITAOF", b"1", b"0", b"1500")
# What goes out before replies are read: enough for one round trip, little enough for any server's buffers.
_MAX_BYTES_IN_FLIGHT = 4 * 1024 * 1024


class Addressed(Protocol):
    """What can be sent: the bytes of one event, and what decides where they go."""

    @property
    def data(self) -> bytes:
        """The event's JSON."""

    @property
    def user_text(self) -> str:
        """The user's id as it stands on the wire."""

    @property
    def is_correction(self) -> bool:
        """Whether it belongs on the stream of corrections."""


class NotKept(Exception):
    """The stream did not take `events`, for `reason`; nor did the spool, for what the message says."""

    def __init__(self, message: str, *, events: Sequence[Addressed], reason: str) -> None:
        super().__init__(message)
        self.events = events
        self.reason = reason


AnAddressed = TypeVar("AnAddressed", bound=Addressed)


class Frame(NamedTuple, Generic[AnAddressed]):
    """One request, and the events that it carries."""

    request: Request
    events: Sequence[AnAddressed]


class _Target(NamedTuple):
    """A stream, and what stands before the data of every XADD to it."""

    key: str
    prefix: bytes

    @classmethod
    def of(cls, key: str) -> Self:
        name = key.encode()
        return cls(key, b"*5\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$1\r\n*\r\n$4\r\ndata\r\n" % (len(name), name))


class Routes:
    """The streams of one configuration."""

    def __init__(self, config: EmitterConfig) -> None:
        self._config = config
        shards = range(config.shards)
        self._events = [_Target.of(stream_key(config.stream, shard)) for shard in shards]
        self._corrections = [_Target.of(correction_key(config.stream, shard)) for shard in shards]
        self._syncs = config.durability == "fsync"

    def single(self, event: Addressed) -> Request:
        """This function will return the request that sends one event as an entry of its own."""
        return self._request(self._target_of(event), event.data)

    def frames(self, events: Iterable[AnAddressed]) -> list[Frame[AnAddressed]]:
        """This function will join events to frames within the limits, in their order per stream."""
        members_of: dict[str, list[AnAddressed]] = {}
        targets: dict[str, _Target] = {}
        for event in events:
            target = self._target_of(event)
            if target.key not in targets:
                targets[target.key] = target
                members_of[target.key] = []
            members_of[target.key].append(event)
        frames: list[Frame[AnAddressed]] = []
        for key, target in targets.items():
            members = members_of[key]
            position = 0
            for data, count in pack([event.data for event in members]):
                frames.append(Frame(self._request(target, data), members[position : position + count]))
                position += count
        return frames

    def send(
        self, transport: Transport, requests: Sequence[Request], rest: Callable[[], None] | None = None
    ) -> None:
        """This function will send the requests; `rest` is what `Transport.start` left of the only one.

        Raises the redis error of those that were not acknowledged, or whose fsync was not confirmed.
        """
        for some in _in_flight(requests):
            transport.deliver(some, rest)
            _check_entries(some)
            if self._syncs:
                _check_fsync(some)

    def refusal(self, error: Exception | str, count: int) -> str:
        """This function will say that `count` events were not acknowledged, and why, without a password."""
        said = redacted(str(error)) or type(error).__name__
        if "WAITAOF" in said:
            said += " (USAGE_DURABILITY=fsync needs Redis >= 7.2 or Valkey, with appendonly yes)"
        place = f"the stream at {self._config.redacted_url} (REDIS_URL)"
        return f"{place} did not acknowledge {count} event(s): {said}"

    def _target_of(self, event: Addressed) -> _Target:
        targets = self._corrections if event.is_correction else self._events
        return targets[shard_of(event.user_text, len(targets)) if len(targets) > 1 else 0]

    def _request(self, target: _Target, data: bytes) -> Request:
        packed = b"%b$%d\r\n%b\r\n" % (target.prefix, len(data), data)
        if self._syncs:
            return Request(target.key, packed + _WAIT_FOR_FSYNC, 2)
        return Request(target.key, packed, 1)


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


def _check_entries(requests: Sequence[Request]) -> None:
    """An entry that was made has an id; whatever else is answered acknowledges nothing."""
    for request in requests:
        answer = request.replies[0]
        if not isinstance(answer, bytes) or b"-" not in answer:
            request.replies = []
            raise redis_errors.InvalidResponse("the answer to XADD is no id of an entry")


def _check_fsync(requests: Sequence[Request]) -> None:
    for request in requests:
        answer = request.replies[1]
        if not isinstance(answer, list) or not answer or int(answer[0]) < 1:
            request.replies.pop()
            raise redis_errors.TimeoutError(
                "WAITAOF: the server has the event, but did not confirm its fsync in time"
            )
