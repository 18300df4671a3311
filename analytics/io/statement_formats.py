"""A bill for people, spreadsheets and programs: the same rows as text table, CSV, and JSON-ready mappings.

Amounts are decimal strings, so that no reader turns them into floats unasked. Units are in the names.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from analytics.io.statements import Bill, BillRow, Figures

CATEGORIES: Final = ("gpu_owned", "electricity", "api_tokens")


def as_dict(bill: Bill) -> dict[str, Any]:
    """Return the whole bill, head, rows and total, ready for JSON."""
    return {
        "from_at": rfc3339(bill.from_at),
        "to_at": rfc3339(bill.to_at),
        "group_by": bill.group_by.value,
        "currency": bill.currency,
        "status": bill.status,
        "hours_closed": bill.hours_closed,
        "books_as_of_at": None if bill.as_of_at is None else rfc3339(bill.as_of_at),
        "mapped_share_ratio": text(bill.mapped_share),
        "total": figures_dict(bill.total),
        "rows": [row_dict(row) for row in bill.rows],
        "rollups": [row_dict(row) for row in bill.rollups],
    }


def row_dict(row: BillRow) -> dict[str, Any]:
    return {"key": row.key, "tenant": row.tenant, **dict(row.details), **figures_dict(row.figures)}


def figures_dict(figures: Figures) -> dict[str, Any]:
    """Return figures by name and unit; costs in the bill's currency."""
    return {
        "cost": text(figures.cost),
        "cost_by_category": {name: text(amount) for name, amount in sorted(figures.cost_by_category.items())},
        "unpriced_lines": figures.unpriced_lines,
        "energy_kwh": text(figures.energy_kwh),
        "carbon_kgco2e": text(figures.carbon_kgco2e),
        "tokens": figures.tokens,
        "accelerator_hours": text(figures.accelerator_hours(figures.held_us)),
        "idle_accelerator_hours": text(figures.accelerator_hours(figures.idle_us)),
        "throttled_accelerator_hours": text(figures.accelerator_hours(figures.throttled_us)),
        "idle_waste": text(figures.idle_waste),
        "throttle_waste": text(figures.throttle_waste),
        "coverage_ratio": text(figures.coverage),
        "sources": sorted(figures.sources),
        "origins": [origin.name.lower() for origin in sorted(figures.origins)],
    }


def as_csv(bill: Bill) -> str:
    """Return one line per row, the currency on each, categories as columns."""
    out = io.StringIO()
    names: list[str] | None = None
    writer = csv.writer(out, lineterminator="\n")
    for row in bill.rows:
        flat = _flat(bill, row)
        if names is None:
            names = list(flat)
            writer.writerow(names)
        writer.writerow([flat[name] for name in names])
    if names is None:
        writer.writerow(_flat(bill, BillRow("", None, Figures())))
    return out.getvalue()


def as_table(bill: Bill) -> str:
    """Return the bill as people read it: what is not known first, then a row each, then the total."""
    currency = bill.currency or ""
    head = (
        bill.group_by.value,
        f"cost {currency}".strip(),
        "kWh",
        "kgCO2e",
        "GPU-h",
        "idle waste",
        "throttle waste",
        "coverage",
        "origin",
    )
    body = [_cells(row.key, row.figures) for row in bill.rows] + [_cells("total", bill.total)]
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
    rule = "  ".join("-" * width for width in widths)
    lines = [_line(head, widths), rule, *(_line(cells, widths) for cells in body[:-1]), rule, _line(body[-1], widths)]
    return "\n".join([*_notes(bill), *lines]) + "\n"


def rfc3339(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def text(amount: Decimal | None) -> str | None:
    """Return a decimal in plain digits without trailing zeros."""
    if amount is None:
        return None
    plain = f"{amount:f}"
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def _notes(bill: Bill) -> list[str]:
    notes = [f"{rfc3339(bill.from_at)} to {rfc3339(bill.to_at)}, {bill.status}, {bill.hours_closed} hours closed"]
    share = (
        "nothing used"
        if bill.mapped_share is None
        else f"{bill.mapped_share * 100:.1f} % of used cost is mapped to a tenant"
    )
    notes.append(share)
    if bill.total.unpriced_lines:
        notes.append(f"{bill.total.unpriced_lines} lines have no price: the cost is at least what stands here")
    return notes


def _cells(key: str, figures: Figures) -> tuple[str, ...]:
    coverage = "-" if figures.coverage is None else f"{figures.coverage * 100:.1f} %"
    return (
        key,
        f"{figures.cost:,.2f}",
        "-" if figures.energy_kwh is None else f"{figures.energy_kwh:,.3f}",
        "-" if figures.carbon_kgco2e is None else f"{figures.carbon_kgco2e:,.3f}",
        f"{figures.accelerator_hours(figures.held_us):,.1f}",
        f"{figures.idle_waste:,.2f}",
        f"{figures.throttle_waste:,.2f}",
        coverage,
        ", ".join(origin.name.lower() for origin in sorted(figures.origins)),
    )


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    first, *rest = (cell.ljust(width) if place in {0, len(widths) - 1} else cell.rjust(width)
                    for place, (cell, width) in enumerate(zip(cells, widths, strict=True)))  # fmt: skip
    return "  ".join([first, *rest]).rstrip()


def _flat(bill: Bill, row: BillRow) -> Mapping[str, Any]:
    made = row_dict(row)
    by_category = made.pop("cost_by_category")
    flat: dict[str, Any] = {"from_at": rfc3339(bill.from_at), "to_at": rfc3339(bill.to_at), "currency": bill.currency}
    for name, value in made.items():
        flat[name] = ";".join(value) if isinstance(value, list) else value
    return flat | {f"cost_{name}": by_category.get(name, "0") for name in CATEGORIES}
