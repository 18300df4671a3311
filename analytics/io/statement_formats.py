"""A bill for spreadsheets and programs: the same rows as CSV and as JSON-ready mappings, every digit of them.

Amounts are decimal strings, so that no reader turns them into floats unasked. Units are in the names.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from analytics.frames import COSTED
from analytics.io.statements import OUTCOMES, Bill, BillRow, Figures
from analytics.io.unit_figures import UnitFigures, idle_of, unit_figures


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
        "total": figures_dict(bill.total) | units_dict(unit_figures(bill.total, idle=_idle(bill))),
        "corrections": [
            {
                "tenant": each.tenant,
                "category": each.category,
                "reason": each.reason,
                "first_at": rfc3339(each.first_at),
                "last_at": rfc3339(each.last_at),
                "lines": each.lines,
                "cost": text(each.cost),
                "energy_mj": each.energy_mj,
                "carbon_gco2e": text(each.carbon_gco2e),
            }
            for each in bill.corrections
        ],
        "disputed": {"lines": bill.disputed.lines, "cost": text(bill.disputed.cost)},
        "rows": [row_dict(row) for row in bill.rows],
        "rollups": [row_dict(row) for row in bill.rollups],
    }


def row_dict(row: BillRow) -> dict[str, Any]:
    """Return one row with its figures; units in the names."""
    units = units_dict(unit_figures(row.figures, idle=idle_of(row)))
    return {"key": row.key, "tenant": row.tenant, **dict(row.details), **figures_dict(row.figures), **units}


def units_dict(units: Mapping[str, UnitFigures]) -> dict[str, Any]:
    """Return figures per accelerator-hour of each kind, by what they are per."""
    return {
        f"{name}_per_{kind}_accelerator_hour": text(amount)
        for kind, each in units.items()
        for name, amount in (
            ("cost", each.cost),
            ("energy_kwh", each.energy_kwh),
            ("carbon_kgco2e", each.carbon_kgco2e),
        )
    }


def figures_dict(figures: Figures) -> dict[str, Any]:
    """Return figures by name and unit; costs in the bill's currency."""
    return {
        "cost": text(figures.cost),
        "cost_by_category": {name: text(amount) for name, amount in sorted(figures.cost_by_category.items())},
        "unpriced_lines": figures.unpriced_lines,
        "usage_unknown_calls": figures.usage_unknown_calls,
        "energy_kwh": text(figures.energy_kwh),
        "carbon_kgco2e": text(figures.carbon_kgco2e),
        "tokens": figures.tokens,
        "accelerator_hours": text(figures.accelerator_hours(figures.held_us)),
        "allocated_accelerator_hours": text(figures.accelerator_hours(figures.allocated_us)),
        "active_accelerator_hours": text(figures.accelerator_hours(figures.active_us)),
        "idle_accelerator_hours": text(figures.accelerator_hours(figures.idle_us)),
        "throttled_accelerator_hours": text(figures.accelerator_hours(figures.throttled_us)),
        **{f"cost_{name}": None if figures.cost_of is None else text(figures.cost_of.get(name)) for name in OUTCOMES},
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


def rfc3339(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def text(amount: Decimal | None) -> str | None:
    """Return a decimal in plain digits without trailing zeros."""
    if amount is None:
        return None
    plain = f"{amount:f}"
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def _idle(bill: Bill) -> Figures | None:
    """Return what the idle pool comes to, where the bill tells it apart."""
    found = [each for row in bill.rows if (each := idle_of(row)) is not None]
    return sum(found, Figures()) if found else None


def _flat(bill: Bill, row: BillRow) -> Mapping[str, Any]:
    made = row_dict(row)
    by_category = made.pop("cost_by_category")
    flat: dict[str, Any] = {"from_at": rfc3339(bill.from_at), "to_at": rfc3339(bill.to_at), "currency": bill.currency}
    for name, value in made.items():
        flat[name] = ";".join(value) if isinstance(value, list) else value
    # A category of another version is a column too: columns add up to the cost, whatever the books hold.
    others = sorted(set(bill.total.cost_by_category) - set(COSTED))
    return flat | {f"cost_{name}": by_category.get(name, "0") for name in (*COSTED, *others)}
