"""LiteLLM: rows of its proxy's spend log, from GET /spend/logs or from the table LiteLLM_SpendLogs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from worker.entrypoints.cli._exports_records import Record, Unreadable, count, members, moment


def records(document: Any, now: datetime) -> Iterator[Record]:
    """This function will yield the records of a row, of a list of rows, or of a page with `data`."""
    del now  # a row is one call, which is over
    if isinstance(document, list):
        for row in document:
            yield _row(row)
    elif isinstance(document, Mapping) and isinstance(document.get("data"), list):
        for row in document["data"]:
            yield _row(row)
    else:
        yield _row(document)


def _row(row: Any) -> Record:
    if not isinstance(row, Mapping) or "request_id" not in row:
        return Record(problem="expected a row of LiteLLM_SpendLogs (request_id, startTime, prompt_tokens …)")
    place = f"request {str(row['request_id'])[:80]}"
    try:
        return _event(row, place)
    except Unreadable as error:
        return Record(place=place, problem=error.detail)


def _event(row: Mapping[str, Any], place: str) -> Record:
    if not isinstance(row["request_id"], str) or not row["request_id"]:
        raise Unreadable("unreadable_record", "request_id is no text")
    metadata = _object(row.get("metadata"))
    failed = "failure" in (row.get("status"), metadata.get("status"))
    before, after = count(row, "prompt_tokens"), count(row, "completion_tokens")
    total = count(row, "total_tokens")
    spend = _spend(row.get("spend"))
    if failed and not (before or after or total or spend):
        return Record(skipped="failed")
    start = moment(row.get("startTime"), "startTime")
    fields: dict[str, object] = {
        "provider": row.get("custom_llm_provider") or None,
        "model": row.get("model") or row.get("model_group") or None,
        "occurred_at": start,
        # A spend of 0 is what LiteLLM writes for a model without a price, too: then it is unknown, not free.
        "cost_usd": spend if spend or _is_cache_hit(row) else None,
        "duration_ms": _duration(row, start),
        "status": "error" if failed else "ok",
        "metadata": {"export": {"kind": "litellm.spend_log", "call_type": row.get("call_type")}},
    }
    if before or after or not total:
        fields |= {"input_tokens": before, "output_tokens": after, **_parts(metadata)}
    else:
        fields["tokens_used"] = total
    return Record(
        key=row["request_id"],
        fields=fields,
        users=(row.get("end_user"), row.get("user"), row.get("team_id"), row.get("api_key")),
        own_user=row.get("end_user"),
        place=place,
    )


def _parts(metadata: Mapping[str, Any]) -> dict[str, object]:
    """Cached and reasoning tokens, which prompt and completion tokens include, where LiteLLM knows them."""
    extra = members(metadata, "additional_usage_values")
    usage = members(metadata, "usage_object")
    found: dict[str, object] = {}
    details = members(usage, "prompt_tokens_details")
    for source, there, here in (
        (details, "cached_tokens", "cache_read_tokens"),
        (extra, "cache_read_input_tokens", "cache_read_tokens"),
        (extra, "cache_creation_input_tokens", "cache_write_tokens"),
        (members(usage, "completion_tokens_details"), "reasoning_tokens", "reasoning_tokens"),
    ):
        if source.get(there) is not None:
            found[here] = count(source, there)
    return found


def _spend(value: object) -> Decimal | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or value < 0:
        raise Unreadable("unreadable_record", "spend is no amount")
    return Decimal(value)


def _is_cache_hit(row: Mapping[str, Any]) -> bool:
    return str(row.get("cache_hit")).lower() == "true"


def _duration(row: Mapping[str, Any], start: datetime) -> int | None:
    if row.get("request_duration_ms") is not None:
        return count(row, "request_duration_ms")
    if row.get("endTime") is None:
        return None
    # Clocks of two hosts may disagree; what took less than nothing is not known.
    took = int((moment(row["endTime"], "endTime") - start).total_seconds() * 1000)
    return took if took >= 0 else None


def _object(value: object) -> Mapping[str, Any]:
    """The column is JSON: some exports hold it as an object, some as its text."""
    if isinstance(value, str):
        try:
            value = json.loads(value, parse_float=Decimal)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, Mapping) else {}
