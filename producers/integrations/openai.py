"""The OpenAI SDK: `client = track(OpenAI(), emitter=emitter, feature="chat")`, and each answer is one event.

Chat, legacy completions, responses, embeddings, transcriptions, translations and images, streamed or not, of
any provider that the SDK talks to. For answers from elsewhere there is `usage_of`.
"""

from producers.integrations._context import usage_context
from producers.integrations._reporting import ImpossibleUsage
from producers.integrations._usage import AmbiguousUsage, usage_of
from producers.integrations.tracking import track

__all__ = ["AmbiguousUsage", "ImpossibleUsage", "track", "usage_context", "usage_of"]
