"""Makes 64-bit counts of PCIe counters that are only 32 bits wide.

NVML says of fields 197 and 198 that the "value can be wrapped" and not at what width. A counter that the driver hands over
as a 32-bit number, or that falls while below 2**32, is taken as 32 bits wide. A fast link goes round that in a tenth of a
second, so that two readings a second apart cannot tell how often: the mean rate that GPM measured over the same time
does, as long as it is not off by 2 GiB. Without GPM the bytes are unknown, which is null and never a guess.
"""

from __future__ import annotations

from typing import Final

from collector.clock import US_PER_S
from collector.probe import Values

COLUMNS: Final = ("pcie_tx_bytes", "pcie_rx_bytes")
_TURN_BYTES: Final = 2**32


class PcieBytes:
    """The two counters of one device."""

    def __init__(self) -> None:
        """Take them for 64 bits wide until they show otherwise."""
        self.narrow = False
        self._raw: dict[str, int] = {}
        self._total: dict[str, int] = {}
        self._at_us: dict[str, int] = {}

    def notice(self, values: Values) -> None:
        """Find out whether a counter fell as only a narrow one does."""
        for column in COLUMNS:
            raw, last = values.get(column), self._raw.get(column)
            if raw is not None and last is not None and raw < last < _TURN_BYTES:
                self.narrow = True

    def unwrap(self, values: Values, bytes_per_s: dict[str, float], monotonic_us: int) -> None:
        """Replace raw counts by totals, or by None where these are unknown.

        ``bytes_per_s`` are the mean rates since the call before, by column; what is missing there cannot be told.
        """
        for column in COLUMNS:
            raw = values.get(column)
            if raw is None:
                continue
            raw = int(raw)
            last = self._raw.get(column)
            total: int | None = raw
            if self.narrow and last is not None:
                total = self._moved(column, raw - last, bytes_per_s.get(column), monotonic_us)
            if total is None:
                values[column] = None
                continue  # what follows is measured from the last reading whose total is known
            self._raw[column], self._total[column], self._at_us[column] = raw, total, monotonic_us
            values[column] = total

    def _moved(self, column: str, difference: int, bytes_per_s: float | None, monotonic_us: int) -> int | None:
        if bytes_per_s is None:
            return None
        least = difference % _TURN_BYTES
        expected = bytes_per_s * (monotonic_us - self._at_us[column]) / US_PER_S
        turns = max(0, round((expected - least) / _TURN_BYTES))
        return self._total[column] + least + turns * _TURN_BYTES
