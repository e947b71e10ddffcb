"""`usage-worker prices`: what models cost, prices of one's own, and costs that are set anew."""

from __future__ import annotations

import getpass
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
import yaml

from worker import db
from worker.entrypoints import _exits, pricing
from worker.entrypoints._clock import utcnow
from worker.entrypoints.cli import _output
from worker.entrypoints.cli._options import MOMENT, settings
from worker.ingest import repricing
from worker.ingest import repricing_queries as log
from worker.ingest.repricing_rules import Repriced, Scope
from worker.pricing import names, operations, price_file, queries
from worker.pricing.book import Override
from worker.pricing.operations import PriceChange
from worker.pricing.price_file import KINDS
from worker.pricing.rules import Price

_MODEL_COLUMNS = (
    "provider",
    "model",
    "events",
    "corrections",
    "cost before",
    "cost after",
    "change",
    "first ids",
)


@click.group()
def command() -> None:
    """Show and add prices of models, and set the costs of events anew when a price came later."""


@command.command("list")
@click.option("--at", type=MOMENT, help="The prices of this moment (RFC 3339); default: now.")
@click.option("--provider", help="Only this provider, in any spelling.")
@click.option("--model", help="This model, even where nobody used it.")
@_output.json_option
def list_command(at: datetime | None, provider: str | None, model: str | None, as_json: bool) -> None:
    """List the price of every model that was used, and all prices of our own.

    Prices are US dollars per million tokens. A model without a price is shown with none: its events have an
    unknown cost.
    """
    bound = settings()
    at = at or utcnow()
    prices = pricing.load(bound)
    with db.platform_session() as session:
        used = log.used_models(session)
        overrides = queries.overrides(session)
    owner = None if provider is None else names.provider_name(provider)
    wanted = [
        (p, m)
        for p, m in used
        if owner in (None, names.provider_name(p))
        and (model is None or names.model_name(m) == names.model_name(model))
    ]
    if model is not None and not wanted:
        wanted = [(provider, model)]
    found = [(p, m, prices.book.price_at(p, m, at)) for p, m in wanted]
    own = [row for row in overrides if owner in (None, row.provider)]
    if as_json:
        _output.write_json(
            {
                "at": at,
                "prices": [{"provider": p, "model": m, **_document(price)} for p, m, price in found],
                "overrides": [_override_document(row) for row in own],
            }
        )
        return
    _output.write_table(
        f"Prices at {_output.cell(at)} UTC",
        ("provider", "model", *KINDS, "others", "version"),
        [(p, m, *_cells(price)) for p, m, price in found],
    )
    _output.write_table(
        "Prices of our own",
        ("number", "provider", "model", "match", "tier", "from", "withdrawn", "prices"),
        [
            (
                row.id,
                row.provider,
                row.model,
                row.match,
                row.service_tier,
                row.effective_from,
                row.withdrawn,
                {**row.tokens, **row.units},
            )
            for row in own
        ],
    )


@command.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Show what would be added; write nothing.")
@_output.json_option
def apply(file: Path, yes: bool, dry_run: bool, as_json: bool) -> int:
    """Add the prices of FILE (YAML), all of them or none; the difference is shown first.

    Nothing is ever overwritten: a price that is there already with the same moment is followed by another
    one, which holds. The same file again adds nothing. docs/pricing.md describes the file.
    """
    entries = price_file.read(_yaml(file))
    settings()
    with db.platform_session() as session:
        changes = operations.plan(queries.overrides(session), entries)
    if not as_json:
        _show(changes)
    needed = [change for change in changes if change.is_needed]
    numbers: list[int] = []
    if needed and not dry_run:
        if not yes:
            click.confirm(f"Add {len(needed)} price(s)?", abort=True, err=True)
        with db.platform_session() as session:
            added = operations.apply(session, entries, applied_by=_who(), now=utcnow())
        numbers = [number for _, number in added if number is not None]
    if as_json:
        _output.write_json(
            {
                "dry_run": dry_run,
                "changes": [
                    {
                        **_override_document(change.row),
                        "replaces": None if change.replaced is None else change.replaced.id,
                        "before": _document(change.before),
                        "is_needed": change.is_needed,
                    }
                    for change in changes
                ],
                "added": numbers,
            }
        )
    elif numbers:
        _output.say(
            f"Added {len(numbers)} price(s). Events of the past: usage-worker prices reprice --dry-run"
        )
    return _exits.GOOD


@command.command()
@click.option("--from", "start", type=MOMENT, help="Events that occurred at or after.")
@click.option("--to", "end", type=MOMENT, help="Events that occurred before.")
@click.option("--provider", help="Only this provider, as the events spell it.")
@click.option("--model", help="Only this model, as the events spell it.")
@click.option(
    "--unpriced-only/--all",
    "unpriced_only",
    default=True,
    show_default=True,
    help="Only events without a cost, or those with a computed one as well.",
)
@click.option("--dry-run", is_flag=True, help="Show which events and how much; write nothing.")
@click.option("--reason", help="Recorded with every change; required unless --dry-run.")
@_output.json_option
def reprice(
    start: datetime | None,
    end: datetime | None,
    provider: str | None,
    model: str | None,
    unpriced_only: bool,
    dry_run: bool,
    reason: str | None,
    as_json: bool,
) -> int:
    """Set costs anew by the prices there are now: log, roll-ups and seals together, and the history why.

    A cost that a producer reported is never overwritten under USAGE_COST_POLICY=reported_first. Interrupt it
    when you like: what is done is done, and the same command goes on.
    """
    if not dry_run and not (reason or "").strip():
        raise click.UsageError("--reason is required: it is recorded with every change")
    if start is not None and end is not None and start >= end:
        raise click.UsageError(f"--from {start.isoformat()} is not before --to {end.isoformat()}")
    bound = settings()
    scope = Scope(start=start, end=end, provider=provider, model=model, unpriced_only=unpriced_only)
    prices = pricing.load(bound)
    if dry_run:
        result = repricing.preview(db.platform_session, scope, prices)
    else:
        result = repricing.reprice(
            db.platform_session, scope, prices, requested_by=_who(), reason=str(reason), clock=utcnow
        )
    if as_json:
        _output.write_json({"dry_run": dry_run, **_result_document(result)})
        return _exits.GOOD
    _output.write_table(
        "Would change" if dry_run else "Changed",
        _MODEL_COLUMNS,
        [
            (
                one.provider,
                one.model,
                one.events,
                one.corrections,
                one.cost_before,
                one.cost_after,
                one.cost_after - one.cost_before,
                one.first_ids[:3],
            )
            for one in result.models.values()
        ],
    )
    _output.say(
        f"{result.examined} events examined, {result.changed} rows "
        f"{'would change' if dry_run else 'changed'}, cost {result.cost_change:+f} US dollars"
        + (f", recorded as {result.run_id}" if result.run_id else "")
    )
    return _exits.GOOD


