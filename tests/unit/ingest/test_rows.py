"""The line of COPY text that an event becomes, read back as PostgreSQL reads it."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from producers._events import parse
from worker.ingest import rows
from worker.ingest.rules import Received

NOW = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
UNESCAPED = {"\\\\": "\\", "\\t": "\t", "\\n": "\n", "\\r": "\r"}
PRINTABLE = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)


def read_back(line: str) -> dict[str, str | None]:
    assert line.endswith("\n")
    fields = line[:-1].split("\t")
    assert len(fields) == len(rows.COLUMNS)
    values: dict[str, str | None] = {}
    for name, field in zip(rows.COLUMNS, fields, strict=True):
        if field == "\\N":
            values[name] = None
            continue
        text, at = "", 0
        while at < len(field):
            pair = field[at : at + 2]
            text += UNESCAPED.get(pair, field[at])
            at += 2 if pair in UNESCAPED else 1
        values[name] = text
    return values


def line_of(**fields: object) -> dict[str, str | None]:
    event = parse(
        {
            "event_id": "22222222-2222-4222-8222-222222222222",
            "user_id": "11111111-1111-4111-8111-111111111111",
            "feature": "f",
            "tokens_used": 7,
            "occurred_at": NOW.isoformat(),
            **fields,
        }
    )
    received = Received("1-0", 0, b"", NOW, True, event, event.event_id, event.user_id)
    received.payload_hash = bytes(range(16))
    received.cost_usd, received.cost_source = event.cost_usd, "reported"
    return read_back(rows.line(3, received, event, shard=2))


class TestLine:
    @given(PRINTABLE, PRINTABLE, st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=4))
    def test_holds_any_text_unharmed(self, feature: str, model: str, metadata: dict[str, str]) -> None:
        stored = line_of(feature=feature, model=model, metadata=metadata)
        assert (stored["feature"], stored["model"]) == (feature, model)
        assert isinstance(json.loads(stored["metadata"] or "{}"), dict)

    def test_has_null_for_what_is_absent_and_exact_numbers(self) -> None:
        stored = line_of(cost_usd="0.000000000001")
        assert (
            stored["provider"] is stored["input_tokens"] is stored["metadata"] is stored["corrects"] is None
        )
        assert float(stored["cost_usd"] or "") == 1e-12
        assert (stored["n"], stored["shard"], stored["tokens_used"], stored["void"]) == ("3", "2", "7", "f")
        assert stored["id"] == uuid.UUID("22222222-2222-4222-8222-222222222222").hex
        assert stored["occurred_at"] == stored["received_at"] == NOW.isoformat()
        assert stored["payload_hash"] == "\\x000102030405060708090a0b0c0d0e0f"
