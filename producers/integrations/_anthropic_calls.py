"""Which calls of the Anthropic SDK are counted, and how their streams say what was used."""

import re
from typing import Final

from producers.integrations._counts import part
from producers.integrations._watching import Event

_COUNTED: Final = frozenset(("/v1/messages",))
_RESULTS: Final = re.compile(r"/v1/messages/batches/[^/?]+/results(?:\?|$)")


def is_counted(path: str) -> bool:
    """This function will say whether a POST to this path of the API uses something."""
    return path.partition("?")[0].rstrip("/") in _COUNTED


def are_results(path: str) -> bool:
    """This function will say whether a GET of this path reads the results of a batch, one in each line."""
    return _RESULTS.search(path) is not None


def provider_of(client: object) -> str | None:
    """This function will name the provider that a client talks to; None for a host that is not known."""
    name = type(client).__name__
    for mark, provider in (("Bedrock", "aws"), ("AWS", "aws"), ("Vertex", "google"), ("Foundry", "azure")):
        if mark in name:
            return provider
    host = str(part(part(client, "base_url"), "host") or "")
    if host == "openrouter.ai":
        return "openrouter"
    return "anthropic" if host == "anthropic.com" or host.endswith(".anthropic.com") else None


class Stream:
    """Puts the events of a stream together to the message that they make.

    Counts in a stream are cumulative: each replaces the one before, but for null, which says nothing new.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._answer: Event = {}
        self._usage: Event = {}

    def take(self, event: Event) -> bool:
        """This function will take what an event says; the caller sees them all."""
        message = event.get("message")
        if isinstance(message, dict):
            self._answer |= {name: message[name] for name in ("id", "model") if name in message}
            self._take_usage(message.get("usage"))
        self._take_usage(event.get("usage"))
        self.is_over = self.is_over or event.get("type") == "message_stop"
        return True

    def done(self) -> None:
        """This function will note that the server has said that this was all."""
        self.is_over = True

    def answer(self) -> Event:
        """This function will return what is known so far."""
        return self._answer | {"usage": self._usage} if self._usage else self._answer

    def _take_usage(self, usage: object) -> None:
        if isinstance(usage, dict):
            self._usage |= {name: value for name, value in usage.items() if value is not None}
