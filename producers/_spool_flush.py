"""Sends what ended processes have left in a spool, without an emitter: `usage-worker spool flush`."""

from pathlib import Path
from typing import Final, NamedTuple

from redis import exceptions as redis_errors

from producers._config import EmitterConfig
from producers._delivery import StreamUnavailable
from producers._routes import Routes
from producers._spool import Spool, state_of
from producers._spool_replay import Replay
from producers._transport import Transport

# What is put behind was there before.
_NO_BOUND_MB: Final = 2.0**30


class Flushed(NamedTuple):
    """What a flush did: `held` are segments that living processes write or replay themselves."""

    segments: int
    events: int
    damaged_bytes: int
    held: int


def flush(config: EmitterConfig, directory: Path) -> Flushed:
    """This function will send every segment that no process holds, and delete each once it is acknowledged.

    Raises StreamUnavailable where the stream does not take them all: what it has taken by then is noted, and
    the rest waits. Raises OSError where the directory cannot be read.
    """
    routes = Routes(config)
    transport = Transport(config)
    spool = Spool(str(directory), max_mb=_NO_BOUND_MB)
    replay = Replay(routes, transport, spool)
    try:
        replay.run(own=False, go_on=lambda: True)
        refusal = replay.refusal
    except redis_errors.RedisError as error:
        refusal = error
    finally:
        transport.close()
        spool.close()
    waiting = state_of(directory).segments
    if refusal is not None:
        count = sum(one.events for one in waiting if not one.held)
        raise StreamUnavailable(
            f"{routes.refusal(refusal, count)}; {replay.events} were sent before"
        ) from refusal
    return Flushed(replay.segments, replay.events, replay.damaged_bytes, sum(one.held for one in waiting))
