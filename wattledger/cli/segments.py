"""The `segments` command: which hours are sealed, whether their files are whole, and how a bad one is made anew."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from wattledger.cli import EXIT_NO, chosen_home
from wattledger.cli.access import driver_transaction
from wattledger.cli.bill import Instant
from wattledger.cli.listing import Listing
from wattledger.cli.output import Format, Shown, format_option, print_rows
from wattledger.errors import WattledgerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.store.catalog import ListedFile
    from ingest.store.segments import Segments
    from ingest.store.segments_check import Checked

_BYTES_PER_KIB: Final = 1_024
_LOOK_BACK: Final = timedelta(days=400)
_HOUR: Final = timedelta(hours=1)


@click.group(
    cls=Listing,
    epilog="""\b
Examples:
  wattledger segments list --from 2026-11-20
  wattledger segments verify
  wattledger segments rebuild --from 2026-11-20T08 --to 2026-11-20T09
""",
)
def segments() -> None:
    """Look at sealed hours and their files, and make damaged ones anew."""


def _interval(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--site", help="Only this site."),
        click.option("--to", "to_at", type=Instant(), help="End, exclusive. Default: now."),
        click.option("--from", "from_at", type=Instant(), help="Start. Default: 400 days before the end."),
    ):
        command = option(command)
    return command


@segments.command("list", epilog="\b\nExample:\n  wattledger segments list --from 2026-11-20 --format json")
@_interval
@format_option
@click.pass_context
def list_(
    ctx: click.Context, from_at: datetime | None, to_at: datetime | None, site: str | None, format_: Format
) -> None:
    """List hours with their state, generation, rows and size."""
    from ingest.store.catalog import listed_hours

    start, end = _bounds(from_at, to_at)
    with driver_transaction(ctx, "worker") as connection:
        found = listed_hours(connection, site, start, end)
    rows = [
        {
            "site": hour.site,
            "hour_at": hour.hour_at,
            "state": hour.state,
            "generation": hour.generation,
            "rows": hour.rows,
            "size_bytes": hour.size_bytes,
            "streams": list(hour.streams),
        }
        for hour in found
    ]
    note = f"{len(rows)} hours, {sum(hour.size_bytes for hour in found) / _BYTES_PER_KIB:,.0f} KiB"
    print_rows(rows, _COLUMNS, format_, notes=[note])


@segments.command(
    epilog="""\b
Examples:
  wattledger segments verify
  wattledger segments verify --quick --from 2026-11-01 --site fra1

\b
Exit code: 0 all files are whole, 1 some are missing or damaged.
"""
)
@_interval
@click.option("--quick", is_flag=True, help="Size and SHA-256 only, without reading every page.")
@format_option
@click.pass_context
def verify(
    ctx: click.Context,
    from_at: datetime | None,
    to_at: datetime | None,
    site: str | None,
    quick: bool,
    format_: Format,
) -> None:
    """Read the files of sealed hours and say which are missing or damaged; those become findings."""
    from analytics.io.segments import raise_damaged, withdraw_healthy

    checked = _checked(_segments(ctx), _files(ctx, from_at, to_at, site), thoroughly=not quick)
    bad = [each for each in checked if each.fault]
    with driver_transaction(ctx, "worker") as connection:
        raise_damaged(connection, bad)
        withdraw_healthy(connection, [each.listed.file.path for each in checked if not each.fault])
    rows = [
        {
            "site": each.listed.site,
            "hour_at": each.listed.hour_at,
            "stream": each.listed.stream,
            "path": each.listed.file.path,
            "fault": each.fault,
        }
        for each in bad
    ]
    print_rows(rows, _FAULTS, format_, notes=[f"{len(checked)} files looked at, {len(bad)} missing or damaged"])
    if bad:
        ctx.exit(EXIT_NO)


@segments.command(
    epilog="""\b
Examples:
  wattledger segments rebuild
  wattledger segments rebuild --from 2026-11-20T08 --to 2026-11-20T09 --site fra1

