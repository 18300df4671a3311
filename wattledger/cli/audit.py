"""`wattledger audit log`: who did what to this installation. It only reads; no command changes or deletes the audit."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from wattledger.cli.access import transaction
from wattledger.cli.listing import Listing
from wattledger.cli.output import Format, Shown, format_option, print_rows
from wattledger.cli.parameters import Duration

if TYPE_CHECKING:
    from ingest.store.audit import Act


@click.group(
    cls=Listing,
    epilog="""\b
Examples:
  wattledger audit log
  wattledger audit log --action token --since 30d --format csv
""",
)
def audit() -> None:
    """Who did what to this installation."""


@audit.command(
    epilog="""\b
Examples:
  wattledger audit log
  wattledger audit log --action token --since 30d
  wattledger audit log --top 1000 --format json > acts.json
"""
)
@click.option("--action", help="A kind of act, e.g. token.create, or what it begins with: token, policy, deadletter.")
@click.option("--actor", help="Who did it, as the audit names them.")
@click.option("--since", type=Duration(), help="Only of the last so long, e.g. 24h or 30d.")
@click.option("--top", type=click.IntRange(1, 100_000), default=100, show_default=True, help="The newest so many.")
@format_option
@click.pass_context
def log(
    ctx: click.Context, action: str | None, actor: str | None, since: timedelta | None, top: int, format_: Format
) -> None:
    """List administrative acts, newest first, with what they changed."""
    from ingest.store import audit as store

    from_at = None if since is None else datetime.now(UTC) - since
    with transaction(ctx, "worker") as connection:
        found = store.acts(connection, from_at=from_at, actor=actor, action=action, limit=top)
    shown = (
        Shown("at", "when (UTC)", lambda at: f"{at:%Y-%m-%d %H:%M:%S}"),
        Shown("actor", "who"),
        Shown("action", "did"),
        Shown("subject", "to"),
        Shown("detail", "what", _line, leaves=1),
    )
    rows = [_row(act) for act in found]
    if format_ == "csv":  # a cell that programs can read again
        rows = [row | {"detail": json.dumps(row["detail"])} for row in rows]
    print_rows(rows, shown, format_)


def _row(act: Act) -> dict[str, Any]:
    return {
        "id": act.id,
        "at": act.at,
        "actor": act.actor,
        "action": act.action,
        "subject": act.subject,
        "detail": dict(act.detail),
    }


def _line(detail: dict[str, Any]) -> str:
    """Return a detail in one line: what changed as `name: before > after`, the rest as `name: value`."""
    before, after = (detail.get(side) or {} for side in ("before", "after"))
    parts = [
        f"{name}: {_word(before.get(name))} > {_word(after.get(name))}" if name in before else f"{name}: {_word(value)}"
        for name, value in (before | after).items()
    ]
    parts += [f"{name}: {_word(value)}" for name, value in detail.items() if name not in {"before", "after"}]
    return ", ".join(parts)


def _word(value: Any) -> str:
    text = "-" if value is None else str(value)
    return "".join(mark if mark.isprintable() else "?" for mark in text)[:80]
