"""The fast way and the contract, side by side on the same bytes: what is taken in must be stored alike."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final
from uuid import UUID

from worker.ingest import costs, rows, rules
from worker.ingest.plain import Decoder
from worker.ingest.plain_batch import COLUMNS, Plain
from worker.ingest.rules import AgeLimits, Outcome, Received
from worker.pricing.book import LongContext, Override, PriceBook, Prices
from worker.pricing.rules import CACHE_READ, INPUT, OUTPUT, CostPolicy

NOW: Final = datetime(2026, 1, 31, 9, 40, 15, 123000, tzinfo=UTC)
LIMITS: Final = AgeLimits(max_age=timedelta(days=35), max_future=timedelta(seconds=300))
_BEFORE: Final = datetime(2025, 1, 1, tzinfo=UTC)
# Beside what the catalog knows: costs that have to be rounded, a long context, a price that changes within an
# hour, one that lacks the output.
BOOK: Final = PriceBook(
    [
        Override(
            id=1,
            provider="anthropic",
            model="gpt-5",
            effective_from=_BEFORE,
            tokens={INPUT: Decimal("0.0000012345"), OUTPUT: Decimal("3.1415926535"), CACHE_READ: Decimal(1)},
            long_context=LongContext(
                9000, inclusive=True, prices={INPUT: Decimal("7.7"), OUTPUT: Decimal("9.9")}
            ),
        ),
        Override(
            id=2,
            provider="openai",
            model="claude",
            effective_from=NOW.replace(minute=38, second=9, microsecond=500_000),
            tokens={INPUT: Decimal(2), OUTPUT: Decimal(3)},
        ),
        Override(
            id=3,
            provider="anthropic",
            model="claude",
            effective_from=_BEFORE,
            tokens={INPUT: Decimal("0.15")},
        ),
    ]
)
PRICES: Final = Prices(BOOK)
COMPUTED_FIRST: Final = Prices(BOOK, CostPolicy.COMPUTED_FIRST)
MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|\+00:00)", re.ASCII)
SUMS: Final = ("events", "unpriced_events", "input_tokens", "output_tokens", "tokens_used", "cost_usd")

Sums = dict[tuple[str, str, str, str, str], tuple[Decimal, ...]]


def compare(
    data: bytes,
    *,
    decoder: Decoder | None = None,
    prices: Prices = PRICES,
    received_at: datetime = NOW,
    limits: AgeLimits = LIMITS,
) -> int | None:
    """This function will put one `data` field through both, assert that they agree, and count what was taken.

    None: the whole entry was left to the contract.
    """
    plain = Plain()
    left = (decoder or Decoder(limits, prices)).take(data, received_at, plain)
    judged = rules.read_data(
        data, entry_id="1-0", received_at=received_at, counted=True, limits=limits, correction=False
    )
    assert judged, "the contract has an answer to everything"
    if left is None:
        assert (plain.count, plain.repeats, plain.clash, plain.ids, plain.text()) == (0, 0, False, [], "")
        assert plain.sums_text() == ""
        return None
    costs.price(judged, prices)
    assert left == sorted(set(left))
    assert set(left) <= {event.index for event in judged}
    taken = [event for event in judged if event.index not in left]
    assert taken, "an entry of which nothing was taken is None"
    assert [event.reason for event in taken] == [None] * len(taken), "the contract refuses what was taken"
    assert plain.count == len(taken)
    standing = rules.first_of_each(taken)
    outcomes = [event.outcome for event in taken]
    assert plain.clash == (Outcome.CONFLICT in outcomes)
    assert plain.repeats == len(taken) - len(standing)
    assert plain.ids == [str(event.event_id) for event in standing]
    lines = plain.text().split("\n")
    assert lines.pop() == ""
    assert len(lines) == len(standing)
    for line, event in zip(lines, sorted(standing, key=lambda one: str(one.event_id)), strict=True):
        assert_same_row(dict(zip(plain.columns, line.split("\t"), strict=True)), event)
    assert sums_of(plain) == expected_sums(standing)
    return plain.count


def compare_together(entries: list[bytes], *, decoder: Decoder) -> None:
    """This function will take many entries at once and one by one, and assert that it is the same."""
    together, alone = Plain(), Plain()
    answers = decoder.take_many(entries, [NOW] * len(entries), together)
    assert answers == [decoder.take(data, NOW, alone) for data in entries]
    assert (together.count, together.repeats, together.clash) == (alone.count, alone.repeats, alone.clash)
    assert together.ids == alone.ids
    # Of repeats the first one stands.
    assert rows_of(together) == rows_of(alone)
    assert together.sums == alone.sums


def rows_of(plain: Plain) -> dict[object, dict[str, object]]:
    """This function will read the lines back: by id, the value of each column."""
    found = [
        {name: value_of(name, text) for name, text in zip(plain.columns, line.split("\t"), strict=True)}
        for line in plain.text().split("\n")[:-1]
    ]
    return {row["id"]: row for row in found}


def assert_same_row(fast: dict[str, str], event: Received) -> None:
    """This function will compare each column of a plain line with what the slow way would store."""
    assert event.event is not None
    assert set(fast) <= set(COLUMNS)
    slow = dict(zip(rows.COLUMNS, rows.line(0, event, event.event, shard=0)[:-1].split("\t"), strict=True))
    for name in COLUMNS:
        assert value_of(name, fast.get(name, "\\N")) == value_of(name, slow[name]), name
    # What a plain line has no column for.
    assert (slow["corrects"], slow["void"], slow["units"]) == ("\\N", "f", "\\N")


def value_of(name: str, text: str) -> object:
    """This function will read a column as PostgreSQL does; metadata and texts stay what they are."""
    if text == "\\N":
        return None
    if name in ("id", "user_id"):
        return UUID(text)
    if name in ("occurred_at", "received_at"):
        # PostgreSQL would round what is finer; Python cuts it, as the contract does.
        assert MOMENT.fullmatch(text)
        moment = datetime.fromisoformat(text)
        assert moment.utcoffset() == timedelta(0)
        return moment
    if name in ("cost_usd", "cost_reported_usd", "cost_computed_usd"):
        # The scale, too: the column has 12 places and must not have to round.
        return Decimal(text).as_tuple()
    if name.endswith("_tokens") or name in ("tokens_used", "duration_ms", "seq"):
        assert text.isascii()
        assert text.isdigit()
        return int(text)
    if name != "payload_hash":
        assert "\\" not in text, "no escape is needed for printable text"
    return text


def sums_of(plain: Plain) -> Sums:
    """This function will read `sums_text` back, and check that `sums` says the same."""
    sums: Sums = {}
    for line in plain.sums_text().splitlines():
        user, feature, provider, model, hour, *amounts = line.split("\t")
        assert (user, feature, provider, model, hour) not in sums
        sums[user, feature, provider, model, hour] = tuple(map(Decimal, amounts))
    scaled = {key: (*map(Decimal, row[:5]), Decimal(row[5]).scaleb(-12)) for key, row in plain.sums.items()}
    assert sums == scaled
    return sums


def expected_sums(events: list[Received]) -> Sums:
    """This function will add up events by the definition of a roll-up."""
    sums: dict[tuple[str, str, str, str, str], list[Decimal]] = {}
    for received in events:
        event = received.event
        assert event is not None
        key = (
            str(received.user_id),
            event.feature,
            event.provider or "",
            event.model or "",
            f"{event.occurred_at:%Y-%m-%d %H}:00:00+00",
        )
        row = sums.setdefault(key, [Decimal(0)] * len(SUMS))
        amounts = (
            1,
            int(received.cost_usd is None),
            event.input_tokens or 0,
            event.output_tokens or 0,
            event.tokens_used,
            received.cost_usd or 0,
        )
        for at, amount in enumerate(amounts):
            row[at] += amount
    return {key: tuple(row) for key, row in sums.items()}
