"""The `policy` commands: check and apply the budget policy, and show what each budget says now."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import click

from wattledger.cli import EXIT_NO
from wattledger.cli.access import actor, transaction
from wattledger.cli.listing import Listing
from wattledger.cli.output import UNITS_READ, Format, Shown, format_option, percent_cell, print_rows
from wattledger.cli.parameters import TenantPath, Text, TextFile

if TYPE_CHECKING:
    from analytics.model.budget import Decision

GAPS: Final = ("unpriced_lines", "usage_unknown_calls", "unmeasured_lines")
"""What a budget could not count; where one is not 0, more was spent than stands there."""


@click.group(
    cls=Listing,
    epilog="""\b
Examples:
  wattledger policy check budgets.yaml
  wattledger policy apply budgets.yaml
  wattledger policy show
""",
)
def policy() -> None:
    """Budgets: limits per tenant and period, and the ladder of what happens on the way to them."""


@policy.command(epilog="\b\nExample:\n  wattledger policy check budgets.yaml")
@click.argument("file", type=TextFile())
@click.pass_context
def check(ctx: click.Context, file: Text) -> None:
    """Check a policy without touching anything. Exit code 1 when it has faults; all are listed with their line."""
    from analytics.io.budget_policy import PolicyError, parse

    try:
        found = parse(file.content)
    except PolicyError as error:
        for fault in error.faults:
            click.echo(f"{file.name}: {fault}", err=True)
        click.echo(f"{len(error.faults)} faults" if len(error.faults) > 1 else "1 fault", err=True)
        ctx.exit(EXIT_NO)
    limits = sum(len(placed.model.limits.given()) for placed in found.budgets)
    armed = sum(placed.model.armed for placed in found.budgets)
    click.echo(f"{file.name}: valid, {len(found.budgets)} budgets with {limits} limits, {armed} armed")


@policy.command(epilog="\b\nExample:\n  wattledger policy apply budgets.yaml")
@click.argument("file", type=TextFile())
@click.pass_context
def apply(ctx: click.Context, file: Text) -> None:
    """Make a policy the one in force from now. Budgets it does not have any more end now; what they decided stays."""
    from analytics.io import budgets

    with transaction(ctx, "owner") as connection:
        done = budgets.apply(connection, file.content, datetime.now(UTC), actor=actor())
    click.echo(
        f"{file.name}: {done.added} limits added, {done.changed} changed, {done.removed} ended, {done.unchanged} as before"
    )


@policy.command(
    epilog="""\b
Examples:
  wattledger policy show
  wattledger policy show --tenant acme/research/nlp --format json
"""
)
@click.option("--tenant", type=TenantPath(), help="Only the budgets of this tenant path and what is below it.")
@format_option
@click.pass_context
def show(ctx: click.Context, tenant: str | None, format_: Format) -> None:
    """Show every budget in force: spent, limit, forecast and what it says, from the books as they are."""
    from analytics.io import budgets
    from analytics.io.spend import load_spend
    from analytics.model.budget import decide
    from ingest.store.tenancy import covers

    now = datetime.now(UTC)
    with transaction(ctx, "worker") as connection:
        found = [
            decide(budget, load_spend(connection, budget, now), now)
            for budget in budgets.in_force(connection, now)
            if tenant is None or covers(tenant, budget.tenant_path)
        ]
    rows = [_row(decision) for decision in found]
    shown = (
        Shown("name", "budget"),
        Shown("tenant", "tenant"),
        Shown("period", "period", leaves=4),
        Shown("spent", "spent", _amount, numeric=True),
        Shown("limit", "limit", _amount, numeric=True),
        Shown("unit", "unit", lambda unit: UNITS_READ.get(unit, unit)),
        Shown("spent_ratio", "used", percent_cell, numeric=True),
        Shown("forecast", "forecast", _amount, numeric=True, leaves=3),
        Shown("verdict", "says"),
        Shown("rung", "rung", leaves=5),
        Shown("armed", "armed", lambda armed: "yes" if armed else "no", leaves=2),
        Shown("books_as_of_at", "books to (UTC)", lambda at: f"{at:%Y-%m-%d %H:%M}", leaves=1),
    )
    if not rows:
        notes = ["no budget is in force; `wattledger policy apply FILE` sets some"]
    else:
        notes = [row["reason"] for row in rows if row["verdict"] != "allow" or any(row[gap] for gap in GAPS)]
    print_rows(rows, shown, format_, notes=notes)


def _row(decision: Decision) -> dict[str, Any]:
    budget = decision.budget
    as_of = decision.evidence["books_as_of_at"]
    return {
        "name": budget.name,
        "tenant": budget.tenant_path,
        "period": budget.period.value,
        "period_start_at": decision.period_start_at,
        "period_end_at": decision.period_end_at,
        "measure": budget.measure.value,
        "unit": budget.unit,
        "spent": decision.spent,
        "limit": decision.limit,
        "spent_ratio": decision.spent / decision.limit,
        "left": decision.left,
        "forecast": decision.forecast,
        "forecast_basis": decision.forecast_basis,
        "verdict": decision.verdict.value,
        "rung": decision.rung.do.value if decision.rung else None,
        "needs_approval": decision.needs_approval,
        "armed": decision.armed,
        "reason": decision.reason,
        "books_as_of_at": None if as_of == "none" else datetime.fromisoformat(as_of),
        "origin": decision.origin.name.lower(),
        **{gap: int(decision.evidence[gap]) for gap in GAPS},
    }


def _amount(amount: Decimal) -> str:
    """Two places for what is large, four digits for what is small."""
    return f"{amount:,.2f}" if abs(amount) >= 1 or not amount else f"{amount:.4g}"
