"""The Anthropic SDK: `client = track(Anthropic(), emitter=emitter, feature="chat")`: an event per message.

Messages, streamed or not, and the results of message batches; also on Bedrock, Vertex and Foundry. For
messages from elsewhere there is `usage_of`, and `usages_of` where compactions and advisors matter.
"""

from producers.integrations._context import usage_context
from producers.integrations._reporting import ImpossibleUsage
from producers.integrations._usage import AmbiguousUsage, usage_of, usages_of
from producers.integrations.tracking import track

__all__ = ["AmbiguousUsage", "ImpossibleUsage", "track", "usage_context", "usage_of", "usages_of"]
