"""The `import` commands: files people already have, into the store. Options in, one importer called, its report printed.

Exit codes: 0 every row was taken, 1 some were refused (and are listed), 2 the file could not be used and nothing was written.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wattledger.cli import EXIT_NO, chosen_home
from wattledger.cli.access import actor, idle_connection
from wattledger.cli.bill import Instant
from wattledger.cli.listing import Listing
from wattledger.cli.parameters import Duration, Pair, TenantPath

if TYPE_CHECKING:
    import sqlalchemy as sa

    from ingest.importers.columns import Source
    from ingest.importers.report import ImportReport, ProgressCallback

Importer = Callable[["sa.Connection", "Source", str, "ProgressCallback"], "ImportReport"]


@click.group(
    "import",
    cls=Listing,
    epilog="""\b
One per format:
  wattledger import node-power power.csv --site berlin-1 --model H100 --accelerators 8
  wattledger import jobs jobs.csv --site berlin-1 --cluster c1 --tz Europe/Berlin
  sacct -X -P -o ALL > jobs.txt; wattledger import sacct jobs.txt --cluster c1 --tz Europe/Berlin
  wattledger import llm-log requests.csv --provider azure --model gpt-4 --tenant acme/chat --tz UTC
  wattledger import litellm spend-logs.csv --site cloud
  wattledger import focus focus-2026-10.csv --site cloud
  wattledger import tariffs day-ahead.csv --zone DE-LU --currency EUR
  wattledger import intensity electricitymaps.csv --zone DE
  wattledger import prices litellm.csv --valid-from 2026-01-01
  wattledger import facility-factors pue.csv --site berlin-1
  wattledger import meters utility.csv --site berlin-1 --meter grid --level utility
  wattledger import topology /etc/slurm/topology.conf --site berlin-1
\b
See what would happen first, and what a file's columns are taken for:
  wattledger import node-power power.csv --dry-run
  wattledger import jobs export.csv --map start=began --map end=finished --unit start=s
\b
CSV with , ; tab or |, sacct -P, gzip of these, and Parquet are recognised from their bytes. All or nothing: a file
that cannot be used leaves no trace, and a file imported before is not imported again. Exit code 0: every row was
taken, 1: some rows were refused and are listed with their line, 2: the file could not be used.
""",
)
def import_() -> None:
    """Take in node and site power, jobs, LLM logs, what providers charge, tariffs, intensity and prices from files; list them."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The options every import has."""

    file: Path
    site: str | None
    columns: tuple[tuple[str, str], ...]
    units: tuple[tuple[str, str], ...]
    tz: str | None
    delimiter: str | None
    relative_to: datetime | None
    dry_run: bool
    shown: int
    format_: str


def takes_file(function: Callable[..., None]) -> Callable[..., None]:
    """Add FILE and the options every import has; the command gets them as one `Asked`, before its own."""

    @functools.wraps(function)
    def command(**given: Any) -> None:
        common = {field.name: given.pop(field.name) for field in fields(Asked)}
        function(Asked(**common), **given)

    for add in reversed(
        [
            click.argument("file", type=click.Path(path_type=Path)),
            click.option("--site", help="Where it happened; a new one is made. Default: the only site there is."),
            click.option(
                "--map", "columns", type=Pair(), multiple=True, metavar="OURS=THEIRS", help="Our field is their column."
            ),
            click.option(
                "--unit", "units", type=Pair(), multiple=True, metavar="OURS=UNIT", help="A column's unit: power=kW."
            ),
            click.option("--tz", metavar="ZONE", help="Zone of times without one: Europe/Berlin, UTC."),
            click.option("--delimiter", metavar="CHAR", help="Where the header does not show it: comma, tab, pipe, …"),
            click.option("--relative-to", type=Instant(), help="What bare numbers of time count from, if not 1970."),
            click.option("--dry-run", is_flag=True, help="Do it all, report, and take it back."),
            click.option(
                "--show",
                "shown",
                type=click.IntRange(0, 100),
                default=10,
                show_default=True,
                help="Refused rows shown.",
            ),
            click.option(
                "--format",
                "format_",
                type=click.Choice(["table", "json"]),
                default="table",
                show_default=True,
                help="How to print: for people, or whole as JSON.",
            ),
        ]
    ):
        command = add(command)
    return command


