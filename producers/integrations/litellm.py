"""LiteLLM: `litellm.callbacks = [usage_logger(emitter, feature="chat")]`, and each answer becomes one event.

LiteLLM has already added the cache to the input, whoever the provider is. An answer from LiteLLM's own cache
used nothing and is not counted; nor is a stream that was left before its end, of which LiteLLM says nothing.
"""

import importlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from producers._face import UsageEmitter
from producers.integrations import _counts
from producers.integrations._context import current_usage
from producers.integrations._reporting import OnError, Reporter, provider_id

__all__ = ["usage_logger"]

# The success of a synchronous stream is logged in a thread that knows nothing of the caller's context: what
# was around the call is kept beside the call's own details.
_AROUND: Final = "usage_context"


def usage_logger(
    emitter: UsageEmitter, *, feature: str | None = None, on_error: OnError | None = None
) -> Any:
    """This function will make a `litellm.integrations.custom_logger.CustomLogger` for `litellm.callbacks`.

    The user is `metadata["user_id"]` of the call, or that of the `usage_context` around it, or the call's
    `user`; the feature is `metadata["feature"]`, or the context's, or `feature`. It never raises into
    LiteLLM: `on_error` is told what could not be emitted. LiteLLM is imported here, and not before.
    """
    base = importlib.import_module("litellm.integrations.custom_logger").CustomLogger
    kind = type("UsageLogger", (_UsageLogger, base), {})
    logger = kind()
    logger.reporter = Reporter(emitter, feature=feature, on_error=on_error)
    return logger


class _UsageLogger:
    """The callbacks; LiteLLM's own class, which it asks for, is added when LiteLLM is there."""

    reporter: Reporter

    def log_pre_api_call(self, model: str, messages: object, kwargs: dict[str, Any]) -> None:
        """This function will keep the context of the caller, whose thread this is."""
        kwargs[_AROUND] = current_usage()

    def log_success_event(
        self, kwargs: dict[str, Any], response_obj: object, start_time: datetime, end_time: datetime
    ) -> None:
        """This function will emit the usage of an answer, or of a stream that is complete."""
        usage = _part(response_obj, "usage")
        if usage is not None and kwargs.get("cache_hit") is not True:
            self._report(kwargs, response_obj, usage, "ok", end_time - start_time)

    def log_failure_event(
        self, kwargs: dict[str, Any], response_obj: object, start_time: datetime, end_time: datetime
    ) -> None:
        """This function will emit what a failed call is known to have used; a stream may break off."""
        usage = kwargs.get("combined_usage_object")
        if usage is not None:
            self._report(kwargs, response_obj, usage, "error", end_time - start_time)

    async def async_log_success_event(
        self, kwargs: dict[str, Any], response_obj: object, start_time: datetime, end_time: datetime
    ) -> None:
        """This function will do the same for calls that are awaited."""
        self.log_success_event(kwargs, response_obj, start_time, end_time)

    async def async_log_failure_event(
        self, kwargs: dict[str, Any], response_obj: object, start_time: datetime, end_time: datetime
    ) -> None:
        """This function will do the same for calls that are awaited."""
        self.log_failure_event(kwargs, response_obj, start_time, end_time)

    def _report(
        self, call: Mapping[str, Any], response: object, usage: object, status: str, took: Any
    ) -> None:
        try:
            event = _event_of(call, response, usage)
            if event is None:
                return
            event |= {"status": status, "duration_ms": max(0, round(took.total_seconds() * 1000))}
            params = call.get("litellm_params") or {}
            metadata = params.get("metadata") or params.get("litellm_metadata") or {}
            around = call.get(_AROUND) or current_usage()
        except Exception as error:  # noqa: BLE001 the app has its answer: a failure here is only told
            self.reporter.failed(error)
            return
        self.reporter.report(
            event,
            user_id=metadata.get("user_id") or around.user,
            feature=metadata.get("feature") or around.feature,
            fallback_user_id=call.get("user"),
        )


def _event_of(call: Mapping[str, Any], response: object, usage: object) -> dict[str, Any] | None:
    # Answers speak of prompts and completions, whoever the provider is; those of the responses API do not.
    found = _counts.chat(usage) or _counts.responses(usage)
    if found is None:
        return None
    cost = call.get("response_cost")
    event: dict[str, Any] = {
        **found.usage(),
        "provider": provider_id(call.get("custom_llm_provider")),
        "model": _model(call, response),
        "idempotency_key": _part(response, "id") or f"litellm:{call['litellm_call_id']}",
    }
    # With a diagnosis, the cost of 0 only says that LiteLLM has no price. A float goes through its shortest
    # spelling: 1.4400000000000001e-05 is rounded to 12 places there.
    if cost is not None and not call.get("zero_cost_diagnostic"):
        event["cost_usd"] = repr(cost) if isinstance(cost, float) else cost
    return event


def _model(call: Mapping[str, Any], response: object) -> str | None:
    name = _part(response, "model") or call.get("model")
    prefix = f"{call.get('custom_llm_provider')}/"
    return name.removeprefix(prefix) if isinstance(name, str) else None


def _part(whole: object, name: str) -> Any:
    return whole.get(name) if isinstance(whole, Mapping) else getattr(whole, name, None)
