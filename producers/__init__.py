"""What an app needs to report its usage: `Emitter` sends, `UsageEvent` is what it sends."""

from producers._config import EmitterConfig, InvalidConfiguration, MissingConfiguration
from producers._emitter import Batch, Emitter, StreamUnavailable
from producers._events import InvalidEvent, UsageEvent

__all__ = [
    "Batch",
    "Emitter",
    "EmitterConfig",
    "InvalidConfiguration",
    "InvalidEvent",
    "MissingConfiguration",
    "StreamUnavailable",
    "UsageEvent",
]
