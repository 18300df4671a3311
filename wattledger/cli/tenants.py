"""The `tenants` commands: check and apply the bindings, say who pays for a job or key and why, and what nobody pays for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from wattledger.cli import EXIT_NO
from wattledger.cli.access import actor, driver_transaction
from wattledger.cli.bill import Instant
from wattledger.cli.listing import Listing
from wattledger.cli.output import Format, Shown, decimal_cell, format_option, print_rows
from wattledger.cli.parameters import TenantPath, Text, TextFile

if TYPE_CHECKING:
    from analytics.io.bindings_store import StoredExplanation

US_PER_HOUR: Final = 3_600_000_000


@click.group(
    cls=Listing,
    epilog="""\b
Examples:
  wattledger tenants check bindings.yaml
  wattledger tenants apply bindings.yaml
  wattledger tenants explain 4711
  wattledger tenants move acme/research/nlp acme/products/nlp --from 2026-10-01
  wattledger tenants unmapped --top 20
""",
)
def tenants() -> None:
    """Who pays: one file of ordered, dated rules from accounts, users, partitions, keys … to tenants."""


@tenants.command(
    epilog="""\b
Examples:
  wattledger tenants check bindings.yaml
  git show HEAD:bindings.yaml | wattledger tenants check -
"""
)
@click.argument("file", type=TextFile())
@click.pass_context
def check(ctx: click.Context, file: Text) -> None:
    """Check a bindings file without touching anything. Exit code 1 when it has faults; all are listed with their line."""
    from analytics.io.bindings import BindingsError
    from analytics.io.bindings import check as checked

    try:
        found = checked(file.content)
    except BindingsError as error:
        for fault in error.faults:
            click.echo(f"{file.name}: {fault}", err=True)
        click.echo(f"{len(error.faults)} faults" if len(error.faults) > 1 else "1 fault", err=True)
        ctx.exit(EXIT_NO)
    click.echo(f"{file.name}: valid, {len(found.rules)} rules for {len(found.tenants)} tenants")


@tenants.command(epilog="\b\nExample:\n  wattledger tenants apply bindings.yaml")
@click.argument("file", type=TextFile())
@click.pass_context
def apply(ctx: click.Context, file: Text) -> None:
    """Make a bindings file the rules in force. Rules it does not have any more are superseded, never deleted."""
    from analytics.io import bindings_store
    from ingest.store import audit

    with driver_transaction(ctx, "owner") as connection:
        done = bindings_store.apply(connection, file.content, datetime.now(UTC))
        if any(asdict(done).values()):
            sha256 = hashlib.sha256(file.content.encode()).hexdigest()
            audit.note_on(connection, actor(), "tenants.apply", f"bindings/{sha256[:16]}", **asdict(done))
    if not any(asdict(done).values()):
        click.echo(f"{file.name}: nothing new, these rules are in force already")
        return
    click.echo(
        f"{file.name}: {done.rules_added} rules added, {done.rules_superseded} superseded, {done.tenants_added} tenants "
        f"added, details of {done.details_changed} changed"
    )
    if done.rules_added or done.rules_superseded:
        click.echo("the worker closes the hours again that these rules reach")


@tenants.command(
    epilog="""\b
Examples:
  wattledger tenants move acme/research/nlp acme/products/nlp --from 2026-10-01
  wattledger tenants move acme/research/nlp acme/products/nlp --undo
