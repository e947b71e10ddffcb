"""One spelling for what everybody calls differently."""

from __future__ import annotations

import pytest

from worker.pricing import names


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("OpenAI", "openai"),
        (" gcp.gemini ", "google"),
        ("gcp.gen_ai", "google"),
        ("gcp.vertex_ai", "google"),
        ("vertex_ai", "google"),
        ("x_ai", "x-ai"),
        ("xai", "x-ai"),
        ("fireworks_ai", "fireworks"),
        ("azure.ai.openai", "azure"),
        ("azure_ai", "azure"),
        ("aws.bedrock", "aws"),
        ("bedrock_converse", "aws"),
        ("mistral_ai", "mistral"),
        ("together_ai", "together"),
        ("cohere_chat", "cohere"),
        ("my-openai-proxy", "my-openai-proxy"),
        ("", ""),
        (None, ""),
    ],
)
def test_a_provider_has_one_name_and_is_not_guessed(spelling: str | None, name: str) -> None:
    assert names.provider_name(spelling) == name


@pytest.mark.parametrize(
    ("provider", "model", "one_of_them"),
    [
        ("google", "models/gemini-2.5-flash", ("google", "gemini-2.5-flash")),
        ("vertex_ai", "publishers/google/models/gemini-2.5-pro", ("google", "gemini-2.5-pro")),
        ("litellm", "mistral/mistral-large", ("mistral", "mistral-large")),
        (None, "anthropic/claude-sonnet-4-5", ("anthropic", "claude-sonnet-4-5")),
        ("bedrock", "bedrock/us-east-1/amazon.nova-pro-v1:0", ("aws", "amazon.nova-pro-v1:0")),
        ("openai", "openai/GPT-4o", ("openai", "gpt-4o")),
        (None, None, ("", "")),
    ],
)
def test_a_model_may_carry_a_path(
    provider: str | None, model: str | None, one_of_them: tuple[str, str]
) -> None:
    assert one_of_them in list(names.spellings(provider, model))


def test_a_router_keeps_its_models_names() -> None:
    assert list(names.spellings("openrouter", "openai/gpt-4o")) == [("openrouter", "openai/gpt-4o")]
