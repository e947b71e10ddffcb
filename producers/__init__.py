"""What an app needs to report its usage: an emitter sends, `UsageEvent` is what it sends.

`Emitter` returns once an event is acknowledged, `BufferedEmitter` in microseconds, `AsyncEmitter` is awaited.
"""

from producers._aio import AsyncEmitter
from producers._buffered import BufferedEmitter
from producers._config import EmitterConfig, InvalidConfiguration, MissingConfiguration
from producers._delivery import StreamUnavailable
from producers._emitter import Batch, Emitter
from producers._events import InvalidEvent, UsageEvent
from producers._face import AsyncUsageEmitter, UsageEmitter
from producers._reports import BufferFull, Report, Stats

__all__ = [
    "AsyncEmitter",
    "AsyncUsageEmitter",
    "Batch",
    "BufferFull",
    "BufferedEmitter",
    "Emitter",
    "EmitterConfig",
    "InvalidConfiguration",
    "InvalidEvent",
    "MissingConfiguration",
    "Report",
    "Stats",
    "StreamUnavailable",
    "UsageEmitter",
    "UsageEvent",
]
