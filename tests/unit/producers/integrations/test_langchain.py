"""LangChain's callback, through LangChain's own fake chat models."""

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, Generation, LLMResult

from producers import StreamUnavailable
from producers.integrations._context import usage_context
from producers.integrations.langchain import UsageCallbackHandler
from producers.testing import RecordingEmitter

ALICE = "0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11"
BOB = "0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a12"


def _answer(key: str | None = "chatcmpl-1", **usage: Any) -> AIMessage:
    counts = {"input_tokens": 350, "output_tokens": 240, "total_tokens": 590, **usage}
    about = {"model_name": "gpt-4o-mini", "model_provider": "openai", **({"id": key} if key else {})}
    return AIMessage("a secret answer", usage_metadata=counts, response_metadata=about)


class _Streaming(FakeMessagesListChatModel):
    """Streams as Anthropic's does: the input first, the output last."""

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for text, given, made in (("a", 10, 0), ("b", 0, 0), ("c", 0, 7)):
            usage: Any = {"input_tokens": given, "output_tokens": made, "total_tokens": given + made}
            about = {"model_name": "claude-sonnet-4-5", "model_provider": "anthropic"} if given else {}
            chunk = AIMessageChunk(content=text, id="msg_01", usage_metadata=usage, response_metadata=about)
            yield ChatGenerationChunk(message=chunk)


class _Twice(FakeMessagesListChatModel):
    """Answers with two candidates, each of which repeats the usage of both, as OpenAI's does."""

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        both = [ChatGeneration(message=self.responses[0]) for _ in range(2)]
        return ChatResult(generations=both)


@pytest.fixture
def emitter() -> RecordingEmitter:
    return RecordingEmitter()


@pytest.fixture
def errors() -> list[Exception]:
    return []


@pytest.fixture
def handler(emitter: RecordingEmitter, errors: list[Exception]) -> UsageCallbackHandler:
    return UsageCallbackHandler(emitter, feature="chat", on_error=errors.append)


class TestRuns:
    def test_emits_counts_user_and_model(
        self, handler: UsageCallbackHandler, emitter: RecordingEmitter
    ) -> None:
        details = {"cache_read": 100, "cache_creation": 200, "audio": 10}
        answer = _answer(input_token_details=details, output_token_details={"reasoning": 30})
        model = FakeMessagesListChatModel(responses=[answer])
        model.invoke("a secret question", {"callbacks": [handler], "metadata": {"user_id": ALICE}})
        (event,) = emitter.events
        assert (event.user_id, event.feature) == (UUID(ALICE), "chat")
        assert (event.provider, event.model) == ("openai", "gpt-4o-mini")
        assert (event.input_tokens, event.output_tokens) == (350, 240)
        assert (event.cache_read_tokens, event.cache_write_tokens) == (100, 200)
        assert event.reasoning_tokens == 30
        assert (event.status, event.duration_ms is None) == ("ok", False)
        assert "secret" not in event.model_dump_json()

    def test_a_batch_is_one_event_for_each_run(
        self, handler: UsageCallbackHandler, emitter: RecordingEmitter
    ) -> None:
        model = FakeMessagesListChatModel(responses=[_answer("a"), _answer("b"), _answer("c")])
        with usage_context(user_id=ALICE):
            model.batch(["1", "2", "3"], {"callbacks": [handler]})
        assert len(emitter.events) == 3
        assert emitter.repeated == []
        assert {event.user_id for event in emitter.events} == {UUID(ALICE)}

    def test_several_candidates_are_one_event(
        self, handler: UsageCallbackHandler, emitter: RecordingEmitter
    ) -> None:
        with usage_context(user_id=ALICE):
            _Twice(responses=[_answer()]).invoke("q", {"callbacks": [handler]})
        assert [event.input_tokens for event in emitter.events] == [350]

    def test_a_stream_is_one_event(self, handler: UsageCallbackHandler, emitter: RecordingEmitter) -> None:
        with usage_context(user_id=ALICE):
            list(_Streaming(responses=[]).stream("q", {"callbacks": [handler]}))
        (event,) = emitter.events
        assert (event.provider, event.model) == ("anthropic", "claude-sonnet-4-5")
        assert (event.input_tokens, event.output_tokens) == (10, 7)

    def test_contexts_do_not_mix(self, handler: UsageCallbackHandler, emitter: RecordingEmitter) -> None:
        async def call(user: str) -> None:
            model = FakeMessagesListChatModel(responses=[_answer(f"chatcmpl-{user}")])
            with usage_context(user_id=user, feature=f"of {user}"):
                await model.ainvoke("q", {"callbacks": [handler]})

        async def everything() -> None:
            await asyncio.gather(*(call(user) for user in (ALICE, BOB) * 5))

        asyncio.run(everything())
        assert len(emitter.events) == 10
        assert all(event.feature == f"of {event.user_id}" for event in emitter.events)

    def test_a_cached_answer_used_nothing(
        self, handler: UsageCallbackHandler, emitter: RecordingEmitter
    ) -> None:
        model = FakeMessagesListChatModel(responses=[_answer()], cache=InMemoryCache())
        with usage_context(user_id=ALICE):
            for _ in range(3):
                model.invoke("q", {"callbacks": [handler]})
        assert len(emitter.events) == 1

    def test_a_failing_emitter_does_not_break_the_run(
        self, handler: UsageCallbackHandler, emitter: RecordingEmitter, errors: list[Exception]
    ) -> None:
        emitter.fail_next(StreamUnavailable)
        model = FakeMessagesListChatModel(responses=[_answer()])
        with usage_context(user_id=ALICE):
            assert model.invoke("q", {"callbacks": [handler]}).content == "a secret answer"
        assert [type(error) for error in errors] == [StreamUnavailable]


