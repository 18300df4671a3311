"""The `bill` command: cost, energy and carbon of a period, straight from the books of this installation's database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

import click

from wattledger.cli import chosen_home

if TYPE_CHECKING:
    from ingest.store.engine import Database


class Instant(click.ParamType[datetime]):
    """A day or an RFC 3339 instant, as UTC; without an offset it is UTC. So 05:30 past a full hour elsewhere is no full hour of the books."""

    name = "instant"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            parsed = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no date or instant; write 2026-11-01 or 2026-11-01T08:00Z", param, ctx)
        return parsed.astimezone(UTC) if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)


@click.command(
    epilog="""\b
Examples:
  wattledger bill                                       this month so far, by tenant
  wattledger bill --from 2026-11-01 --to 2026-12-01 --group-by job
  wattledger bill --group-by run --format csv           training runs, with what an accelerator-hour of each came to
  wattledger bill --tenant acme/research --format csv > research.csv
"""
)
@click.option("--from", "from_at", type=Instant(), help="Start, a full hour. Default: the first of this month, UTC.")
@click.option("--to", "to_at", type=Instant(), help="End, exclusive, a full hour. Default: the end of this hour.")
@click.option(
    "--group-by",
    type=click.Choice(["tenant", "job", "run", "device"]),
    default="tenant",
    show_default=True,
    help="One row per; a run is a training job with all its starts.",
)
@click.option("--tenant", help="Only this tenant path and what is below it.")
@click.option("--currency", help="Where the books hold several, which one.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
    help="A table for people; CSV and JSON carry every digit.",
)
@click.pass_context
def bill(
    ctx: click.Context,
    from_at: datetime | None,
    to_at: datetime | None,
    group_by: Literal["tenant", "job", "run", "device"],
    tenant: str | None,
    currency: str | None,
    format_: Literal["table", "csv", "json"],
) -> None:
    """Cost, energy and carbon by tenant, job, training run or device, with how much of it was measured.

    CSV and JSON also say what an allocated, an active and an idle accelerator-hour came to, and what of the cost went into work
    that failed, was preempted or cancelled.
    """
    from wattledger.runtime import ready_database

    now = datetime.now(UTC)
    start = from_at or now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    end = to_at or full_hour(now)
    show_bill(ready_database(chosen_home(ctx)), start, end, group_by, format_, tenant=tenant, currency=currency)


def full_hour(at: datetime) -> datetime:
    """Return the end of the hour an instant is in."""
    return at.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)


def show_bill(
    database: Database,
    from_at: datetime,
    to_at: datetime,
    group_by: Literal["tenant", "job", "run", "device"],
    format_: Literal["table", "csv", "json"],
    *,
    tenant: str | None = None,
    currency: str | None = None,
) -> None:
    """Print the bill of a period of full hours."""
    import json

    import sqlalchemy as sa

    from analytics.io import statement_formats, statements
    from analytics.io.statement_table import as_table
    from wattledger.cli.output import screen_width

    engine = sa.create_engine(
        "postgresql+psycopg://", creator=lambda: database.connect("worker"), poolclass=sa.NullPool
    )
    with engine.connect() as connection:
        made = statements.bill(
            connection, from_at, to_at, statements.GroupBy(group_by), tenant=tenant, currency=currency, outcomes=True
        )
    if format_ == "json":
        click.echo(json.dumps(statement_formats.as_dict(made), indent=2))
    elif format_ == "csv":
        click.echo(statement_formats.as_csv(made), nl=False)
    else:
        click.echo(as_table(made, screen_width()))
