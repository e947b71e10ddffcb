"""How commands answer: tables for people, one JSON document for programs."""

from __future__ import annotations

import dataclasses
import enum
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

MOST_COLUMNS = 10_000

json_option = click.option("--json", "as_json", is_flag=True, help="Write one JSON document to stdout.")


def plain(value: object) -> Any:
    """This function will turn a value into JSON's: decimals and ids as strings, times in RFC 3339."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime | date):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def write_json(document: object) -> None:
    """This function will write the document to stdout, and nothing else goes there."""
    click.echo(json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False))


def cell(value: object) -> str:
    """This function will show one value to a person: control characters escaped, an absent one as `-`."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, int):
        return f"{value:,}"
    shown = plain(value)
    return printable(shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False))


def printable(words: str) -> str:
    """This function will escape what could move a terminal's cursor or colour its text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in words)


def write_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """This function will print a table to stdout, numbers on the right; without rows it says so."""
    listed = [list(row) for row in rows]
    console = Console(highlight=False)
    if not listed:
        console.print(f"{escape(title)}: none")
        return
    table = Table(title=escape(title), title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        numbers = all(isinstance(row[index], int | Decimal | None) for row in listed)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in listed:
        table.add_row(*(escape(cell(value)) for value in row))
    if not console.is_terminal:
        # A pipe has no width: the table gets what it needs, so that a line stays a row for grep.
        unfolded = console.options.update(width=MOST_COLUMNS, max_width=MOST_COLUMNS)
        console.width = Measurement.get(console, unfolded, table).maximum
    console.print(table)


def say(words: str) -> None:
    """This function will tell a person what happened, on stderr so that stdout stays the answer."""
    click.echo(printable(words), err=True)
