"""The `sites` commands: what a site is called, on whose clock and grid it stands, and what no device tells of it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from wattledger.cli import EXIT_NO
from wattledger.cli.access import actor, driver_transaction, transaction
from wattledger.cli.listing import Listing
from wattledger.cli.output import Format, Shown, format_option, print_rows
from wattledger.cli.parameters import Text, TextFile

if TYPE_CHECKING:
    from analytics.io.site_facts import SiteFactsError


@click.group(
    cls=Listing,
    epilog="""\b
Examples:
  wattledger sites list
  wattledger sites set berlin-1 --time-zone Europe/Berlin --grid-zone DE
  wattledger sites apply site.yaml
""",
)
def sites() -> None:
    """List sites, set the zones their tariffs and carbon intensities come from, and say what no device tells of them."""


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
  wattledger sites check site.yaml
  git show HEAD:site.yaml | wattledger sites check -
"""
)
@click.argument("file", type=TextFile())
@click.pass_context
def check(ctx: click.Context, file: Text) -> None:
    """Check a file of site facts without touching anything. Exit code 1 when it has faults; all are listed with their line."""
    from analytics.io.site_facts import SiteFactsError
    from analytics.io.site_facts import check as checked

    try:
        found = checked(file.content)
    except SiteFactsError as error:
        _list_faults(ctx, file, error)
    else:
        told = ", ".join(f"{len(facts)} of {name}" for name, facts in found.sections.items())
        click.echo(f"{file.name}: valid, {told or 'nothing in it'}")


@sites.command(
    epilog="""\b
Examples:
  wattledger sites apply site.yaml
  wattledger sites apply site.yaml --site berlin-1
\b
Sections: meters (which bills, what hangs on what), overhead (of nodes without a meter), shared_it (switches, storage),
capacity (reserved, under maintenance, stranded), assets, idle (who carries it). deploy/examples/site.yaml shows each.
"""
)
@click.argument("file", type=TextFile())
@click.option("--site", help="Where the file does not say it.")
@click.pass_context
def apply(ctx: click.Context, file: Text, site: str | None) -> None:
    """Make a file's sections what holds of a site. Facts it does not have any more are superseded, never deleted."""
    from analytics.io import site_facts_store
    from analytics.io.site_facts import SiteFactsError
    from analytics.io.site_facts import check as checked
    from ingest.store import audit

    try:
        facts = checked(file.content)
        chosen = site or facts.site
        if chosen is None:
            raise click.UsageError("say of which site: `site: NAME` in the file, or --site NAME")
        with driver_transaction(ctx, "owner") as connection:
            done = site_facts_store.apply(connection, facts, chosen, datetime.now(UTC))
            if any(asdict(done).values()):
                sha256 = hashlib.sha256(file.content.encode()).hexdigest()
                audit.note_on(connection, actor(), "sites.apply", f"site/{chosen}", sha256=sha256, **asdict(done))
    except SiteFactsError as error:
        _list_faults(ctx, file, error)
        return
    if not any(asdict(done).values()):
        click.echo(f"{file.name}: nothing new, this holds of {chosen} already")
        return
    click.echo(
        f"{file.name}: {done.added} facts added, {done.superseded} superseded, {done.meters_described} meters described; "
        "the worker closes the hours again that these reach"
    )


def _list_faults(ctx: click.Context, file: Text, error: SiteFactsError) -> None:
    for fault in error.faults:
        click.echo(f"{file.name}: {fault}", err=True)
    click.echo(f"{len(error.faults)} faults" if len(error.faults) > 1 else "1 fault", err=True)
    ctx.exit(EXIT_NO)
