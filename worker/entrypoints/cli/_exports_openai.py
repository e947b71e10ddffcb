"""OpenAI: pages of the organization's usage API, and the output files of the batch API."""

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

# All that a page can be grouped by. Two records that differ in something else have one key, which shows.
_DIMENSIONS: Final = (
    "model",
    "project_id",
    "user_id",
    "api_key_id",
    "batch",
    "service_tier",
    "size",
    "source",
    "context_level",
    "vector_store_id",
)
_TOKENS: Final = ("completions", "embeddings", "moderations")
# What is counted otherwise than in tokens: the field of the export, and the unit, by the name in prices.
_UNITS: Final[Mapping[str, tuple[str, str]]] = {
    "images": ("images", "images"),
    "audio_speeches": ("characters", "input_characters"),
    "audio_transcriptions": ("seconds", "audio_seconds"),
    "code_interpreter_sessions": ("num_sessions", "sessions"),
    "file_searches": ("num_requests", "storage_searches"),
    "web_searches": ("num_requests", "web_searches"),
}


def records(document: Any, now: datetime) -> Iterator[Record]:
    """This function will yield the records of a page, of a bucket, of a batch line, or of a list of these."""
    if isinstance(document, list):
        for one in document:
            yield from records(one, now)
    elif not isinstance(document, Mapping):
        raise _unknown()
    elif "custom_id" in document and "response" in document:
        yield _batch_line(document)
    elif document.get("object") == "bucket":
        yield from _bucket(document, now)
    elif isinstance(document.get("data"), list) and document.get("object") in ("page", None):
        for one in document["data"]:
            if not isinstance(one, Mapping) or "results" not in one:
                raise _unknown()
            yield from _bucket(one, now)
    else:
        raise _unknown()


def _unknown() -> Unreadable:
    return Unreadable(
        "unknown_record",
        "expected a page of GET /v1/organization/usage/… (an object with data: buckets with results), or a "
        "line of a batch's output file (custom_id, response)",
    )


def _bucket(bucket: Mapping[str, Any], now: datetime) -> Iterator[Record]:
    start, end = moment(bucket.get("start_time"), "start_time"), moment(bucket.get("end_time"), "end_time")
    results = bucket.get("results")
    if not isinstance(results, list):
        raise _unknown()
    for index, result in enumerate(results, start=1):
        place = f"bucket of {start.isoformat()}, result {index}"
        if not isinstance(result, Mapping):
            yield Record(place=place, problem="a result is an object")
        elif is_open(end, now):
            yield Record(skipped="open_bucket")
        else:
            try:
                yield _result(result, start, end, place)
            except Unreadable as error:
                yield Record(place=place, problem=error.detail)


def _result(result: Mapping[str, Any], start: datetime, end: datetime, place: str) -> Record:
    name = str(result.get("object"))
    kind = name.removeprefix("organization.usage.").removesuffix(".result")
    fields: dict[str, object] = {"provider": "openai", "model": result.get("model"), "occurred_at": start}
    if kind in _TOKENS:
        # Since 2025 the sum of text, audio and images; before that there was text only, and audio beside it.
        fields["input_tokens"] = count(result, "input_tokens")
        fields["output_tokens"] = count(result, "output_tokens")
        for there, here in (
            ("input_cached_tokens", "cache_read_tokens"),
            ("input_cache_write_tokens", "cache_write_tokens"),
        ):
            if result.get(there) is not None:
                fields[here] = count(result, there)
        amount = count(result, "input_tokens") + count(result, "output_tokens")
    elif kind in _UNITS:
        there, unit = _UNITS[kind]
        amount = count(result, there)
        fields |= {"tokens_used": 0, "units": {unit: amount}}
    else:
        return Record(place=place, problem=f"{name[:80]} is no usage that can be counted as an event")
    if not amount:
        return Record(skipped="empty")
    requests = None if result.get("num_model_requests") is None else count(result, "num_model_requests")
    batch = True if result.get("batch") is True else None
    fields["metadata"] = bucket_metadata(
        f"openai.{kind}", start, end, requests=requests, batch=batch, project=result.get("project_id")
    )
    return Record(
        key=bucket_key(f"openai.{kind}", start, end, (result.get(name) for name in _DIMENSIONS)),
        fields=fields,
        users=(result.get("user_id"), result.get("project_id"), result.get("api_key_id")),
        place=place,
        is_bucket=True,
    )


def _batch_line(line: Mapping[str, Any]) -> Record:
    place = f"custom_id {str(line['custom_id'])[:80]}"
    body = members(members(line, "response"), "body")
    if not isinstance(body.get("usage"), Mapping):
        # A request that failed used nothing, and says so by having no usage.
        return Record(skipped="no_usage")
    try:
        key, fields = batch_fields(line, provider="openai", kind="openai.batch")
        created = body.get("created", body.get("created_at"))
        if created is not None:
            fields["occurred_at"] = moment(created, "created")
        users = (line["custom_id"], members(body, "metadata").get("user_id"))
    except Unreadable as error:
        return Record(place=place, problem=error.detail)
    if key is None:
        return Record(place=place, problem="the response has no id")
    return Record(key=key, fields=fields, users=users, place=place)
