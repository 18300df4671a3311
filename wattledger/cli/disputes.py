"""The `disputes` command: the lines of an hour by name, and those that somebody says are wrong."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

import click

from wattledger.cli.access import actor, transaction
from wattledger.cli.bill import Instant
from wattledger.cli.listing import Listing
from wattledger.cli.output import Format, Shown, format_option, print_rows
from wattledger.cli.parameters import TenantPath


def _minute(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}"


@click.group(
    cls=Listing,
    epilog="""\b
Examples:
  wattledger disputes lines --hour 2026-10-03T08:00Z --tenant acme/nlp
  wattledger disputes open 2026-10-03T08:00Z/3f2a91c0de11 --reason "the job was cancelled at 8:10"
  wattledger disputes list
  wattledger disputes resolve 4 --resolution "right, restated with sacct's end"
""",
)
def disputes() -> None:
    """Say that a line of a bill is wrong, and what came of it. A month with open ones is not closed unasked."""


@disputes.command(epilog="\b\nExample:\n  wattledger disputes lines --hour 2026-10-03T08:00Z --tenant acme/nlp")
@click.option("--hour", "hour_at", type=Instant(), required=True, help="A full UTC hour.")
@click.option("--tenant", type=TenantPath(), help="Only this subtree.")
@format_option
@click.pass_context
def lines(ctx: click.Context, hour_at: datetime, tenant: str | None, format_: Format) -> None:
    """List the lines of an hour with the names they are disputed by."""
    from analytics.io.disputes import lines_of_hour

    with transaction(ctx, "worker") as connection:
        rows = [asdict(line) for line in lines_of_hour(connection, hour_at, tenant)]
    shown = (
        Shown("name", "line"),
        Shown("tenant", "tenant"),
        Shown("holder", "who"),
        Shown("model", "model", leaves=2),
        Shown("category", "category"),
        Shown("billed_cost", "cost", lambda amount: f"{amount:f}", numeric=True),
        Shown("energy_mj", "mJ", numeric=True, leaves=1),
        Shown("status", "status"),
        Shown("is_disputed", "disputed", lambda yes: "yes" if yes else ""),
        Shown("reason", "why", leaves=3),
    )
    print_rows(rows, shown, format_)


@disputes.command(
    "open",
    epilog='\b\nExample:\n  wattledger disputes open 2026-10-03T08:00Z/3f2a91c0de11 --reason "the job was cancelled at 8:10"',
)
@click.argument("line")
@click.option("--reason", required=True, help="What is wrong with it.")
@click.pass_context
def open_(ctx: click.Context, line: str, reason: str) -> None:
    """Dispute a line; no figure moves by it."""
    from analytics.io.disputes import open_dispute
    from ingest.store import audit

    with transaction(ctx, "owner") as connection:
        made = open_dispute(connection, line, reason, by=actor())
        audit.note(connection, actor(), "dispute.open", f"dispute/{made.id}", line=made.line_name, reason=made.reason)
    click.echo(f"dispute {made.id}: {made.line_name} ({made.line}, {_cost(made.billed_cost, made.currency)})")


@disputes.command(
    "list", epilog="\b\nExamples:\n  wattledger disputes list\n  wattledger disputes list --all --format json"
)
@click.option("--all", "with_resolved", is_flag=True, help="Those resolved as well.")
@click.option("--from", "from_at", type=Instant(), help="Of lines from this hour on.")
@click.option("--to", "to_at", type=Instant(), help="Of lines before this hour.")
@format_option
@click.pass_context
def list_(
    ctx: click.Context, with_resolved: bool, from_at: datetime | None, to_at: datetime | None, format_: Format
) -> None:
    """List disputed lines, the newest dispute first."""
    from analytics.io.disputes import listed

    with transaction(ctx, "worker") as connection:
        rows = [asdict(each) for each in listed(connection, from_at=from_at, to_at=to_at, resolved=with_resolved)]
    shown = (
        Shown("id", "no.", numeric=True),
        Shown("line_name", "line"),
        Shown("line", "which is"),
        Shown("billed_cost", "cost", lambda amount: f"{amount:f}", numeric=True),
        Shown("reason", "why"),
        Shown("opened_by", "by", leaves=2),
        Shown("opened_at", "opened (UTC)", _minute, leaves=1),
        Shown("resolution", "answer"),
    )
    print_rows(rows, shown, format_)


@disputes.command(
    epilog='\b\nExample:\n  wattledger disputes resolve 4 --resolution "right, restated with sacct\'s end"'
)
@click.argument("number", type=int)
@click.option("--resolution", required=True, help="What came of it.")
@click.pass_context
def resolve(ctx: click.Context, number: int, resolution: str) -> None:
    """Answer a dispute; whether a figure moves is decided where it comes from."""
    from analytics.io.disputes import resolve as resolved
    from ingest.store import audit

    with transaction(ctx, "owner") as connection:
        done = resolved(connection, number, resolution, by=actor(), now=datetime.now(UTC))
        audit.note(
            connection,
            actor(),
            "dispute.resolve",
            f"dispute/{done.id}",
            line=done.line_name,
            resolution=done.resolution,
        )
    click.echo(f"dispute {done.id} is resolved: {done.resolution}")


def _cost(amount: object, currency: str) -> str:
    return "unpriced" if amount is None else f"{amount:f} {currency}"
