"""Prints rows as a table for people, CSV for spreadsheets, or JSON for programs; one place for all commands.

It formats; it never rounds a figure that goes to CSV or JSON.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal

import click
from rich.console import Console
from rich.table import Table

Format = Literal["table", "csv", "json"]
WIDTH_OF_A_FILE: Final = 140
UNITS_READ: Final = {"energy_kwh": "kWh", "carbon_kgco2e": "kgCO2e", "accelerator_hours": "accelerator-hours"}
"""How the unit of a budget reads, where it is no currency; programs get the name as it is."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One column of a table: the row's key, the heading with its unit, and how a cell reads."""

    key: str
    heading: str
    cell: Callable[[Any], str] = str
    numeric: bool = False


def format_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--format table|csv|json`` to a command."""
    return click.option(
        "--format",
        "format_",
        type=click.Choice(["table", "csv", "json"]),
        default="table",
        show_default=True,
        help="How to print: a table for people, CSV or JSON with full precision for programs.",
    )(command)


def print_rows(
    rows: Sequence[Mapping[str, Any]],
    shown: Sequence[Shown],
    format_: Format,
    *,
    title: str | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Print rows in the chosen format; CSV and JSON carry every key of the rows, the table only those ``shown``.

    A table without rows is its notes alone, or ``none``.
    """
    if format_ == "json":
        json.dump([{key: plain(value) for key, value in row.items()} for row in rows], sys.stdout, indent=2)
        sys.stdout.write("\n")
    elif format_ == "csv":
        names = list(rows[0]) if rows else [column.key for column in shown]
        writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: plain(value) for key, value in row.items()} for row in rows)
    elif not rows:
        for note in notes or ["none"]:  # a heading over nothing tells less
            click.echo(note)
    else:
        table = Table(
            title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False
        )
        for column in shown:
            table.add_column(column.heading, justify="right" if column.numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*("-" if row[column.key] is None else column.cell(row[column.key]) for column in shown))
        console = Console(width=screen_width() or WIDTH_OF_A_FILE, highlight=False)
        console.print(table)
        for note in notes:
            console.print(note, style="dim")


def screen_width() -> int | None:
    """Return how many characters fit a line of the terminal; None where the output is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def plain(value: Any) -> Any:
    """Return the exact form a program reads: decimals as strings, instants in RFC 3339."""
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(sorted(str(item) for item in value))
    return value


def decimal_cell(places: int) -> Callable[[Any], str]:
    """Return a formatter with thousands separators and fixed places, for reading only."""
    return lambda value: f"{value:,.{places}f}"


def percent_cell(value: Any) -> str:
    return f"{100 * float(value):.1f} %"
