"""The middleware, under Starlette's and FastAPI's own clients."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from starlette.types import Scope

from producers import UsageEmitter
from producers.integrations._context import current_usage
from producers.integrations.starlette import UsageMiddleware, get_emitter
from producers.testing import RecordingAsyncEmitter, RecordingEmitter

ALICE = "0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11"
BOB = "0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a12"


def _user_of(scope: Scope) -> str | None:
    return dict(scope["headers"]).get(b"x-user", b"").decode() or None


def _tokens(emitter: UsageEmitter) -> None:
    """What `track` and the callbacks do: they ask the context."""
    around = current_usage()
    emitter.emit(user_id=around.user, feature=around.feature or "none", input_tokens=1, output_tokens=1)


def _app(emitter: RecordingEmitter, **options: Any) -> FastAPI:
    app, api, org = FastAPI(), APIRouter(prefix="/v1"), APIRouter(prefix="/orgs/{org}")
    given = Annotated[UsageEmitter, Depends(get_emitter)]

    @app.post("/plain/{item}")
    async def plain(item: str, usage: given) -> str:
        _tokens(usage)
        return item

    @app.post("/thread")
    def thread(usage: given) -> str:
        _tokens(usage)
        return threading.current_thread().name

    @org.post("/items/{item}")
    async def nested(org: str, item: str, usage: given) -> str:
        _tokens(usage)
        return item

    @app.post("/broken")
    async def broken() -> str:
        raise RuntimeError("no")

    @app.post("/late")
    async def late(request: Request) -> str:
        request.state.user_id = BOB
        return "ok"

    @app.websocket("/socket")
    async def socket(websocket: WebSocket, usage: given) -> None:
        await websocket.accept()
        _tokens(usage)
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()

    api.include_router(org)
    app.include_router(api, prefix="/api")
    app.add_middleware(UsageMiddleware, emitter=emitter, user_of=options.pop("user_of", _user_of), **options)
    return app


@pytest.fixture
def emitter() -> RecordingEmitter:
    return RecordingEmitter()


@pytest.fixture
def client(emitter: RecordingEmitter) -> Iterator[TestClient]:
    with TestClient(_app(emitter), headers={"x-user": ALICE}) as client:
        yield client


class TestContext:
    @pytest.mark.parametrize(
        ("path", "feature"),
        [
            ("/plain/7", "/plain/{item}"),
            ("/plain/plain", "/plain/{item}"),
            ("/thread", "/thread"),
            ("/api/v1/orgs/9/items/9", "/api/v1/orgs/{org}/items/{item}"),
        ],
    )
    def test_knows_user_and_route(
        self, client: TestClient, emitter: RecordingEmitter, path: str, feature: str
    ) -> None:
        assert client.post(path).status_code == 200
        (event,) = emitter.events
        assert (event.user_id, event.feature) == (UUID(ALICE), feature)

    def test_requests_at_the_same_time_do_not_mix(self, emitter: RecordingEmitter) -> None:
        app = FastAPI()
        here = asyncio.Event()

        @app.post("/wait/{item}")
        async def wait(item: str) -> None:
            if item == "9":
                here.set()
            await here.wait()
            await asyncio.to_thread(_tokens, emitter)

        app.add_middleware(
            UsageMiddleware, emitter=emitter, user_of=_user_of, feature_of=lambda scope: scope["path"][1:]
        )

        async def everything() -> None:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
                await asyncio.gather(
                    *(
                        client.post(f"/wait/{item}", headers={"x-user": (ALICE, BOB)[item % 2]})
                        for item in range(10)
                    )
                )

        asyncio.run(everything())
        found = sorted((event.feature, str(event.user_id)) for event in emitter.events)
        assert found == [(f"wait/{item}", (ALICE, BOB)[item % 2]) for item in range(10)]

    def test_lasts_for_the_body_and_the_background(self, emitter: RecordingEmitter) -> None:
        async def stream(request: Request) -> StreamingResponse:
            async def body() -> AsyncIterator[bytes]:
                for _ in range(3):
                    await asyncio.sleep(0)
                    _tokens(emitter)
                    yield b"x"

            return StreamingResponse(body(), background=BackgroundTask(_tokens, emitter))

        inner = Starlette(routes=[Route("/stream/{item}", stream)])
        app = Starlette(routes=[Mount("/sub", app=inner)])
        wrapped = UsageMiddleware(app, emitter=emitter, user_of=_user_of)
        with TestClient(wrapped, headers={"x-user": BOB}) as client:
            assert client.get("/sub/stream/1").text == "xxx"
        found = {(str(event.user_id), event.feature) for event in emitter.events}
        assert len(emitter.events) == 4
        assert found == {(BOB, "/sub/stream/{item}")}
        assert current_usage().user is None

    def test_websockets_have_it_too(self, client: TestClient, emitter: RecordingEmitter) -> None:
        with client.websocket_connect("/socket") as socket:
            socket.send_text("hi")
            assert socket.receive_text() == "hi"
        assert [event.feature for event in emitter.events] == ["/socket"]

    def test_a_failing_lookup_does_not_break_the_request(self, emitter: RecordingEmitter) -> None:
        errors: list[Exception] = []

        def broken(scope: Scope) -> str:
            raise KeyError("session")

        app = _app(emitter, user_of=broken, emit_calls=True, on_error=errors.append)
        with TestClient(app) as client:
            assert client.post("/late").status_code == 200
        assert emitter.events == []
        assert {type(error) for error in errors} == {KeyError}

    def test_get_emitter_says_what_is_missing(self) -> None:
        app = FastAPI()

        @app.get("/")
        async def root(usage: Annotated[UsageEmitter, Depends(get_emitter)]) -> None:
            del usage

        with TestClient(app) as client, pytest.raises(RuntimeError, match="UsageMiddleware"):
            client.get("/")

    def test_an_emitter_that_must_be_awaited_is_refused(self) -> None:
        asynchronous: Any = RecordingAsyncEmitter()
        with pytest.raises(TypeError, match="BufferedEmitter"):
            UsageMiddleware(PlainTextResponse("x"), emitter=asynchronous, user_of=_user_of)


class TestCalls:
    def _client(self, emitter: RecordingEmitter, **options: Any) -> TestClient:
        app = _app(emitter, emit_calls=True, **options)
        return TestClient(app, headers={"x-user": ALICE}, raise_server_exceptions=False)

    def test_each_request_is_one_call(self, emitter: RecordingEmitter) -> None:
        seconds = iter((1.0, 1.25))
        with self._client(emitter, clock=lambda: next(seconds)) as client:
            client.post("/api/v1/orgs/1/items/2", headers={"x-request-id": "same"})
        tokens, call = emitter.events
        assert (tokens.tokens_used, call.tokens_used) == (2, 0)
        assert call.units == {"calls": Decimal(1)}
        assert (call.user_id, call.feature) == (UUID(ALICE), "/api/v1/orgs/{org}/items/{item}")
        assert (call.duration_ms, call.status) == (250, "ok")

    def test_a_call_that_fails_is_an_error(self, emitter: RecordingEmitter) -> None:
        with self._client(emitter) as client:
            assert client.post("/broken").status_code == 500
            assert client.post("/nowhere").status_code == 404
        found = [(event.feature, event.status) for event in emitter.events]
        assert found == [("/broken", "error"), ("unmatched", "ok")]

    def test_a_client_cannot_make_two_calls_one(self, emitter: RecordingEmitter) -> None:
        with self._client(emitter) as client:
            for _ in range(2):
                client.post("/late", headers={"x-request-id": "same", "idempotency-key": "same"})
        assert len({event.event_id for event in emitter.events}) == 2

    def test_the_user_may_be_found_by_the_app(self, emitter: RecordingEmitter) -> None:
        async def by_state(scope: Scope) -> str | None:
            found: str | None = scope.get("state", {}).get("user_id")
            return found

        with self._client(emitter, user_of=by_state) as client:
            client.post("/late")
            client.post("/nowhere")
        assert [event.user_id for event in emitter.events] == [UUID(BOB)]

    def test_a_failing_emitter_does_not_break_the_request(self, emitter: RecordingEmitter) -> None:
        emitter.fail_next()
        with self._client(emitter) as client:
            assert client.post("/late").status_code == 200
