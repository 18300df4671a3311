"""`import meters`, `import focus`, `import litellm`, and what came of them: files, invoices, sums of charges, charges beside calls.

The group of all imports as the command line loads it. Exit codes as there; `invoices` leaves with 1 where a stated total differs.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

import click

from wattledger.cli import EXIT_NO, chosen_home
from wattledger.cli.bill import Instant
from wattledger.cli.imports import Asked, carry_out, import_, takes_file
from wattledger.cli.output import Format, Shown, format_option, print_rows
from wattledger.cli.parameters import Duration, Kwh, Pair, Percent, TenantPath

if TYPE_CHECKING:
    import psycopg
    import sqlalchemy as sa

    from ingest.importers.columns import Source
    from ingest.importers.report import ImportReport, ProgressCallback

__all__ = ["import_"]


@import_.command(
    epilog="""\b
Examples:
  wattledger import meters utility.csv --site berlin-1 --meter grid --level utility --error 0.5
  wattledger import meters pdus.csv --site berlin-1 --level pdu --parent grid --step 1h
  wattledger import meters register.csv --meter pdu-a --map register=total --unit register=kWh --wrap 1000000
\b
A row is the energy of a period (start, to or --step, energy) or a register at an instant (at, register).
Columns meter, level, parent and covers say what the options would. Readings of nodes come by `import node-power`.
"""
)
@takes_file
@click.option("--meter", help="Name of the meter where the file has no such column.")
@click.option("--level", type=click.Choice(["utility", "pdu", "cdu", "other"]), help="Of meters that are new.")
@click.option("--parent", help="Meter that feeds them.")
@click.option(
    "--covers",
    type=click.Choice(["it", "part", "cooling", "all"]),
    help="What is behind them. A new utility covers all, others it.",
)
@click.option(
    "--error", "error_percent", type=Percent(), metavar="PERCENT", help="90 % of readings are this near: 0.5."
)
@click.option("--wrap", "wrap_kwh", type=Kwh(), metavar="KWH", help="Where a register begins anew at 0.")
@click.option(
    "--step", type=Duration(), default="15m", show_default=True, help="How long a row with a start only lasts."
)
def meters(
    asked: Asked,
    meter: str | None,
    level: str | None,
    parent: str | None,
    covers: str | None,
    error_percent: int | None,
    wrap_kwh: int | None,
    step: timedelta,
) -> None:
    """What meters above the nodes showed: utility, PDU, CDU; to be compared with the books (`wattledger meters gap`)."""
    from ingest.importers.meter_readings import MeterOptions, import_meters

    def run(conn: sa.Connection, source: Source, site: str, progress: ProgressCallback) -> ImportReport:
        options = MeterOptions(site, meter, level, parent, covers, error_percent, wrap_kwh, step)
        return import_meters(conn, source, options, dry_run=asked.dry_run, progress=progress)

    carry_out(asked, run)


@import_.command(
    epilog="""\b
Examples:
  wattledger import focus focus-2026-10.csv --site cloud
  wattledger import focus export.parquet --site cloud --invoice-total INV-2026-10=1284.50
  wattledger import focus corrected.csv --site cloud --whole-periods
  wattledger import focus part-0001.parquet --site cloud --part
"""
)
@takes_file
@click.option("--tenant", type=TenantPath(), help="Who pays for all of it; else the bindings say, by tag and account.")
@click.option(
    "--provider", help="How calls name the provider of token charges. Default: the file's name in lower case."
)
@click.option(
    "--part", "one_of_several", is_flag=True, help="One part of an export: it restates nothing of the others."
)
@click.option(
    "--whole-periods",
    is_flag=True,
    help="All there is of its billing periods: what earlier files said and this one does not counts no longer.",
)
@click.option(
    "--invoice-total",
    "stated",
    type=Pair(),
    multiple=True,
    metavar="INVOICE=AMOUNT",
    help="What an invoice says it adds up to; where the file names none: ISSUER@YYYY-MM=AMOUNT.",
)
def focus(
    asked: Asked,
    tenant: str | None,
    provider: str | None,
    one_of_several: bool,
    whole_periods: bool,
    stated: tuple[tuple[str, str], ...],
) -> None:
    """Cost and usage of a cloud or SaaS provider, FOCUS 1.0 to 1.3: every digit kept, totals by invoice."""
    from ingest.importers.focus import FocusOptions, import_focus

    totals = {name: _amount(text) for name, text in stated}

    def run(conn: sa.Connection, source: Source, site: str, progress: ProgressCallback) -> ImportReport:
        options = FocusOptions(site, tenant, provider, one_of_several, whole_periods, totals)
        return import_focus(conn, source, options, now=datetime.now(UTC), dry_run=asked.dry_run, progress=progress)

    carry_out(asked, run)


@import_.command(
    epilog="""\b