@import_.command(
    "node-power",
    epilog="""\b
Examples:
  wattledger import node-power power.csv --site berlin-1 --model "NVIDIA H100" --accelerators 8
  wattledger import node-power both.parquet --bills ac --node-name "{run}/{node}" --model H100 --accelerators 8
  wattledger import node-power bmc.csv.gz --map power=inlet --unit power=kW --tz UTC
""",
)
@takes_file
@click.option("--bills", metavar="METER", help="With several meters per node: the one that bills; the others check it.")
@click.option("--meter", default="import", show_default=True, help="Name of the meter where the file has no column.")
@click.option("--node-name", default="{node}", show_default=True, help="Built from {node}, {run} and {bench}.")
@click.option("--model", help="Accelerator model of the nodes, with --accelerators.")
@click.option("--accelerators", type=click.IntRange(1), help="Per node: books each node as one device of so many.")
def node_power(
    asked: Asked, bills: str | None, meter: str, node_name: str, model: str | None, accelerators: int | None
) -> None:
    """Readings of node power meters: an instant, a node, watts or an energy counter."""
    from ingest.importers.node_power import NodePowerOptions, import_node_power
    from wattledger.runtime import segments_of

    place = segments_of(chosen_home(click.get_current_context()))

    def run(conn: sa.Connection, source: Source, site: str, progress: ProgressCallback) -> ImportReport:
        options = NodePowerOptions(site, bills, node_name, meter, accelerators, model)
        return import_node_power(
            conn, source, options, now=_now(), segments=place, dry_run=asked.dry_run, progress=progress
        )

    carry_out(asked, run)


@import_.command(
    epilog="""\b
Examples:
  wattledger import jobs jobs.csv --site berlin-1 --cluster c1 --tz Europe/Berlin
  wattledger import jobs runs.csv --cluster lab --on-nodes "{job_id}/*" --map start=init_start_ms
"""
)
@takes_file
@click.option("--cluster", help="Where the file has no such column.")
@click.option("--on-nodes", metavar="GLOB", help="Nodes a job held, by {job_id}, {cluster} or {name}: '{job_id}/*'.")
@click.option("--tenant", type=TenantPath(), help="Who pays for all of them; else the bindings say.")
def jobs(asked: Asked, cluster: str | None, on_nodes: str | None, tenant: str | None) -> None:
    """A table of jobs: id, start, end, accelerators or nodes. A later export brings them up to date."""
    from ingest.importers.jobs import JobOptions, import_jobs

    def run(conn: sa.Connection, source: Source, site: str, progress: ProgressCallback) -> ImportReport:
        options = JobOptions(site, cluster, on_nodes, tenant)
        return import_jobs(conn, source, options, now=_now(), dry_run=asked.dry_run, progress=progress)

    carry_out(asked, run)


@import_.command(
    epilog="""\b
Examples:
  sacct -X -P -S 2026-11-01 -o JobID,Cluster,Account,User,Partition,QOS,State,Submit,Eligible,Start,End,\\
AllocTRES,NodeList,NNodes,JobName > jobs.txt
  wattledger import sacct jobs.txt --site berlin-1 --tz Europe/Berlin
"""
)
@takes_file
@click.option("--cluster", help="Where Cluster is not among the columns.")
@click.option("--tenant", type=TenantPath(), help="Who pays for all of them; else the bindings say.")
def sacct(asked: Asked, cluster: str | None, tenant: str | None) -> None:
    """Output of sacct -P: jobs with their accelerators and nodes; steps are left out."""
    from ingest.importers.sacct import SacctOptions, import_sacct

    def run(conn: sa.Connection, source: Source, site: str, progress: ProgressCallback) -> ImportReport:
        options = SacctOptions(site, cluster, tenant)
        return import_sacct(conn, source, options, now=_now(), dry_run=asked.dry_run, progress=progress)

    carry_out(asked, run)


