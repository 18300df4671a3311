"""The `meters` commands: which meters there are, and what is between them and the books."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from wattledger.cli.access import driver_transaction
from wattledger.cli.listing import Listing
from wattledger.cli.output import Format, Shown, format_option, print_rows

_MJ_PER_KWH = 3_600_000_000
_PPM_PER_PERCENT = 10_000


@click.group(
    cls=Listing,
    epilog="""\b
Examples:
  wattledger meters list
  wattledger meters gap --month 2026-11
  wattledger meters gap --month 2026-11 --site berlin-1 --format csv
""",
)
def meters() -> None:
    """Meters of nodes and above them, and the gap between what they showed and what is in the books."""


@meters.command(
    "list",
    epilog="""\b
Examples:
  wattledger meters list
  wattledger meters list --site berlin-1 --format json
""",
)
@click.option("--site", help="Of this site alone.")
@format_option
@click.pass_context
def list_(ctx: click.Context, site: str | None, format_: Format) -> None:
    """List meters: what hangs on what, which of a node bills, how far each may be off."""
    from analytics.io.meter_gaps import listed

    with driver_transaction(ctx, "worker") as connection:
        rows: list[dict[str, Any]] = [asdict(each) for each in listed(connection, site)]
    shown = (
        Shown("site", "site"),
        Shown("node", "node"),
        Shown("name", "meter"),
        Shown("level", "level"),
        Shown("covers", "covers", leaves=2),
        Shown("bills", "bills", lambda bills: "yes" if bills else "checks"),
        Shown("parent", "hangs on"),
        Shown("gain_ppm", "may be off", _percent, numeric=True, leaves=3),
        Shown("read_to_at", "read to", lambda at: f"{at:%Y-%m-%d %H:%M}", leaves=1),
    )
    print_rows(rows, shown, format_)


@meters.command(
    epilog="""\b
Examples:
  wattledger meters gap --month 2026-11
  wattledger meters gap --month 2026-11 --format json
"""
)
@click.option("--month", "name", required=True, metavar="YYYY-MM", help="In the billing zone, WATTLEDGER_BILLING_ZONE.")
@click.option("--site", help="Of this site alone.")
@format_option
@click.pass_context
def gap(ctx: click.Context, name: str, site: str | None, format_: Format) -> None:
    """Set what each level showed against what is known below it, over the hours that both sides know."""
    from analytics.io.meter_gaps import gaps
    from analytics.model.month import month
    from wattledger.runtime import billing_zone

    of = month(name, billing_zone())
    with driver_transaction(ctx, "worker") as connection:
        found = gaps(connection, of.from_at, of.to_at, site)
    rows: list[dict[str, Any]] = [asdict(each) | {"is_explained": each.is_explained} for each in found]
    shown = (
        Shown("site", "site"),
        Shown("level", "level"),
        Shown("meter", "meter"),
        Shown("below", "over"),
        Shown("metered_mj", "metered kWh", _kwh, numeric=True),
        Shown("below_mj", "below kWh", _kwh, numeric=True),
        Shown("gap_ppm", "gap", _percent, numeric=True),
        Shown("error_ppm", "may be off", _percent, numeric=True),
        Shown("is_explained", "explained", lambda is_so: "yes" if is_so else "no", leaves=2),
        Shown("hours", "hours", numeric=True),
        Shown("of_hours", "of", numeric=True, leaves=1),
    )
    notes = ["no meter above a node was read, and no node's overhead is known"] if not rows else []
    print_rows(rows, shown, format_, notes=notes)


def _kwh(energy_mj: int) -> str:
    return f"{energy_mj / _MJ_PER_KWH:,.2f}"


def _percent(ppm: int) -> str:
    return f"{ppm / _PPM_PER_PERCENT:.2f} %"