Examples:
  psql "$LITELLM_DB" -c '\\copy (SELECT * FROM "LiteLLM_SpendLogs") TO spend.csv CSV HEADER'
  wattledger import litellm spend.csv --site cloud
  wattledger import litellm spend.json --site cloud --tenant acme/chat
"""
)
@takes_file
@click.option("--tenant", type=TenantPath(), help="Who pays for all of them; else the bindings say, by key.")
@click.option("--provider", help="Of rows that name none.")
def litellm(asked: Asked, tenant: str | None, provider: str | None) -> None:
    """LiteLLM's SpendLogs: calls known from spans are not counted again. Prompts, answers and users are never read."""
    from ingest.importers.litellm import LitellmOptions, import_litellm

    def run(conn: sa.Connection, source: Source, site: str, progress: ProgressCallback) -> ImportReport:
        options = LitellmOptions(site, tenant, provider)
        return import_litellm(conn, source, options, now=datetime.now(UTC), dry_run=asked.dry_run, progress=progress)

    carry_out(asked, run)


@import_.command(
    "list",
    epilog="\b\nExamples:\n  wattledger import list\n  wattledger import list --kind focus --format json",
)
@click.option("--kind", help="Only this kind: focus, litellm, llm-log, …")
@click.option("--top", type=click.IntRange(1, 100_000), default=50, show_default=True, help="At most so many.")
@format_option
@click.pass_context
def list_(ctx: click.Context, kind: str | None, top: int, format_: Format) -> None:
    """Files imported, the latest first."""
    from analytics.io.charges import files

    rows = _asked(ctx, lambda conn: [row._asdict() for row in files(conn, kind, top)])
    shown = (
        Shown("imported_at", "imported (UTC)", _minute),
        Shown("kind", "kind"),
        Shown("file_name", "file"),
        Shown("site", "site", leaves=1),
        Shown("rows_read", "rows read", numeric=True),
        Shown("rows_written", "written", numeric=True),
        Shown("rows_rejected", "refused", numeric=True),
    )
    print_rows(rows, shown, format_)


@import_.command(
    epilog="\b\nExamples:\n  wattledger import invoices\n  wattledger import invoices --from 2026-10-01 --format csv"
)
@click.option("--from", "from_at", type=Instant(), help="Billing periods from here on.")
@click.option("--to", "to_at", type=Instant(), help="Billing periods before this.")
@format_option
@click.pass_context
def invoices(ctx: click.Context, from_at: datetime | None, to_at: datetime | None, format_: Format) -> None:
    """Each invoice, or month without one: what was taken in, and what it says it adds up to."""
    from analytics.io.charges import invoices as read

    rows = _asked(ctx, lambda conn: [row._asdict() for row in read(conn, from_at, to_at)])
    shown = (
        Shown("period_start_at", "period", lambda at: f"{at:%Y-%m}"),
        Shown("provider", "provider"),
        Shown("invoice_issuer", "issuer", leaves=2),
        Shown("invoice_id", "invoice", lambda name: name or "-"),
        Shown("billing_account_id", "account", leaves=1),
        Shown("rows", "rows", numeric=True),
        Shown("billed_cost", "taken in", _money, numeric=True),
        Shown("stated_total", "stated", _money, numeric=True),
        Shown("difference", "difference", _money, numeric=True),
        Shown("currency", "currency"),
    )
    print_rows(rows, shown, format_)
    if any(row["difference"] for row in rows):
        ctx.exit(EXIT_NO)


