"""`track` with the real OpenAI SDK: what is streamed, and what is read raw."""

import gc
from decimal import Decimal
from typing import Any

import openai
import pytest

from producers.integrations import usage_context
from producers.testing import RecordingEmitter
from tests.unit.producers.integrations.openai_answers import (
    BOB,
    MESSAGES,
    MODEL,
    USAGE,
    chunk,
    completion,
    response,
    stream,
)
from tests.unit.producers.integrations.provider_server import Provider, sse


class TestStreams:
    def test_the_usage_is_asked_for_and_its_chunk_is_hidden(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will_stream(stream())
        chunks = list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
        assert provider.asked["stream_options"] == {"include_usage": True}
        assert [one.choices[0].delta.content for one in chunks] == ["a ", "secret", None]
        [event] = recording.events
        assert (event.tokens_used, event.cache_read_tokens, event.status) == (107, 64, "ok")
        assert event.model == "gpt-4o-mini-2024-07-18"

    def test_who_asks_for_the_usage_sees_it(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will_stream(stream())
        chunks = list(
            client.chat.completions.create(
                model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
            )
        )
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert len(recording.events) == 1

    def test_who_does_not_want_it_is_not_overruled(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will_stream(sse(chunk("a"), chunk(finish="stop"), done=True))
        options: Any = {"include_usage": False}
        list(
            client.chat.completions.create(
                model=MODEL, messages=MESSAGES, stream=True, stream_options=options
            )
        )
        assert provider.asked["stream_options"] == options
        assert recording.events[0].units == {"responses_without_usage": Decimal(1)}
        assert recording.events[0].status == "ok"

    @pytest.mark.parametrize("size", [1, 7, 1000])
    def test_pieces_of_any_size(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter, size: int
    ) -> None:
        whole = b"".join(stream()).replace(b"\n", b"\r\n")
        provider.will_stream(whole[start : start + size] for start in range(0, len(whole), size))
        chunks = list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
        assert len(chunks) == 3
        assert recording.events[0].tokens_used == 107

    def test_a_packed_stream(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will_stream(stream(), packed=True)
        assert len(list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))) == 3
        assert recording.events[0].tokens_used == 107

    def test_counts_replace_one_another(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        first = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
        provider.will_stream(sse(chunk("a", usage=first), chunk("b", usage=USAGE, finish="stop"), done=True))
        chunks = list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
        assert len(chunks) == 2
        assert [event.tokens_used for event in recording.events] == [107]

    def test_groq_has_it_elsewhere(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        last = chunk(finish="stop", x_groq={"id": "req_1", "usage": USAGE})
        del last["usage"]
        provider.will_stream(sse(chunk("a"), last, done=True))
        assert len(list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))) == 2
        assert recording.events[0].tokens_used == 107

    def test_a_stream_that_is_left_is_unknown(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will_stream(stream())
        with client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True) as chunks:
            for _ in chunks:
                break
        [event] = recording.events
        assert event.units == {"responses_without_usage": Decimal(1)}
        assert (event.status, event.tokens_used, event.cost_usd) == ("error", 0, None)
        assert event.model == "gpt-4o-mini-2024-07-18"
        assert event.metadata == {"incomplete": True}

    def test_a_stream_that_is_forgotten_is_told_when_it_is_collected(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will_stream(stream())
        for _ in client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True):
            break
        gc.collect()
        assert len(recording.events) == 1

    @pytest.mark.parametrize("pieces", [1, 3])
    def test_a_connection_that_breaks(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter, pieces: int
    ) -> None:
        provider.will_stream(stream()[:pieces], cut_off=True)
        with pytest.raises(Exception, match="peer closed connection"):
            list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
        [event] = recording.events
        assert event.status == "error"

    def test_an_error_within_the_stream(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will_stream(sse(chunk("a"), {"error": {"message": "overloaded"}}))
        with pytest.raises(openai.APIError, match="overloaded"):
            list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
        assert [event.status for event in recording.events] == ["error"]

    def test_the_helper_that_puts_a_stream_together(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will_stream(stream())
        with client.chat.completions.stream(model=MODEL, messages=MESSAGES) as events:
            answer = events.get_final_completion()
        assert answer.choices[0].message.content == "a secret"
        assert [event.tokens_used for event in recording.events] == [107]

    @pytest.mark.parametrize("kind", ["completed", "incomplete", "failed"])
    def test_a_streamed_response(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter, kind: str
    ) -> None:
        begun = response(status="in_progress", usage=None, output=[])
        delta = {
            "type": "response.output_text.delta",
            "item_id": "msg_1",
            "output_index": 0,
            "content_index": 0,
            "delta": "a secret",
            "sequence_number": 1,
            "logprobs": [],
        }
        provider.will_stream(
            sse(
                {"type": "response.created", "response": begun, "sequence_number": 0},
                delta,
                {"type": f"response.{kind}", "response": response(status=kind), "sequence_number": 2},
                named=True,
            )
        )
        assert len(list(client.responses.create(model="gpt-5", input="q", stream=True))) == 3
        [event] = recording.events
        assert (event.tokens_used, event.status) == (107, "error" if kind == "failed" else "ok")
        assert "stream_options" not in provider.asked

    def test_the_user_is_the_one_that_began_it(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will_stream(stream())
        with usage_context(user_id=BOB, feature="draft"):
            chunks = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        list(chunks)
        assert [(event.user_text, event.feature) for event in recording.events] == [(BOB, "draft")]


class TestRawResponses:
    def test_a_raw_response(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will(completion(), headers={"x-request-id": "req_1"})
        raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES)
        assert raw.headers["x-request-id"] == "req_1"
        assert raw.parse().choices[0].message.content == "a secret answer"
        assert raw.parse() is raw.parse()
        assert [event.tokens_used for event in recording.events] == [107]

    def test_a_raw_stream(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will_stream(stream())
        raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES, stream=True)
        assert recording.events == []
        assert len(list(raw.parse())) == 3
        assert [event.tokens_used for event in recording.events] == [107]

    @pytest.mark.parametrize("way", ["parse", "json", "bytes", "lines"])
    def test_a_response_that_is_read_later(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter, way: str
    ) -> None:
        provider.will(completion())
        with client.chat.completions.with_streaming_response.create(model=MODEL, messages=MESSAGES) as raw:
            assert recording.events == []
            if way == "parse":
                assert raw.parse().id == "chatcmpl-1"
            elif way == "json":
                assert raw.http_response.read()
            elif way == "bytes":
                assert b"chatcmpl-1" in b"".join(raw.iter_bytes())
            else:
                assert "chatcmpl-1" in "".join(raw.iter_lines())
        assert [event.tokens_used for event in recording.events] == [107]

    def test_a_response_that_is_not_read_is_unknown(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will(completion())
        with client.chat.completions.with_streaming_response.create(model=MODEL, messages=MESSAGES):
            pass
        assert recording.events[0].units == {"responses_without_usage": Decimal(1)}
        assert recording.events[0].status == "error"

    def test_a_stream_whose_bytes_are_read(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will_stream(stream())
        create = client.chat.completions.with_streaming_response.create
        with create(model=MODEL, messages=MESSAGES, stream=True) as raw:
            seen = b"".join(raw.iter_bytes())
        assert b"prompt_tokens" not in seen
        assert seen.endswith(b"data: [DONE]\n\n")
        assert [event.tokens_used for event in recording.events] == [107]
