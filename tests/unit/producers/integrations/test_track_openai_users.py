"""`track` with the real OpenAI SDK: for whom, what fails, and asyncio."""

import asyncio
import threading
from typing import Any, Unpack
from uuid import UUID, uuid4

import openai
import pytest

from producers import Emitter, InvalidEvent, StreamUnavailable
from producers._making import Usage
from producers.integrations import track, usage_context
from producers.testing import RecordingAsyncEmitter, RecordingEmitter
from tests.unit.producers.integrations.openai_answers import (
    ALICE,
    BOB,
    MESSAGES,
    MODEL,
    USAGE,
    completion,
    stream,
)
from tests.unit.producers.integrations.provider_server import Provider


class TestWho:
    def test_copies_are_tracked(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        for copy in (client.with_options(timeout=5), client.copy(max_retries=0)):
            provider.will(completion())
            copy.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert len(recording.events) == 2

    def test_tracked_again_it_counts_once_for_the_new_one(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        again = track(client, emitter=recording, user_id=BOB, feature="draft")
        provider.will(completion()).will(completion())
        again.chat.completions.create(model=MODEL, messages=MESSAGES)
        client.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert [event.user_text for event in recording.events] == [BOB, ALICE]

    def test_the_context_comes_first(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will(completion()).will(completion())
        with usage_context(user_id=BOB):
            client.chat.completions.create(model=MODEL, messages=MESSAGES)
            with usage_context(clerk_id="user_2abc", feature="draft"):
                client.chat.completions.create(model=MODEL, messages=MESSAGES)
        told = [(event.user_text, event.feature) for event in recording.events]
        assert told == [(BOB, "chat"), ("user_2abc", "draft")]

    def test_threads_do_not_mix_their_users(
        self, plain: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        tracked = track(plain, emitter=recording, feature="chat")
        for number in range(20):
            provider.will(completion(f"chatcmpl-{number}"))

        def ask(user: str) -> None:
            for _ in range(10):
                with usage_context(user_id=user):
                    tracked.chat.completions.create(model=MODEL, messages=MESSAGES)

        threads = [threading.Thread(target=ask, args=(user,)) for user in (ALICE, BOB)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        users = [event.user_text for event in recording.events]
        assert (users.count(ALICE), users.count(BOB)) == (10, 10)

    def test_a_client_that_was_used_before(
        self, plain: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will(completion()).will(completion())
        plain.chat.completions.create(model=MODEL, messages=MESSAGES)
        tracked = track(plain, emitter=recording, user_id=ALICE, feature="chat", strict=True)
        tracked.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert len(recording.events) == 1

    def test_refuses_other_clients(self, recording: RecordingEmitter) -> None:
        with pytest.raises(TypeError, match="OpenAI or Anthropic"):
            track(object(), emitter=recording)

    def test_refuses_an_emitter_that_nobody_would_await(self, plain: openai.OpenAI) -> None:
        with pytest.raises(TypeError, match="must be awaited"):
            track(plain, emitter=RecordingAsyncEmitter())

    def test_azure(self, provider: Provider, recording: RecordingEmitter) -> None:
        with openai.AzureOpenAI(api_key="k", api_version="2024-10-21", azure_endpoint=provider.url) as azure:
            tracked = track(azure, emitter=recording, user_id=ALICE, feature="chat", strict=True)
            provider.will(completion())
            tracked.chat.completions.create(model="my-deployment", messages=MESSAGES)
        assert provider.requests[0]["path"].startswith("/openai/deployments/my-deployment/chat/completions")
        [event] = recording.events
        assert (event.provider, event.model) == ("azure", "gpt-4o-mini-2024-07-18")


class TestFailures:
    def test_an_emitter_that_fails_does_not_break_the_call(
        self,
        plain: openai.OpenAI,
        provider: Provider,
        recording: RecordingEmitter,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        told: list[Exception] = []
        tracked = track(plain, emitter=recording, user_id=ALICE, feature="chat", on_error=told.append)
        recording.fail_next(times=2)
        provider.will(completion()).will_stream(stream())
        tracked.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert len(list(tracked.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))) == 3
        assert [type(error) for error in told] == [StreamUnavailable, StreamUnavailable]
        assert caplog.text.count("usage was not recorded") == 2
        assert "secret" not in caplog.text

    def test_nor_do_a_missing_user_and_an_impossible_usage(
        self, plain: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        told: list[Exception] = []
        tracked = track(plain, emitter=recording, feature="chat", on_error=told.append)
        impossible = USAGE | {"prompt_tokens_details": {"cached_tokens": 101}}
        provider.will(completion()).will(completion(usage=impossible))
        for _ in range(2):
            tracked.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert [type(error).__name__ for error in told] == ["InvalidEvent", "ImpossibleUsage"]

    def test_nor_does_a_callback_that_fails(
        self, plain: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        def fail(error: Exception) -> None:
            raise RuntimeError from error

        tracked = track(plain, emitter=recording, on_error=fail)
        provider.will(completion())
        tracked.chat.completions.create(model=MODEL, messages=MESSAGES)

    def test_strict_raises(
        self, plain: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        tracked = track(plain, emitter=recording, strict=True)
        provider.will(completion())
        with pytest.raises(InvalidEvent):
            tracked.chat.completions.create(model=MODEL, messages=MESSAGES)


class TestAsync:
    def test_answers_and_streams_with_each_kind_of_emitter(self, provider: Provider) -> None:
        async def use(emitter: Any) -> None:
            async with openai.AsyncOpenAI(api_key="k", base_url=f"{provider.url}/v1") as plain:
                tracked = track(plain, emitter=emitter, user_id=ALICE, feature="chat", strict=True)
                assert isinstance(tracked, openai.AsyncOpenAI)
                provider.will(completion()).will_stream(stream()).will_stream(stream()).will(completion())
                await tracked.chat.completions.create(model=MODEL, messages=MESSAGES)
                chunks = await tracked.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
                assert len([one async for one in chunks]) == 3
                async with await tracked.chat.completions.create(
                    model=MODEL, messages=MESSAGES, stream=True
                ) as left:
                    async for _ in left:
                        break
                raw = tracked.chat.completions.with_streaming_response
                async with raw.create(model=MODEL, messages=MESSAGES) as later:
                    assert (await later.parse()).id == "chatcmpl-1"

        for emitter in (RecordingEmitter(), RecordingAsyncEmitter()):
            asyncio.run(use(emitter))
            told = [(event.tokens_used, event.status) for event in emitter.events]
            assert told == [(107, "ok"), (107, "ok"), (0, "error"), (107, "ok")]

    def test_an_emitter_that_waits_does_so_in_another_thread(self, provider: Provider) -> None:
        threads: list[int] = []

        class Waiting(Emitter):
            def __init__(self) -> None:
                pass

            def emit(self, **usage: Unpack[Usage]) -> UUID:
                threads.append(threading.get_ident())
                return uuid4()

        async def use() -> None:
            async with openai.AsyncOpenAI(api_key="k", base_url=f"{provider.url}/v1") as plain:
                tracked = track(plain, emitter=Waiting(), user_id=ALICE, feature="chat", strict=True)
                provider.will(completion()).will_stream(stream())
                await tracked.chat.completions.create(model=MODEL, messages=MESSAGES)
                chunks = await tracked.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
                assert len([one async for one in chunks]) == 3

        asyncio.run(use())
        assert len(threads) == 2
        assert threading.get_ident() not in threads

    def test_tasks_do_not_mix_their_users(self, provider: Provider) -> None:
        emitter = RecordingAsyncEmitter()

        async def ask(client: openai.AsyncOpenAI, user: str) -> None:
            for _ in range(5):
                with usage_context(user_id=user):
                    chunks = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
                    async for _ in chunks:
                        await asyncio.sleep(0)

        async def use() -> None:
            async with openai.AsyncOpenAI(api_key="k", base_url=f"{provider.url}/v1") as plain:
                tracked = track(plain, emitter=emitter, feature="chat", strict=True)
                for _ in range(10):
                    provider.will_stream(stream())
                await asyncio.gather(ask(tracked, ALICE), ask(tracked, BOB))

        asyncio.run(use())
        users = [event.user_text for event in emitter.events]
        assert (users.count(ALICE), users.count(BOB)) == (5, 5)

    def test_an_emitter_that_fails_does_not_break_the_call(self, provider: Provider) -> None:
        emitter, told = RecordingAsyncEmitter(), list[Exception]()

        async def use() -> None:
            async with openai.AsyncOpenAI(api_key="k", base_url=f"{provider.url}/v1") as plain:
                tracked = track(plain, emitter=emitter, user_id=ALICE, feature="c", on_error=told.append)
                emitter.recording.fail_next()
                provider.will(completion())
                await tracked.chat.completions.create(model=MODEL, messages=MESSAGES)

        asyncio.run(use())
        assert len(told) == 1