@import_.command(
    "llm-log",
    epilog="""\b
Examples:
  wattledger import llm-log requests.csv --provider azure --model gpt-4 --tenant acme/chat --tz UTC
  wattledger import llm-log proxy.csv --key chat-prod-1 --map input=in_len --map output=out_len
""",
)
@takes_file
@click.option("--model", help="Where the file does not say it.")
@click.option("--provider", help="Where the file does not say it.")
@click.option("--tenant", type=TenantPath(), help="Who pays for all of them; else the bindings say, by key.")
@click.option("--key", "api_key", help="The API key's public name, where the file does not say it.")
@click.option(
    "--input-excludes-cache",
    is_flag=True,
    help="The input column leaves cached tokens out (Anthropic), not in (OpenAI).",
)
def llm_log(
    asked: Asked,
    model: str | None,
    provider: str | None,
    tenant: str | None,
    api_key: str | None,
    input_excludes_cache: bool,
) -> None:
    """A log of LLM requests: when, which model, how many tokens. Prompts and answers are never read."""
    from ingest.importers.llm_log import LlmLogOptions, import_llm_log

    def run(conn: sa.Connection, source: Source, site: str, progress: ProgressCallback) -> ImportReport:
        options = LlmLogOptions(site, model, provider, tenant, api_key, input_excludes_cache)
        return import_llm_log(conn, source, options, now=_now(), dry_run=asked.dry_run, progress=progress)

    carry_out(asked, run)


@import_.command(
    epilog="""\b
Examples:
  wattledger import tariffs contract.csv --site berlin-1
  wattledger import tariffs day-ahead.csv --site berlin-1 --zone DE-LU --currency EUR
  wattledger import tariffs colo.csv --metering-point it --step 15m
"""
)
@takes_file
@click.option("--zone", help="Which rows are this site's, in a file of several zones.")
@click.option(
    "--metering-point",
    type=click.Choice(["it", "facility", "included"]),
    default="facility",
    show_default=True,
    help="What is metered: the racks, the building, or nothing (power is in the rate).",
)
@click.option("--currency", metavar="CODE", help="Where neither a column nor its name says: EUR.")
@click.option(
    "--step", type=Duration(), default="1h", show_default=True, help="How long a row with a start only holds."
)
def tariffs(asked: Asked, zone: str | None, metering_point: str, currency: str | None, step: timedelta) -> None:
    """Electricity prices of a site, per kWh or MWh: hourly series or dated rates."""
    from ingest.importers.tariffs import TariffOptions, import_tariffs

    def run(conn: sa.Connection, source: Source, site: str, progress: ProgressCallback) -> ImportReport:
        options = TariffOptions(site, zone, metering_point, currency, step)
        return import_tariffs(conn, source, options, dry_run=asked.dry_run, progress=progress)

    carry_out(asked, run)


@import_.command(
    epilog="""\b
Examples:
  wattledger import intensity electricitymaps.csv --zone DE
  wattledger import intensity grid.csv --life-cycle --step 30m
"""
)
@takes_file
@click.option("--zone", help="Only this zone's rows; the zone of all rows where the file has no such column.")
@click.option(
    "--basis",
    type=click.Choice(["location", "market", "marginal"]),
    default="location",
    show_default=True,
    help="What the values are of: the grid's mix, contracts, or the next plant.",
)
@click.option("--life-cycle", is_flag=True, help="Upstream emissions included; chooses where a file has both.")
@click.option(
    "--step", type=Duration(), default="1h", show_default=True, help="How long a row with a start only holds."
)
def intensity(asked: Asked, zone: str | None, basis: str, life_cycle: bool, step: timedelta) -> None:
    """Carbon intensity of grid zones, g CO2e per kWh. An empty value is a missing hour and stays missing."""
    from ingest.importers.intensity import IntensityOptions, import_intensity

    def run(conn: sa.Connection, source: Source, site: str, progress: ProgressCallback) -> ImportReport:
        options = IntensityOptions(site, zone, basis, life_cycle, step)
        return import_intensity(conn, source, options, dry_run=asked.dry_run, progress=progress)

    carry_out(asked, run)


