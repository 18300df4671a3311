"""Instants of devices as integers: ordered by device, then by time, so that hundreds of thousands are sorted and found in one pass.

It knows nothing of what happens at them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Instants:
    """The instants of some devices from ``first_us`` to ``last_us``, both among them."""

    devices: pl.Series
    """Ids, ascending, each once. They are numbered, since an id times a span of time may need more than 64 bits."""
    first_us: int
    last_us: int

    @classmethod
    def around(cls, devices: pl.Series, from_us: pl.Series, to_us: pl.Series) -> Instants:
        """Return the instants from the first of ``from_us`` to the last of ``to_us``, neither of which is empty."""
        return cls(devices, int(from_us.to_numpy().min()), int(to_us.to_numpy().max()))

    @property
    def width(self) -> int:
        return self.last_us - self.first_us + 1

    def numbered(self, device: pl.Series, *instants: pl.Series) -> tuple[Ints, ...]:
        """Return the numbers of instants of devices that are known; before the first they are taken for the first, after the last for the last."""
        base = np.searchsorted(self.devices.to_numpy(), device.to_numpy()) * self.width
        return tuple(base + np.clip(at_us.to_numpy() - self.first_us, 0, self.width - 1) for at_us in instants)

    def named(self, numbers: Ints, instant: str) -> pl.DataFrame:
        """Return device_id and the instant of these numbers."""
        device, offset_us = np.divmod(numbers, self.width)
        return pl.DataFrame({"device_id": self.devices.to_numpy()[device], instant: offset_us + self.first_us})


def distinct(numbers: Ints) -> Ints:
    """Return each number once, ascending."""
    numbers = np.sort(numbers)
    return numbers[np.append(True, numbers[1:] != numbers[:-1])] if len(numbers) else numbers
