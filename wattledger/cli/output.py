"""Prints rows as a table for people, CSV for spreadsheets, or JSON for programs; one place for all commands.

It formats; it never rounds a figure that goes to CSV or JSON.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal

import click
from rich.cells import cell_len

Format = Literal["table", "csv", "json"]
WIDTH_OF_A_FILE: Final = 140
_GAP: Final = "  "
UNITS_READ: Final = {"energy_kwh": "kWh", "carbon_kgco2e": "kgCO2e", "accelerator_hours": "accelerator-hours"}
"""How the unit of a budget reads, where it is no currency; programs get the name as it is."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One column of a table: the row's key, the heading with its unit, and how a cell reads."""

    key: str
    heading: str
    cell: Callable[[Any], str] = str
    numeric: bool = False
    leaves: int = 0
    """Where the screen is too narrow, columns leave in this order, lowest first; 0 stays whatever happens."""


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
        click.echo("\n".join(_table(rows, shown, title, notes, screen_width() or WIDTH_OF_A_FILE)))


def _table(
    rows: Sequence[Mapping[str, Any]], shown: Sequence[Shown], title: str | None, notes: Sequence[str], width: int
) -> Iterator[str]:
    """Yield the lines of a table. No cell is cut or folded: whole columns leave, and a note says which."""
    columns = [_Laid.out(column, rows) for column in shown]
    left_out = []
    for leaving in sorted((column for column in columns if column.shown.leaves), key=lambda each: each.shown.leaves):
        if _total_width(columns) <= width:
            break
        columns.remove(leaving)
        left_out.append(leaving.shown.heading)
    if title is not None:
        yield title
    for line in range(2):
        if line or any(column.heading[0] for column in columns):
            yield _GAP.join(column.fitted(column.heading[line]) for column in columns).rstrip()
    for number in range(len(rows)):
        yield _GAP.join(column.fitted(column.cells[number]) for column in columns).rstrip()
    said = (
        [*notes, f"no room here for {', '.join(left_out)}: use a wider screen, or --format csv"] if left_out else notes
    )
    for note in said:
        yield from textwrap.wrap(note, width, break_long_words=False, break_on_hyphens=False)


@dataclass(frozen=True, slots=True)
class _Laid:
    """A column with its heading on two lines and its cells as text."""

    shown: Shown
    heading: tuple[str, str]
    cells: tuple[str, ...]
    width: int

    @classmethod
    def out(cls, shown: Shown, rows: Sequence[Mapping[str, Any]]) -> _Laid:
        cells = tuple("-" if row[shown.key] is None else shown.cell(row[shown.key]) for row in rows)
        widest = max(map(cell_len, cells))
        heading = ("", shown.heading)
        if cell_len(shown.heading) > widest and " " in shown.heading:
            first, _, last = shown.heading.rpartition(" ")
            heading = (first, last)
        return cls(shown, heading, cells, max(widest, *map(cell_len, heading)))

    def fitted(self, text: str) -> str:
        space = " " * (self.width - cell_len(text))
        return space + text if self.shown.numeric else text + space


def _total_width(columns: Sequence[_Laid]) -> int:
    return sum(column.width for column in columns) + len(_GAP) * (len(columns) - 1)


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
