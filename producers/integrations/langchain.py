"""LangChain and LangGraph: a callback handler that turns the usage of each model run into one event.

`model.invoke(…, config={"callbacks": [UsageCallbackHandler(emitter, feature="chat")]})`, or once for all in
the model's or graph's own configuration. LangChain's counts include the cache in the input.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.outputs import LLMResult

from producers._face import UsageEmitter
from producers.integrations._context import current_usage
from producers.integrations._reporting import OnError, Reporter, counts, provider_id

__all__ = ["UsageCallbackHandler"]

_MOST_OPEN_RUNS: Final = 10_000


class UsageCallbackHandler(BaseCallbackHandler):
    """Emits one event for each run of a model, streamed or not; a cached answer used nothing.

    The user and the feature are `user_id` and `feature` of the run's metadata (`config={"metadata": {…}}`),
    or those of the `usage_context` around the call, or those given here.
    """

    def __init__(
        self,
        emitter: UsageEmitter,
        *,
        user_id: UUID | str | None = None,
        feature: str | None = None,
        on_error: OnError | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """This function will prepare the handler; `clock` returns seconds, for `duration_ms`."""
        super().__init__()
        self._reporter = Reporter(emitter, user_id=user_id, feature=feature, on_error=on_error)
        self._clock = clock
        # Bounded: a run that is cancelled may never end.
        self._open: OrderedDict[UUID, dict[str, Any]] = OrderedDict()

    def on_chat_model_start(
        self, serialized: dict[str, Any], messages: list[list[Any]], *, run_id: UUID, **kwargs: Any
    ) -> None:
        """This function will remember who started the run, and when."""
        self._start(run_id, kwargs.get("metadata"))

    def on_llm_start(
        self, serialized: dict[str, Any], prompts: list[str], *, run_id: UUID, **kwargs: Any
    ) -> None:
        """This function will remember who started the run, and when."""
        self._start(run_id, kwargs.get("metadata"))

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """This function will emit the usage of the run; told again, it is the same event."""
        self._end(run_id, response, "ok")

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """This function will emit what the run is known to have used before it failed."""
        self._end(run_id, kwargs.get("response"), "error")

    def _start(self, run_id: UUID, metadata: Mapping[str, Any] | None) -> None:
        around = current_usage()
        given = metadata or {}
        self._open[run_id] = {
            "started": self._clock(),
            "user_id": given.get("user_id") or around.user,
            "feature": given.get("feature") or around.feature,
            "provider": given.get("ls_provider"),
            "model": given.get("ls_model_name"),
        }
        while len(self._open) > _MOST_OPEN_RUNS:
            self._open.popitem(last=False)

    def _end(self, run_id: UUID, response: LLMResult | None, status: str) -> None:
        run = self._open.pop(run_id, {})
        if response is None:
            return
        try:
            events = list(_events_of(response, run, run_id))
            took = round((self._clock() - run["started"]) * 1000) if run else None
        except Exception as error:  # noqa: BLE001 the app has its answer: a failure here is only told
            self._reporter.failed(error)
            return
        for event in events:
            event |= {"status": status, "duration_ms": took}
            self._reporter.report(event, user_id=run.get("user_id"), feature=run.get("feature"))


def _events_of(response: LLMResult, run: Mapping[str, Any], run_id: UUID) -> Iterator[dict[str, Any]]:
    """One event for each prompt of the run, which nearly always has one."""
    told = False
    for index, candidates in enumerate(response.generations):
        # Where several answers were asked for, each repeats the usage of all.
        messages = (getattr(candidate, "message", None) for candidate in candidates)
        message = next((found for found in messages if getattr(found, "usage_metadata", None)), None)
        if message is None:
            continue
        told = True
        usage, about = message.usage_metadata, message.response_metadata
        tokens = None if usage.get("total_cost") == 0 else _tokens(usage)
        if tokens is not None:
            key = about.get("id") or _own_id(message.id) or f"langchain:{run_id}:{index}"
            yield {**tokens, **_made_by(about, run), "idempotency_key": key}
    total = (response.llm_output or {}).get("token_usage")
    if told or not total:
        return
    inside = total.get("prompt_tokens_details") or {}
    outside = total.get("completion_tokens_details") or {}
    tokens = counts(
        input_tokens=total.get("prompt_tokens"),
        output_tokens=total.get("completion_tokens"),
        cache_read_tokens=inside.get("cached_tokens"),
        reasoning_tokens=outside.get("reasoning_tokens"),
    )
    if tokens is not None:
        about = response.llm_output or {}
        key = about.get("id") or f"langchain:{run_id}:0"
        yield {**tokens, **_made_by(about, run), "idempotency_key": key}


def _tokens(usage: Mapping[str, Any]) -> dict[str, int] | None:
    inside: Mapping[str, Any] = usage.get("input_token_details") or {}
    outside: Mapping[str, Any] = usage.get("output_token_details") or {}
    # Anthropic's writes by lifetime stand beside a `cache_creation` of 0, or add up to it.
    by_lifetime = _sum(inside, "ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
    written = _sum(inside, "cache_creation")
    return counts(
        input_tokens=usage.get("input_tokens"),
        output_tokens=usage.get("output_tokens"),
        # OpenAI's service tiers put their name before: `flex_cache_read`, `priority_reasoning`.
        cache_read_tokens=_sum(inside, "cache_read", "flex_cache_read", "priority_cache_read"),
        cache_write_tokens=None
        if written is None and by_lifetime is None
        else max(written or 0, by_lifetime or 0),
        reasoning_tokens=_sum(outside, "reasoning", "flex_reasoning", "priority_reasoning"),
    )


def _sum(details: Mapping[str, Any], *names: str) -> int | None:
    found = [details[name] for name in names if details.get(name) is not None]
    return sum(found) if found else None


def _made_by(about: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "provider": provider_id(about.get("model_provider") or run.get("provider")),
        "model": about.get("model_name") or about.get("model") or run.get("model"),
    }


def _own_id(message_id: str | None) -> str | None:
    """The provider's id of a message; LangChain's own ones say which run it was, as the key does anyway."""
    return message_id if message_id and not message_id.startswith(("run-", "lc_run-")) else None
