"""One spelling for what providers and models are called: OpenTelemetry, LiteLLM and SDKs each have their own.

Only spellings that are known are translated; a name that merely resembles one is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

# Left of the colon what prices are kept under (the names of genai-prices), right of it how others say it.
_SPELLINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "anthropic": ("claude",),
    "aws": (
        "aws.bedrock",
        "amazon",
        "amazon-bedrock",
        "amazon_bedrock",
        "bedrock",
        "bedrock_converse",
        "aws-bedrock",
        "aws_bedrock",
    ),
    "azure": (
        "azure.ai.openai",
        "azure.ai.inference",
        "az.ai.openai",
        "az.ai.inference",
        "azure_ai",
        "azure_openai",
        "azure-openai",
        "azure_text",
    ),
    "cohere": ("cohere_chat",),
    "deepseek": ("deep_seek", "deep-seek"),
    "fireworks": ("fireworks_ai", "fireworks-ai", "fireworks.ai"),
    "github-copilot": ("github_copilot",),
    "google": (
        "gcp.gemini",
        "gcp.gen_ai",
        "gcp.vertex_ai",
        "gemini",
        "google-gla",
        "google-vertex",
        "google_ai",
        "google_genai",
        "google_vertexai",
        "vertexai",
        "vertex_ai",
        "vertex_ai_beta",
        "vertex_ai-anthropic_models",
        "vertex_ai-language-models",
    ),
    "groq": (),
    "mistral": ("mistral_ai", "mistral-ai", "mistralai"),
    "moonshotai": ("moonshot", "moonshot_ai", "moonshot-ai"),
    "openai": ("open_ai", "openai-chat", "openai-responses", "openai_responses", "text-completion-openai"),
    "openrouter": ("open_router",),
    "perplexity": ("perplexity_ai", "perplexityai"),
    "together": ("together_ai", "together-ai", "togetherai"),
    "voyageai": ("voyage", "voyage_ai"),
    "x-ai": ("x_ai", "xai", "x.ai"),
    "zai": ("z.ai", "z_ai", "z-ai"),
    "zhipuai": ("zhipu",),
}
_CANONICAL: Final = {other: name for name, others in _SPELLINGS.items() for other in (name, *others)}
_PUBLISHER: Final = re.compile(r"publishers/[^/]+/models/")
_ROUTERS: Final = frozenset(("litellm", "litellm_proxy"))


def provider_name(provider: str | None) -> str:
    """This function will return the name that prices of a provider are kept under, '' for none."""
    if provider is None:
        return ""
    plain = provider.strip().lower()
    return _CANONICAL.get(plain, plain)


def model_name(model: str | None) -> str:
    """This function will return a model's name in lower case, '' for none."""
    return "" if model is None else model.strip().lower()


def spellings(provider: str | None, model: str | None) -> Iterator[tuple[str, str]]:
    """This function will yield (provider, model) under which a price may stand, the likeliest first.

    A model may carry its provider or a path: `models/gemini-2.5-flash`, `bedrock/us-east-1/amazon.nova`,
    `litellm` with `mistral/mistral-large`. A provider that is not stated, or only a router, is the model's
    prefix, and '' where it has none that is known.
    """
    owner, name = provider_name(provider), model_name(model)
    if owner in _ROUTERS or not owner:
        prefix, slash, rest = name.partition("/")
        if slash and prefix in _CANONICAL:
            yield from spellings(prefix, rest)
        if owner:
            yield owner, name
        yield "", name
        return
    yield owner, name
    for path in ("models/", "tunedmodels/"):
        if name.startswith(path):
            yield owner, name.removeprefix(path)
    published = _PUBLISHER.search(name)
    if published:
        yield owner, name[published.end() :]
    prefix, slash, rest = name.partition("/")
    if slash and _CANONICAL.get(prefix) == owner and owner != "openrouter":
        yield owner, rest
    if slash and owner in ("aws", "fireworks"):
        yield owner, name.rpartition("/")[2]
