"""What `celery -A worker.app flower` shows unless its flags say otherwise."""

from __future__ import annotations

from tornado.options import options

# Flower's own default leaves the result out, and the result is what a task of ours counted.
TASKS_COLUMNS = "name,state,result,received,runtime,worker,uuid"


def show_results() -> None:
    """This function will put the column of results on Flower's page of tasks; elsewhere it does nothing."""
    if "tasks_columns" in options:
        options.tasks_columns = TASKS_COLUMNS
