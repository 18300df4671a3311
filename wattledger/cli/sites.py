"""The `sites` command: what a site is called, on whose clock and grid it stands."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from wattledger.cli.access import actor, transaction
from wattledger.cli.listing import Listing
from wattledger.cli.output import Format, Shown, format_option, print_rows


@click.group(
    cls=Listing,
    epilog="""\b
Examples:
  wattledger sites list
  wattledger sites set berlin-1 --time-zone Europe/Berlin --grid-zone DE
""",
)
def sites() -> None:
    """List sites, and set the zones their tariffs and carbon intensities come from."""


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
