"""Usage objects of Bedrock and of providers with a dialect of their own; see usage_objects."""

from datetime import UTC, datetime
from typing import Any

from tests.unit.producers.integrations.usage_objects import (
    CASSETTES,
    CONSTRUCTED,
    GENAI_TESTS,
    Case,
)


def chat(model: str | None, prompt: int, completion: int, **more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"model": model, "usage": usage | more}


def converse(given: int, made: int, **more: Any) -> dict[str, Any]:
    usage = {"inputTokens": given, "outputTokens": made, "totalTokens": given + made} | more
    return {"stopReason": "end_turn", "usage": usage}


_UNCACHED = {"cacheReadInputTokens": 0, "cacheWriteInputTokens": 0}
_SONAR = "a recorded answer of sonar-deep-research, id "

CASES = [
    Case(
        name="Bedrock through a gateway",
        body=converse(7, 78, serverToolUsage={}),
        source=CASSETTES + "test_gateway/test_gateway_provider_with_bedrock; its own estimate is the same",
        model="us.amazon.nova-micro-v1:0", given=7, made=78,
        price="aws/amazon.nova-micro-v1:0/base", cost="(7*0.035 + 78*0.14)/1e6",
    ),
    Case(
        name="Bedrock, a small model",
        body=converse(7, 30),
        source=CASSETTES + "test_bedrock/test_bedrock_model",
        model="us.amazon.nova-micro-v1:0", given=7, made=30,
        price="aws/amazon.nova-micro-v1:0/base", cost="(7*0.035 + 30*0.14)/1e6",
    ),
    Case(
        name="Bedrock, Anthropic's model without a cache",
        body=converse(42, 313, cacheReadInputTokenCount=0, cacheWriteInputTokenCount=0, **_UNCACHED),
        source=CASSETTES + "test_bedrock/test_bedrock_model_thinking_part_anthropic",
        model="us.anthropic.claude-sonnet-4-20250514-v1:0", given=42, made=313, read=0, write=0,
        price="aws/regional.anthropic.claude-sonnet-4-20250514-v1:0/base", cost="(42*3 + 313*15)/1e6",
    ),
    Case(
        name="Bedrock, written to the cache beside the input",
        body=converse(123, 321, cacheReadInputTokens=0, cacheWriteInputTokens=2500),
        source="a test of a Bedrock client; the model is ours",
        model="us.anthropic.claude-sonnet-4-20250514-v1:0", given=2623, made=321, read=0, write=2500,
        price="aws/regional.anthropic.claude-sonnet-4-20250514-v1:0/base",
        cost="(123*3 + 2500*3.75 + 321*15)/1e6",
    ),
    Case(
        name="Bedrock, written to the cache for an hour",
        body=converse(
            43, 44, cacheReadInputTokens=100, cacheWriteInputTokens=101,
            cacheDetails=[{"ttl": "1h", "inputTokens": 61}, {"ttl": "5m", "inputTokens": 40}],
        ),
        source="a test of a Bedrock client; lifetimes as docs.aws.amazon.com API_runtime_TokenUsage has them",
        model="us.anthropic.claude-haiku-4-5-20251001-v1:0", given=244, made=44, read=100, write=101,
        units={"cache_write_1h_tokens": "61"},
        price="aws/regional.anthropic.claude-haiku-4-5-20251001-v1:0/base",
        cost="(43*1.1 + 100*0.11 + 40*1.375 + 61*2.2 + 44*5.5)/1e6",
    ),
    Case(
        name="Bedrock, DeepSeek's reasoning",
        body=converse(12, 693),
        source=CASSETTES + "test_bedrock/test_bedrock_model_thinking_part_deepseek",
        model="us.deepseek.r1-v1:0", given=12, made=693,
        price="aws/deepseek.r1-v1:0/base", cost="(12*1.35 + 693*5.4)/1e6",
    ),
    Case(
        name="Bedrock, OpenAI's model with the cache in the input",
        body=converse(1000, 50, cacheReadInputTokens=400),
        source=CONSTRUCTED + "ConverseStream for openai.* models includes the cache",
        model="openai.gpt-5.4", given=1000, made=50, read=400,
        price="aws/openai.gpt-5.4/base", cost="(600*2.75 + 400*0.275 + 50*16.5)/1e6",
    ),
    Case(
        name="Mistral, most of the prompt cached",
        body=chat("mistral-large-2512", 1013, 30, prompt_tokens_details={"cached_tokens": 1008}),
        source=GENAI_TESTS + ", after docs.mistral.ai on prompt caching",
        given=1013, made=30, read=1008,
        price="mistral/mistral-large-2512/base", cost="(5*0.5 + 1008*0.05 + 30*1.5)/1e6",
    ),
    Case(
        name="Mistral, without a cache",
        body=chat("mistral-large-2512", 10, 5),
        source=GENAI_TESTS, given=10, made=5,
        price="mistral/mistral-large-2512/base", cost="(10*0.5 + 5*1.5)/1e6",
    ),
    Case(
        name="Mistral, audio beside the prompt",
        body={
            "model": "voxtral-small-2507",
            "usage": {
                "prompt_audio_seconds": 0, "prompt_tokens": 6, "completion_tokens": 2, "total_tokens": 383,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 375},
            },
        },
        source="a live turn with Voxtral, quoted in a gateway's tests; the model's size is ours",
        provider="mistral", given=381, made=2, read=0, units={"input_audio_tokens": "375"},
        price="mistral/voxtral-small-24b-2507/2026-08-11", cost="(381*0.1 + 2*0.4)/1e6",
    ),
    Case(
        name="Mistral, a transcription is charged by the second",
        body={
            "model": "voxtral-mini-latest", "text": "…", "language": "en",
            "usage": {
                "prompt_audio_seconds": 203,
                "prompt_tokens": 4, "completion_tokens": 635, "total_tokens": 3264,
            },
        },
        source="docs.mistral.ai, audio transcription (there voxtral-mini-2507)",
        given=None, made=None, units={"audio_seconds": "203"},
        price="mistral/voxtral-mini-2602/base", cost="203*0.18/3600",
    ),
    Case(
        name="Mistral, pages of a document",
        body={"model": "mistral-ocr-latest", "usage_info": {"pages_processed": 29, "doc_size_bytes": 3002}},
        source="docs.mistral.ai, basic OCR",
        given=None, made=None, units={"input_document_pages": "29"},
        price="mistral/mistral-ocr-latest/2026-06-23", cost="29*4/1000",
    ),
    Case(
        name="xAI, cached in chat",
        body=chat(
            "grok-3", 125, 48,
            prompt_tokens_details={"text_tokens": 125, "audio_tokens": 0, "cached_tokens": 98},
            completion_tokens_details={"reasoning_tokens": 0, "audio_tokens": 0},
        ),
        source="docs.x.ai, prompt caching: usage and pricing; the model is ours",
        given=125, made=48, read=98, reasoning=0,
        price="x-ai/grok-3/base", cost="(27*3 + 98*0.75 + 48*15)/1e6",
    ),
    Case(
        name="xAI, reasoning beside the output of a chat",
        body=chat(
            "grok-3-mini", 14, 1, total_tokens=187,
            prompt_tokens_details={"cached_tokens": 4}, completion_tokens_details={"reasoning_tokens": 172},
        ),
        source=CONSTRUCTED + "UKGovernmentBEIS/inspect_ai#5528: the total has prompt, completion, reasoning",
        given=14, made=173, read=4, reasoning=172,
        price="x-ai/grok-3-mini/base", cost="(10*0.3 + 4*0.075 + 173*0.5)/1e6",
    ),
    Case(
        name="xAI, reasoning inside the output of a response, and what it charged",
        body={
            "model": "grok-4.3",
            "usage": {
                "input_tokens": 37423, "input_tokens_details": {"cached_tokens": 192},
                "output_tokens": 1107, "output_tokens_details": {"reasoning_tokens": 792},
                "total_tokens": 38530, "num_sources_used": 0, "num_server_side_tools_used": 0,
                "cost_in_usd_ticks": 493446500,
                "context_details": {"input_tokens": 37423, "output_tokens": 1107},
            },
        },
        source="a recorded review by grok-4.3 of 2026-07-08",
        given=37423, made=1107, read=192, reasoning=792, reported="0.04934465",
        price="x-ai/grok-4.3/base", cost="(37231*1.25 + 192*0.2 + 1107*2.5)/1e6",
    ),
    Case(
        name="xAI, with searches that only its own cost counts",
        body={
            "usage": {
                "input_tokens": 44995, "input_tokens_details": {"cached_tokens": 27264},
                "output_tokens": 2497, "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 47492, "num_sources_used": 0, "num_server_side_tools_used": 12,
                "cost_in_usd_ticks": 938590500,
                "server_side_tool_usage_details": {"web_search_calls": 0, "x_search_calls": 12},
            },
        },
        source="a recorded response of xAI with twelve searches",
        provider="xai", given=44995, made=2497, read=27264, reasoning=0, reported="0.09385905",
    ),
    Case(
        name="xAI, its own names",
        body={
            "model": "grok-4-fast-non-reasoning",
            "usage": {
                "prompt_tokens": 181, "cached_prompt_text_tokens": 162, "completion_tokens": 27,
                "prompt_text_tokens": 181, "total_tokens": 208,
            },
        },
        source=GENAI_TESTS, given=181, made=27, read=162,
        price="x-ai/grok-4-fast-non-reasoning/base", cost="(19*0.2 + 162*0.05 + 27*0.5)/1e6",
    ),
    Case(
        name="DeepSeek, a miss",
        body=chat("deepseek-chat", 11, 40, prompt_cache_hit_tokens=0, prompt_cache_miss_tokens=11),
        source="BerriAI/litellm#5017", given=11, made=40, read=0,
        price="deepseek/deepseek-chat/00:30-16:30", cost="(11*0.27 + 40*1.1)/1e6",
    ),
    Case(
        name="DeepSeek, a hit at night",
        body=chat("deepseek-chat", 100, 50, prompt_cache_hit_tokens=80, prompt_cache_miss_tokens=20),
        source="mozilla-ai/any-llm#795", at=datetime(2026, 11, 1, 20, tzinfo=UTC),
        given=100, made=50, read=80,
        price="deepseek/deepseek-chat/base", cost="(20*0.135 + 80*0.035 + 50*0.55)/1e6",
    ),
    Case(
        name="DeepSeek, a long prefix",
        body=chat("deepseek-chat", 30000, 1500, prompt_cache_hit_tokens=27000, prompt_cache_miss_tokens=3000),
        source="a test of a DeepSeek client", given=30000, made=1500, read=27000,
        price="deepseek/deepseek-chat/00:30-16:30", cost="(3000*0.27 + 27000*0.07 + 1500*1.1)/1e6",
    ),
    Case(
        name="Groq",
        body=chat("llama-3.3-70b-versatile", 48, 8, queue_time=0.100731848, total_time=0.031756866),
        source=CASSETTES + "test_groq/test_groq_model_instructions",
        provider="groq", given=48, made=8,
        price="groq/llama-3.3-70b-versatile/base", cost="(48*0.59 + 8*0.79)/1e6",
    ),
    Case(
        name="Groq, OpenAI's open weights",
        body=chat("openai/gpt-oss-120b", 177, 87, queue_time=0.212268627),
        source=CASSETTES + "test_groq/test_groq_prompted_output",
        provider="groq", given=177, made=87,
        price="groq/openai/gpt-oss-120b/base", cost="(177*0.15 + 87*0.6)/1e6",
    ),
    Case(
        name="Groq, the last chunk of a stream",
        body={
            "id": "chatcmpl-x", "object": "chat.completion.chunk", "model": "openai/gpt-oss-120b",
            "choices": [],
            "x_groq": {
                "id": "req_1",
                "usage": {
                    "queue_time": 0.36142086,
                    "prompt_tokens": 90, "completion_tokens": 38, "total_tokens": 128,
                    "completion_tokens_details": {"reasoning_tokens": 7},
                },
            },
            "service_tier": "on_demand",
        },
        source="a recorded stream of Groq, its usage in x_groq, where older ones have it",
        given=90, made=38, reasoning=7,
        price="groq/openai/gpt-oss-120b/base", cost="(90*0.15 + 38*0.6)/1e6",
    ),
    Case(
        name="Groq, details that are null",
        body=chat(
            "openai/gpt-oss-20b", 79, 38,
            completion_tokens_details={"reasoning_tokens": 28}, prompt_tokens_details=None,
        ),
        source="a recorded answer of gpt-oss-20b, quoted in an agent's tests",
        provider="groq", given=79, made=38, reasoning=28,
        price="groq/openai/gpt-oss-20b/base", cost="(79*0.075 + 38*0.3)/1e6",
    ),
    Case(
        name="Cohere, floats, and tokens that differ from what was billed",
        body={
            "id": "c14c80c3", "finish_reason": "COMPLETE",
            "usage": {
                "billed_units": {"input_tokens": 5.0, "output_tokens": 418.0},
                "tokens": {"input_tokens": 71.0, "output_tokens": 418.0}, "cached_tokens": 25.0,
            },
        },
        source="docs.cohere.com, chat v2, as the SDK's integral floats",
        model="command-a-03-2025", given=71, made=418, read=25,
        price="cohere/command-a/base", cost="(71*2.5 + 418*10)/1e6",
    ),
    Case(
        name="Cohere, embeddings have only what was billed",
        body={"id": "e-1", "embeddings": {}, "meta": {"billed_units": {"input_tokens": 15}}},
        source="a test of a Cohere client", model="embed-v4.0", given=15, made=0,
        price="cohere/embed-v4.0/base", cost="15*0.12/1e6",
    ),
    Case(
        name="Cohere, a search unit is no token, and has no list price",
        body={
            "id": "07734bd2-2473-4f07-94e1-0d9f0e6843cf",
            "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
        },
        source="docs.cohere.com, rerank v2", model="rerank-v3.5",
        given=None, made=None, units={"rerank_searches": "1"},
    ),
    Case(
        name="Perplexity, reasoning and citations beside the output",
        body={
            "id": "0dd8a3aa-1175-4378-bae3-6761683d52f1", "model": "sonar-deep-research",
            "usage": {
                "prompt_tokens": 230, "completion_tokens": 13498, "total_tokens": 13728,
                "citation_tokens": 20470, "num_search_queries": 50, "reasoning_tokens": 145885,
                "cost": {
                    "input_tokens_cost": 0.00046, "output_tokens_cost": 0.10798,
                    "citation_tokens_cost": 0.04094,
                    "reasoning_tokens_cost": 0.43766, "search_queries_cost": 0.25, "total_cost": 0.83704,
                },
            },
        },
        source=_SONAR + "0dd8a3aa-1175-4378-bae3-6761683d52f1",
        given=230, made=179853, reasoning=145885, reported="0.83704",
        units={"output_citation_tokens": "20470", "web_searches": "50"},
        price="perplexity/sonar-deep-research/base",
        cost="(230*2 + 13498*8 + 20470*2 + 145885*3)/1e6 + 50*5/1000",
    ),
    Case(
        name="Perplexity, without a cost of its own",
        body={
            "model": "sonar-deep-research",
            "usage": {
                "prompt_tokens": 1001, "completion_tokens": 2373, "total_tokens": 3374,
                "citation_tokens": 8834, "num_search_queries": 19, "reasoning_tokens": 220303,
            },
        },
        source="a recorded answer of sonar-deep-research of July 2025",
        given=1001, made=231510, reasoning=220303,
        units={"output_citation_tokens": "8834", "web_searches": "19"},
        price="perplexity/sonar-deep-research/base",
        cost="(1001*2 + 2373*8 + 8834*2 + 220303*3)/1e6 + 19*5/1000",
    ),
    Case(
        name="OpenRouter, Anthropic's cache already added",
        body=chat(
            "anthropic/claude-4.6-sonnet-20260217", 4819, 1906, id="gen-1",
            prompt_tokens_details={"cached_tokens": 0, "cache_write_tokens": 4800},
        ),
        source=GENAI_TESTS, provider="openrouter", given=4819, made=1906, read=0, write=4800,
        price="openrouter/anthropic/claude-sonnet-4.6/base", cost="(19*3 + 4800*3.75 + 1906*15)/1e6",
    ),
    Case(
        name="OpenRouter, what it charged",
        body={
            "id": "gen-2",
            "usage": {
                "prompt_tokens": 12373, "completion_tokens": 1149, "total_tokens": 13522,
                "cost": 0.05589875, "is_byok": False,
                "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 12370, "audio_tokens": 0},
                "cost_details": {"upstream_inference_cost": 0.05589875},
                "completion_tokens_details": {"reasoning_tokens": 0, "image_tokens": 0},
            },
        },
        source="a recorded answer of OpenRouter", given=12373, made=1149, read=0, write=12370, reasoning=0,
        reported="0.05589875",
    ),
    Case(
        name="OpenRouter, free is a cost",
        body={
            "id": "gen-3", "model": "nvidia/nemotron-3-super-120b-a12b:free",
            "usage": {
                "prompt_tokens": 19142, "completion_tokens": 6515, "total_tokens": 25657,
                "completion_tokens_details": {"audio_tokens": 0, "image_tokens": 0, "reasoning_tokens": 6498},
                "cost": 0, "cost_details": {"upstream_inference_cost": 0}, "is_byok": False,
                "prompt_tokens_details": {"audio_tokens": 0, "cache_write_tokens": 0, "cached_tokens": 0},
            },
        },
        source="a recorded answer of OpenRouter", given=19142, made=6515, read=0, write=0, reasoning=6498,
        reported="0", price="openrouter/nvidia/nemotron-3-super-120b-a12b:free/base", cost="0",
    ),
    Case(
        name="OpenRouter, with a key of one's own",
        body=chat(
            "openai/gpt-4o-mini", 194, 2, id="gen-4", cost=0.95, is_byok=True,
            cost_details={"upstream_inference_cost": 19},
            prompt_tokens_details={"cached_tokens": 0, "cache_write_tokens": 100, "audio_tokens": 0},
            completion_tokens_details={"reasoning_tokens": 0},
        ),
        source="openrouter.ai/docs, usage accounting: the fee and what the provider charges beside it",
        provider="openrouter", given=194, made=2, read=0, write=100, reasoning=0, reported="19.95",
        price="openrouter/openai/gpt-4o-mini/base", cost="(194*0.15 + 2*0.6)/1e6",
    ),
    Case(
        name="Kimi, cached tokens at the top",
        body=chat("kimi-k2-0905-preview", 19, 21, cached_tokens=10),
        source="platform.moonshot.ai, chat completion; the cached tokens are ours",
        provider="moonshotai", given=19, made=21, read=10,
        price="moonshotai/kimi-k2-0905-preview/base", cost="(9*0.6 + 10*0.15 + 21*2.5)/1e6",
    ),
]  # fmt: skip
