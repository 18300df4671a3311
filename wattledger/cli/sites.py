"""The `sites` command: what a site is called, on whose clock and grid it stands."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from wattledger.cli.access import actor, driver_transaction, transaction
from wattledger.cli.bill import Instant
from wattledger.cli.listing import Listing
from wattledger.cli.output import Format, Shown, format_option, print_rows


@click.group(
    cls=Listing,
    epilog="""\b
Examples:
  wattledger sites list
  wattledger sites set berlin-1 --time-zone Europe/Berlin --grid-zone DE
  wattledger sites idle berlin-1 proportional --from 2026-11-01
""",
)
def sites() -> None:
    """List sites, set the zones their tariffs and carbon intensities come from, and say who pays for idle accelerators."""


@sites.command("list", epilog="\b\nExample:\n  wattledger sites list --format json")
@format_option
@click.pass_context
def list_(ctx: click.Context, format_: Format) -> None:
    """List the sites with their zones and how many nodes they have."""
    from dataclasses import asdict

    from ingest.store.sites import listed

    with transaction(ctx, "worker") as connection:
        rows: list[dict[str, Any]] = [asdict(site) for site in listed(connection)]
    shown = (
        Shown("name", "site"),
        Shown("time_zone", "time zone"),
        Shown("grid_zone", "grid zone"),
        Shown("nodes", "nodes", numeric=True),
    )
    print_rows(rows, shown, format_)


@sites.command(
    "set",
    epilog="""\b
Examples:
  wattledger sites set berlin-1 --time-zone Europe/Berlin --grid-zone DE
  wattledger sites set texas --grid-zone ERCO
""",
)
@click.argument("name")
@click.option("--time-zone", help="IANA zone of tariffs and billing periods, e.g. Europe/Berlin.")
@click.option("--grid-zone", help="Zone whose carbon intensity applies, as the intensity import names it.")
@click.pass_context
def set_(ctx: click.Context, name: str, time_zone: str | None, grid_zone: str | None) -> None:
    """Make a site where it is new, and set its zones; hours already in the books are closed again with them."""
    from ingest.store import audit
    from ingest.store.sites import listed, set_zones

    if time_zone is not None:
        try:
            ZoneInfo(time_zone)
        except (ZoneInfoNotFoundError, ValueError):
            raise click.BadParameter(f"{time_zone!r} is no IANA time zone; write it like Europe/Berlin") from None
    with transaction(ctx, "owner") as connection:
        before = next((each for each in listed(connection) if each.name == name), None)
        set_zones(connection, name, time_zone=time_zone, grid_zone=grid_zone)
        (after,) = (each for each in listed(connection) if each.name == name)
        audit.note(
            connection,
            actor(),
            "sites.set",
            f"site/{name}",
            before=None if before is None else asdict(before),
            after=asdict(after),
        )
    set_to = {"time zone": time_zone, "grid zone": grid_zone}
    click.echo(f"{name}: " + (", ".join(f"{what} {zone}" for what, zone in set_to.items() if zone) or "nothing to set"))


@sites.command(
    epilog="""\b
Examples:
  wattledger sites idle berlin-1 proportional --from 2026-11-01
  wattledger sites idle berlin-1 proportional --by energy --from 2026-11-01
  wattledger sites idle berlin-1 fixed --part acme/research=60% --part acme/products=25% --from 2026-11-01
  wattledger sites idle berlin-1 keep --from 2026-12-01
"""
)
@click.argument("name")
@click.argument("policy", type=click.Choice(["keep", "proportional", "fixed"]))
@click.option(
    "--from", "from_at", type=Instant(), required=True, help="From when on, a full hour; past hours are rated again."
)
@click.option(
    "--by",
    "basis",
    type=click.Choice(["time", "energy"]),
    default="time",
    show_default=True,
    help="Of a proportional one.",
)
@click.option(
    "--part",
    "parts",
    multiple=True,
    metavar="TENANT=PERCENT%",
    help="Of a fixed one; what no tenant has stays with the platform.",
)
@click.pass_context
def idle(ctx: click.Context, name: str, policy: Any, from_at: datetime, basis: Any, parts: tuple[str, ...]) -> None:
    """Say who carries what idle accelerators of a site cost: the platform, or tenants by use or by fixed parts, on lines of their own."""
    from analytics.io.idle_policies import set_policy
    from ingest.store import audit

    if from_at.minute or from_at.second or from_at.microsecond:
        raise click.UsageError(f"--from {from_at.isoformat()} cuts an hour of the books; give a full UTC hour")
    told = dict(_part(each) for each in parts)
    with driver_transaction(ctx, "owner") as connection:
        is_new = set_policy(connection, name, policy, from_at, datetime.now(UTC), basis=basis, parts=told)
        if is_new:
            detail = {"policy": policy, "basis": basis, "parts": told, "from_at": from_at.isoformat()}
            audit.note_on(connection, actor(), "sites.idle", f"site/{name}", **detail)
    click.echo(f"{name}: {policy} from {from_at.isoformat()}" + ("" if is_new else " already"))


def _part(text: str) -> tuple[str, int]:
    path, _, amount = text.rpartition("=")
    try:
        ppm = Decimal(amount.removesuffix("%")) * 10_000 if path and amount.endswith("%") else Decimal("NaN")
    except InvalidOperation:
        ppm = Decimal("NaN")
    if not ppm.is_finite() or ppm != int(ppm) or not 0 < ppm <= 1_000_000:
        raise click.BadParameter(
            f"{text!r} is no part; write it like acme/research=12.5%, to four places", param_hint="--part"
        )
    return path, int(ppm)
