"""Usage objects of Gemini; see usage_objects."""

from typing import Any

from tests.unit.producers.integrations.usage_objects import (
    CASSETTES,
    CONSTRUCTED,
    GENAI_TESTS,
    Case,
)


def modal(**counts: int) -> list[dict[str, Any]]:
    return [{"modality": name, "tokenCount": count} for name, count in counts.items()]


def answer(model: str, prompt: int, made: int | None, *, thoughts: int = 0, **more: Any) -> dict[str, Any]:
    usage: dict[str, Any] = {"promptTokenCount": prompt, "promptTokensDetails": modal(TEXT=prompt)}
    if made is not None:
        usage["candidatesTokenCount"] = made
    if thoughts:
        usage["thoughtsTokenCount"] = thoughts
    usage |= more
    total = prompt + (made or 0) + thoughts + usage.get("toolUsePromptTokenCount", 0)
    usage.setdefault("totalTokenCount", total)
    return {"modelVersion": model, "responseId": "r-1", "usageMetadata": usage}


CASES = [
    Case(
        name="an image to be described",
        body=answer("gemini-2.0-flash", 1817, 5, promptTokensDetails=modal(TEXT=11, IMAGE=1806)),
        source=CASSETTES + "test_google/test_google_model_image_url_input",
        given=1817, made=5, units={"input_image_tokens": "1806"},
        price="google/gemini-2.0-flash/base", cost="(1817*0.1 + 5*0.4)/1e6",
    ),
    Case(
        name="text",
        body=answer("gemini-2.0-flash", 69, 14),
        source=CASSETTES + "test_google/test_google_model_structured_output",
        given=69, made=14,
        price="google/gemini-2.0-flash/base", cost="(69*0.1 + 14*0.4)/1e6",
    ),
    Case(
        name="what a tool found is input",
        body=answer("gemini-2.5-pro", 249, 240, thoughts=301, toolUsePromptTokenCount=319),
        source=CASSETTES + "test_google/test_google_model_web_search_tool_stream",
        given=568, made=541, reasoning=301,
        price="google/gemini-2.5-pro/base", cost="(568*1.25 + 541*10)/1e6",
    ),
    Case(
        name="what code printed is input",
        body=answer(
            "gemini-2.5-pro", 15, 177, thoughts=483,
            toolUsePromptTokenCount=675, toolUsePromptTokensDetails=modal(TEXT=675),
        ),
        source=CASSETTES + "test_google/test_google_model_code_execution_tool",
        given=690, made=660, reasoning=483,
        price="google/gemini-2.5-pro/base", cost="(690*1.25 + 660*10)/1e6",
    ),
    Case(
        name="thoughts are output",
        body=answer("gemini-3-pro-preview", 107, 23, thoughts=123),
        source=CASSETTES + "test_google/test_thinking_with_tool_calls_from_other_model",
        given=107, made=146, reasoning=123,
        price="google/gemini-3-pro-preview/2026-01-05", cost="(107*2 + 146*12)/1e6",
    ),
    Case(
        name="more thoughts than answer",
        body=answer("gemini-2.5-flash", 14, 16, thoughts=181),
        source=CASSETTES + "test_google/test_google_discriminated_union_native_output",
        given=14, made=197, reasoning=181,
        price="google/gemini-2.5-flash/base", cost="(14*0.3 + 197*2.5)/1e6",
    ),
    Case(
        name="Vertex through a gateway",
        body=answer("gemini-2.5-flash", 7, 8, thoughts=53, trafficType="ON_DEMAND"),
        source=CASSETTES + "test_gateway/test_gateway_provider_with_google_vertex; it estimates the same",
        given=7, made=61, reasoning=53,
        price="google/gemini-2.5-flash/base", cost="(7*0.3 + 61*2.5)/1e6",
    ),
    Case(
        name="audio, some of it cached",
        body=answer(
            "gemini-2.5-flash", 14152, 60, thoughts=69, totalTokenCount=14271, cachedContentTokenCount=12239,
            promptTokensDetails=modal(TEXT=14002, AUDIO=150),
            cacheTokensDetails=modal(AUDIO=129, TEXT=12110),
            candidatesTokensDetails=modal(TEXT=50, AUDIO=10),
        ),
        source=GENAI_TESTS,
        given=14152, made=129, read=12239, reasoning=69,
        units={"input_audio_tokens": "150", "cache_audio_read_tokens": "129", "output_audio_tokens": "10"},
        price="google/gemini-2.5-flash/base",
        cost="(1892*0.3 + 21*1 + 12110*0.03 + 129*0.1 + 129*2.5)/1e6",
    ),
    Case(
        name="the SDK's names, and a cache that only the details mention",
        body={
            "model_version": "gemini-2.5-flash",
            "usage_metadata": {
                "cache_tokens_details": [
                    {"modality": "TEXT", "token_count": 1240},
                    {"modality": "IMAGE", "token_count": 807},
                ],
                "cached_content_token_count": None,
                "candidates_token_count": 325,
                "candidates_tokens_details": [{"modality": "TEXT", "token_count": 325}],
                "prompt_token_count": 4583,
                "prompt_tokens_details": [
                    {"modality": "TEXT", "token_count": 2777},
                    {"modality": "IMAGE", "token_count": 1806},
                ],
                "thoughts_token_count": 874,
                "tool_use_prompt_token_count": None,
                "total_token_count": 5782,
            },
        },
        source="googleapis/python-genai#795; the model is ours",
        given=4583, made=1199, read=2047, reasoning=874,
        units={"input_image_tokens": "1806", "cache_image_read_tokens": "807"},
        price="google/gemini-2.5-flash/base", cost="(2536*0.3 + 2047*0.03 + 1199*2.5)/1e6",
    ),
    Case(
        name="no candidates",
        body=answer("gemini-1.5-flash", 7, None),
        source=CASSETTES + "test_settings/test_stop_settings[gemini]",
        given=7, made=0,
        price="google/gemini-1.5-flash/base", cost="7*0.075/1e6",
    ),
    Case(
        name="an image that was drawn",
        body=answer("gemini-2.5-flash-image", 10, 1303, candidatesTokensDetails=modal(IMAGE=1290)),
        source=CASSETTES + "test_google/test_google_multiple_images",
        given=10, made=1303, units={"output_image_tokens": "1290"},
        price="google/gemini-2.5-flash-image/base", cost="(10*0.3 + 13*2.5 + 1290*30)/1e6",
    ),
    Case(
        name="audio for a model that charges it like text",
        body=answer("gemini-2.5-pro", 801, 5, promptTokensDetails=modal(TEXT=657, AUDIO=144)),
        source=CASSETTES + "test_mcp/test_tool_returning_audio_resource_link",
        given=801, made=5, units={"input_audio_tokens": "144"},
        price="google/gemini-2.5-pro/base", cost="(801*1.25 + 5*10)/1e6",
    ),
    Case(
        name="in OpenAI's shape, with thoughts that only the total has",
        body={
            "model": "gemini-2.5-flash",
            "usage": {"prompt_tokens": 27, "completion_tokens": 6, "total_tokens": 227},
        },
        source=CONSTRUCTED + "a recorded answer (27, 6, 194 thoughts) as its imitation of OpenAI has it",
        given=27, made=200, reasoning=194,
        price="google/gemini-2.5-flash/base", cost="(27*0.3 + 200*2.5)/1e6",
    ),
    Case(
        name="Gemini, a line of a batch",
        body={"key": "r-1", "response": answer("gemini-2.5-flash", 10, 5, thoughts=5)},
        source=CONSTRUCTED + "the shape of a result file",
        given=10, made=10, reasoning=5, tier="batch",
        price="google/gemini-2.5-flash/base/batch", cost="(10*0.15 + 10*1.25)/1e6",
    ),
]  # fmt: skip
