"""The app that test_celery.py lets a real worker run."""

import time
from typing import Any

from celery import Celery

from producers import BufferedEmitter
from producers.integrations._context import current_usage
from producers.integrations.celery import install


class Refused(Exception):
    """What a task may raise."""


def make(broker_url: str) -> tuple[Celery, Any]:
    """This function will make the app and connect it."""
    app = Celery("frameworks", broker=broker_url, backend=broker_url)
    app.conf.update(worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True)
    # An interval that no test waits for: only closing delivers what waits.
    usage = install(app, emitter=lambda: BufferedEmitter.from_env(flush_interval_ms=60_000))

    def emit(tokens: int) -> None:
        time.sleep(0.02)  # so that tasks in threads overlap
        around = current_usage()
        usage.emitter.emit(
            clerk_id=around.user or "nobody",
            feature=around.feature or "none",
            input_tokens=tokens,
            output_tokens=0,
        )

    def count(tokens: int) -> None:
        emit(tokens)

    def fail(tokens: int) -> None:
        emit(tokens)
        raise Refused

    def again(self: Any, tokens: int) -> None:
        if self.request.retries == 0:
            raise self.retry(countdown=0)
        emit(tokens)

    def pass_on(tokens: int) -> None:
        app.send_task("count", (tokens,))

    # Celery's decorators have no types. Not shared: other apps of this process would take them over.
    for task in (count, fail, pass_on):
        app.task(name=task.__name__, shared=False)(task)
    app.task(name="again", bind=True, max_retries=1, shared=False)(again)
    return app, usage