\b
An hour is made anew from the hot tables, so within hot retention (48 h by default). Where these do not
hold every row the file had, nothing is changed: restore it from a backup. The worker does the same by itself
with what it finds damaged.
Exit code: 0 done or nothing to do, 1 some could not be made anew.
"""
)
@_interval
@click.pass_context
def rebuild(ctx: click.Context, from_at: datetime | None, to_at: datetime | None, site: str | None) -> None:
    """Make missing and damaged files anew from the hot tables, as the hour's next generation."""
    from collector.wire import Stream
    from ingest.store.seal import HourBusyError, LostRowsError, Sealer, hour_of
    from ingest.store.segments import SegmentError
    from wattledger.runtime import ready_database

    place = _segments(ctx)
    damaged: dict[tuple[int, str, datetime], list[Stream]] = {}
    for listed in [
        each.listed for each in _checked(place, _files(ctx, from_at, to_at, site), thoroughly=True) if each.fault
    ]:
        damaged.setdefault((listed.site_id, listed.site, listed.hour_at), []).append(Stream(listed.stream))
    sealer = Sealer(ready_database(chosen_home(ctx)), place)
    failed = 0
    for (site_id, name, hour_at), streams in damaged.items():
        about = f"{name} {hour_at.astimezone(UTC):%Y-%m-%d %H:%M} {', '.join(streams)}"
        try:
            made = sealer.rebuild(hour_of(site_id, hour_at), streams)
        except (LostRowsError, HourBusyError, SegmentError) as error:
            failed += 1
            click.echo(f"{about}: {error}", err=True)
        else:
            click.echo(f"{about}: generation {made.generation}, {made.rows} rows")
    if not damaged:
        click.echo("every file is whole")
    if failed:
        ctx.exit(EXIT_NO)


@segments.command(epilog="\b\nExample:\n  wattledger segments claim")
@click.pass_context
def claim(ctx: click.Context) -> None:
    """Take the segments' folder or bucket as it is, though its marker is missing or another database's.

    For when its files are lost: those whose rows are hot are made anew by the worker, the others stay damaged. Where only a
    disk is not mounted, mount it instead. Never for a folder that another database still uses.
    """
    from ingest.store import segment_place

    place = _segments(ctx)
    with driver_transaction(ctx, "worker") as connection:
        segment_place.claim(connection, place)
    click.echo(
        f"{place.shown_as} is the place of the segments; `wattledger segments verify` says what is missing there"
    )


def _checked(place: Segments, files: list[ListedFile], *, thoroughly: bool) -> list[Checked]:
    from ingest.store.segments import SegmentUnreachableError
    from ingest.store.segments_check import check_file

    try:
        return [check_file(place, listed, thoroughly=thoroughly) for listed in files]
    except SegmentUnreachableError as error:
        raise WattledgerError(str(error)) from error


def _segments(ctx: click.Context) -> Segments:
    from wattledger.runtime import segments_of

    return segments_of(chosen_home(ctx))


def _files(ctx: click.Context, from_at: datetime | None, to_at: datetime | None, site: str | None) -> list[ListedFile]:
    from ingest.store.catalog import listed_files

    start, end = _bounds(from_at, to_at)
    with driver_transaction(ctx, "worker") as connection:
        return listed_files(connection, site, start, end)


def _bounds(from_at: datetime | None, to_at: datetime | None) -> tuple[datetime, datetime]:
    end = to_at or datetime.now(UTC)
    return from_at or end - _LOOK_BACK, end


_COLUMNS: Final = (
    Shown("site", "site"),
    Shown("hour_at", "hour, UTC", lambda at: f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"),
    Shown("state", "state"),
    Shown("generation", "generation", numeric=True),
    Shown("rows", "rows", "{:,}".format, numeric=True),
    Shown("size_bytes", "KiB", lambda size: f"{size / _BYTES_PER_KIB:,.1f}", numeric=True),
    Shown("streams", "streams", ", ".join, leaves=1),
)
_FAULTS: Final = (
    Shown("site", "site"),
    Shown("hour_at", "hour, UTC", lambda at: f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"),
    Shown("stream", "stream"),
    Shown("fault", "what is wrong"),
)
