"""What OpenAI answers, for the tests of `track`."""

from typing import Any

from tests.unit.producers.integrations.provider_server import sse

ALICE = "7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11"
BOB = "7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a12"
MESSAGES: list[Any] = [{"role": "user", "content": "a secret question"}]
MODEL = "gpt-4o-mini"
USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 7,
    "total_tokens": 107,
    "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 3, "audio_tokens": 0},
}
RESPONSE_USAGE = {
    "input_tokens": 100,
    "input_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 0},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 3},
    "total_tokens": 107,
}


def completion(identity: str = "chatcmpl-1", content: str = "a secret answer", **more: object) -> Any:
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {
        "id": identity,
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [choice],
        "usage": USAGE,
    } | more


def chunk(content: str | None = None, *, finish: str | None = None, **more: object) -> dict[str, Any]:
    choices = [{"index": 0, "delta": {"content": content} if content else {}, "finish_reason": finish}]
    return {
        "id": "chatcmpl-2",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": choices,
        "usage": None,
    } | more


def stream(*, usage: object = USAGE) -> list[bytes]:
    return sse(chunk("a "), chunk("secret"), chunk(finish="stop"), chunk(choices=[], usage=usage), done=True)


def response(**more: object) -> dict[str, Any]:
    text = {"type": "output_text", "text": "a secret answer", "annotations": []}
    message = {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": [text],
    }
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "gpt-5-2025-08-07",
        "status": "completed",
        "output": [message],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": RESPONSE_USAGE,
    } | more