@import_.command(
    epilog="""\b
Examples:
  wattledger import charges --from 2026-10-01 --to 2026-11-01
  wattledger import charges --from 2026-10-01 --group-by service --format csv
"""
)
@click.option("--from", "from_at", type=Instant(), required=True, help="Charges that begin here or later.")
@click.option("--to", "to_at", type=Instant(), help="Charges that begin before this. Default: now.")
@click.option(
    "--group-by",
    "by",
    type=click.Choice(["tenant", "provider", "service", "category"]),
    default="tenant",
    show_default=True,
    help="One row per.",
)
@format_option
@click.pass_context
def charges(ctx: click.Context, from_at: datetime, to_at: datetime | None, by: Any, format_: Format) -> None:
    """Sums of imported charges. What charges LLM calls is not among them: the calls are billed, see `compare`."""
    from dataclasses import asdict

    from analytics.io.charges import sums

    rows = _asked(ctx, lambda conn: [asdict(row) for row in sums(conn, from_at, to_at or datetime.now(UTC), by)])
    shown = (
        Shown("key", by),
        Shown("rows", "rows", numeric=True),
        Shown("billed_cost", "billed", _money, numeric=True),
        Shown("effective_cost", "effective", _money, numeric=True),
        Shown("currency", "currency"),
    )
    print_rows(rows, shown, format_)


@import_.command(
    epilog="\b\nExamples:\n  wattledger import compare --from 2026-10-01 --to 2026-11-01\n"
    "  wattledger import compare --from 2026-10-01 --format json"
)
@click.option("--from", "from_at", type=Instant(), required=True, help="Charges that begin here or later.")
@click.option("--to", "to_at", type=Instant(), help="Charges that begin before this. Default: now.")
@format_option
@click.pass_context
def compare(ctx: click.Context, from_at: datetime, to_at: datetime | None, format_: Format) -> None:
    """Token charges of invoices by model and day, beside the calls they cover and what the books bill for these."""
    from analytics.io.charges import compared

    rows = _asked(
        ctx,
        lambda conn: [_with_differences(row._asdict()) for row in compared(conn, from_at, to_at or datetime.now(UTC))],
    )
    shown = (
        Shown("day_at", "day (UTC)", lambda at: f"{at:%Y-%m-%d}"),
        Shown("provider", "provider"),
        Shown("model", "model"),
        Shown("calls", "calls", numeric=True),
        Shown("tokens", "tokens invoiced", numeric=True, leaves=2),
        Shown("tokens_difference", "more than calls", numeric=True, leaves=1),
        Shown("billed_cost", "invoiced", _money, numeric=True),
        Shown("booked_cost", "in the books", _money, numeric=True),
        Shown("cost_difference", "difference", _money, numeric=True),
        Shown("currency", "currency"),
    )
    print_rows(rows, shown, format_)


def _with_differences(row: dict[str, Any]) -> dict[str, Any]:
    """Add invoice less books; None where either is unknown."""
    tokens, booked = row["tokens"], row["booked_cost"]
    return row | {
        "tokens_difference": None if tokens is None else tokens - (row["called_tokens"] or 0),
        "cost_difference": None if booked is None else row["billed_cost"] - booked,
    }


def _asked(ctx: click.Context, read: Callable[[psycopg.Connection[Any]], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    from wattledger.runtime import ready_database

    with ready_database(chosen_home(ctx)).connect("worker") as conn:
        return read(conn)


def _amount(text: str) -> Decimal:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite():
        raise click.UsageError(f"--invoice-total: {text!r} is no amount; write it like 1284.50")
    return amount


def _money(amount: Decimal) -> str:
    return f"{amount:,.2f}" if amount == amount.quantize(Decimal("0.01")) else f"{amount.normalize():,f}"


def _minute(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"
