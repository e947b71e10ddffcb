"""`track(client)` with nothing but the environment: events reach the stream that REDIS_URL names."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest
import redis

from producers import MissingConfiguration
from producers._stream import decode
from producers.integrations import track, tracking

KEY = "usage:events:{0}"
USER = "7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11"
ANSWER = {
    "id": "chatcmpl-9x",
    "object": "chat.completion",
    "created": 1_770_000_000,
    "model": "gpt-4o-mini-2024-07-18",
    "choices": [],
    "usage": {"prompt_tokens": 812, "completion_tokens": 455, "total_tokens": 1267},
}


@pytest.fixture
def client() -> Iterator[openai.OpenAI]:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=ANSWER))
    tracking._emitter_of_the_process.cache_clear()
    with openai.OpenAI(api_key="none", http_client=httpx.Client(transport=transport)) as made:
        yield made
    tracking._emitter_of_the_process.cache_clear()


def test_two_lines_are_enough(
    client: openai.OpenAI, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", valkey_url)
    tracked = track(client, user_id=USER, feature="chat")
    tracked.chat.completions.create(model="gpt-4o-mini", messages=[])
    track(client, user_id=USER, feature="search").chat.completions.create(model="gpt-4o-mini", messages=[])
    emitter = tracking._emitter_of_the_process()
    assert emitter.flush(timeout=10)
    with redis.Redis.from_url(valkey_url) as server:
        data = [fields[b"data"] for _, fields in server.xrange(KEY)]
    events = [decoded.event for one in data for decoded in decode(one)]
    assert [(str(event.user_id), event.feature, event.input_tokens) for event in events if event] == [
        (USER, "chat", 812),
        (USER, "search", 812),
    ]
    emitter.close()


def test_a_missing_url_is_named(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    with pytest.raises(MissingConfiguration, match="REDIS_URL"):
        track(client, user_id=USER, feature="chat")
