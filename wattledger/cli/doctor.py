"""`wattledger doctor`: what works, what does not, and what to do about it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click

from wattledger.cli import chosen_home

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wattledger.diagnosis import Check

_SIGNS: Final = {"fine": "✓", "note": "·", "warning": "!", "broken": "✗", "unanswered": "?"}
_STYLES: Final = {"fine": "green", "note": "dim", "warning": "yellow", "broken": "bold red", "unanswered": "magenta"}


@click.command(
    epilog="""\b
Examples:
  wattledger doctor
  wattledger doctor --format json | jq '.[] | select(.verdict != "fine")'
  wattledger --home /srv/wl doctor

\b
Exit code: 0 all fine (warnings allowed), 1 something is broken, 2 something could not be looked at.
"""
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How to print: for people, or whole as JSON.",
)
@click.pass_context
def doctor(ctx: click.Context, format_: str) -> None:
    """Say what works, what does not, and what to do about it. Changes nothing."""
    from wattledger.diagnosis import exit_code
    from wattledger.examination import examine

    checks = list(examine(chosen_home(ctx), os.environ))
    if format_ == "json":
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        _print_table(checks)
    ctx.exit(exit_code(checks))


def _print_table(checks: Sequence[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        found = Text(check.found)
        if check.remedy:
            found.append(f"\n→ {check.remedy}", style="bold")
        table.add_row(Text(_SIGNS[check.verdict], style=_STYLES[check.verdict]), check.subject, found)
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(table)
    console.print(_summary(checks), style="bold")


def _summary(checks: Sequence[Check]) -> str:
    counts = {verdict: sum(check.verdict == verdict for check in checks) for verdict in _SIGNS}
    if not counts["broken"] and not counts["unanswered"]:
        return f"\nall fine, {_warnings(counts['warning'])}" if counts["warning"] else "\nall fine"
    parts = [
        f"{counts[verdict]} {word}"
        for verdict, word in (("broken", "broken"), ("unanswered", "not answered"))
        if counts[verdict]
    ]
    return f"\n{', '.join(parts)}, {_warnings(counts['warning'])}"


def _warnings(count: int) -> str:
    return "1 warning" if count == 1 else f"{count or 'no'} warnings"
