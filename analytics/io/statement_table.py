"""A bill as a text table for a terminal: what is not known first, then a row each, then the total.

Rounded for reading; whoever computes takes CSV or JSON. It refuses to cut a cell: where the screen is too narrow whole
columns stay out, and a note says which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from analytics.io.statement_formats import rfc3339
from analytics.io.statements import Bill, BillRow, Figures
from collector.wire import Origin

UNKNOWN: Final = "-"
GAP: Final = "  "
_COARSE_FROM: Final = 100
"""From this total on, one decimal of a kWh says enough."""


@dataclass(frozen=True, slots=True)
class _Column:
    """One column: two lines of heading, a cell per row and the total's. ``stays``: kept on any screen."""

    heading: tuple[str, str]
    cells: tuple[str, ...]
    stays: bool = True
    is_text: bool = False

    @property
    def name(self) -> str:
        return " ".join(filter(None, self.heading))

    @property
    def width(self) -> int:
        return max(map(len, (*self.heading, *self.cells)))

    def line(self, text: str) -> str:
        return text.ljust(self.width) if self.is_text else text.rjust(self.width)


def as_table(bill: Bill, width: int | None = None) -> str:
    """Return the bill as people read it, within ``width`` characters where leaving columns out achieves that.

    A bill without rows is its notes alone.
    """
    if not bill.rows:
        return "\n".join(_notes(bill)) + "\n"
    columns = _columns(bill)
    left_out = []
    for column in [column for column in columns if not column.stays]:
        if width is None or _width(columns) <= width:
            break
        columns.remove(column)
        left_out.append(column.name)
    rule = GAP.join("-" * column.width for column in columns)
    rows = [_line(columns, [column.cells[number] for column in columns]) for number in range(len(bill.rows) + 1)]
    heads = [_line(columns, [column.heading[number] for column in columns]) for number in range(2)]
    notes = _notes(bill)
    if left_out:
        notes.append(f"no room here for {' and '.join(left_out)}: use a wider screen, or --format csv")
    return "\n".join([*notes, "", *heads, rule, *rows[:-1], rule, rows[-1]]) + "\n"


def _columns(bill: Bill) -> list[_Column]:
    """Return all columns, those that stay out on a narrow screen in the order in which they do."""
    rows = [*bill.rows, BillRow("total", None, bill.total)]

    def of(heading: tuple[str, str], cell: Callable[[Figures], str], *, stays: bool = True) -> _Column:
        return _Column(heading, tuple(cell(row.figures) for row in rows), stays)

    energy, carbon = _places(bill.total.energy_kwh), _places(bill.total.carbon_kgco2e)
    columns = [
        _Column(("", bill.group_by.value), tuple(row.key for row in rows), is_text=True),
        of(("cost", bill.currency or ""), lambda figures: f"{figures.cost:,.2f}"),
        of(("", "kWh"), lambda figures: _amount(figures.energy_kwh, energy)),
        of(("", "kgCO2e"), lambda figures: _amount(figures.carbon_kgco2e, carbon)),
        of(("", "GPU-h"), lambda figures: f"{figures.accelerator_hours(figures.held_us):,.1f}", stays=False),
        of(("idle", "waste"), lambda figures: f"{figures.idle_waste:,.2f}"),
        of(("throttle", "waste"), lambda figures: f"{figures.throttle_waste:,.2f}"),
        of(("time", "measured"), lambda figures: _percent(figures.coverage), stays=False),
    ]
    if len({row.figures.origins for row in rows}) > 1:
        columns.append(_Column(("", "origin"), tuple(_named(row.figures.origins) for row in rows), is_text=True))
    return columns


def _notes(bill: Bill) -> list[str]:
    total = bill.total
    # A period of which no hour is in the books has no status: nobody closed it.
    status = (
        f"{bill.status}, {_count(bill.hours_closed, 'hour')} closed" if bill.as_of_at else "no hour of it closed yet"
    )
    notes = [f"{rfc3339(bill.from_at)} to {rfc3339(bill.to_at)}, {status}"]
    if Origin.SIMULATED in total.origins:
        alone = total.origins == {Origin.SIMULATED}
        said = "SIMULATED: no real hardware, no real money" if alone else "PARTLY SIMULATED: do not bill by this"
        notes.insert(0, said)
    elif total.origins:
        notes.append(f"origin: {_named(total.origins)}")
    notes.append(
        "nothing used"
        if bill.mapped_share is None
        else f"{bill.mapped_share * 100:.1f} % of used cost is mapped to a tenant"
    )
    if total.unpriced_lines:
        has = "has" if total.unpriced_lines == 1 else "have"
        price = f"price in {bill.currency}" if bill.currency else "price"
        notes.append(f"{_count(total.unpriced_lines, 'line')} {has} no {price}: the cost is at least what stands here")
    if total.usage_unknown_calls:
        notes.append(f"{_count(total.usage_unknown_calls, 'API call')} told no token counts: their cost is unknown")
    for each in bill.corrections:
        span = f"{each.first_at:%Y-%m-%d %H:%M} to {each.last_at:%Y-%m-%d %H:%M}"
        cost = "unpriced" if each.cost is None else f"{each.cost:+,.6f} {bill.currency}"
        notes.append(f"in it, a correction of {span}: {each.tenant}, {each.category}, {cost} ({each.reason})")
    if bill.disputed.lines:
        notes.append(
            f"{_count(bill.disputed.lines, 'line')} of it worth {bill.disputed.cost:,.2f} {bill.currency} disputed"
        )
    return notes


def _line(columns: Sequence[_Column], cells: Sequence[str]) -> str:
    return GAP.join(column.line(cell) for column, cell in zip(columns, cells, strict=True)).rstrip()


def _width(columns: Sequence[_Column]) -> int:
    return sum(column.width for column in columns) + len(GAP) * (len(columns) - 1)


def _places(total: Decimal | None) -> int:
    return 1 if total is not None and total >= _COARSE_FROM else 3


def _amount(value: Decimal | None, places: int) -> str:
    return UNKNOWN if value is None else f"{value:,.{places}f}"


def _percent(ratio: Decimal | None) -> str:
    return UNKNOWN if ratio is None else f"{ratio * 100:.1f} %"


def _named(origins: frozenset[Origin]) -> str:
    return ", ".join(origin.name.lower() for origin in sorted(origins))


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number:,} {what}s"
