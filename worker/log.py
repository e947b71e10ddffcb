"""Structured logs: JSON lines on stderr, with what belongs to the task in hand, without a secret."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

import structlog

bind = structlog.contextvars.bind_contextvars
"""Adds keys (`task_id=`, `task=`, `batch_id=`) to every line of the present task or thread."""

unbind = structlog.contextvars.unbind_contextvars
"""Takes keys away again."""

bound = structlog.contextvars.bound_contextvars
"""The same for one `with` block."""

HIDDEN: Final = "***"
_MAX_TEXT: Final = 10_000

# Keys whose value is a secret whatever it looks like; the end of the key decides (db_password, x-api-key).
_SECRET_KEY: Final = re.compile(
    r"(?i)(password|passwd|pwd|secret|token|api[_-]?key|apikey|authorization|cookie|credentials?|private[_-]?key)$"
)
_COUNTED: Final = re.compile(r"(?i)^(input|output|max|total|used|cached?|reasoning)[_-]?.*tokens?$")
_PATTERNS: Final = (
    # scheme://user:password@ ; up to the last @ before a space, since a password may hold one unescaped
    (re.compile(r"(?<=://)[^\s'\"<>]*@"), f"{HIDDEN}@"),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{8,}"), HIDDEN),
    (re.compile(r"(?i)\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]+"), rf"\1 {HIDDEN}"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), HIDDEN),
    (
        re.compile(
            r"(?i)\b(password|passwd|pwd|secret|api[_-]?key|token)(['\"]?\s*[=:]\s*)(?!\d+\b)('[^']*'|\"[^\"]*\"|[^\s,;&}]+)"
        ),
        rf"\1\2{HIDDEN}",
    ),
    # PostgreSQL repeats the row it refuses, which is a payload.
    (
        re.compile(r"\b(DETAIL|CONTEXT):.*?(?=\n(?:HINT|CONTEXT|LINE|\[SQL|\(Background)|\Z)", re.S),
        rf"\1: {HIDDEN}",
    ),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)", re.S), HIDDEN),
)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """This function will return the logger of one module; call it with an event name and keys."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def configure_logging(*, environment: str, level: str = "INFO") -> None:
    """This function will send every log line of the process, ours and the libraries', to stderr as JSON.

    Keys: `timestamp` (UTC), `level`, `logger`, `event`, `environment`, and what `bind` has added. Secrets
    are replaced by `***` in every key, value, nested value and traceback. Calling it again replaces it.
    """

    def label(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["environment"] = environment
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        label,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                redact,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """This function will be the last processor: it hides every secret of one log line."""
    return {str(key): _hidden_value(str(key), value) for key, value in event.items()}


def redacted(text: str) -> str:
    """This function will return a text with the secrets it holds replaced by `***`."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}… ({len(text)} characters)"


def _hidden_value(key: str, value: Any, depth: int = 0) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return HIDDEN if _is_secret(key) and isinstance(value, int) and not isinstance(value, bool) else value
    if _is_secret(key) or depth > 8:
        return HIDDEN
    if isinstance(value, Mapping):
        return {str(name): _hidden_value(str(name), inner, depth + 1) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_hidden_value("", inner, depth + 1) for inner in value]
    return redacted(value if isinstance(value, str) else str(value))


def _is_secret(key: str) -> bool:
    return bool(_SECRET_KEY.search(key)) and not _COUNTED.search(key)