class TestAnswers:
    """What providers' packages say, given to the callback itself."""

    def _end(self, handler: UsageCallbackHandler, answer: LLMResult, run_id: UUID | None = None) -> None:
        with usage_context(user_id=ALICE):
            handler.on_llm_start({}, [], run_id=(run := run_id or uuid4()), metadata={"ls_provider": "x_ai"})
            handler.on_llm_end(answer, run_id=run)

    def _message(self, message: AIMessage) -> LLMResult:
        return LLMResult(generations=[[ChatGeneration(message=message)]])

    def test_told_twice_it_is_the_same_event(
        self, handler: UsageCallbackHandler, emitter: RecordingEmitter
    ) -> None:
        run = uuid4()
        for _ in range(2):
            self._end(handler, self._message(_answer(key=None)), run)
        assert len({event.event_id for event in emitter.events}) == 1

    def test_anthropics_writes_by_lifetime_stand_beside_a_zero(
        self, handler: UsageCallbackHandler, emitter: RecordingEmitter
    ) -> None:
        inside = {"cache_creation": 0, "ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 30}
        self._end(handler, self._message(_answer(input_token_details=inside)))
        assert emitter.events[0].cache_write_tokens == 50

    def test_a_service_tier_stands_before_the_name(
        self, handler: UsageCallbackHandler, emitter: RecordingEmitter
    ) -> None:
        tiers: dict[str, Any] = {
            "input_token_details": {"flex": 286, "flex_cache_read": 64},
            "output_token_details": {"flex": 200, "flex_reasoning": 40},
        }
        self._end(handler, self._message(_answer(**tiers)))
        (event,) = emitter.events
        assert (event.cache_read_tokens, event.reasoning_tokens) == (64, 40)

    def test_older_packages_put_usage_beside_the_answer(
        self, handler: UsageCallbackHandler, emitter: RecordingEmitter
    ) -> None:
        usage = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
        said = {"token_usage": usage, "model_name": "grok-4"}
        self._end(handler, LLMResult(generations=[[Generation(text="hi")]], llm_output=said))
        (event,) = emitter.events
        assert (event.provider, event.model) == ("x-ai", "grok-4")
        assert (event.input_tokens, event.output_tokens) == (11, 5)

    def test_no_usage_is_no_event(
        self, handler: UsageCallbackHandler, emitter: RecordingEmitter, errors: list[Exception]
    ) -> None:
        self._end(handler, self._message(AIMessage("hi")))
        self._end(handler, LLMResult(generations=[[Generation(text="hi")]], llm_output={"token_usage": {}}))
        assert (emitter.events, errors) == ([], [])

    def test_impossible_counts_are_told(
        self, handler: UsageCallbackHandler, emitter: RecordingEmitter, errors: list[Exception]
    ) -> None:
        self._end(handler, self._message(_answer(input_token_details={"cache_read": 351})))
        assert emitter.events == []
        assert isinstance(errors[0], ValueError)

    def test_a_failed_run_counts_what_is_known(
        self, handler: UsageCallbackHandler, emitter: RecordingEmitter
    ) -> None:
        run = uuid4()
        with usage_context(user_id=ALICE):
            handler.on_chat_model_start({}, [], run_id=run)
            handler.on_llm_error(OSError("cut"), run_id=run, response=self._message(_answer()))
            handler.on_llm_error(OSError("cut"), run_id=uuid4())
        assert [event.status for event in emitter.events] == ["error"]

    def test_a_run_belongs_to_the_context_that_started_it(
        self, handler: UsageCallbackHandler, emitter: RecordingEmitter
    ) -> None:
        run = uuid4()
        with usage_context(user_id=ALICE, feature="stories"):
            handler.on_chat_model_start({}, [], run_id=run)
        with usage_context(user_id=BOB, feature="poems"):
            handler.on_llm_end(self._message(_answer()), run_id=run)
        assert [(str(event.user_id), event.feature) for event in emitter.events] == [(ALICE, "stories")]

    def test_runs_that_never_end_are_not_kept_for_ever(self, handler: UsageCallbackHandler) -> None:
        for _ in range(10_050):
            handler.on_chat_model_start({}, [], run_id=uuid4())
        assert len(handler._open) == 10_000
