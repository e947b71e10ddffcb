"""Usage objects of Anthropic, wherever its models run; see usage_objects."""

from datetime import UTC, datetime
from typing import Any

from tests.unit.producers.integrations.usage_objects import (
    CASSETTES,
    CONSTRUCTED,
    GENAI_TESTS,
    RECORDED,
    Case,
)

DOCS = "platform.claude.com/docs: "
SONNET_4 = "claude-sonnet-4-20250514"
SONNET_45 = "claude-sonnet-4-5-20250929"


def message(
    model: str, given: int, made: int, *, read: int = 0, m5: int = 0, h1: int = 0, **more: Any
) -> dict[str, Any]:
    usage = {
        "input_tokens": given,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": m5 + h1,
        "cache_creation": {"ephemeral_5m_input_tokens": m5, "ephemeral_1h_input_tokens": h1},
        "output_tokens": made,
        "service_tier": "standard",
    }
    return {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "usage": usage | more}


def searched(number: int) -> dict[str, int]:
    return {"web_fetch_requests": 0, "web_search_requests": number}


CASES = [
    Case(
        name="read from and written to the cache for 5 minutes and 1 hour",
        body=message(SONNET_45, 2048, 503, read=1800, m5=148, h1=100),
        source=DOCS + "prompt caching, 1-hour cache duration",
        given=4096, made=503, read=1800, write=248, units={"cache_write_1h_tokens": "100"},
        price="anthropic/claude-sonnet-4-5/base",
        cost="(2048*3 + 1800*0.3 + 148*3.75 + 100*6 + 503*15)/1e6",
    ),
    Case(
        name="a book written to the cache",
        body={
            "model": SONNET_45,
            "usage": {
                "input_tokens": 21, "cache_creation_input_tokens": 188086,
                "cache_read_input_tokens": 0, "output_tokens": 393,
            },
        },
        source=DOCS + "prompt caching, first call of the example",
        given=188107, made=393, read=0, write=188086,
        price="anthropic/claude-sonnet-4-5/base", cost="(21*3 + 188086*3.75 + 393*15)/1e6",
    ),
    Case(
        name="the book read from the cache",
        body=message(SONNET_45, 21, 393, read=188086),
        source=DOCS + "prompt caching, second call of the example",
        given=188107, made=393, read=188086, write=0,
        price="anthropic/claude-sonnet-4-5/base", cost="(21*3 + 188086*0.3 + 393*15)/1e6",
    ),
    Case(
        name="a web search beside the cache",
        body=message(SONNET_4, 105, 6039, read=7123, m5=7345, server_tool_use={"web_search_requests": 1}),
        source=DOCS + "web search tool, usage and pricing",
        given=14573, made=6039, read=7123, write=7345, units={"web_searches": "1"},
        price="anthropic/claude-sonnet-4-0/base",
        cost="(105*3 + 7123*0.3 + 7345*3.75 + 6039*15)/1e6 + 1*10/1000",
    ),
    Case(
        name="nearly all of the input from the cache",
        body=message(SONNET_45, 3, 406, read=1111, inference_geo="not_available"),
        source=RECORDED + "test_anthropic/test_anthropic_cache_real_api @380f5a1ce, the second answer",
        given=1114, made=406, read=1111, write=0,
        price="anthropic/claude-sonnet-4-5/base", cost="(3*3 + 1111*0.3 + 406*15)/1e6",
    ),
    Case(
        name="read and written in one request",
        body=message(SONNET_45, 3, 33, read=1111, m5=418, inference_geo="not_available"),
        source=RECORDED + "test_anthropic/test_anthropic_cache_real_api @380f5a1ce, the third answer",
        given=1532, made=33, read=1111, write=418,
        price="anthropic/claude-sonnet-4-5/base", cost="(3*3 + 1111*0.3 + 418*3.75 + 33*15)/1e6",
    ),
    Case(
        name="a web search",
        body=message(SONNET_4, 8984, 520, server_tool_use=searched(1)),
        source=CASSETTES + "test_anthropic/test_anthropic_web_search_tool",
        given=8984, made=520, read=0, write=0, units={"web_searches": "1"},
        price="anthropic/claude-sonnet-4-0/base", cost="(8984*3 + 520*15)/1e6 + 1*10/1000",
    ),
    Case(
        name="a web search with many results",
        body=message(SONNET_4, 19859, 544, server_tool_use=searched(1)),
        source=CASSETTES + "test_anthropic/test_anthropic_web_search_tool, second answer",
        given=19859, made=544, read=0, write=0, units={"web_searches": "1"},
        price="anthropic/claude-sonnet-4-0/base", cost="(19859*3 + 544*15)/1e6 + 1*10/1000",
    ),
    Case(
        name="a tool that was not used",
        body=message(SONNET_4, 1683, 113, server_tool_use={"web_search_requests": 0}),
        source=CASSETTES + "test_anthropic/test_anthropic_server_tool_receive_history_from_another_provider",
        given=1683, made=113, read=0, write=0,
        price="anthropic/claude-sonnet-4-0/base", cost="(1683*3 + 113*15)/1e6",
    ),
    Case(
        name="thinking",
        body=message(SONNET_45, 42, 363),
        source=CASSETTES + "test_anthropic/test_anthropic_model_thinking_part",
        given=42, made=363, read=0, write=0,
        price="anthropic/claude-sonnet-4-5/base", cost="(42*3 + 363*15)/1e6",
    ),
    Case(
        name="thinking that is counted",
        body=message(SONNET_45, 291, 471, output_tokens_details={"thinking_tokens": 402}),
        source=CASSETTES + "test_anthropic/test_anthropic_model_thinking_part; the details are ours",
        given=291, made=471, read=0, write=0, reasoning=402,
        price="anthropic/claude-sonnet-4-5/base", cost="(291*3 + 471*15)/1e6",
    ),
    Case(
        name="no cache at all",
        body={
            "model": SONNET_45,
            "usage": {
                "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
                "input_tokens": 32, "output_tokens": 5, "service_tier": "standard",
            },
        },
        source=CASSETTES + "test_settings/test_stop_settings[anthropic]",
        given=32, made=5, read=0, write=0,
        price="anthropic/claude-sonnet-4-5/base", cost="(32*3 + 5*15)/1e6",
    ),
    Case(
        name="written to the cache, lifetime not stated",
        body={
            "id": "msg_0152tnC3YpjyASTB9qxqDJXu", "model": SONNET_4,
            "usage": {
                "input_tokens": 504, "cache_creation_input_tokens": 123, "cache_read_input_tokens": 0,
                "output_tokens": 97, "service_tier": "standard",
            },
        },
        source=GENAI_TESTS,
        given=627, made=97, read=0, write=123,
        price="anthropic/claude-sonnet-4-0/base", cost="(504*3 + 123*3.75 + 97*15)/1e6",
    ),
    Case(
        name="all of it written for an hour",
        body=message(
            "claude-haiku-4-5-20251001", 10, 792, h1=6853,
            inference_geo="", iterations=[], server_tool_use=searched(0), speed="standard",
        ),
        source="a recorded evaluation of 2026-09-05 (claude:haiku, case authorized-external-scope)",
        given=6863, made=792, read=0, write=6853, units={"cache_write_1h_tokens": "6853"},
        price="anthropic/claude-haiku-4-5/base", cost="(10*1 + 6853*2 + 792*5)/1e6",
    ),
    Case(
        name="a long context counts what is cached",
        body=message(SONNET_45, 1, 100, read=200000),
        source=CONSTRUCTED + "one token above the threshold of 200,000",
        given=200001, made=100, read=200000, write=0,
        price="anthropic/claude-sonnet-4-5/base", cost="(1*6 + 200000*0.6 + 100*22.5)/1e6",
    ),
    Case(
        name="Anthropic, a context just not long",
        body=message(SONNET_45, 1, 100, read=199999),
        source=CONSTRUCTED + "at the threshold of 200,000",
        given=200000, made=100, read=199999, write=0,
        price="anthropic/claude-sonnet-4-5/base", cost="(1*3 + 199999*0.3 + 100*15)/1e6",
    ),
    Case(
        name="a long context while it had its own price",
        body=message("claude-opus-4-6", 250000, 1000),
        source=CONSTRUCTED + "the price of the event's time",
        at=datetime(2026, 3, 12, 23, 59, tzinfo=UTC), given=250000, made=1000, read=0, write=0,
        price="anthropic/claude-opus-4-6/base", cost="(250000*10 + 1000*37.5)/1e6",
    ),
    Case(
        name="a long context since it has none",
        body=message("claude-opus-4-6", 250000, 1000),
        source=CONSTRUCTED + "the price of the event's time",
        given=250000, made=1000, read=0, write=0,
        price="anthropic/claude-opus-4-6/2026-03-13", cost="(250000*5 + 1000*25)/1e6",
    ),
    Case(
        name="a line of a batch's results",
        body={
            "custom_id": "r-1",
            "result": {"type": "succeeded", "message": message("claude-haiku-4-5-20251001", 14, 10, m5=200)},
        },
        source=DOCS + "batch processing, a result; tokens as of " + CASSETTES + "test_gateway",
        given=214, made=10, read=0, write=200, tier="batch",
        price="anthropic/claude-haiku-4-5/base/batch", cost="(14*0.5 + 200*0.625 + 10*2.5)/1e6",
    ),
    Case(
        name="fast",
        body=message("claude-opus-4-8", 42, 363, speed="fast"),
        source=CASSETTES + "test_anthropic/test_anthropic_model_thinking_part; model and speed are ours",
        given=42, made=363, read=0, write=0, tier="fast",
        price="anthropic/claude-opus-4-8/base/fast", cost="(42*10 + 363*50)/1e6",
    ),
    Case(
        name="on Bedrock, with the premium of its region",
        body=message(SONNET_45, 14, 65),
        source=CASSETTES + "anthropic/test_output/test_no_tools_no_output",
        provider="aws.bedrock", model="us.anthropic.claude-sonnet-4-5-20250929-v1:0",
        given=14, made=65, read=0, write=0,
        price="aws/regional.anthropic.claude-sonnet-4-5-20250929-v1:0/base", cost="(14*3.3 + 65*16.5)/1e6",
    ),
    Case(
        name="through LiteLLM, which has added the cache and repeats Anthropic's names",
        body={
            "model": SONNET_45,
            "usage": {
                "prompt_tokens": 18770, "completion_tokens": 5,
                "cache_read_input_tokens": 15093, "cache_creation_input_tokens": 3674,
                "prompt_tokens_details": {
                    "cache_creation_token_details": {
                        "ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 3674,
                    }
                },
            },
        },
        source="a call through LiteLLM 1.98, recorded on 2026-09-26",
        given=18770, made=5, read=15093, write=3674, units={"cache_write_1h_tokens": "3674"},
        price="anthropic/claude-sonnet-4-5/base", cost="(3*3 + 15093*0.3 + 3674*6 + 5*15)/1e6",
    ),
    Case(
        name="through LangChain, which has added the cache",
        body={
            "input_tokens": 23554, "output_tokens": 10, "total_tokens": 23564,
            "input_token_details": {"cache_read": 19971, "cache_creation": 3580},
        },
        source="langchain_core's usage_metadata, recorded in a test of a tracing library",
        provider="anthropic", model=SONNET_45,
        given=23554, made=10, read=19971, write=3580,
        price="anthropic/claude-sonnet-4-5/base", cost="(3*3 + 19971*0.3 + 3580*3.75 + 10*15)/1e6",
    ),
]  # fmt: skip