@import_.command(
    epilog="""\b
Examples:
  wattledger import prices rate-card.csv
  wattledger import prices litellm.csv --valid-from 2026-01-01 --provider azure
"""
)
@takes_file
@click.option("--valid-from", type=Instant(), help="From when the prices hold, where the file has no such column.")
@click.option("--currency", metavar="CODE", default="USD", show_default=True, help="Where the file has no such column.")
@click.option("--provider", help="Only this provider's rows.")
def prices(asked: Asked, valid_from: datetime | None, currency: str, provider: str | None) -> None:
    """A price book: one price per row, or LiteLLM's table of one model per row."""
    from ingest.importers.prices import PriceOptions, import_prices

    def run(conn: sa.Connection, source: Source, site: str, progress: ProgressCallback) -> ImportReport:
        options = PriceOptions(site, valid_from, currency, provider)
        return import_prices(conn, source, options, dry_run=asked.dry_run, progress=progress)

    carry_out(asked, run)


@import_.command(
    "facility-factors",
    epilog="\b\nExample:\n  wattledger import facility-factors pue.csv --site berlin-1 --dry-run",
)
@takes_file
@click.option(
    "--step", type=Duration(), default="1d", show_default=True, help="How long a row with a start only holds."
)
def facility_factors(asked: Asked, step: timedelta) -> None:
    """Facility energy per IT energy (the PUE of a category 0 to 3) of a site. Below 1 is refused."""
    from ingest.importers.facility import FacilityOptions, import_facility_factors

    def run(conn: sa.Connection, source: Source, site: str, progress: ProgressCallback) -> ImportReport:
        options = FacilityOptions(site, step)
        return import_facility_factors(conn, source, options, dry_run=asked.dry_run, progress=progress)

    carry_out(asked, run)


@import_.command(
    epilog="""\b
Examples:
  wattledger import topology /etc/slurm/topology.conf --site berlin-1
  wattledger import topology racks.csv --site berlin-1 --valid-from 2026-11-01
\b
topology.conf (tree or block), topology.yaml, or a table with node and any of rack, switch, nvlink_domain.
"""
)
@takes_file
@click.option("--valid-from", type=Instant(), help="From when on it is so. Default: now.")
def topology(asked: Asked, valid_from: datetime | None) -> None:
    """Where nodes stand: rack, switch, NVLink domain, from Slurm's topology file or a table."""
    from ingest.importers.topology import TopologyOptions, import_topology

    def run(conn: sa.Connection, source: Source, site: str, progress: ProgressCallback) -> ImportReport:
        options = TopologyOptions(site, valid_from or _now())
        return import_topology(conn, source, options, dry_run=asked.dry_run, progress=progress)

    carry_out(asked, run)


def carry_out(asked: Asked, run: Importer) -> None:
    """Run one import with its progress on the terminal, print its report, and leave with 1 if rows were refused."""
    from ingest.importers.columns import Source
    from ingest.store import audit
    from wattledger.cli.import_report import print_report, showing_progress

    ctx = click.get_current_context()
    source = Source(asked.file, dict(asked.columns), dict(asked.units), asked.tz, asked.delimiter, asked.relative_to)
    with idle_connection(ctx, "owner") as connection:
        audit.acting(connection, actor())
        site = _site(connection, asked.site)
        with showing_progress(asked.file.name) as progress:
            report = run(connection, source, site, progress)
    print_report(report, asked.format_, shown=asked.shown)
    if report.rejections.total:
        ctx.exit(EXIT_NO)


def _site(connection: sa.Connection, named: str | None) -> str:
    """Return the site asked for, or the only one there is."""
    from ingest.store.sites import listed

    if named is not None:
        return named
    with connection.begin():
        known = [site.name for site in listed(connection)]
    if len(known) == 1:
        return known[0]
    choices = f"known are {', '.join(known)}" if known else "none is known yet, any name makes one"
    raise click.UsageError(f"say where it happened: --site NAME ({choices})")


def _now() -> datetime:
    return datetime.now(UTC)