@command.command()
@click.argument("event_id", type=click.UUID)
@_output.json_option
def history(event_id: Any, as_json: bool) -> None:
    """Show when, why and by whom the cost of EVENT_ID was set anew."""
    settings()
    with db.platform_session() as session:
        found = log.history(session, event_id)
    if as_json:
        _output.write_json(found)
        return
    columns = (
        "repriced_at",
        "cost_before",
        "cost_after",
        "source_after",
        "version_after",
        "requested_by",
        "reason",
    )
    _output.write_table(
        f"Cost of {event_id}", columns, [[one[column] for column in columns] for one in found]
    )


class _Loader(yaml.SafeLoader):
    """Reads 0.15 as the number that stands there, and no key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """This function will refuse a key that stands twice: which one was meant, nobody can know."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len(set(map(str, keys))) < len(keys):
            raise yaml.constructor.ConstructorError(None, None, "a key stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _decimal(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Decimal | str:
    words = str(loader.construct_scalar(node))
    try:
        return Decimal(words.replace("_", ""))
    except ArithmeticError:
        return words


_Loader.add_constructor("tag:yaml.org,2002:float", _decimal)


def _yaml(file: Path) -> Any:
    try:
        return yaml.load(file.read_bytes(), Loader=_Loader)  # noqa: S506  derived from the safe loader
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise price_file.InvalidPrices(f"{file}: no YAML: {error}") from None


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _show(changes: Iterable[PriceChange]) -> None:
    _output.write_table(
        "Prices of the file",
        ("provider", "model", "match", "tier", "from", "what", "before", "after"),
        [
            (
                one.row.provider,
                one.row.model,
                one.row.match,
                one.row.service_tier,
                one.row.effective_from,
                _what(one),
                _document(one.before)["prices"],
                "withdrawn" if one.row.withdrawn else {**_named(one.row.tokens), **one.row.units},
            )
            for one in changes
        ],
    )


def _what(change: PriceChange) -> str:
    if not change.is_needed:
        return "known already"
    return "new" if change.replaced is None else f"replaces number {change.replaced.id}"


def _named(tokens: Mapping[str, Decimal]) -> dict[str, Decimal]:
    return {name: tokens[kind] for name, kind in KINDS.items() if kind in tokens}


def _cells(price: Price | None) -> list[object]:
    document = _document(price)
    stated: dict[str, Any] = document["prices"] or {}
    others = {name: value for name, value in stated.items() if name not in KINDS}
    return [*(stated.get(name) for name in KINDS), others or None, document["version"]]


def _document(price: Price | None) -> dict[str, Any]:
    """A price as a program reads it: dollars per million tokens, other units per one."""
    if price is None:
        return {"prices": None, "version": None, "long_context": None}
    shown = {kind: name for name, kind in KINDS.items()}
    stated: dict[str, Decimal] = {}
    longer: dict[str, list[tuple[int, Decimal]]] = {}
    for rate in price.rates:
        if rate.price is None:
            continue
        name = shown.get(rate.kind, rate.kind)
        per = 10**6 if rate.kind.endswith("_tokens") else 1
        stated[name] = (rate.price * per / rate.per).normalize()
        if rate.tiers:
            longer[name] = [(start, above * per / rate.per) for start, above in rate.tiers]
    return {"prices": stated, "version": price.version, "long_context": longer or None}


def _override_document(row: Override) -> dict[str, Any]:
    longer = row.long_context
    return {
        "number": row.id or None,
        "provider": row.provider,
        "model": row.model,
        "match": row.match,
        "service_tier": row.service_tier,
        "from": row.effective_from,
        "withdrawn": row.withdrawn,
        "prices": {**_named(row.tokens), **row.units},
        "long_context": None
        if longer is None
        else {
            "threshold": longer.threshold,
            "inclusive": longer.inclusive,
            "prices": _named(longer.prices),
        },
    }


def _result_document(result: Repriced) -> dict[str, Any]:
    return {
        "run_id": result.run_id,
        "examined": result.examined,
        "changed": result.changed,
        "cost_change": result.cost_change,
        "models": [
            {
                "provider": one.provider,
                "model": one.model,
                "events": one.events,
                "corrections": one.corrections,
                "unpriced_before": one.unpriced_before,
                "unpriced_after": one.unpriced_after,
                "cost_before": one.cost_before,
                "cost_after": one.cost_after,
                "first_ids": one.first_ids,
            }
            for one in result.models.values()
        ],
    }
