"""How a board answers to work: power, clocks, heat and traffic from load. Pure arithmetic on arrays of any one shape.

It is a plausible H100, not a measured one: idle 70-90 W, cap 700 W, power a little concave in load, clocks that give way at
the power limit and in heat. It knows no time, jobs or counters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from wattledger.simulate.spec import Floats

CLOCK_MAX_MHZ: Final = 1980
CLOCK_IDLE_MHZ: Final = 345
BOOSTED_RANGE_MW: Final = 580_000.0
"""Power a fully loaded board of average efficiency draws above its idle floor."""
PCIE_BYTES_PER_S: Final = 1.8e9
NVLINK_KIB_PER_S: Final = 6.0e7

# nvmlClocksEventReasons
REASON_IDLE: Final = 0x1
REASON_POWER_CAP: Final = 0x4
REASON_SW_THERMAL: Final = 0x20

Bools = npt.NDArray[np.bool_]
Numbers = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Work:
    """What boards are asked to do, one element per board and moment: ratios 0-1, powers in mW."""

    load: Floats
    context_mw: Floats
    limit_mw: Floats
    heat: Floats


@dataclass(frozen=True, slots=True)
class Answer:
    """What they do: mean power in whole mW, the core clock, and the share of the time slowed by cap and by heat."""

    power_mw: npt.NDArray[np.int64]
    clock_mhz: npt.NDArray[np.int16]
    cap_ratio: Floats
    thermal_ratio: Floats


def answer(work: Work, idle_mw: Floats, efficiency: Floats, noise: Floats) -> Answer:
    """Return the boards' answer; ``noise`` is standard normal."""
    wanted = work.load * (np.float32(1.18) - np.float32(0.18) * work.load)
    power = idle_mw + work.context_mw + np.float32(BOOSTED_RANGE_MW) * efficiency * wanted
    power *= np.float32(1) + np.float32(0.006) * noise
    power *= np.float32(1) - np.float32(0.27) * work.heat
    over = power / work.limit_mw
    cap_ratio = ((over - np.float32(1)) * np.float32(10)).clip(0, 1)
    given = np.minimum(power, work.limit_mw * (np.float32(0.992) + np.float32(0.002) * noise.clip(-3, 3)))
    busy = (work.load > np.float32(0.005)) | (work.context_mw > 0)
    clock = np.float32(CLOCK_MAX_MHZ) * (np.float32(1) - np.float32(0.36) * work.heat)
    clock = clock / np.sqrt(np.maximum(over, np.float32(1)))
    clock = np.where(busy, clock, np.float32(CLOCK_IDLE_MHZ))
    thermal = (work.heat * np.float32(1.2) - np.float32(0.2)).clip(0, 1) * np.float32(0.92)
    thermal *= work.load > np.float32(0.1)
    return Answer(
        power_mw=given.astype(np.int64),
        clock_mhz=(clock / np.float32(15)).astype(np.int16) * np.int16(15),
        cap_ratio=cap_ratio,
        thermal_ratio=thermal,
    )


def temperatures(
    power_mw: Numbers, heat: Floats, inlet_c: Floats, before_c: Floats, cadence_s: int
) -> tuple[Floats, Floats]:
    """Return the core temperature in degrees C per moment and board (moments first), and the last of them.

    First-order lag of a minute behind the power; ``before_c`` is the moment before the first. Heat is cooling that fails.
    """
    target = inlet_c + power_mw.astype(np.float32) * np.float32(5.0e-5) + heat * np.float32(35)
    keep = np.float32(np.exp(-cadence_s / 60))
    target *= np.float32(1) - keep
    current = before_c.astype(np.float32)
    for row in target:
        current = current * keep + row
        row[:] = current
    return target, current


def steady_temperature(idle_mw: Floats, inlet_c: Floats) -> Floats:
    """Return the temperature of an idle board."""
    steady: Floats = inlet_c + idle_mw * np.float32(5.0e-5)
    return steady
