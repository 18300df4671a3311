"""What an accelerator-hour came to: cost, energy and carbon per hour that was allocated, in which there was work, and that stood idle.

Per allocated and per active hour everything of the row counts: its idle hours are paid by its work, and in a bill's total the idle
pool is. Per idle hour only rows of the idle pool have figures: what of a job's energy its idle minutes took no meter tells apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final

from analytics.io.statements import NINE_PLACES, PLATFORM, BillRow, Figures
from analytics.units import US_PER_HOUR

IDLE_POOL: Final = f"{PLATFORM}/idle"


@dataclass(frozen=True, slots=True)
class UnitFigures:
    """Per accelerator-hour, to 9 places; cost in the bill's currency; null = not known, or no such hour."""

    cost: Decimal | None
    energy_kwh: Decimal | None
    carbon_kgco2e: Decimal | None


NOTHING: Final = UnitFigures(None, None, None)


def unit_figures(figures: Figures, *, idle: Figures | None = None) -> Mapping[str, UnitFigures]:
    """Return the figures per ``allocated``, ``active`` and ``idle`` accelerator-hour; ``idle``: what the idle pool of it comes to."""
    return {
        "allocated": _per_hour(figures, figures.allocated_us),
        "active": _per_hour(figures, figures.active_us),
        "idle": NOTHING if idle is None else _per_hour(idle, idle.held_us - idle.allocated_us),
    }


def idle_of(row: BillRow) -> Figures | None:
    """Return a row's figures where it is the idle pool's."""
    return row.figures if IDLE_POOL in {row.key, row.tenant} else None


def _per_hour(figures: Figures, time_us: int) -> UnitFigures:
    if time_us <= 0:
        return NOTHING
    is_priced = figures.cost_by_category and not figures.unpriced_lines and not figures.usage_unknown_calls
    return UnitFigures(
        cost=_rate(figures.cost, time_us) if is_priced else None,
        energy_kwh=_rate(figures.energy_kwh, time_us),
        carbon_kgco2e=_rate(figures.carbon_kgco2e, time_us),
    )


def _rate(amount: Decimal | None, time_us: int) -> Decimal | None:
    return None if amount is None else (amount * US_PER_HOUR / time_us).quantize(NINE_PLACES, ROUND_HALF_EVEN)
