"""UsageEvent: the contract of the wire, defined once and used by those who emit and by the worker.

`parse` judges what came over the wire; `UsageEvent(…)` takes Python's own types by the same rules. Both end
in the same canonical values, so `parse(event.wire()) == event`.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from producers import _fields as rules
from producers._ids import new_event_id, utcnow
from producers._json import RepeatedKeys
from producers._metadata import REPAIRED, repair
from producers._reasons import REASONS, InvalidEvent, Reason

__all__ = ["REASONS", "InvalidEvent", "Reason", "UsageEvent", "age_problem", "build", "parse"]

_TOKEN_FIELDS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
)
_COST_BECAME_ZERO = "cost_became_zero"
MAX_DURATION_MS: Final = 10**12
MAX_SEQ: Final = 2**63 - 1


class UsageEvent(BaseModel):
    """One use of a model by one user, or the correction of one; every value is canonical and checked.

    Constructed in Python, it fills in `event_id` and `occurred_at` where they are absent, and raises
    InvalidEvent.
    """

    # Messages are logged: they must not show the event.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    event_id: UUID
    user_id: UUID | None = None
    clerk_id: str | None = None
    feature: str
    """'' only in a correction: it has the feature of its target."""
    provider: str | None = None
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    tokens_used: int
    """Input + output, or what was stated where the split is unknown; 0 for a void, which has its target's."""
    cost_usd: Decimal | None = None
    """At 12 decimal places; None = unknown."""
    units: dict[str, Decimal] | None = None
    """What was used that is not tokens, by the unit's name, at 6 decimal places."""
    occurred_at: datetime
    """In UTC."""
    duration_ms: int | None = None
    status: Literal["ok", "error"] | None = None
    metadata: dict[str, Any] | None = None
    hold_id: str | None = None
    producer_id: str | None = None
    seq: int | None = None
    corrects: UUID | None = None
    void: bool = False

    def __init__(self, /, **fields: object) -> None:
        unknown = sorted(fields.keys() - _KNOWN_FIELDS)
        if unknown:
            raise InvalidEvent("invalid_field", unknown[0], "no such field")
        if fields.get("event_id") is None:
            fields["event_id"] = new_event_id()
        if fields.get("occurred_at") is None:
            fields["occurred_at"] = utcnow()
        super().__init__(**_canonical(fields))

    @property
    def user_text(self) -> str:
        """The user's id as it stands on the wire: it decides the shard."""
        return str(self.user_id) if self.user_id is not None else str(self.clerk_id)

    @property
    def cost_became_zero(self) -> bool:
        """Whether a cost above zero was too small for 12 decimal places, here or where the event was made."""
        return self.metadata is not None and _COST_BECAME_ZERO in self.metadata.get(REPAIRED, ())

    def wire(self) -> dict[str, object]:
        """This function will return a dict for JSON: keys in a fixed order, absent fields left out."""
        values = self.__dict__
        result: dict[str, object] = {"v": 1, "event_id": str(self.event_id)}
        if self.user_id is not None:
            result["user_id"] = str(self.user_id)
        for name in _PLAIN_FIELDS:
            value = values[name]
            if value is not None and value != "":
                result[name] = value
        if self.corrects is not None:
            result["corrects"] = str(self.corrects)
        if self.void:
            result["void"] = True
        elif self.input_tokens is None and self.output_tokens is None:
            result["tokens_used"] = self.tokens_used
        if self.cost_usd is not None:
            result["cost_usd"] = rules.plain_text(self.cost_usd)
        if self.units is not None:
            result["units"] = {name: _number(quantity) for name, quantity in self.units.items()}
        result["occurred_at"] = self.occurred_at.isoformat().replace("+00:00", "Z")
        if self.metadata is not None:
            result["metadata"] = self.metadata
        return result


_PLAIN_FIELDS = (
    "clerk_id",
    "feature",
    "provider",
    "model",
    *_TOKEN_FIELDS,
    "duration_ms",
    "status",
    "hold_id",
    "producer_id",
    "seq",
)
_KNOWN_FIELDS = frozenset(UsageEvent.model_fields) | {"v"}
_ABSENT: dict[str, object] = dict.fromkeys(UsageEvent.model_fields)


def parse(fields: Mapping[str, object], *, correction: bool = False) -> UsageEvent:
    """This function will judge one event from the wire; `correction` tells the stream that it came from.

    Raises InvalidEvent with the reason code of the first rule that is broken.
    """
    values = _canonical(fields)
    if correction != (values["corrects"] is not None):
        detail = (
            "the stream of corrections takes only events with it"
            if correction
            else "only on the stream of corrections"
        )
        raise InvalidEvent("not_a_correction", "corrects", detail)
    return _trusted(values)


