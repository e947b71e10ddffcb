"""What reports usage by itself: wrappers and callbacks for SDKs and frameworks, a module for each."""

from producers.integrations._context import usage_context
from producers.integrations._reporting import ImpossibleUsage
from producers.integrations._usage import AmbiguousUsage, usage_of
from producers.integrations.tracking import track

__all__ = ["AmbiguousUsage", "ImpossibleUsage", "track", "usage_context", "usage_of"]
