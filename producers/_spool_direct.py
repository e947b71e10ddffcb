"""Connections over which a caller sends one command itself, and waits for the answer a bounded time."""

import time
from collections import deque

from redis import exceptions as redis_errors

from producers._transport import MAX_IDLE, TRUSTED_SECONDS, Lease, Request, Transport, is_quiet


class Direct:
    """Connections to a single server without TLS; `send` is for any thread, `add` for one that may wait."""

    def __init__(self, transport: Transport, *, timeout: float) -> None:
        self._transport = transport
        self._timeout = timeout
        # append and pop are atomic, so that sending takes no lock.
        self._idle: deque[Lease] = deque()
        self._is_possible = True

    def send(self, request: Request) -> bool:
        """This function will send a command with one reply; False where no connection is at hand.

        Raises a redis error where the server refuses it, or does not answer within the timeout.
        """
        try:
            lease = self._idle.pop()
        except IndexError:
            return False
        now = time.monotonic()
        fast = lease.fast
        if fast is None or (now - lease.used_at > TRUSTED_SECONDS and not is_quiet(lease)):
            lease.discard()
            return False
        try:
            answer = fast.exchange(request.packed)
        except TimeoutError:
            lease.discard()
            raise redis_errors.TimeoutError(f"no answer within {self._timeout * 1000:.0f} ms") from None
        except OSError:
            # Closed meanwhile, as by a restart: another connection may do.
            lease.discard()
            return False
        except BaseException:
            lease.discard()
            raise
        if answer is None:
            found = fast.peeked
            # Nothing of the answer was taken, so that the connection is of no more use.
            lease.discard()
            if not found:
                return False
            said = found.decode(errors="replace").strip().lstrip("-")
            kind = redis_errors.NoPermissionError if said.startswith("NOPERM") else redis_errors.ResponseError
            raise kind(said)
        lease.used_at = now
        self._idle.append(lease)
        return True

    def add(self) -> None:
        """This function will open one more connection, where that is of use; raises a redis error."""
        if not self._is_possible or len(self._idle) >= MAX_IDLE:
            return
        lease = self._transport.lease()
        if lease is None or lease.fast is None:
            # A cluster, TLS, or a single processor: the thread that may wait does it all.
            self._is_possible = False
            if lease is not None:
                lease.discard()
            return
        lease.fast.origin.settimeout(self._timeout)
        lease.used_at = time.monotonic()
        self._idle.append(lease)

    def clear(self) -> None:
        """This function will close the connections that are not in use."""
        while True:
            try:
                self._idle.pop().discard()
            except IndexError:
                return
