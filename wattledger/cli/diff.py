"""The `diff` command: what a restatement of an hour moved, line by line, and why."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

import click

from wattledger.cli.access import driver_transaction
from wattledger.cli.bill import Instant
from wattledger.cli.output import Format, Shown, format_option, print_rows


@click.command(
    epilog="""\b
Examples:
  wattledger diff fra1 2026-11-20T08:00
  wattledger diff fra1 2026-11-20T08:00 --before 1 --after 3 --format json
"""
)
@click.argument("site")
@click.argument("hour_at", metavar="HOUR", type=Instant())
@click.option("--before", type=click.IntRange(1), help="Revision to compare with. Default: the one before --after.")
@click.option("--after", type=click.IntRange(1), help="Default: the newest.")
@format_option
@click.pass_context
def diff(
    ctx: click.Context, site: str, hour_at: datetime, before: int | None, after: int | None, format_: Format
) -> None:
    """Show line by line what moved between two revisions of a closed hour, the dearest first, and the runs it moved by.

    Of an hour in a closed month the newest revision is what it would be by now: its difference is posted as corrections.
    """
    from analytics.io.diffs import lines_between

    with driver_transaction(ctx, "worker") as connection:
        found = lines_between(connection, site, hour_at, before, after)
    rows: list[dict[str, Any]] = [asdict(line) for line in found.lines]
    notes = [f"revision {found.before} to {found.after}: {len(rows)} lines moved"]
    notes += [f"revision {run.revision} by {run.kind} of {run.code_version}: {run.reason}" for run in found.runs]
    print_rows(rows, _COLUMNS, format_, notes=notes)


_COLUMNS: Final = (
    Shown("tenant", "tenant"),
    Shown("holder", "holder"),
    Shown("device_model", "model", leaves=3),
    Shown("charge_category", "category"),
    Shown("what", "what"),
    Shown("billed_cost", "cost", lambda cost: f"{cost:+f}", numeric=True),
    Shown("currency", "in", leaves=4),
    Shown("energy_mj", "energy (mJ)", lambda energy_mj: f"{energy_mj:+,}", numeric=True),
    Shown("carbon_gco2e", "gCO2e", lambda grams: f"{grams:+f}", numeric=True, leaves=2),
)
