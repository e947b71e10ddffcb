"""procrastinate with one job per event.

`python -m benchmarks.peers.procrastinate_app schema|work|emit FILE`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import Any

import procrastinate  # type: ignore[import-not-found]  # in the compared systems' environment

from benchmarks.peers.sink import Sink, read_events, ready

_URL = os.environ["BENCH_DATABASE"]  # noqa: TID251  a compared program, it has no settings of ours
_SINK = Sink(_URL)
_CONCURRENCY = 4
_SETTLE_SECONDS = 1.0
logging.getLogger("procrastinate").setLevel(logging.ERROR)
work_app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=_URL))
emit_app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=_URL))


def _store(event: dict[str, Any]) -> None:
    _SINK.store(event)


async def _work() -> None:
    async with work_app.open_async():
        # It tells nobody when it has begun to listen; a job that comes before waits for the next poll.
        asyncio.get_running_loop().call_later(_SETTLE_SECONDS, ready)
        await work_app.run_worker_async(concurrency=_CONCURRENCY, install_signal_handlers=False)


for _app in (work_app, emit_app):
    _app.task(name="store", queue="store")(_store)

if __name__ == "__main__":
    if sys.argv[1] == "work":
        asyncio.run(_work())
    else:
        with emit_app.open():
            if sys.argv[1] == "schema":
                emit_app.schema_manager.apply_schema()
            else:
                for one in read_events(sys.argv[2]):
                    emit_app.configure_task("store", queue="store").defer(event=one)
