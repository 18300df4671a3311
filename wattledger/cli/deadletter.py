"""`wattledger deadletter`: the bodies that could not be taken as they are, and why."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from wattledger.cli import EXIT_NO
from wattledger.cli.access import transaction
from wattledger.cli.output import Format, Shown, format_option, plain, print_rows


@click.group(
    epilog="""\b
Examples:
  wattledger deadletter list
  wattledger deadletter show 17 --body batch.arrow.zst
"""
)
def deadletter() -> None:
    """List and show bodies that could not be taken as they are. Nothing is ever discarded here."""


@deadletter.command(
    "list",
    epilog="""\b
Examples:
  wattledger deadletter list
  wattledger deadletter list --reason clock_skew --format csv
""",
)
@click.option("--reason", help="Only those of this reason, e.g. clock_skew.")
@click.option("--all", "with_replayed", is_flag=True, help="Those replayed as well.")
@click.option("--top", "most", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most so many.")
@format_option
@click.pass_context
def list_(ctx: click.Context, reason: str | None, with_replayed: bool, most: int, format_: Format) -> None:
    """List the bodies that wait, newest first."""
    from ingest.store.dead_letter_list import heads, waiting

    with transaction(ctx, "worker") as connection:
        rows = [asdict(head) for head in heads(connection, most=most, reason=reason, with_replayed=with_replayed)]
        left = waiting(connection)
    shown = (
        Shown("letter_id", "id", numeric=True),
        Shown("received_at", "received (UTC)", _instant),
        Shown("site", "site"),
        Shown("node", "node"),
        Shown("reason", "reason"),
        Shown("skew_us", "clock off by (s)", lambda skew_us: f"{skew_us / 1e6:+.1f}", numeric=True),
        Shown("body_bytes", "bytes", lambda size: f"{size:,}", numeric=True),
        Shown("replayed_at", "replayed (UTC)", _instant),
    )
    print_rows(rows, shown, format_, notes=[f"{left} waiting in all"])


@deadletter.command(
    epilog="""\b
Examples:
  wattledger deadletter show 17
  wattledger deadletter show 17 --body batch.arrow.zst
"""
)
@click.argument("letter_id", type=int)
@click.option("--body", type=click.Path(dir_okay=False, path_type=Path), help="Write the body as it came to this file.")
@click.option("--format", "format_", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_context
def show(ctx: click.Context, letter_id: int, body: Path | None, format_: str) -> None:
    """Show one body's reason, sender and headers. Exit code 1 when there is none of this id."""
    from ingest.store.dead_letter_list import letter

    with transaction(ctx, "worker") as connection:
        found = letter(connection, letter_id)
    if found is None:
        click.echo(f"there is no dead letter {letter_id}; see `wattledger deadletter list --all`", err=True)
        ctx.exit(EXIT_NO)
    if body is not None:
        try:
            body.write_bytes(found.body)
        except OSError as error:
            raise click.BadParameter(f"{body} cannot be written: {error.strerror}", param_hint="--body") from error
    facts: dict[str, Any] = {
        **{name: plain(value) for name, value in asdict(found.head).items()},
        "body_sha256": hashlib.sha256(found.body).hexdigest(),
        "headers": dict(found.headers),
    }
    if format_ == "json":
        click.echo(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = "; ".join(f"{key}: {text}" for key, text in value.items()) if isinstance(value, dict) else value
        click.echo(f"{name:<{width}}  {'-' if shown is None else shown}")
    if body is not None:
        click.echo(f"body written to {body}")


def _instant(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}"
