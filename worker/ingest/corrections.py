"""What a correction does to the event it corrects: arithmetic, and nothing that touches a server.

An event and all its corrections together are one total. No count in it and no cost may fall below zero, and a
`void` takes away whatever is left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Final
from uuid import UUID

from producers._events import UsageEvent
from worker.ingest.rules import Received

TOKENS: Final = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "tokens_used",
)
_STEP: Final = Decimal("1E-12")
_MONEY: Final = Context(prec=80, rounding=ROUND_HALF_EVEN)


@dataclass(frozen=True, slots=True)
class Target:
    """A stored event with what is left of it after the corrections so far.

    `tokens` holds what is left by column, None where the event left it open; `cost` and `cost_left` are None
    while the event has no price.
    """

    user_id: UUID
    feature: str
    provider: str | None
    model: str | None
    price_version: str | None
    is_correction: bool
    voided: bool
    tokens_used: int
    cost: Decimal | None
    cost_source: str
    tokens: dict[str, int | None]
    cost_left: Decimal | None


def correct(received: Received, event: UsageEvent, target: Target) -> Target:
    """This function will turn a correction into the row to store, and return the target as it is after that.

    Where the correction is refused, `received` says so and the target comes back unchanged. The correction
    keeps its own id and time; user, feature, provider, model and price version are the target's.
    """
    refusal = _refusal(received, target)
    if refusal is not None:
        received.refuse(*refusal)
        return target
    if event.void:
        change = {name: None if left is None else -left for name, left in target.tokens.items()}
        cost = None if target.cost_left is None else -target.cost_left
    else:
        change = {name: getattr(event, name) for name in TOKENS}
        below = [name for name in TOKENS if (change[name] or 0) < 0 and _left(target, change, name) < 0]
        if below:
            received.refuse("over_correction", f"{below[0]} of the target would fall below zero")
            return target
        if event.cost_usd is None and target.cost and not target.tokens_used and change["tokens_used"]:
            received.refuse("missing_field", "the target has no tokens to go by: state cost_usd")
            return target
        if event.cost_usd is not None and target.cost_left is None:
            received.refuse("over_correction", "the target has no price yet, so no cost can be taken from it")
            return target
        cost = event.cost_usd if event.cost_usd is not None else share_of(target, change["tokens_used"] or 0)
        if cost is not None and target.cost_left is not None and cost < -target.cost_left:
            received.refuse("over_correction", "cost_usd of the target would fall below zero")
            return target
    _adopt(received, event, target, change, cost)
    return replace(
        target,
        voided=target.voided or event.void,
        tokens={
            name: left if left is None else left + (change[name] or 0) for name, left in target.tokens.items()
        },
        cost_left=None if target.cost_left is None or cost is None else target.cost_left + cost,
    )


def _refusal(received: Received, target: Target) -> tuple[str, str] | None:
    if target.is_correction:
        return "invalid_field", "corrects names an event that is itself a correction"
    if target.voided:
        return "over_correction", "the target is void: nothing of it is left"
    if received.user_id is not None and received.user_id != target.user_id:
        return "invalid_user_id", "the event that is corrected belongs to another user"
    return None


def _left(target: Target, change: dict[str, int | None], name: str) -> int:
    return (target.tokens[name] or 0) + (change[name] or 0)


def share_of(target: Target, tokens: int) -> Decimal | None:
    """This function will return the cost that goes with so many tokens of the target.

    It is the difference of two roundings of the running total, not the rounding of a difference: so the last
    correction that takes the tokens to zero takes the cost to zero as well, to the last digit.
    """
    if target.cost is None or target.cost_left is None:
        return None
    if not target.tokens_used:
        return Decimal(0)
    before = target.tokens["tokens_used"] or 0
    share = _part(target, before + tokens) - _part(target, before)
    # Costs that were stated in between may have taken more than their share.
    return max(share, -target.cost_left)


def _part(target: Target, tokens: int) -> Decimal:
    cost = target.cost or Decimal(0)
    return _MONEY.divide(_MONEY.multiply(cost, Decimal(tokens)), Decimal(target.tokens_used)).quantize(
        _STEP, context=_MONEY
    )


def _adopt(
    received: Received,
    event: UsageEvent,
    target: Target,
    change: dict[str, int | None],
    cost: Decimal | None,
) -> None:
    received.event = event.model_copy(
        update={
            **change,
            "feature": target.feature,
            "provider": target.provider,
            "model": target.model,
        }
    )
    received.user_id = target.user_id
    received.price_version = target.price_version
    received.cost_usd = cost
    stated = event.cost_usd is not None and not event.void
    received.cost_source = "reported" if stated else target.cost_source
