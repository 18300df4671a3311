"""The `actions` commands: the log of what enforcement did or would have done, the brake, and a person's yes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from wattledger.cli import EXIT_NO, chosen_home
from wattledger.cli.access import actor, transaction
from wattledger.cli.listing import Listing
from wattledger.cli.output import Format, Shown, format_option, plain, print_rows
from wattledger.errors import NotReadyError

if TYPE_CHECKING:
    from pathlib import Path

    from analytics.io.action_log import Action

STATUSES = ("planned", "dry_run", "executing", "done", "failed", "contested", "skipped", "undone")


@click.group(
    cls=Listing,
    epilog="""\b
Examples:
  wattledger actions list
  wattledger actions pause --all --reason "wrong prices"
  wattledger actions resume
  wattledger actions approve 12
""",
)
def actions() -> None:
    """What budgets did to jobs, or would have done; and how to stop it."""


@actions.command(
    "list",
    epilog="""\b
Examples:
  wattledger actions list
  wattledger actions list --status planned --status executing
  wattledger actions list --format json
""",
)
@click.option(
    "--status", "statuses", type=click.Choice(STATUSES), multiple=True, help="Only these; repeat for several."
)
@click.option("--top", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most so many.")
@format_option
@click.pass_context
def list_(ctx: click.Context, statuses: tuple[str, ...], top: int, format_: Format) -> None:
    """List actions, newest first; a dry run says what would have been done and why it was not."""
    from analytics.actions.pause import paused
    from analytics.io import action_log

    wanted = tuple(action_log.Status(status) for status in statuses) or None
    with transaction(ctx, "worker") as connection:
        rows = [_row(action) for action in action_log.find(connection, statuses=wanted, limit=top)]
    shown = (
        Shown("id", "id", numeric=True),
        Shown("planned_at", "planned (UTC)", lambda at: f"{at:%Y-%m-%d %H:%M:%S}"),
        Shown("status", "status"),
        Shown("kind", "does"),
        Shown("job", "to job"),
        Shown("tenant", "tenant"),
        Shown("accelerators", "GPUs", numeric=True, leaves=3),
        Shown("approval", "approval", leaves=2),
        Shown("why", "because", leaves=1),
    )
    brake = paused(chosen_home(ctx).root)
    notes = [] if brake is None else [f"actions are paused by {brake.by} since {brake.at}: {brake.reason}"]
    print_rows(rows, shown, format_, notes=notes)


@actions.command(
    epilog="""\b
Examples:
  wattledger actions pause --all
  wattledger actions pause --all --reason "prices are being corrected"
"""
)
@click.option("--all", "everything", is_flag=True, help="Every action of every budget; there is no other pause.")
@click.option("--reason", default="not said", help="Shown wherever the pause is.")
@click.pass_context
def pause(ctx: click.Context, everything: bool, reason: str) -> None:
    """Stop all actions at once, over restarts, until `resume`. Needs no database: a flag file in the home."""
    from analytics.actions.pause import FLAG
    from analytics.actions.pause import pause as set_flag

    if not everything:
        raise click.UsageError("say --all: this pauses every action of this home")
    state_dir = _state_dir(ctx)
    set_flag(state_dir, by=actor(), reason=reason, now=datetime.now(UTC))
    _noted(ctx, "actions.pause", reason=reason)
    click.echo(
        f"paused: no action is carried out while {state_dir / FLAG} is there; `wattledger actions resume` ends it"
    )


@actions.command(epilog="\b\nExample:\n  wattledger actions resume")
@click.pass_context
def resume(ctx: click.Context) -> None:
    """Let actions go on. Exit code 1 when they were not paused."""
    from analytics.actions.pause import resume as take_flag

    state_dir = _state_dir(ctx)
    if not take_flag(state_dir):
        click.echo(f"actions of {state_dir} were not paused", err=True)
        ctx.exit(EXIT_NO)
    _noted(ctx, "actions.resume")
    click.echo("actions go on; those planned meanwhile are checked again before anything is done")


@actions.command(epilog="\b\nExample:\n  wattledger actions approve 12")
@click.argument("action_id", type=int)
@click.pass_context
def approve(ctx: click.Context, action_id: int) -> None:
    """Agree to a planned action that needs a person's yes. Exit code 1 when none of this id waits for one."""
    from analytics.actions import records
    from analytics.io import action_log
    from analytics.model.budget import Approval

    with transaction(ctx, "worker") as connection:
        found = action_log.find(connection, action_id=action_id)
        refusal = _not_waiting(action_id, found[0] if found else None, Approval.MANUAL.value)
        approved = None
        if refusal is None:
            approved = records.approve(connection, action_id, datetime.now(UTC), actor=actor())
            refusal = f"action {action_id} changed at this very moment; look again" if approved is None else None
    if approved is None:
        click.echo(refusal, err=True)
        ctx.exit(EXIT_NO)
    click.echo(
        f"action {action_id} is approved: {approved.kind} job {_job(approved)} of {approved.tenant_path}, "
        f"not before {approved.evidence['not_before_at']}"
    )


def _not_waiting(action_id: int, action: Action | None, manual: str) -> str | None:
    """Return why an action does not wait for approval, None if it does."""
    if action is None:
        return f"there is no action {action_id}; see `wattledger actions list`"
    if action.status != "planned":
        return f"action {action_id} is {action.status}, not planned: there is nothing to approve"
    if action.evidence["approval"] != manual:
        return f"action {action_id} needs no approval"
    if action.evidence["approved_by"]:
        return f"action {action_id} was approved before, by {action.evidence['approved_by']}"
    return None


def _noted(ctx: click.Context, action: str, **detail: Any) -> None:
    """Note a pause or its end. It is in force whether or not the database can be told, so a failure is said, no more."""
    import psycopg
    import sqlalchemy as sa

    from ingest.store import audit

    try:
        with transaction(ctx, "worker") as connection:
            audit.note(connection, actor(), action, "actions", **detail)
    except (NotReadyError, sa.exc.SQLAlchemyError, psycopg.Error) as error:
        click.echo(f"this is not in the audit, the database cannot be reached: {type(error).__name__}", err=True)


def _state_dir(ctx: click.Context) -> Path:
    """Return the home's folder; pausing one that is not there would stop nothing and look as if it did."""
    home = chosen_home(ctx)
    if not home.root.is_dir():
        raise NotReadyError(f"there is nothing in {home.root} ({home.origin}); name the home that runs with --home")
    return home.root


def _row(action: Action) -> dict[str, Any]:
    evidence, result = action.evidence, action.result or {}
    needs_yes = evidence.get("approval") == "MANUAL"
    return {
        "id": action.action_id,
        "planned_at": action.planned_at,
        "status": action.status.value,
        "kind": action.kind,
        "job": _job(action),
        "tenant": action.tenant_path,
        "accelerators": action.target.get("accelerators"),
        "approval": (evidence.get("approved_by") or "waits for a yes") if needs_yes else "not needed",
        "why": "; ".join(evidence.get("dry_run_because") or []) or result.get("why") or evidence.get("reason"),
        "reason": evidence.get("reason"),
        "outcome": result.get("outcome"),
        "not_before_at": evidence.get("not_before_at"),
        "executed_at": plain(action.executed_at),
        "reconciled_at": plain(action.reconciled_at),
    }


def _job(action: Action) -> str:
    return f"{action.target.get('cluster')}/{action.target.get('native_id')}"
