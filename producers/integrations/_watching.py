"""Reads a response's body while the caller reads it: server-sent events, AWS event streams, JSON.

The bytes pass on as they came, but for events that only the tracking asked for.
"""

import base64
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, Protocol

Event = dict[str, Any]

_BLANK_LINE: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_WORTH_READING: Final = re.compile(
    rb'"(?:usage|x_groq)"\s*:\s*\{|"type"\s*:\s*"(?:message_stop|response\.(?:completed|failed|incomplete))"'
)
_DONE: Final = b"[DONE]"
# A body that is longer is passed on, and not understood: its usage is unknown.
_MOST_KEPT_BYTES: Final = 64 * 1024 * 1024


class Body(Protocol):
    """Finds the events in a body that arrives in pieces."""

    def take(self, chunk: bytes) -> bytes:
        """This function will look at a piece, and return what the caller is to see of it."""
        ...

    def rest(self) -> bytes:
        """This function will look at what is left when the body has ended, and return it for the caller."""
        ...


class ServerSentEvents:
    """`data:` of each event that can say something about usage, and of the first one, which says who answers.

    `on_event` returns whether the caller is to see the event; only if `hides` its answer is heeded, and only
    then the bytes of an event wait for its end.
    """

    def __init__(
        self, on_event: Callable[[Event], bool], on_done: Callable[[], None], *, hides: bool
    ) -> None:
        self._on_event = on_event
        self._on_done = on_done
        self._hides = hides
        self._left = b""
        self._is_first = True

    def take(self, chunk: bytes) -> bytes:
        """This function will look at the events that have become complete."""
        seen: list[bytes] = []
        self._left += chunk
        start = 0
        for end in _BLANK_LINE.finditer(self._left):
            block = self._left[start : end.end()]
            start = end.end()
            if self._is_shown(block):
                seen.append(block)
        self._left = self._left[start:]
        return b"".join(seen) if self._hides else chunk

    def rest(self) -> bytes:
        """This function will look at an event that nothing follows."""
        left, self._left = self._left, b""
        shown = self._is_shown(left) if left else True
        return left if self._hides and shown else b""

    def _is_shown(self, block: bytes) -> bool:
        if not self._is_first and not _is_worth_reading(block):
            return True
        lines = [line[5:].strip() for line in block.splitlines() if line.startswith(b"data:")]
        data = b"\n".join(lines)
        if data == _DONE:
            self._on_done()
            return True
        event = _json(data)
        if event is None:
            return True
        self._is_first = False
        return self._on_event(event)


def _is_worth_reading(block: bytes) -> bool:
    """Most events are a few letters of the answer; only what may speak of usage is read."""
    return _DONE in block or _WORTH_READING.search(block) is not None or block.count(b"data:") > 1


class AwsEvents:
    """The events inside of AWS's binary event stream, in which Bedrock streams."""

    def __init__(self, on_event: Callable[[Event], bool]) -> None:
        self._on_event = on_event
        self._left = b""

    def take(self, chunk: bytes) -> bytes:
        """This function will look at the messages that have become complete."""
        self._left += chunk
        # A message: its length, the length of its headers and a checksum (4 bytes each), headers, payload,
        # another checksum.
        while len(self._left) >= 12:
            size, headers = int.from_bytes(self._left[:4]), int.from_bytes(self._left[4:8])
            if len(self._left) < size or size < 16:
                break
            payload = _json(self._left[12 + headers : size - 4])
            self._left = self._left[size:]
            inner = None if payload is None else payload.get("bytes")
            event = _json(base64.b64decode(inner)) if isinstance(inner, str) else None
            if event is not None:
                self._on_event(event)
        return chunk

    def rest(self) -> bytes:
        """This function will find nothing more: an incomplete message says nothing."""
        return b""


class Whole:
    """One JSON object."""

    def __init__(self, on_event: Callable[[Event], bool]) -> None:
        self._on_event = on_event
        self._kept: list[bytes] = []
        self._size = 0

    def take(self, chunk: bytes) -> bytes:
        """This function will keep a piece."""
        self._size += len(chunk)
        if self._size <= _MOST_KEPT_BYTES:
            self._kept.append(chunk)
        return chunk

    def rest(self) -> bytes:
        """This function will look at the object."""
        event = _json(b"".join(self._kept)) if self._size <= _MOST_KEPT_BYTES else None
        self._kept.clear()
        if event is not None:
            self._on_event(event)
        return b""


class Reading(Protocol):
    """What is done with a body that is being read."""

    def take(self, chunk: bytes) -> bytes:
        """This function will look at a piece, and return what the caller is to see of it."""
        ...

    def rest(self) -> bytes:
        """This function will look at what is left when the body has ended."""
        ...

    def finish(self, *, ended: bool) -> None:
        """This function will draw the conclusion, once; `ended` is false where the body was left early."""
        ...

    async def afinish(self, *, ended: bool) -> None:
        """This function will do the same for a client that is awaited."""
        ...


def watch(http: Any, reading: Reading) -> None:
    """This function will let `reading` see what is read of an httpx response, and when it is closed."""
    read, close = http.iter_bytes, http.close
    advancing = False

    def iter_bytes(chunk_size: int | None = None) -> Iterator[bytes]:
        nonlocal advancing
        chunks = read(chunk_size)
        try:
            while True:
                # At its end the response closes itself: that is no leaving early.
                advancing = True
                try:
                    chunk = next(chunks, None)
                finally:
                    advancing = False
                if chunk is None:
                    break
                if shown := reading.take(chunk):
                    yield shown
            if shown := reading.rest():
                yield shown
        except BaseException:
            reading.finish(ended=False)
            raise
        reading.finish(ended=True)

    def close_and_finish() -> None:
        try:
            close()
        finally:
            if not advancing:
                reading.finish(ended=False)

    http.iter_bytes, http.close = iter_bytes, close_and_finish


def watch_async(http: Any, reading: Reading) -> None:
    """This function will do the same for a response that is awaited."""
    read, close = http.aiter_bytes, http.aclose
    advancing = False

    async def aiter_bytes(chunk_size: int | None = None) -> AsyncIterator[bytes]:
        nonlocal advancing
        chunks = read(chunk_size)
        try:
            while True:
                advancing = True
                try:
                    chunk = await anext(chunks, None)
                finally:
                    advancing = False
                if chunk is None:
                    break
                if shown := reading.take(chunk):
                    yield shown
            if shown := reading.rest():
                yield shown
        except BaseException:
            await reading.afinish(ended=False)
            raise
        await reading.afinish(ended=True)

    async def close_and_finish() -> None:
        try:
            await close()
        finally:
            if not advancing:
                await reading.afinish(ended=False)

    http.aiter_bytes, http.aclose = aiter_bytes, close_and_finish


def _json(data: bytes) -> Event | None:
    try:
        found = json.loads(data)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
