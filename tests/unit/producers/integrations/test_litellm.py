"""LiteLLM's callback, through LiteLLM itself: its mock, and a local server that answers like a provider."""

import asyncio
import importlib
import json
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from producers import StreamUnavailable, UsageEvent
from producers.integrations._context import usage_context
from producers.integrations.litellm import usage_logger
from producers.testing import RecordingAsyncEmitter, RecordingEmitter
from tests.unit.producers.integrations import usage_objects_anthropic
from tests.unit.producers.integrations.usage_objects import Case

# LiteLLM builds its types when it first needs them, and pydantic has this to say about one of them.
pytestmark = pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict:UserWarning")

ALICE = "0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11"
_THROUGH_LITELLM = [case for case in usage_objects_anthropic.CASES if "through LiteLLM" in case.name]
BOB = "0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a12"
MESSAGES = [{"role": "user", "content": "a secret question"}]
_CHAT_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 7,
    "total_tokens": 107,
    "prompt_tokens_details": {"cached_tokens": 64},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
_ANTHROPIC_USAGE = {
    "input_tokens": 10,
    "cache_read_input_tokens": 100,
    "cache_creation_input_tokens": 50,
    "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 30},
    "output_tokens": 7,
}


class _Provider(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        kind, code = "application/json", 200
        if self.path.endswith("/embeddings"):
            usage = {"prompt_tokens": 5, "total_tokens": 5}
            data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
            body = json.dumps({"object": "list", "model": asked["model"], "data": data, "usage": usage})
        elif self.path.endswith("/messages"):
            body = json.dumps(
                {
                    "id": "msg_01",
                    "type": "message",
                    "role": "assistant",
                    "model": asked["model"],
                    "content": [{"type": "text", "text": "a secret answer"}],
                    "stop_reason": "end_turn",
                    "usage": _ANTHROPIC_USAGE,
                }
            )
        elif asked["model"] == "broken":
            code, body = 400, json.dumps({"error": {"message": "no", "type": "invalid_request_error"}})
        elif asked.get("stream"):
            kind, body = "text/event-stream", self._chunks(asked["model"])
        else:
            body = json.dumps(
                {
                    "id": self._id(),
                    "object": "chat.completion",
                    "created": 1,
                    "model": f"{asked['model']}-2024-07-18",
                    "choices": [
                        {
                            "index": 0,
                            "message": {"role": "assistant", "content": "a secret answer"},
                            "finish_reason": "stop",
                        }
                    ],
                    "usage": _CHAT_USAGE,
                }
            )
        payload = body.encode()
        self.send_response(code)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def _id(self) -> str:
        return f"chatcmpl-{uuid.uuid4().hex[:8]}"

    def _chunks(self, model: str) -> str:
        base = {"id": self._id(), "object": "chat.completion.chunk", "created": 1, "model": model}
        said = {"index": 0, "delta": {"role": "assistant", "content": "hi"}, "finish_reason": None}
        done = {"index": 0, "delta": {}, "finish_reason": "stop"}
        chunks: list[dict[str, Any]] = [
            {**base, "choices": [said]},
            {**base, "choices": [done]},
            {**base, "choices": [], "usage": _CHAT_USAGE},
        ]
        return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def litellm_package() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        # Otherwise the import fetches a price map.
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        # LiteLLM would make one itself and leave it open.
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        yield importlib.import_module("litellm")
        asyncio.set_event_loop(None)
        loop.close()


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Provider) as server:
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


@pytest.fixture
def emitter() -> RecordingEmitter:
    return RecordingEmitter()


@pytest.fixture
def errors() -> list[Exception]:
    return []


