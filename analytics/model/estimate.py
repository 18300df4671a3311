"""What a job would cost, draw and emit: an estimate from rates in force and the mean power of such devices at work.

Pure. It promises nothing: every figure is a forecast, and one that rests on an unknown rate is None, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal

from analytics.model.budget import EXACT, NINE_PLACES, Measure

W_PER_KW = 1000
G_PER_KG = 1000


@dataclass(frozen=True, slots=True)
class JobSpec:
    """``accelerators`` of one ``model`` for ``duration_h`` hours."""

    accelerators: int
    model: str
    duration_h: Decimal


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates in force at one site. None: nobody told us. ``mean_power_w``: per accelerator while a job holds it."""

    currency: str | None
    price_per_accelerator_hour: Decimal | None
    mean_power_w: Decimal | None
    facility_factor: Decimal | None
    tariff_per_kwh: Decimal | None
    tariff_point: str | None
    gco2e_per_kwh: Decimal | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """``energy_kwh`` is IT energy, as on bills; carbon and electricity include the facility. ``basis``: how, in words."""

    cost: Decimal | None
    energy_kwh: Decimal | None
    carbon_kgco2e: Decimal | None
    accelerator_hours: Decimal
    basis: tuple[str, ...]

    def of(self, measure: Measure) -> Decimal | None:
        """Return the estimate in a budget's measure; a job of accelerators calls no API."""
        match measure:
            case Measure.COST:
                return self.cost
            case Measure.ENERGY_KWH:
                return self.energy_kwh
            case Measure.CARBON_KGCO2E:
                return self.carbon_kgco2e
            case Measure.ACCELERATOR_HOURS:
                return self.accelerator_hours
            case Measure.TOKENS:
                return Decimal(0)


def estimate(spec: JobSpec, rates: Rates) -> Estimate:
    """Return the estimate of a job at these rates, each figure to 9 places."""
    hours = EXACT.multiply(Decimal(spec.accelerators), spec.duration_h)
    basis = []
    energy: Decimal | None = None
    if rates.mean_power_w is None:
        basis.append(f"no job held {spec.model} lately, so its power is unknown")
    else:
        energy = hours * rates.mean_power_w / W_PER_KW
        basis.append(
            f"{rates.mean_power_w:.1f} W per accelerator, the mean of jobs on {spec.model} in the last day of the books"
        )
    factor = rates.facility_factor
    facility = None if energy is None else energy * (factor if factor is not None else 1)
    basis.append(
        f"facility factor {factor.normalize():f}" if factor is not None else "no facility factor: IT energy only"
    )
    electricity: Decimal | None = Decimal(0)
    if rates.tariff_per_kwh is None or rates.tariff_point == "included":
        basis.append("no electricity cost: no tariff, or included in the rate")
    elif energy is None or facility is None:
        electricity = None
    else:
        electricity = (facility if rates.tariff_point == "facility" else energy) * rates.tariff_per_kwh
        basis.append(f"electricity at {rates.tariff_per_kwh.normalize():f} per kWh ({rates.tariff_point})")
    cost = None
    if rates.price_per_accelerator_hour is not None and electricity is not None:
        cost = hours * rates.price_per_accelerator_hour + electricity
        basis.append(f"{rates.price_per_accelerator_hour.normalize():f} {rates.currency} per accelerator-hour")
    carbon = None if facility is None or rates.gco2e_per_kwh is None else facility * rates.gco2e_per_kwh / G_PER_KG
    if rates.gco2e_per_kwh is None:
        basis.append("no carbon intensity in force")
    return Estimate(_rounded(cost), _rounded(energy), _rounded(carbon), hours, tuple(basis))


def _rounded(amount: Decimal | None) -> Decimal | None:
    return None if amount is None else amount.quantize(NINE_PLACES, ROUND_HALF_EVEN)
