"""Starlette and FastAPI: the middleware knows the user, and what runs in a request is counted for them.

`app.add_middleware(UsageMiddleware, emitter=emitter, user_of=lambda scope: …)`.
"""

import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final
from uuid import UUID

import anyio.to_thread
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from producers._face import UsageEmitter
from producers.integrations._context import usage_context
from producers.integrations._reporting import OnError, Reporter, named

__all__ = ["UsageMiddleware", "get_emitter", "route_path"]

User = UUID | str | None
_EMITTER: Final = "usage_worker.emitter"
_LONGEST_FEATURE: Final = 128


class UsageMiddleware:
    """Sets the `usage_context` of each request, and counts the requests themselves where that is wanted.

    It wraps plain ASGI: bodies stream through, background tasks run inside of the context, websockets have it
    too, and the lifespan is left alone.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        emitter: UsageEmitter,
        user_of: Callable[[Scope], User | Awaitable[User]],
        feature_of: Callable[[Scope], str | None] | None = None,
        emit_calls: bool = False,
        on_error: OnError | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """This function will wrap `app`.

        `user_of` returns the user of a request (a `users.id` or a Clerk id; awaited where it is async) or
        None; `feature_of` the feature, by default the path of the route, as in `/chats/{chat_id}`. With
        `emit_calls`, each request of a known user becomes an event with `units` of one call, the time until
        the last byte, and the status `error` for an exception or a code from 500. Its id is new each time: a
        header that the client chooses would let one request hide another.
        """
        self._app = app
        self._emitter = emitter
        self._reporter = Reporter(emitter, on_error=on_error)
        self._user_of = user_of
        self._feature_of = feature_of or route_path
        self._emit_calls = emit_calls
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        scope[_EMITTER] = self._emitter
        user = await self._user(scope)
        # The route is known only once the router has chosen it: the feature is looked up when it is needed.
        who = named(user) or {}
        with usage_context(
            user_id=who.get("user_id"), clerk_id=who.get("clerk_id"), feature=lambda: self._feature(scope)
        ):
            if self._emit_calls and scope["type"] == "http":
                await self._counted(scope, receive, send, user)
            else:
                await self._app(scope, receive, send)

    async def _counted(self, scope: Scope, receive: Receive, send: Send, user: User) -> None:
        started = self._clock()
        code, ended = 500, None

        async def watch(message: Message) -> None:
            nonlocal code, ended
            await send(message)
            if message["type"] == "http.response.start":
                code = message["status"]
            elif message["type"] == "http.response.body" and not message.get("more_body", False):
                ended = self._clock()

        failed = True
        try:
            await self._app(scope, receive, watch)
            failed = False
        finally:
            # An app may find the user only while it handles the request.
            user = user or await self._user(scope)
            if user is not None:
                call = {
                    "tokens_used": 0,
                    "units": {"calls": 1},
                    "duration_ms": round(((ended or self._clock()) - started) * 1000),
                    "status": "error" if code >= 500 or (failed and ended is None) else "ok",
                }
                # In a thread: an emitter that waits for its server must not hold up the other requests.
                await anyio.to_thread.run_sync(lambda: self._reporter.report(call, user_id=user))

    async def _user(self, scope: Scope) -> User:
        try:
            user = self._user_of(scope)
            return await user if inspect.isawaitable(user) else user
        except Exception as error:  # noqa: BLE001 a request must not fail because nobody can be billed for it
            self._reporter.failed(error)
            return None

    def _feature(self, scope: Scope) -> str | None:
        try:
            return self._feature_of(scope)
        except Exception as error:  # noqa: BLE001 see above
            self._reporter.failed(error)
            return None


def route_path(scope: Scope) -> str:
    """This function will return the path of the route that was chosen, with names in place of values.

    It is "unmatched" before a route is chosen, and where none fits. Prefixes of mounts and routers are taken
    from the request, their parameters replaced by name.
    """
    pattern = getattr(scope.get("route"), "path", None)
    if not isinstance(pattern, str):
        return "unmatched"
    parameters: dict[str, Any] = dict(scope.get("path_params", {}))
    width = 0
    known = pattern.strip("/").split("/") if pattern.strip("/") else []
    for segment in known:
        name = segment.strip("{}").partition(":")[0]
        value = parameters.pop(name, "") if segment.startswith("{") else ""
        width += str(value).count("/") + 1
    before = [segment for segment in scope["path"].split("/") if segment]
    before = before[: len(before) - width]
    for name, value in parameters.items():
        if str(value) in before:
            before[before.index(str(value))] = f"{{{name}}}"
    return ("/" + "/".join([*before, *known]))[:_LONGEST_FEATURE]


def get_emitter(connection: HTTPConnection) -> UsageEmitter:
    """This function will return the middleware's emitter, as a dependency: `Depends(get_emitter)`.

    Raises RuntimeError where the app has no UsageMiddleware.
    """
    try:
        emitter: UsageEmitter = connection.scope[_EMITTER]
    except KeyError:
        raise RuntimeError("the app has no UsageMiddleware: app.add_middleware(UsageMiddleware, …)") from None
    return emitter
