"""Anthropic: pages of the usage report of messages, and the results of message batches.

Its counts are additive: what is read from and written to the cache stands beside the input, not in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from worker.entrypoints.cli._exports_records import (
    Record,
    Unreadable,
    batch_fields,
    bucket_key,
    bucket_metadata,
    count,
    is_open,
    members,
    moment,
)

# All that a report can be grouped by; see _exports_openai.
_DIMENSIONS: Final = (
    "model",
    "workspace_id",
    "api_key_id",
    "service_tier",
    "context_window",
    "inference_geo",
    "speed",
    "account_id",
    "service_account_id",
)
_KIND: Final = "anthropic.messages"
# Fetching a page costs its tokens alone. As a unit, which has no price, it would make the event unpriced.
_FREE: Final = frozenset(("web_fetch_requests",))


def records(document: Any, now: datetime) -> Iterator[Record]:
    """This function will yield the records of a page, a bucket, a batch result, or a list of these."""
    if isinstance(document, list):
        for one in document:
            yield from records(one, now)
    elif not isinstance(document, Mapping):
        raise _unknown()
    elif "custom_id" in document and isinstance(document.get("result"), Mapping):
        yield _batch_result(document)
    elif "starting_at" in document:
        yield from _bucket(document, now)
    elif isinstance(document.get("data"), list):
        for one in document["data"]:
            if not isinstance(one, Mapping) or "starting_at" not in one:
                raise _unknown()
            yield from _bucket(one, now)
    else:
        raise _unknown()


def _unknown() -> Unreadable:
    return Unreadable(
        "unknown_record",
        "expected a page of GET /v1/organizations/usage_report/messages (an object with data: buckets with "
        "starting_at and results), or a line of a message batch's results (custom_id, result)",
    )


def _bucket(bucket: Mapping[str, Any], now: datetime) -> Iterator[Record]:
    start = moment(bucket.get("starting_at"), "starting_at")
    end = moment(bucket.get("ending_at"), "ending_at")
    results = bucket.get("results")
    if not isinstance(results, list):
        raise _unknown()
    for index, result in enumerate(results, start=1):
        place = f"bucket of {start.isoformat()}, result {index}"
        if not isinstance(result, Mapping) or "uncached_input_tokens" not in result:
            yield Record(place=place, problem="no uncached_input_tokens: it is not of the usage report")
        elif is_open(end, now):
            yield Record(skipped="open_bucket")
        else:
            try:
                yield _result(result, start, end, place)
            except Unreadable as error:
                yield Record(place=place, problem=error.detail)


def _result(result: Mapping[str, Any], start: datetime, end: datetime, place: str) -> Record:
    creation = members(result, "cache_creation")
    written = sum(count(creation, name) for name in creation)
    read = count(result, "cache_read_input_tokens")
    fields: dict[str, object] = {
        "provider": "anthropic",
        "model": result.get("model"),
        "occurred_at": start,
        "input_tokens": count(result, "uncached_input_tokens") + read + written,
        "output_tokens": count(result, "output_tokens"),
        "cache_read_tokens": read,
        "cache_write_tokens": written,
    }
    units = _units(members(result, "server_tool_use"), creation)
    if units:
        fields["units"] = units
    elif not fields["input_tokens"] and not fields["output_tokens"]:
        return Record(skipped="empty")
    fields["metadata"] = bucket_metadata(
        _KIND,
        start,
        end,
        workspace=result.get("workspace_id"),
        service_tier=result.get("service_tier"),
    )
    return Record(
        key=bucket_key(_KIND, start, end, (result.get(name) for name in _DIMENSIONS)),
        fields=fields,
        users=(result.get("account_id"), result.get("workspace_id"), result.get("api_key_id")),
        place=place,
        is_bucket=True,
    )


def _batch_result(line: Mapping[str, Any]) -> Record:
    place = f"custom_id {str(line['custom_id'])[:80]}"
    message = line["result"].get("message")
    if not isinstance(message, Mapping) or not isinstance(message.get("usage"), Mapping):
        # errored, canceled, expired: not charged
        return Record(skipped="no_usage")
    try:
        key, fields = batch_fields(line, provider="anthropic", kind="anthropic.batch")
    except Unreadable as error:
        return Record(place=place, problem=error.detail)
    if key is None:
        return Record(place=place, problem="the message has no id")
    return Record(key=key, fields=fields, users=(line["custom_id"],), place=place)


def _units(tools: Mapping[str, Any], creation: Mapping[str, Any]) -> dict[str, int]:
    """Requests of the server's tools (`web_search_requests` is the unit `web_searches`), and long caching."""
    found = {
        name.removesuffix("_requests").removesuffix("_search") + "_searches"
        if name.endswith("_search_requests")
        else name: count(tools, name)
        for name in tools
        if name.endswith("_requests") and name not in _FREE
    }
    found["cache_write_1h_tokens"] = count(creation, "ephemeral_1h_input_tokens")
    return {name: number for name, number in found.items() if number}