def build(fields: Mapping[str, object]) -> UsageEvent:
    """This function will return the event of a call in Python, checked once: emitters are in a hurry."""
    return _trusted(_canonical(fields))


def _trusted(values: dict[str, Any]) -> UsageEvent:
    """What `model_construct` does, at a fifth of its time: the values are canonical and complete already."""
    event = UsageEvent.__new__(UsageEvent)
    object.__setattr__(event, "__dict__", values)
    object.__setattr__(event, "__pydantic_fields_set__", set(_ABSENT))
    object.__setattr__(event, "__pydantic_extra__", None)
    object.__setattr__(event, "__pydantic_private__", None)
    return event


def age_problem(
    event: UsageEvent, *, received_at: datetime, max_age: timedelta, max_future: timedelta
) -> Literal["too_old", "in_future"] | None:
    """This function will tell whether the event's time lies outside of the window around its arrival.

    Both ends belong to the window. Corrections may be of any age.
    """
    # As a difference: the arrival may lie at the edge of the calendar, where adding to it overflows.
    age = received_at - event.occurred_at
    if age < -max_future:
        return "in_future"
    if event.corrects is None and age > max_age:
        return "too_old"
    return None


def _canonical(fields: Mapping[str, object]) -> dict[str, Any]:
    """Returns all fields of UsageEvent, canonical; the order of the rules decides which reason is told."""
    given = {name: value for name, value in fields.items() if value is not None}
    _check_version(given.get("v"))
    values = dict(_ABSENT)
    values["event_id"] = rules.uuid_value(_required(given, "event_id"), "event_id", "invalid_event_id")
    _take_user(given, values)
    _take_correction(given, values)
    correction = values["corrects"] is not None
    if correction and given.get("feature", "") == "":
        values["feature"] = ""
    else:
        feature = _required(given, "feature")
        values["feature"] = rules.text_value(feature, "feature", "invalid_feature", longest=128)
    if given.get("provider", "") != "":
        values["provider"] = rules.text_value(given["provider"], "provider", "invalid_provider", longest=128)
    if given.get("model", "") != "":
        values["model"] = rules.text_value(given["model"], "model", "invalid_model", longest=256)
    _take_units(given, values)
    _take_tokens(given, values)
    marks: set[str] = set()
    if "cost_usd" in given:
        values["cost_usd"], became_zero = rules.cost_value(given["cost_usd"], "cost_usd", negative=correction)
        if became_zero:
            marks.add(_COST_BECAME_ZERO)
    values["occurred_at"] = rules.time_value(_required(given, "occurred_at"), "occurred_at")
    _take_analytics(given, values)
    if values["void"]:
        # It reverses the whole of its target, whatever else it says.
        values.update(dict.fromkeys((*_TOKEN_FIELDS, "cost_usd", "units")), tokens_used=0)
        marks.clear()
    extra = {name: value for name, value in fields.items() if name not in _KNOWN_FIELDS}
    values["metadata"] = repair(given.get("metadata"), extra=extra, marks=marks)
    return values


def _required(given: Mapping[str, object], field: str) -> object:
    if field not in given:
        raise InvalidEvent("missing_field", field, "required")
    return given[field]


def _check_version(version: object) -> None:
    if version is None:
        return
    try:
        known = rules.integer_value(version, "v", "unknown_version", low=1, high=1) == 1
    except InvalidEvent:
        known = False
    if not known:
        raise InvalidEvent("unknown_version", "v", "this release knows version 1")


def _take_user(given: Mapping[str, object], values: dict[str, object]) -> None:
    if "user_id" in given and "clerk_id" in given:
        raise InvalidEvent("invalid_user_id", "user_id", "give user_id or clerk_id, not both")
    if "user_id" in given:
        values["user_id"] = rules.uuid_value(given["user_id"], "user_id", "invalid_user_id")
    elif "clerk_id" in given:
        values["clerk_id"] = rules.identifier_value(
            given["clerk_id"], "clerk_id", "invalid_user_id", longest=255
        )
    else:
        raise InvalidEvent("missing_field", "user_id", "user_id or clerk_id is required")


def _take_correction(given: Mapping[str, object], values: dict[str, object]) -> None:
    void = given.get("void", False)
    if not isinstance(void, bool):
        raise InvalidEvent("invalid_field", "void", "expected true")
    values["void"] = void
    if "corrects" in given:
        values["corrects"] = rules.uuid_value(given["corrects"], "corrects", "invalid_field")
        if values["corrects"] == values["event_id"]:
            raise InvalidEvent("invalid_field", "corrects", "an event cannot correct itself")
    elif void:
        raise InvalidEvent("not_a_correction", "void", "a void names its target in corrects")


