"""Usage objects of OpenAI and Azure; see usage_objects."""

from datetime import UTC, datetime
from typing import Any

from tests.unit.producers.integrations.usage_objects import CASSETTES, CONSTRUCTED, Case

REFERENCE = "OpenAI API reference, example of "
_NO_DETAILS = {"accepted_prediction_tokens": 0, "audio_tokens": 0, "rejected_prediction_tokens": 0}


def chat(
    model: str, prompt: int, completion: int, *, cached: int = 0, reasoning: int = 0, **more: Any
) -> dict[str, Any]:
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": cached},
        "completion_tokens_details": {**_NO_DETAILS, "reasoning_tokens": reasoning},
    }
    return {"id": "chatcmpl-1", "object": "chat.completion", "model": model, "usage": usage} | more


def response(
    model: str, given: int, made: int, *, cached: int = 0, reasoning: int = 0, **more: Any
) -> dict[str, Any]:
    usage = {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": given + made,
    }
    whole = {"id": "resp_1", "object": "response", "model": model, "status": "completed", "usage": usage}
    return whole | more


def batch_line(model: str, prompt: int, completion: int) -> dict[str, Any]:
    answer = {"status_code": 200, "body": chat(model, prompt, completion)}
    return {"id": "batch_req_1", "custom_id": "r-1", "response": answer, "error": None}


_CACHE_WRITE = {
    "model": "gpt-5.6",
    "usage": {
        "prompt_tokens": 2600,
        "completion_tokens": 300,
        "total_tokens": 2900,
        "prompt_tokens_details": {"cached_tokens": 2000, "cache_write_tokens": 400},
    },
}
_CACHE_WRITE_SOURCE = (
    "OpenAI's prompt caching guide, quoted in mindroom-ai/mindroom#2134 (2,000 read, 400 written, "
    "200 neither); the output is that of its other example"
)

