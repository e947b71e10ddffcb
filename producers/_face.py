"""What every emitter can do: take this as the type where any of them will do, also the one for tests."""

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Protocol, Unpack
from uuid import UUID

from producers._emitter import Batch
from producers._events import UsageEvent
from producers._making import Usage


class UsageEmitter(Protocol):
    """The face of Emitter, BufferedEmitter and RecordingEmitter."""

    def emit(self, **usage: Unpack[Usage]) -> UUID:
        """This function will take one event and return its id."""
        ...

    def send(self, event: UsageEvent) -> UUID:
        """This function will take an event that was made before."""
        ...

    def batch(self) -> AbstractContextManager[Batch]:
        """This function will collect events and take them together when the block ends."""
        ...

    def void(
        self, event_id: UUID | str, *, user_id: UUID | str | None = None, clerk_id: str | None = None
    ) -> UUID:
        """This function will take the reversal of this user's event."""
        ...

    def close(self) -> object:
        """This function will end it; a later `emit` raises StreamUnavailable."""
        ...


class AsyncUsageEmitter(Protocol):
    """The face of AsyncEmitter and RecordingAsyncEmitter."""

    async def emit(self, **usage: Unpack[Usage]) -> UUID:
        """This function will send one event and return its id once it is acknowledged."""
        ...

    async def send(self, event: UsageEvent) -> UUID:
        """This function will send an event that was made before."""
        ...

    def batch(self) -> AbstractAsyncContextManager[Batch]:
        """This function will collect events and send them together when the block ends."""
        ...

    async def void(
        self, event_id: UUID | str, *, user_id: UUID | str | None = None, clerk_id: str | None = None
    ) -> UUID:
        """This function will send the reversal of this user's event."""
        ...

    async def close(self) -> object:
        """This function will end it; a later `emit` raises StreamUnavailable."""
        ...