@pytest.fixture
def litellm(litellm_package: Any, emitter: RecordingEmitter, errors: list[Exception]) -> Iterator[Any]:
    lists = (
        "callbacks",
        "success_callback",
        "failure_callback",
        "_async_success_callback",
        "_async_failure_callback",
        "input_callback",
        "service_callback",
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in lists:
            patch.setattr(litellm_package, name, [])
        litellm_package.callbacks = [usage_logger(emitter, feature="chat", on_error=errors.append)]
        yield litellm_package


def _recorded(emitter: RecordingEmitter, count: int = 1) -> list[UsageEvent]:
    """Waits for LiteLLM's logging threads, and then a little for what should not come."""
    deadline = time.monotonic() + 10
    while len(emitter.events) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    return emitter.events


class TestMock:
    def test_emits_tokens_cost_user_and_feature(self, litellm: Any, emitter: RecordingEmitter) -> None:
        answer = litellm.completion(
            model="gpt-4o-mini", messages=MESSAGES, mock_response="hi", metadata={"user_id": ALICE}
        )
        (event,) = _recorded(emitter)
        assert (event.user_id, event.feature) == (uuid.UUID(ALICE), "chat")
        assert (event.provider, event.model) == ("openai", "gpt-4o-mini")
        assert event.input_tokens == answer.usage.prompt_tokens
        assert event.output_tokens == answer.usage.completion_tokens
        assert event.cost_usd == Decimal("0.000013500000")
        assert event.status == "ok"

    def test_a_mocked_failure_is_no_event(self, litellm: Any, emitter: RecordingEmitter) -> None:
        with pytest.raises(litellm.InternalServerError):
            litellm.completion(model="gpt-4o-mini", messages=MESSAGES, mock_response=Exception("no"))
        assert _recorded(emitter, 0) == []


class TestServer:
    @pytest.fixture
    def at(self, provider: str) -> dict[str, str]:
        return {"api_base": f"{provider}/v1", "api_key": "k"}

    def test_counts_cached_and_reasoning_tokens(
        self, litellm: Any, at: dict[str, str], emitter: RecordingEmitter
    ) -> None:
        with usage_context(user_id=ALICE):
            litellm.completion(model="openai/gpt-4o-mini", messages=MESSAGES, **at)
        (event,) = _recorded(emitter)
        assert event.user_id == uuid.UUID(ALICE)
        assert event.model == "gpt-4o-mini-2024-07-18"
        assert (event.input_tokens, event.cache_read_tokens) == (100, 64)
        assert (event.output_tokens, event.reasoning_tokens) == (7, 3)
        # 36 fresh at 0.15, 64 cached at 0.075 and 7 out at 0.60 USD a million, by LiteLLM's map.
        assert event.cost_usd == Decimal("0.0000144")
        assert event.duration_ms is not None

    def test_a_stream_is_one_event_with_the_context_of_its_caller(
        self, litellm: Any, at: dict[str, str], emitter: RecordingEmitter
    ) -> None:
        with usage_context(user_id=BOB, feature="stories"):
            stream = litellm.completion(model="openai/gpt-4o-mini", messages=MESSAGES, stream=True, **at)
            assert len(list(stream)) >= 2
        (event,) = _recorded(emitter)
        assert (event.user_id, event.feature) == (uuid.UUID(BOB), "stories")
        assert (event.input_tokens, event.output_tokens, event.cache_read_tokens) == (100, 7, 64)

    def test_awaited_calls_and_streams_are_one_event_each(
        self, litellm: Any, at: dict[str, str], emitter: RecordingEmitter
    ) -> None:
        async def call(user: str, *, stream: bool) -> None:
            with usage_context(user_id=user):
                asked = {"model": "openai/gpt-4o-mini", "messages": MESSAGES, "stream": stream, **at}
                answer = await litellm.acompletion(**asked)
                if stream:
                    async for _ in answer:
                        pass

        async def everything() -> None:
            await asyncio.gather(
                *(call(user, stream=stream) for user in (ALICE, BOB) for stream in (True, False))
            )
            await asyncio.to_thread(_recorded, emitter, 4)

        asyncio.run(everything())
        found = sorted((str(event.user_id), event.input_tokens) for event in emitter.events)
        assert found == [(ALICE, 100), (ALICE, 100), (BOB, 100), (BOB, 100)]
        assert emitter.repeated == []

    def test_additive_counts_are_added_once(
        self, litellm: Any, provider: str, emitter: RecordingEmitter
    ) -> None:
        litellm.completion(
            model="anthropic/claude-sonnet-4-5",
            messages=MESSAGES,
            api_base=provider,
            api_key="k",
            user=ALICE,
        )
        (event,) = _recorded(emitter)
        assert (event.provider, event.user_id) == ("anthropic", uuid.UUID(ALICE))
        assert (event.input_tokens, event.cache_read_tokens, event.cache_write_tokens) == (160, 100, 50)
        assert event.output_tokens == 7
        assert event.units == {"cache_write_1h_tokens": Decimal(30)}

    def test_an_embedding_has_no_id_of_the_providers(
        self, litellm: Any, at: dict[str, str], emitter: RecordingEmitter
    ) -> None:
        for _ in range(2):
            litellm.embedding(
                model="openai/text-embedding-3-small", input=["a"], metadata={"user_id": "user_2abc"}, **at
            )
        first, second = _recorded(emitter, 2)
        assert first.event_id != second.event_id
        assert (first.clerk_id, first.input_tokens, first.output_tokens) == ("user_2abc", 5, 0)

    def test_a_refused_call_is_no_event(
        self, litellm: Any, at: dict[str, str], emitter: RecordingEmitter
    ) -> None:
        with pytest.raises(litellm.BadRequestError):
            litellm.completion(model="openai/broken", messages=MESSAGES, user=ALICE, **at)
        assert _recorded(emitter, 0) == []

    def test_no_text_is_emitted(self, litellm: Any, at: dict[str, str], emitter: RecordingEmitter) -> None:
        litellm.completion(model="openai/gpt-4o-mini", messages=MESSAGES, user=ALICE, **at)
        (event,) = _recorded(emitter)
        assert "secret" not in event.model_dump_json()

    def test_a_failing_emitter_does_not_break_the_call(
        self, litellm: Any, at: dict[str, str], emitter: RecordingEmitter, errors: list[Exception]
    ) -> None:
        emitter.fail_next(StreamUnavailable)
        answer = litellm.completion(model="openai/gpt-4o-mini", messages=MESSAGES, user=ALICE, **at)
        assert answer.usage.prompt_tokens == 100
        assert _recorded(emitter, 0) == []
        (error,) = errors
        assert isinstance(error, StreamUnavailable)
        assert error.events[0].input_tokens == 100

    def test_a_call_without_a_user_is_told(
        self, litellm: Any, at: dict[str, str], emitter: RecordingEmitter, errors: list[Exception]
    ) -> None:
        litellm.completion(model="openai/gpt-4o-mini", messages=MESSAGES, **at)
        assert _recorded(emitter, 0) == []
        assert len(errors) == 1


class TestCallbacks:
    """What LiteLLM may say and cannot be made to say here."""

    CALL = {  # noqa: RUF012 read only
        "model": "gpt-4o-mini",
        "custom_llm_provider": "openai",
        "litellm_call_id": "c1",
        "user": ALICE,
        "response_cost": 0.5,
    }
    USAGE = {"usage": {"prompt_tokens": 3, "completion_tokens": 2}, "id": "chatcmpl-1"}  # noqa: RUF012

    @pytest.fixture
    def logger(self, litellm_package: Any, emitter: RecordingEmitter, errors: list[Exception]) -> Any:
        return usage_logger(emitter, feature="chat", on_error=errors.append)

    def _end(self, logger: Any, call: dict[str, Any], answer: object) -> None:
        from_to = _moment(0), _moment(1)
        logger.log_success_event(call, answer, *from_to)

    def test_told_twice_it_is_the_same_event(self, logger: Any, emitter: RecordingEmitter) -> None:
        self._end(logger, dict(self.CALL), self.USAGE)
        asyncio.run(logger.async_log_success_event(dict(self.CALL), self.USAGE, _moment(0), _moment(2)))
        assert len({event.event_id for event in emitter.events}) == 1
        assert len(emitter.repeated) == 1

    def test_an_answer_from_the_cache_used_nothing(self, logger: Any, emitter: RecordingEmitter) -> None:
        self._end(logger, {**self.CALL, "cache_hit": True, "response_cost": 0.0}, self.USAGE)
        assert emitter.events == []

    def test_a_cost_of_0_that_is_no_price_is_unknown(self, logger: Any, emitter: RecordingEmitter) -> None:
        call = {**self.CALL, "response_cost": 0.0}
        self._end(logger, {**call, "zero_cost_diagnostic": {"reason": "model_not_in_map"}}, self.USAGE)
        self._end(logger, call, {**self.USAGE, "id": "chatcmpl-2"})
        assert [event.cost_usd for event in emitter.events] == [None, Decimal(0)]

    def test_a_float_cost_is_its_shortest_spelling(self, logger: Any, emitter: RecordingEmitter) -> None:
        self._end(logger, {**self.CALL, "response_cost": 1.4400000000000001e-05}, self.USAGE)
        assert emitter.events[0].cost_usd == Decimal("0.000014400000")

    def test_a_stream_that_broke_off_counts_what_is_known(
        self, logger: Any, emitter: RecordingEmitter
    ) -> None:
        call = {**self.CALL, "combined_usage_object": {"prompt_tokens": 9, "completion_tokens": 1}}
        logger.log_failure_event(call, None, _moment(0), _moment(1))
        (event,) = emitter.events
        assert (event.status, event.input_tokens, event.duration_ms) == ("error", 9, 1000)

    def test_impossible_counts_are_told_not_clamped(
        self, logger: Any, emitter: RecordingEmitter, errors: list[Exception]
    ) -> None:
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
        self._end(logger, dict(self.CALL), {"usage": usage})
        assert emitter.events == []
        assert isinstance(errors[0], ValueError)

    @pytest.mark.parametrize("case", _THROUGH_LITELLM, ids=lambda case: case.name)
    def test_a_recorded_answer_loses_nothing(
        self, case: Case, litellm_package: Any, logger: Any, emitter: RecordingEmitter
    ) -> None:
        """The cache is counted under Anthropic's names alone; that it stays for an hour, in a detail."""
        for number, usage in enumerate((case.body["usage"], litellm_package.Usage(**case.body["usage"]))):
            self._end(logger, dict(self.CALL), {**case.body, "id": f"msg_{number}", "usage": usage})
        for event in emitter.events:
            assert (event.input_tokens, event.output_tokens) == (case.given, case.made)
            assert (event.cache_read_tokens, event.cache_write_tokens) == (case.read, case.write)
            assert event.units == {name: Decimal(size) for name, size in case.units.items()}
        assert len(emitter.events) == 2

    def test_audio_is_a_part_of_the_tokens(self, logger: Any, emitter: RecordingEmitter) -> None:
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"audio_tokens": 3}}
        self._end(logger, dict(self.CALL), {"usage": usage})
        assert emitter.events[0].units == {"input_audio_tokens": Decimal(3)}

    def test_the_responses_api_speaks_of_input_and_output(
        self, logger: Any, emitter: RecordingEmitter
    ) -> None:
        usage = {"input_tokens": 36, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 87}
        self._end(logger, dict(self.CALL), {**self.USAGE, "usage": usage})
        (event,) = emitter.events
        assert (event.input_tokens, event.cache_read_tokens, event.output_tokens) == (36, 4, 87)

    def test_on_error_may_fail_too(self, litellm_package: Any, emitter: RecordingEmitter) -> None:
        def broken(error: Exception) -> None:
            raise RuntimeError("no")

        logger = usage_logger(emitter, on_error=broken)
        self._end(logger, {"model": "m"}, self.USAGE)
        assert emitter.events == []

    def test_an_emitter_that_must_be_awaited_is_refused(self, litellm_package: Any) -> None:
        asynchronous: Any = RecordingAsyncEmitter()
        with pytest.raises(TypeError, match="BufferedEmitter"):
            usage_logger(asynchronous)


def _moment(second: int) -> datetime:
    return datetime(2026, 11, 21, 12, 0, second)  # noqa: DTZ001 as LiteLLM gives them