CASES = [
    Case(
        name="chat with a cached prompt",
        body=chat("gpt-4o-2024-08-06", 2006, 300, cached=1920),
        source="OpenAI's prompt caching guide, quoted in betalgo/openai#642",
        given=2006, made=300, read=1920, reasoning=0,
        price="openai/gpt-4o/base", cost="(86*2.5 + 1920*1.25 + 300*10)/1e6",
    ),
    Case(
        name="chat of text",
        body=chat("gpt-4o-2024-08-06", 45, 26),
        source=CASSETTES + "test_openai/test_text_document_as_binary_content_input",
        given=45, made=26, read=0, reasoning=0,
        price="openai/gpt-4o/base", cost="(45*2.5 + 26*10)/1e6",
    ),
    Case(
        name="chat of a document with a tool",
        body=chat("gpt-4o-2024-08-06", 281, 17),
        source=CASSETTES + "test_openai/test_document_as_binary_content_input_with_tool",
        given=281, made=17, read=0, reasoning=0,
        price="openai/gpt-4o/base", cost="(281*2.5 + 17*10)/1e6",
    ),
    Case(
        name="last chunk of a stream, without choices",
        body=chat("gpt-4o-2024-08-06", 925, 85, object="chat.completion.chunk", choices=[]),
        source=CASSETTES + "test_temporal/test_fastmcp_toolset",
        given=925, made=85, read=0, reasoning=0,
        price="openai/gpt-4o/base", cost="(925*2.5 + 85*10)/1e6",
    ),
    Case(
        name="chat with a small model",
        body=chat("gpt-4.1-mini-2025-04-14", 75, 15),
        source=CASSETTES + "test_openai/test_openai_instructions_with_tool_calls_keep_instructions",
        given=75, made=15, read=0, reasoning=0,
        price="openai/gpt-4.1-mini/base", cost="(75*0.4 + 15*1.6)/1e6",
    ),
    Case(
        name="chat with a search model, whose searches the usage does not count",
        body=chat("gpt-4o-search-preview-2025-03-11", 11, 17),
        source=CASSETTES + "test_openai/test_openai_web_search_tool",
        given=11, made=17, read=0, reasoning=0,
        price="openai/gpt-4o-search-preview/base", cost="(11*2.5 + 17*10)/1e6",
    ),
    Case(
        name="chat with audio",
        body={
            "model": "gpt-4o-audio-preview-2024-12-17",
            "usage": {
                "completion_tokens": 9,
                "completion_tokens_details": {**_NO_DETAILS, "reasoning_tokens": 0, "text_tokens": 9},
                "prompt_tokens": 64,
                "prompt_tokens_details": {"audio_tokens": 44, "cached_tokens": 0, "text_tokens": 20},
                "total_tokens": 73,
            },
        },
        source=CASSETTES + "test_openai/test_audio_as_binary_content_input",
        given=64, made=9, read=0, reasoning=0, units={"input_audio_tokens": "44"},
        price="openai/gpt-4o-audio-preview/base", cost="(64*2.5 + 9*10)/1e6",
    ),
    Case(
        name="chat through a gateway",
        body=chat("gpt-5-2025-08-07", 13, 11),
        source=CASSETTES + "test_gateway/test_gateway_provider_with_openai; its own estimate is the same",
        given=13, made=11, read=0, reasoning=0,
        price="openai/gpt-5/base", cost="(13*1.25 + 11*10)/1e6",
    ),
    Case(
        name="chat on Azure",
        body=chat("gpt-4o-2024-08-06", 195, 12),
        source=CASSETTES + "test_mcp/test_tool_returning_multiple_items",
        provider="azure.ai.openai",
        given=195, made=12, read=0, reasoning=0,
        price="azure/gpt-4o/base", cost="(195*2.5 + 12*10)/1e6",
    ),
    Case(
        name="response with reasoning",
        body=response("gpt-5-2025-08-07", 37, 272, reasoning=256),
        source=CASSETTES + "test_google/test_thinking_with_tool_calls_from_other_model",
        given=37, made=272, read=0, reasoning=256,
        price="openai/gpt-5/base", cost="(37*1.25 + 272*10)/1e6",
    ),
    Case(
        name="response with much reasoning",
        body=response("gpt-5-2025-08-07", 23, 2030, reasoning=1728),
        source=CASSETTES + "test_bedrock/test_bedrock_model_thinking_part_from_other_model",
        given=23, made=2030, read=0, reasoning=1728,
        price="openai/gpt-5/base", cost="(23*1.25 + 2030*10)/1e6",
    ),
    Case(
        name="response without reasoning",
        body=response("gpt-5-2025-08-07", 13, 8),
        source=CASSETTES + "test_gateway/test_gateway_provider_with_openai_responses",
        given=13, made=8, read=0, reasoning=0,
        price="openai/gpt-5/base", cost="(13*1.25 + 8*10)/1e6",
    ),
    Case(
        name="response at the flex tier",
        body=response("gpt-5-2025-08-07", 379, 77, reasoning=64, service_tier="flex"),
        source=CASSETTES + "test_google/test_thinking_with_tool_calls_from_other_model; the tier is ours",
        given=379, made=77, read=0, reasoning=64, tier="flex",
        price="openai/gpt-5/base/flex", cost="(379*0.625 + 77*5)/1e6",
    ),
    Case(
        name="response at the priority tier",
        body=response("gpt-5-2025-08-07", 103, 409, reasoning=384, service_tier="priority"),
        source=CASSETTES + "test_groq (a response of gpt-5); the tier is ours",
        given=103, made=409, read=0, reasoning=384, tier="priority",
        price="openai/gpt-5/base/priority", cost="(103*2.5 + 409*20)/1e6",
    ),
    Case(
        name="response that searched the web twice",
        body=response(
            "gpt-5-2025-08-07", 379, 77, reasoning=64,
            output=[
                {"type": "web_search_call", "action": {"type": "search"}},
                {"type": "web_search_call", "action": {"type": "open_page"}},
                {"type": "web_search_call", "action": {"type": "search"}},
            ],
        ),
        source="items as in openai 2.54, response_function_web_search.py; tokens as at the flex tier",
        given=379, made=77, read=0, reasoning=64, units={"web_searches": "2"},
        price="openai/gpt-5/base", cost="(379*1.25 + 77*10)/1e6 + 2*10/1000",
    ),
    Case(
        name="writing to the cache",
        body=_CACHE_WRITE, source=_CACHE_WRITE_SOURCE,
        given=2600, made=300, read=2000, write=400,
        price="openai/gpt-5.6-sol/2026-08-21", cost="(200*4 + 2000*0.4 + 400*5 + 300*20)/1e6",
    ),
    Case(
        name="writing to the cache, at the price of its time",
        body=_CACHE_WRITE, source=_CACHE_WRITE_SOURCE, at=datetime(2026, 8, 20, 23, 59, tzinfo=UTC),
        given=2600, made=300, read=2000, write=400,
        price="openai/gpt-5.6-sol/base", cost="(200*5 + 2000*0.5 + 400*6.25 + 300*30)/1e6",
    ),
    Case(
        name="o3 before it became cheaper",
        body=chat("o3-2025-04-16", 1000, 500), source=CONSTRUCTED + "the price of the event's time",
        at=datetime(2025, 6, 9, 23, 59, tzinfo=UTC), given=1000, made=500, read=0, reasoning=0,
        price="openai/o3/base", cost="(1000*10 + 500*40)/1e6",
    ),
    Case(
        name="a long context, cached or not, from its first token on",
        body=response("gpt-5.4", 272001, 1000, cached=272000),
        source=CONSTRUCTED + "one token above the threshold of 272,000",
        given=272001, made=1000, read=272000, reasoning=0,
        price="openai/gpt-5.4/base", cost="(1*5 + 272000*0.5 + 1000*22.5)/1e6",
    ),
    Case(
        name="a context just not long",
        body=response("gpt-5.4", 272000, 1000, cached=271999),
        source=CONSTRUCTED + "at the threshold of 272,000",
        given=272000, made=1000, read=271999, reasoning=0,
        price="openai/gpt-5.4/base", cost="(1*2.5 + 271999*0.25 + 1000*15)/1e6",
    ),
    Case(
        name="embeddings",
        body={
            "object": "list", "model": "text-embedding-3-small",
            "usage": {"prompt_tokens": 8, "total_tokens": 8},
        },
        source=REFERENCE + "creating embeddings",
        given=8, made=0, price="openai/text-embedding-3-small/base", cost="8*0.02/1e6",
    ),
    Case(
        name="transcription counted in tokens",
        body={
            "text": "…",
            "usage": {
                "type": "tokens", "input_tokens": 14,
                "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
                "output_tokens": 45, "total_tokens": 59,
            },
        },
        source=REFERENCE + "creating a transcription",
        provider="openai", model="gpt-4o-transcribe",
        given=14, made=45, units={"input_audio_tokens": "14"},
        price="openai/gpt-4o-transcribe/base", cost="(14*6 + 45*10)/1e6",
    ),
    Case(
        name="transcription counted in seconds",
        body={"text": "…", "duration": 8.47, "usage": {"type": "duration", "seconds": 9}},
        source=REFERENCE + "creating a transcription, verbose",
        provider="openai", model="whisper-1",
        given=None, made=None, units={"audio_seconds": "9"},
        price="openai/whisper-1/base", cost="9*0.36/3600",
    ),
    Case(
        name="an image, made of another one",
        body={
            "created": 1713833628, "data": [{"b64_json": "…"}],
            "usage": {
                "total_tokens": 100, "input_tokens": 50, "output_tokens": 50,
                "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
            },
        },
        source=REFERENCE + "creating an image",
        provider="openai", model="gpt-image-1",
        given=50, made=50, units={"input_image_tokens": "40"},
        price="openai/gpt-image-1/base", cost="(10*5 + 40*10 + 50*40)/1e6",
    ),
    Case(
        name="a line of a batch",
        body=batch_line("gpt-3.5-turbo-0125", 22, 2),
        source="OpenAI's batch guide, example of an output file",
        given=22, made=2, read=0, reasoning=0, tier="batch",
        price="openai/gpt-3.5-turbo/base/batch", cost="(22*0.25 + 2*0.75)/1e6",
    ),
    Case(
        name="a line of a batch of another request",
        body=batch_line("gpt-3.5-turbo-0125", 61, 1),
        source="a recorded output file of September 2024 (chatcmpl-A8RMqmVqrm2Ni505AaWK4mN1i8KMD)",
        given=61, made=1, read=0, reasoning=0, tier="batch",
        price="openai/gpt-3.5-turbo/base/batch", cost="(61*0.25 + 1*0.75)/1e6",
    ),
    Case(
        name="a line of a batch with details",
        body=batch_line("gpt-3.5-turbo-0125", 22, 11),
        source="a recorded output file of November 2024 (chatcmpl-ASgahElP7DWWSfQMSq8124FFkG2If)",
        given=22, made=11, read=0, reasoning=0, tier="batch",
        price="openai/gpt-3.5-turbo/base/batch", cost="(22*0.25 + 11*0.75)/1e6",
    ),
    Case(
        name="a line of a batch of a small model",
        body=batch_line("gpt-4o-mini", 24, 15),
        source="OpenAI's batch guide, example of a line, with a newer model",
        given=24, made=15, read=0, reasoning=0, tier="batch",
        price="openai/gpt-4o-mini/base/batch", cost="(24*0.075 + 15*0.3)/1e6",
    ),
]  # fmt: skip
