"""`app`, for `celery -A worker.app worker | beat | flower`."""

from __future__ import annotations

from worker.entrypoints import _exits, flower
from worker.entrypoints.celery_app import create_app
from worker.errors import UsageWorkerError
from worker.settings import load_settings

try:
    app = create_app(load_settings())
    flower.show_results()
except UsageWorkerError as error:
    # Celery prints a traceback for any exception here, but lets SystemExit pass.
    _exits.complain(error)
    raise SystemExit(_exits.exit_code_of(error)) from None
