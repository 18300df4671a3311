"""The `prices` commands: check and apply a price book, what is in force, and what was used without a price."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from wattledger.cli import EXIT_NO
from wattledger.cli.access import actor, transaction
from wattledger.cli.bill import Instant
from wattledger.cli.listing import Listing
from wattledger.cli.output import Format, Shown, format_option, print_rows
from wattledger.cli.parameters import Text, TextFile

if TYPE_CHECKING:
    from analytics.io.price_book import PriceBookError


@click.group(
    cls=Listing,
    epilog="""\b
Examples:
  wattledger prices check book.yaml
  wattledger prices apply book.yaml
  wattledger prices show --model gpt-5
  wattledger prices missing --from 2026-11-01
""",
)
def prices() -> None:
    """Check and apply price books, show what is in force, and what was used without a price."""


@prices.command(epilog="\b\nExample:\n  wattledger prices check book.yaml")
@click.argument("file", type=TextFile())
@click.pass_context
def check(ctx: click.Context, file: Text) -> None:
    """Check a price book without touching anything. Exit code 1 when it has faults; all are listed with their line."""
    from analytics.io.price_book import PriceBookError
    from analytics.io.price_book import check as checked

    try:
        book = checked(file.content)
    except PriceBookError as error:
        _list_faults(ctx, file, error)
    else:
        names, policies = len(book.aliases or ()), len(book.policies or ())
        click.echo(f"{file.name}: valid, {len(book.prices)} prices, {names} names of models, {policies} policies")


@prices.command(epilog="\b\nExample:\n  wattledger prices apply book.yaml")
@click.argument("file", type=TextFile())
@click.pass_context
def apply(ctx: click.Context, file: Text) -> None:
    """Make a price book hold: what it says of a time replaces what was known of it, nothing is deleted."""
    from analytics.io import price_book_store
    from analytics.io.price_book import PriceBookError
    from analytics.io.price_book import check as checked
    from ingest.store import audit

    sha256 = hashlib.sha256(file.content.encode())
    try:
        book = checked(file.content)
        with transaction(ctx, "owner") as connection:
            done = price_book_store.apply(connection, book, sha256.digest(), actor())
            if done.number:
                told = {"sha256": sha256.hexdigest(), **asdict(done)}
                audit.note(connection, actor(), "prices.apply", f"price_book/{book.name}", **told)
    except PriceBookError as error:
        _list_faults(ctx, file, error)
        return
    if not done.number:
        click.echo(f"{file.name}: nothing new, {book.name} was applied last as it is")
        return
    click.echo(
        f"{file.name}: {book.name} {done.number}: {done.prices} prices added, {done.superseded} superseded, "
        f"{done.unchanged} known already; {done.names} names of models and {done.policies} policies changed; "
        "the worker rates the hours again that these reach"
    )


@prices.command(
    epilog="""\b
Examples:
  wattledger prices show --model gpt-5
  wattledger prices show --provider openai --at 2026-10-01 --format csv
"""
)
@click.option("--provider", help="Of this provider alone; `owned` for your own accelerators.")
@click.option("--model", help="Of this model alone.")
@click.option("--at", "at", type=Instant(), help="In force then. Default: now.")
@format_option
@click.pass_context
def show(ctx: click.Context, provider: str | None, model: str | None, at: datetime | None, format_: Format) -> None:
    """Show the prices in force, as they are known now, with their conditions and where they come from."""
    from analytics.io import price_book_store

    with transaction(ctx, "worker") as connection:
        rows = price_book_store.in_force(connection, at or datetime.now(UTC), provider, model)
    shown = (
        Shown("provider", "provider"),
        Shown("model", "model"),
        Shown("meter", "meter"),
        Shown("conditions", "conditions", leaves=3),
        Shown("amount", "of one", _plain, numeric=True),
        Shown("unit", "unit"),
        Shown("currency", "currency"),
        Shown("valid_from", "from", _day),
        Shown("source", "source", leaves=1),
    )
    print_rows(rows, shown, format_)


@prices.command(
    epilog="""\b
Examples:
  wattledger prices missing --from 2026-11-01
  wattledger prices missing --from 2026-11-01 --suggest
"""
)
@click.option("--from", "from_at", type=Instant(), help="Start, a full hour. Default: 31 days ago.")
@click.option("--to", "to_at", type=Instant(), help="End, exclusive. Default: now.")
@click.option(
    "--suggest", is_flag=True, help="Print a book with a name for each model that begins like one with prices."
)
@format_option
@click.pass_context
def missing(
    ctx: click.Context, from_at: datetime | None, to_at: datetime | None, suggest: bool, format_: Format
) -> None:
    """List what calls used and no price was found for. Exit code 1 when there is any."""
    from analytics.io import price_book_store

    now = datetime.now(UTC)
    with transaction(ctx, "worker") as connection:
        rows = price_book_store.missing(connection, from_at or now - timedelta(days=31), to_at or now)
    if suggest:
        click.echo(_suggested(rows))
    else:
        shown = (
            Shown("provider", "provider"),
            Shown("model", "model"),
            Shown("part", "part"),
            Shown("terms", "terms", _or_none),
            Shown("quantity", "used", numeric=True),
            Shown("quantity_unit", "unit"),
            Shown("hours", "hours", numeric=True, leaves=1),
            Shown("stands_for", "begins like", _or_none, leaves=2),
        )
        print_rows(rows, shown, format_)
    if rows:
        ctx.exit(EXIT_NO)


def _suggested(rows: list[dict[str, Any]]) -> str:
    import yaml

    found = {(row["provider"], row["model"], row["stands_for"]) for row in rows}
    names = [
        {"provider": provider, "exact": model, "model": like}
        for provider, model, like in sorted(found, key=str)
        if like is not None and like != model
    ]
    return str(yaml.safe_dump({"book": "names", "aliases": names}, sort_keys=False)).rstrip()


def _plain(amount: Decimal) -> str:
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _day(at: datetime) -> str:
    return f"{at:%Y-%m-%d}"


def _or_none(value: str | None) -> str:
    return value or ""


def _list_faults(ctx: click.Context, file: Text, error: PriceBookError) -> None:
    for fault in error.faults:
        click.echo(f"{file.name}: {fault}", err=True)
    click.echo(f"{len(error.faults)} faults" if len(error.faults) > 1 else "1 fault", err=True)
    ctx.exit(EXIT_NO)
