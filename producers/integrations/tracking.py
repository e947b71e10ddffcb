"""`track(client)`: a client of the same type whose every answer is reported as usage.

Each call of the OpenAI and Anthropic SDKs goes through the client's public `post`; there it is seen once,
however often the SDK repeats the request. What is streamed is read along while the caller reads it.
"""

import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import UUID

from producers._buffered import BufferedEmitter
from producers._face import AsyncUsageEmitter, UsageEmitter
from producers.integrations import _anthropic_calls, _openai_calls
from producers.integrations._context import usage_context
from producers.integrations._reporting import OnError, named, provider_id
from producers.integrations._tracker import Call, Tracker
from producers.integrations._watching import (
    AwsEvents,
    Body,
    Event,
    ServerSentEvents,
    Whole,
    watch,
    watch_async,
)

__all__ = ["track", "usage_context"]

Client = TypeVar("Client")


@cache
def _emitter_of_the_process() -> BufferedEmitter:
    return BufferedEmitter.from_env()


def track(
    client: Client,
    *,
    emitter: UsageEmitter | AsyncUsageEmitter | None = None,
    user_id: UUID | str | None = None,
    clerk_id: str | None = None,
    feature: str | None = None,
    provider: str | None = None,
    asks_for_usage: bool = True,
    strict: bool = False,
    on_error: OnError | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Client:
    """This function will return a client that does what `client` does, and emits an event for each answer.

    `client` is one of the OpenAI or Anthropic SDK, for asyncio or not; it is left as it is, and shares its
    connections with the new one. Without an `emitter` it is one BufferedEmitter for the process, configured
    by the environment and flushed when the process ends. The `usage_context` around a call comes before
    `user_id`, `clerk_id` and `feature`. `provider` is that of the client's address unless it is given. Of
    streamed completions the usage is asked for (`asks_for_usage`), and the chunk that brings it is not shown.
    What fails in here is logged as a warning and told to `on_error`; with `strict` it is raised. `clock`
    returns seconds.

    Raises TypeError for another kind of client, or an emitter that must be awaited where nothing is, and
    MissingConfiguration without an emitter and without REDIS_URL.
    """
    tracker = Tracker(
        emitter=_emitter_of_the_process() if emitter is None else emitter,
        user=named(user_id) or named(clerk_id) or {},
        feature=feature,
        provider=provider_id(provider),
        asks_for_usage=asks_for_usage,
        strict=strict,
        on_error=on_error,
        clock=clock,
    )
    kind = _tracked(_untracked(type(client)))
    if tracker.must_be_awaited and not issubclass(kind, _AsyncTracked):
        raise TypeError(
            f"{type(emitter).__name__} must be awaited, and {type(client).__name__} is not: "
            "give an Emitter or a BufferedEmitter"
        )
    new: Any = object.__new__(kind)
    new.__dict__.update(vars(client))
    new._usage_tracker = tracker
    # What hangs on a client calls it: what hangs on the new one has to call the new one.
    for name, value in vars(client).items():
        if getattr(value, "_client", None) is client:
            if isinstance(inspect.getattr_static(kind, name, None), cached_property):
                del new.__dict__[name]
            else:
                new.__dict__[name] = type(value)(new)
    return cast(Client, new)


class _Exchange:
    """One request of a tracked client, and the reading of its answer."""

    def __init__(self, client: Any, tracker: Tracker, path: str, request: dict[str, Any]) -> None:
        self._module = _calls_of(type(client))
        body = request.get("body")
        self.call = Call(
            tracker,
            provider=self._module.provider_of(client),
            requested_model=body.get("model") if isinstance(body, Mapping) else None,
        )
        self._hides_usage = False
        self._before_parsing: object = None
        if self._module is _openai_calls and tracker.asks_for_usage:
            self._hides_usage = _openai_calls.ask_for_usage(path, request)
        self._see_what_is_parsed(request)
        self._is_streamed = bool(request.get("stream"))
        self._finished = False
        self._events: list[dict[str, Any]] = []
        self._fold: _openai_calls.Stream | _anthropic_calls.Stream | None = None
        self._whole: Event | None = None
        self._body: Body | None = None

    def answered(self, result: Any) -> bool:
        """This function will take what the SDK returns; returns whether its body has yet to be read."""
        http = self.http_of(result)
        if http is None:
            answer = result if self._before_parsing is None else self._before_parsing
            self._events += self.call.events_of(answer)
            self._finished = True
            return False
        self._body = self._body_for(http)
        if not http.is_closed:
            return True
        self.take(http.content)
        self.rest()
        self._conclude(ended=True)
        return False

    def http_of(self, result: Any) -> Any:
        """This function will return the HTTP response of a result that is raw or a stream, else None."""
        http = getattr(result, "http_response", None)
        if http is None and self._is_streamed:
            http = getattr(result, "response", None)
        return http if hasattr(http, "iter_bytes") else None

    def refused(self, error: Exception) -> None:
        """This function will count an answer that the SDK got but could not make sense of."""
        answer = self._before_parsing
        if answer is not None:
            for event in self.call.events_of(answer):
                self._events.append(event | {"status": "error"})

    def take(self, chunk: bytes) -> bytes:
        """This function will look at a piece of the body; what goes wrong in here leaves it as it is."""
        if self._body is None:
            return chunk
        try:
            return self._body.take(chunk)
        except Exception as error:  # noqa: BLE001 the caller reads on, whatever became of the usage
            self._body = None
            self.call.tracker.failed(error)
            return chunk

    def rest(self) -> bytes:
        """This function will look at what is left of the body."""
        try:
            return b"" if self._body is None else self._body.rest()
        except Exception as error:  # noqa: BLE001 as in `take`
            self.call.tracker.failed(error)
            return b""

    def finish(self, *, ended: bool) -> None:
        """This function will emit what the answer used, once."""
        self._conclude(ended=ended)
        self.emit()

    async def afinish(self, *, ended: bool) -> None:
        """This function will do the same for a client that is awaited."""
        self._conclude(ended=ended)
        await self.aemit()

    def emit(self) -> None:
        """This function will emit what has been made of the answer."""
        events, self._events = self._events, []
        if events:
            self.call.tracker.emit(events)

    async def aemit(self) -> None:
        """This function will do the same for a client that is awaited."""
        events, self._events = self._events, []
        if events:
            await self.call.tracker.aemit(events)

    def _conclude(self, *, ended: bool) -> None:
        if self._finished:
            return
        self._finished = True
        if self._fold is not None:
            is_complete = ended or self._fold.is_over
            self._events += self.call.events_of(self._fold.answer(), is_complete=is_complete)
        else:
            self._events += self.call.events_of(self._whole or {}, is_complete=ended)

    def _body_for(self, http: Any) -> Body:
        if not self._is_streamed:
            return Whole(self._take_whole)
        if self._module is _openai_calls:
            self._fold = _openai_calls.Stream(hides_usage=self._hides_usage)
        else:
            self._fold = _anthropic_calls.Stream()
        if "vnd.amazon.eventstream" in http.headers.get("content-type", ""):
            return AwsEvents(self._fold.take)
        return ServerSentEvents(self._fold.take, self._fold.done, hides=self._hides_usage)

    def _take_whole(self, event: Event) -> bool:
        self._whole = event
        return True

    def _see_what_is_parsed(self, request: dict[str, Any]) -> None:
        """The SDK's `parse` raises for an answer that does not fit, which was paid for all the same."""
        options = request.get("options")
        parser = options.get("post_parser") if isinstance(options, Mapping) else None
        if not callable(parser):
            return

        def see(answer: Any) -> Any:
            self._before_parsing = answer
            return parser(answer)

        request["options"] = {**(options or {}), "post_parser": see}


if TYPE_CHECKING:

    class _Sdk:
        """What the SDKs' clients have in common."""

        def post(self, path: str, **request: Any) -> Any: ...
        def get(self, path: str, **request: Any) -> Any: ...
        def copy(self, **options: Any) -> Any: ...

else:
    _Sdk = object


class _Copied(_Sdk):
    """A client whose copies are tracked as well."""

    _usage_tracker: Tracker

    def copy(self, **options: Any) -> Any:
        """This function will make a client with other options, tracked like this one."""
        new = super().copy(**options)
        new._usage_tracker = self._usage_tracker
        return new

    with_options = copy


class _Tracked(_Copied):
    """What is put before the class of a client."""

    def post(self, path: str, **request: Any) -> Any:
        """This function will make the request, and count what its answer used."""
        if not _calls_of(type(self)).is_counted(path):
            return super().post(path, **request)
        exchange = _Exchange(self, self._usage_tracker, path, request)
        try:
            result = super().post(path, **request)
        except Exception as error:
            exchange.refused(error)
            exchange.emit()
            raise
        if exchange.answered(result):
            watch(exchange.http_of(result), exchange)
        exchange.emit()
        return result

    def get(self, path: str, **request: Any) -> Any:
        """This function will make the request, and count the results of a batch."""
        result = super().get(path, **request)
        _tell_results(self, path, result)
        return result


class _AsyncTracked(_Copied):
    """What is put before the class of a client that is awaited."""

    async def post(self, path: str, **request: Any) -> Any:
        """This function will make the request, and count what its answer used."""
        if not _calls_of(type(self)).is_counted(path):
            return await super().post(path, **request)
        exchange = _Exchange(self, self._usage_tracker, path, request)
        try:
            result = await super().post(path, **request)
        except Exception as error:
            exchange.refused(error)
            await exchange.aemit()
            raise
        if exchange.answered(result):
            watch_async(exchange.http_of(result), exchange)
        await exchange.aemit()
        return result

    async def get(self, path: str, **request: Any) -> Any:
        """This function will make the request, and count the results of a batch."""
        result = await super().get(path, **request)
        _tell_results(self, path, result)
        return result


@cache
def _results(kind: Any) -> Any:
    """The SDK's reader of a batch's results, which counts each result that is read.

    Made of functions, since an object can change only to a class that is laid out like its own.
    """

    def take_next(self: Any) -> Any:
        result = kind.__next__(self)
        self._usage_call.tracker.emit(_events_of_result(self._usage_call, result))
        return result

    def each(self: Any) -> Iterator[Any]:
        while True:
            try:
                yield next(self)
            except StopIteration:
                return

    async def atake_next(self: Any) -> Any:
        result = await kind.__anext__(self)
        await self._usage_call.tracker.aemit(_events_of_result(self._usage_call, result))
        return result

    async def aeach(self: Any) -> AsyncIterator[Any]:
        while True:
            try:
                yield await anext(self)
            except StopAsyncIteration:
                return

    own: dict[str, Any] = {"__module__": kind.__module__}
    if hasattr(kind, "__anext__"):
        own |= {"__anext__": atake_next, "__aiter__": aeach}
    else:
        own |= {"__next__": take_next, "__iter__": each}
    return type(kind.__name__, (kind,), own)


def _tell_results(client: Any, path: str, result: Any) -> None:
    """Lets a reader of results count what it reads; how long a request of a batch took, nobody says."""
    if _anthropic_calls.are_results(path) and (hasattr(result, "__next__") or hasattr(result, "__anext__")):
        result.__class__ = _results(result.__class__)
        result._usage_call = Call(client._usage_tracker, provider=_anthropic_calls.provider_of(client))


def _events_of_result(call: Call, result: Any) -> list[dict[str, Any]]:
    has_answer = getattr(getattr(result, "result", None), "message", None) is not None
    return call.events_of(result, is_timed=False) if has_answer else []


@cache
def _tracked(kind: type) -> Any:
    before = _AsyncTracked if inspect.iscoroutinefunction(getattr(kind, "post", None)) else _Tracked
    return type(kind.__name__, (before, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})


def _untracked(kind: type) -> type:
    """The SDK's own class, also of a client that is tracked already: it is then tracked anew."""
    own = next((one for one in kind.__mro__[1:] if not issubclass(one, _Copied)), kind)
    kind = own if issubclass(kind, _Copied) else kind
    _calls_of(kind)
    return kind


def _calls_of(kind: type) -> Any:
    for base in kind.__mro__:
        library = base.__module__.partition(".")[0]
        if library == "openai":
            return _openai_calls
        if library == "anthropic":
            return _anthropic_calls
    raise TypeError(f"a client of the OpenAI or Anthropic SDK can be tracked, not {kind.__name__}")
