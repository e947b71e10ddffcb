"""What Celery 5.7 gets wrong when the broker goes away under a task that acknowledges late."""

from __future__ import annotations

import warnings

from celery.exceptions import CPendingDeprecationWarning
from celery.worker import state
from celery.worker.consumer import Consumer


class SurvivingConsumer(Consumer):  # type: ignore[misc]  # celery is published without types
    """A consumer that outlives the loss of its broker, whatever was being worked on.

    Closing the lost connection makes kombu give unacknowledged messages back, through a transport that it has
    taken apart already: AttributeError ('NoneType' … 'hostname'), and the worker exits. Nor can a task that
    goes on meanwhile acknowledge through it. Neither is needed: such a message stays in the broker's list of
    unacknowledged ones and comes back after the visibility timeout, and job_runs says that its run is done.
    """

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """This function will let go of the messages in hand, and then do as Celery does."""
        for channel in list(self.connection.transport.channels):
            channel.do_restore = False
        for request in tuple(state.active_requests) + tuple(state.reserved_requests):
            request.acknowledged = True
        with warnings.catch_warnings():
            # It asks each time for a choice that is made in the settings: tasks that run go on.
            warnings.simplefilter("ignore", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)