"""
)
@click.argument("old", type=TenantPath())
@click.argument("new", type=TenantPath())
@click.option(
    "--from", "from_at", type=Instant(), help="From when on NEW pays, a full hour; past hours are rated again."
)
@click.option("--undo", is_flag=True, help="Take the move back: it counts as never made.")
@click.pass_context
def move(ctx: click.Context, old: str, new: str, from_at: datetime | None, undo: bool) -> None:
    """Have tenant NEW pay for what is OLD's, with all that is below it. No path is edited, and bindings stay as they are."""
    from analytics.io import tenant_moves
    from ingest.store import audit

    if (from_at is None) != undo:
        raise click.UsageError("say from when on with --from DATE, or take a move back with --undo")
    if from_at is not None and (from_at.minute or from_at.second or from_at.microsecond):
        raise click.UsageError(f"--from {from_at.isoformat()} cuts an hour of the books; give a full UTC hour")
    now = datetime.now(UTC)
    with driver_transaction(ctx, "owner") as connection:
        if from_at is None:
            done = tenant_moves.take_back(connection, old, new, now)
        else:
            done = tenant_moves.move(connection, old, new, from_at, now)
        if done.tenants_moved:
            told = {"to": new, "from_at": None if from_at is None else from_at.isoformat(), **asdict(done)}
            audit.note_on(connection, actor(), "tenants.move_back" if undo else "tenants.move", old, **told)
    if not done.tenants_moved:
        click.echo(f"{old} moves to {new} then already")
        return
    count = f"{done.tenants_moved} tenant{'s' * (done.tenants_moved != 1)}"
    click.echo(f"{count} taken back" if undo else f"{count} moved, {done.tenants_added} made")
    click.echo("the worker rates the hours again that this reaches")


@tenants.command(
    epilog="""\b
Examples:
  wattledger tenants explain 4711            every run of the job with this id
  wattledger tenants explain chat-prod-1     an API key
"""
)
@click.argument("identity", metavar="ID")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How to print: for people, or whole as JSON.",
)
@click.pass_context
def explain(ctx: click.Context, identity: str, format_: str) -> None:
    """Say who pays for a job or an API key, and what each rule said to it. Exit code 1 when there is none of this name."""
    from analytics.io.bindings_store import explain_stored

    with driver_transaction(ctx, "worker") as connection:
        found = explain_stored(connection, identity, datetime.now(UTC))
    if format_ == "json":
        click.echo(json.dumps([_explanation(each) for each in found], indent=2))
    if not found:
        click.echo(f"no job and no API key is called {identity!r}; a job goes by its scheduler's id", err=True)
        ctx.exit(EXIT_NO)
    if format_ == "table":
        click.echo("\n\n".join(_told(identity, each) for each in found))


@tenants.command(
    epilog="""\b
Examples:
  wattledger tenants unmapped --top 20
  wattledger tenants unmapped --format csv > who-is-this.csv
"""
)
@click.option("--top", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many.")
@format_option
@click.pass_context
def unmapped(ctx: click.Context, top: int, format_: Format) -> None:
    """List the dearest usage that no rule gives to a tenant, by what a rule could match."""
    from analytics.io.bindings_store import unmapped as found

    with driver_transaction(ctx, "worker") as connection:
        rows: list[dict[str, Any]] = [asdict(each) for each in found(connection, top)]
    shown = (
        Shown("cluster", "cluster", leaves=4),
        Shown("account", "account"),
        Shown("user_name", "user"),
        Shown("partition", "partition", leaves=6),
        Shown("namespace", "namespace", leaves=5),
        Shown("api_key", "key"),
        Shown("billed_cost", "cost", decimal_cell(2), numeric=True),
        Shown("currency", "in"),
        Shown("accelerator_us", "GPU-h", lambda held_us: f"{held_us / US_PER_HOUR:,.1f}", numeric=True),
        Shown("tokens", "tokens", lambda tokens: f"{tokens:,}", numeric=True, leaves=3),
        Shown("unpriced_lines", "lines without price", lambda lines: f"{lines:,}", numeric=True, leaves=2),
        Shown("usage_unknown_calls", "calls without usage", lambda calls: f"{calls:,}", numeric=True, leaves=1),
    )
    notes = ["everything in the books has a tenant"] if not rows else []
    print_rows(rows, shown, format_, notes=notes)


def _told(identity: str, why: StoredExplanation) -> str:
    known = ", ".join(f"{name} {value}" for name, value in why.subject.items() if value is not None)
    head = f"{identity} ({known}) at {why.at:%Y-%m-%d %H:%M} UTC: {why.tenant or 'unmapped'}"
    return "\n".join([head, *(f"  {step}" for step in why.steps)])


def _explanation(why: StoredExplanation) -> dict[str, Any]:
    return {
        "subject": dict(why.subject),
        "at": why.at.isoformat().replace("+00:00", "Z"),
        "tenant": why.tenant,
        "steps": list(why.steps),
    }