def _take_units(given: Mapping[str, object], values: dict[str, Any]) -> None:
    if "units" not in given:
        return
    if isinstance(given["units"], RepeatedKeys):
        raise InvalidEvent("invalid_units", "units", "a unit stands more than once")
    values["units"] = rules.units_value(given["units"], "units")
    if values["corrects"] is not None and not values["void"] and values["units"] is not None:
        raise InvalidEvent("invalid_units", "units", "a correction states tokens or cost_usd, or is a void")


def _take_tokens(given: Mapping[str, object], values: dict[str, Any]) -> None:
    correction = values["corrects"] is not None
    low, high = (-rules.MAX_TOKENS if correction else 0), rules.MAX_TOKENS
    for name in _TOKEN_FIELDS:
        if name in given:
            values[name] = rules.integer_value(given[name], name, "invalid_tokens", low=low, high=high)
    stated: int | None = None
    if "tokens_used" in given:
        stated = rules.integer_value(
            given["tokens_used"], "tokens_used", "invalid_tokens", low=2 * low, high=2 * high
        )
    split = (values["input_tokens"], values["output_tokens"])
    if correction:
        _take_change(given, values, stated)
        return
    if split == (None, None):
        if stated is None and values["units"] is not None:
            stated = 0
        if stated is None:
            raise InvalidEvent(
                "missing_field",
                "input_tokens",
                "input_tokens and output_tokens are required, or tokens_used alone, or units",
            )
        values["tokens_used"] = stated
    elif None in split:
        missing = "input_tokens" if split[0] is None else "output_tokens"
        raise InvalidEvent(
            "missing_field", missing, "required beside the other half of the split (0 if there was none)"
        )
    else:
        values["tokens_used"] = sum(split)
        if stated is not None and stated != values["tokens_used"]:
            raise InvalidEvent(
                "inconsistent_tokens", "tokens_used", "differs from input_tokens + output_tokens"
            )
    _check_subset(values, "input_tokens", ("cache_read_tokens", "cache_write_tokens"))
    _check_subset(values, "output_tokens", ("reasoning_tokens",))


def _take_change(given: Mapping[str, object], values: dict[str, Any], stated: int | None) -> None:
    """A correction states differences: an absent one is no change, and subsets are those of the target."""
    split = [value for value in (values["input_tokens"], values["output_tokens"]) if value is not None]
    values["tokens_used"] = sum(split) if split else (stated or 0)
    if split and stated is not None and stated != sum(split):
        raise InvalidEvent("inconsistent_tokens", "tokens_used", "differs from input_tokens + output_tokens")
    changes = (*_TOKEN_FIELDS, "tokens_used", "cost_usd")
    if not values["void"] and not any(name in given for name in changes):
        raise InvalidEvent(
            "missing_field", "input_tokens", "a correction states tokens or cost_usd, or is a void"
        )


def _check_subset(values: Mapping[str, Any], whole: str, parts: tuple[str, ...]) -> None:
    given = [values[part] for part in parts if values[part] is not None]
    if not given:
        return
    if values[whole] is None:
        raise InvalidEvent("inconsistent_tokens", whole, f"required where {' or '.join(parts)} is stated")
    if sum(given) > values[whole]:
        raise InvalidEvent(
            "inconsistent_tokens", whole, f"smaller than {' + '.join(parts)}, which it includes"
        )


def _take_analytics(given: Mapping[str, object], values: dict[str, object]) -> None:
    if "duration_ms" in given:
        values["duration_ms"] = rules.integer_value(
            given["duration_ms"], "duration_ms", "invalid_field", low=0, high=MAX_DURATION_MS
        )
    if "status" in given:
        status = given["status"]
        if status not in ("ok", "error"):
            raise InvalidEvent("invalid_field", "status", "expected ok or error")
        values["status"] = str.__str__(str(status))
    for name in ("hold_id", "producer_id"):
        if name in given:
            values[name] = rules.identifier_value(given[name], name, "invalid_field", longest=128)
    if "seq" in given:
        values["seq"] = rules.integer_value(given["seq"], "seq", "invalid_field", low=0, high=MAX_SEQ)


def _number(quantity: Decimal) -> int | str:
    """A whole number as such; others as text, so that no reader makes a binary fraction of them."""
    text = rules.plain_text(quantity)
    return int(text) if text.isdigit() else text
