"""The NVLinks of one device: what went over each, and what went wrong on it.

One row of the fabric stream per link. Links up to NVLink 4 and those of NVLink 5 count different things under different
field numbers; both sets are asked for, and what a device refuses is left out from then on.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import pynvml

from collector.clock import Instant
from collector.probe import Row, Values, out_of_range
from collector.probe.nvml_ask import Fields
from collector.probe.nvml_fields import Field
from collector.wire import Stream

MAX_LINKS: Final = 36
"""More than any device has; what a confused driver says beyond is not believed."""
_BYTES_PER_KIB: Final = 1_024
_BITS_PER_BYTE: Final = 8
_KIB: Final = "_kib"

# A column of the fabric stream and the fields that add up to it, by link (the scope of the field).
_PER_LINK: Final = (
    ("state", pynvml.NVML_FI_DEV_NVLINK_GET_STATE),
    ("rate_mbps", pynvml.NVML_FI_DEV_NVLINK_GET_SPEED),  # MB/s (nvml.h)
    ("tx_bytes" + _KIB, pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX),
    ("rx_bytes" + _KIB, pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX),
    # Up to NVLink 4
    ("retransmissions", pynvml.NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY),
    ("link_recoveries", pynvml.NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY),
    ("integrity_errors", pynvml.NVML_FI_DEV_NVLINK_ERROR_DL_CRC),
    # NVLink 5
    ("tx_bytes", pynvml.NVML_FI_DEV_NVLINK_COUNT_XMIT_BYTES),
    ("rx_bytes", pynvml.NVML_FI_DEV_NVLINK_COUNT_RCV_BYTES),
    ("discards", pynvml.NVML_FI_DEV_NVLINK_COUNT_XMIT_DISCARDS),
    ("receive_errors", pynvml.NVML_FI_DEV_NVLINK_COUNT_RCV_ERRORS),
    ("receive_errors", pynvml.NVML_FI_DEV_NVLINK_COUNT_MALFORMED_PACKET_ERRORS),
    ("buffer_overruns", pynvml.NVML_FI_DEV_NVLINK_COUNT_BUFFER_OVERRUN_ERRORS),
    ("remote_errors", pynvml.NVML_FI_DEV_NVLINK_COUNT_RCV_REMOTE_ERRORS),
    ("integrity_errors", pynvml.NVML_FI_DEV_NVLINK_COUNT_LOCAL_LINK_INTEGRITY_ERRORS),
    ("link_recoveries", pynvml.NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS),
    ("symbol_errors", pynvml.NVML_FI_DEV_NVLINK_COUNT_SYMBOL_ERRORS),
)


class Links:
    """Reads all links of one board in one call."""

    def __init__(self, handle: Any, uuid: str) -> None:
        """Ask nothing yet: how many links there are is the first thing asked."""
        self.unsupported: dict[str, int] = {}
        """Why there are no links or not all columns of them, by column; ``nvlink`` stands for all."""
        self._handle = handle
        self._uuid = uuid
        self._fields: Fields | None = None
        self._last_us: int | None = None

    def forget(self) -> None:
        """Count the links again and ask for everything of them."""
        self.unsupported = {}
        self._fields = None

    def read(self, at: Instant, errors: Counter[str]) -> list[Row]:
        """Return one row per link. Raises pynvml.NVMLError for a lost device or driver."""
        if "nvlink" in self.unsupported:
            return []
        if self._fields is None:
            count = self._count(errors)
            if count is None:
                return []
            given = self._given(count, errors)
            self._fields = Fields(
                self._handle,
                [Field(number, link, f"{link} {column}") for link in range(count) for column, number in given],
            )
        values: Values = {}
        self._fields.read(values, errors)
        if not values:
            self.unsupported["nvlink"] = pynvml.NVML_ERROR_NOT_SUPPORTED
            return []
        for name, code in self._fields.unsupported.items():
            self.unsupported.setdefault(name.partition(" ")[2], code)
        by_link: dict[str, Row] = {}
        for name, value in values.items():
            link, _, column = name.partition(" ")
            by_link.setdefault(link, {})[column] = value
        span_us = 0 if self._last_us is None else at.monotonic_us - self._last_us
        self._last_us = at.monotonic_us
        return [self._row(link, counts, at.wall_us, span_us, errors) for link, counts in by_link.items()]

    def _given(self, count: int, errors: Counter[str]) -> list[tuple[str, int]]:
        """Find out which fields this generation of links has, from the first link that counts: not all need be connected.

        The driver is then asked for those of all links in one call, and not for hundreds it does not have.
        """
        given: list[tuple[str, int]] = []
        for link in range(count):
            values: Values = {}
            Fields(self._handle, [Field(number, link, str(number)) for _, number in _PER_LINK]).read(values, errors)
            given = [(column, number) for column, number in _PER_LINK if str(number) in values]
            if any(column not in ("state", "rate_mbps") for column, _ in given):
                break
        return given

    def _row(self, link: str, row: Row, at_us: int, span_us: int, errors: Counter[str]) -> Row:
        for column in ("tx_bytes", "rx_bytes"):
            # The data alone, as on the device's own row; NVLink 5 may give nothing but its count of all bytes.
            kib = row.pop(column + _KIB, None)
            if isinstance(kib, int):
                row[column] = kib * _BYTES_PER_KIB
        rate = row.get("rate_mbps")
        if isinstance(rate, int):
            row["rate_mbps"] = rate * _BITS_PER_BYTE
        for column in out_of_range(row, Stream.FABRIC):
            errors[f"out_of_range:{column}"] += 1
            row[column] = None
        row.update(at_us=at_us, span_us=span_us, port=f"nvlink/{self._uuid}/{link}")
        return row

    def _count(self, errors: Counter[str]) -> int | None:
        values: Values = {}
        fields = Fields(self._handle, (Field(pynvml.NVML_FI_DEV_NVLINK_LINK_COUNT, 0, "nvlink"),))
        fields.read(values, errors)
        self.unsupported |= fields.unsupported
        count = values.get("nvlink")
        if count == 0:
            self.unsupported["nvlink"] = pynvml.NVML_ERROR_NOT_SUPPORTED
        return min(int(count), MAX_LINKS) if count else None
