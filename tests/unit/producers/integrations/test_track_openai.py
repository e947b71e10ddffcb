"""`track` with the real OpenAI SDK, against a local server that answers like OpenAI: whole answers."""

import io
from decimal import Decimal
from typing import Any

import openai
import pydantic
import pytest

from producers.integrations import _openai_calls, track
from producers.integrations.openai import usage_of
from producers.testing import RecordingEmitter
from tests.unit.producers.integrations.openai_answers import (
    ALICE,
    MESSAGES,
    MODEL,
    USAGE,
    completion,
    response,
)
from tests.unit.producers.integrations.provider_server import Provider


class Ticks:
    """A clock that goes on by a quarter of a second each time it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.25
        return self.now


class TestAnswers:
    def test_a_completion_is_one_event(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will(completion())
        answer = client.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert answer.choices[0].message.content == "a secret answer"
        [event] = recording.events
        assert event.user_text == ALICE
        assert (event.feature, event.provider, event.model) == ("chat", "openai", "gpt-4o-mini-2024-07-18")
        assert (event.input_tokens, event.output_tokens, event.tokens_used) == (100, 7, 107)
        assert (event.cache_read_tokens, event.reasoning_tokens) == (64, 3)
        assert event.status == "ok"
        assert event.duration_ms is not None
        assert "secret" not in str(event)

    def test_the_client_keeps_its_type_and_the_old_one_is_left_alone(
        self, plain: openai.OpenAI, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        assert isinstance(client, openai.OpenAI)
        assert type(client).__name__ == "OpenAI"
        provider.will(completion()).will(completion())
        plain.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert recording.events == []
        assert plain.chat is not client.chat
        client.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert len(recording.events) == 1

    def test_the_clock_measures_the_call(
        self, plain: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        tracked = track(plain, emitter=recording, user_id=ALICE, feature="chat", clock=Ticks())
        provider.will(completion())
        tracked.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert recording.events[0].duration_ms == 250

    def test_repetitions_inside_the_sdk_are_one_event(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        later = {"retry-after-ms": "1"}
        provider.will({"error": {"message": "slow"}}, status=429, headers=later)
        provider.will({"error": {"message": "oops"}}, status=500, headers=later).will(completion())
        client.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert len(provider.requests) == 3
        assert len(recording.events) == 1

    def test_the_same_answer_again_is_the_same_event(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will(completion()).will(completion()).will(completion("chatcmpl-9"))
        for _ in range(3):
            client.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert len({event.event_id for event in recording.events}) == 2

    def test_an_error_used_nothing_that_is_known(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will({"error": {"message": "no"}}, status=400)
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert recording.events == []

    def test_a_parsed_completion(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        class Fact(pydantic.BaseModel):
            number: int

        provider.will(completion(content='{"number": 4}'))
        answer = client.chat.completions.parse(model=MODEL, messages=MESSAGES, response_format=Fact)
        assert answer.choices[0].message.parsed == Fact(number=4)
        assert recording.events[0].tokens_used == 107

    def test_what_does_not_fit_was_paid_for(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        class Fact(pydantic.BaseModel):
            number: int

        cut = completion(content='{"num')
        cut["choices"][0]["finish_reason"] = "length"
        provider.will(cut)
        with pytest.raises(openai.LengthFinishReasonError):
            client.chat.completions.parse(model=MODEL, messages=MESSAGES, response_format=Fact)
        [event] = recording.events
        assert (event.tokens_used, event.status) == (107, "error")

    def test_a_response_with_tools_that_are_charged(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        output = [
            {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": kind}}
            for kind in ("search", "search", "open_page")
        ]
        provider.will(response(output=output, service_tier="flex"))
        client.responses.create(model="gpt-5", input="a secret question")
        [event] = recording.events
        assert event.units == {"web_searches": Decimal(2)}
        assert event.metadata == {"service_tier": "flex"}
        assert (event.input_tokens, event.cache_read_tokens, event.reasoning_tokens) == (100, 64, 3)

    def test_a_response_in_the_background_has_not_used_anything_yet(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will(response(status="queued", usage=None, output=[]))
        client.responses.create(model="gpt-5", input="q", background=True)
        assert recording.events == []

    def test_embeddings_have_no_output(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
        provider.will(
            {
                "object": "list",
                "model": "text-embedding-3-small",
                "data": data,
                "usage": {"prompt_tokens": 8, "total_tokens": 8},
            }
        )
        client.embeddings.create(model="text-embedding-3-small", input="q", encoding_format="float")
        [event] = recording.events
        assert (event.input_tokens, event.output_tokens) == (8, 0)

    @pytest.mark.parametrize(
        ("usage", "tokens", "units"),
        [
            (
                {
                    "type": "tokens",
                    "input_tokens": 14,
                    "input_token_details": {"text_tokens": 4, "audio_tokens": 10},
                    "output_tokens": 45,
                    "total_tokens": 59,
                },
                59,
                {"input_audio_tokens": Decimal(10)},
            ),
            ({"type": "duration", "seconds": 12.5}, 0, {"audio_seconds": Decimal("12.5")}),
        ],
    )
    def test_a_transcription(
        self,
        client: openai.OpenAI,
        provider: Provider,
        recording: RecordingEmitter,
        usage: dict[str, Any],
        tokens: int,
        units: dict[str, Decimal],
    ) -> None:
        provider.will({"text": "a secret", "usage": usage})
        client.audio.transcriptions.create(model="gpt-4o-transcribe", file=("a.wav", io.BytesIO(b"RIFF")))
        [event] = recording.events
        assert (event.tokens_used, event.units, event.model) == (tokens, units, "gpt-4o-transcribe")

    def test_images_with_tokens_and_without(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        usage = {
            "input_tokens": 50,
            "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
            "output_tokens": 50,
            "total_tokens": 100,
        }
        images = [{"b64_json": "aaaa"}, {"b64_json": "bbbb"}]
        provider.will({"created": 1, "data": images, "usage": usage}).will({"created": 1, "data": images})
        for model in ("gpt-image-1", "dall-e-2"):
            client.images.generate(model=model, prompt="a secret", n=2)
        first, second = recording.events
        assert (first.tokens_used, first.units) == (100, {"input_image_tokens": Decimal(40)})
        assert (second.tokens_used, second.units) == (0, {"images": Decimal(2)})

    def test_an_answer_without_usage_is_unknown_and_not_0(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will(completion(usage=None))
        client.chat.completions.create(model=MODEL, messages=MESSAGES)
        [event] = recording.events
        assert (event.tokens_used, event.units) == (0, {"responses_without_usage": Decimal(1)})

    def test_a_cost_that_is_stated_is_reported(
        self, provider: Provider, plain: openai.OpenAI, recording: RecordingEmitter
    ) -> None:
        tracked = track(plain, emitter=recording, user_id=ALICE, feature="chat", provider="openrouter")
        provider.will(completion(usage=USAGE | {"cost": 1.44e-05}))
        tracked.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert recording.events[0].cost_usd == Decimal("0.000014400000")

    def test_calls_that_use_nothing_are_no_events(
        self, client: openai.OpenAI, provider: Provider, recording: RecordingEmitter
    ) -> None:
        provider.will({"object": "list", "data": []})
        client.models.list()
        assert recording.events == []

    def test_the_address_tells_the_provider(self, recording: RecordingEmitter, provider: Provider) -> None:
        addresses = {
            "https://api.openai.com/v1": "openai",
            "https://api.groq.com/openai/v1": "groq",
            "https://openrouter.ai/api/v1": "openrouter",
            "https://bedrock-runtime.us-west-2.amazonaws.com/openai/v1": "aws",
            "https://somewhere.example/v1": None,
        }
        for address, expected in addresses.items():
            with openai.OpenAI(api_key="k", base_url=address) as one:
                tracked = track(one, emitter=recording, feature="chat")
                assert _openai_calls.provider_of(tracked) == expected


def test_the_two_lines_of_the_guide_without_a_wrapper(
    plain: openai.OpenAI, provider: Provider, recording: RecordingEmitter
) -> None:
    provider.will(completion())
    answer = plain.chat.completions.create(model=MODEL, messages=MESSAGES)
    usage = usage_of(answer)
    assert usage is not None
    recording.emit(user_id=ALICE, feature="chat", **usage)
    assert recording.events[0].provider == "openai"
