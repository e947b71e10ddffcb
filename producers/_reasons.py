"""Why an event or an entry is put aside: all reason codes, and the error that carries one."""

from typing import Literal, get_args

Reason = Literal[
    # the entry and its frame
    "malformed_entry",
    "not_json",
    "empty_frame",
    "frame_too_large",
    "too_many_events",
    # one event, as it stands
    "not_an_object",
    "event_too_large",
    "duplicate_key",
    "unknown_version",
    "missing_field",
    "invalid_event_id",
    "invalid_user_id",
    "invalid_feature",
    "invalid_provider",
    "invalid_model",
    "invalid_tokens",
    "inconsistent_tokens",
    "invalid_cost",
    "invalid_units",
    "invalid_occurred_at",
    "invalid_field",
    "not_a_correction",
    # one event, compared with the time of its arrival and with what the database holds
    "too_old",
    "in_future",
    "unknown_user",
    "unknown_target",
    "over_correction",
    "conflict",
    "refused_by_database",
    # an entry that took its process down, again and again
    "poison",
]

REASONS: tuple[Reason, ...] = get_args(Reason)


class InvalidEvent(ValueError):
    """The event breaks the contract; `reason` is the code, `field` the field, `detail` says what is expected.

    None of them contains the event's values: they are written to logs and shown to operators.
    """

    def __init__(self, reason: Reason, field: str, detail: str) -> None:
        super().__init__(f"{field}: {detail} ({reason})")
        self.reason: Reason = reason
        self.field = field
        self.detail = detail

    def __reduce__(self) -> tuple[type["InvalidEvent"], tuple[str, str, str]]:
        return type(self), (self.reason, self.field, self.detail)
