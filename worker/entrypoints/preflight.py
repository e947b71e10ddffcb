"""What must be true before a worker starts; every connection that is opened here is closed here."""

from __future__ import annotations

import logging

from kombu.connection import Connection
from kombu.exceptions import OperationalError

from producers._config import redacted
from worker import db
from worker.entrypoints import streams
from worker.errors import ServiceUnreachable
from worker.settings import Settings

logger = logging.getLogger(__name__)


def check(settings: Settings) -> None:
    """This function will prove that both databases are at head and the stream's server keeps its data.

    Raises ConfigurationError or ServiceUnreachable with the variable and the next step. What is only unwise,
    such as a server without an append-only file, is logged.
    """
    db.configure(settings)
    db.set_application_role("preflight")
    try:
        db.init_databases()
    finally:
        db.close_databases()
    for warning in streams.check_server(settings):
        logger.warning(warning)
    if settings.celery_broker_url != settings.redis_url:
        _check_broker(settings.celery_broker_url)


def _check_broker(url: str) -> None:
    try:
        with Connection(  # type: ignore[no-untyped-call]  # kombu has no signature there
            url, transport_options={"socket_timeout": 5, "socket_connect_timeout": 5}
        ) as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
    except (OperationalError, OSError) as error:
        raise ServiceUnreachable(
            "CELERY_BROKER_URL",
            f"{redacted(url)}: the broker does not answer ({redacted(str(error))})",
            "start the broker there, or correct CELERY_BROKER_URL.",
        ) from error
