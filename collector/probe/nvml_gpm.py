"""GPU performance monitoring (Hopper and later): how busy the parts of a GPU really were between two readings.

``nvmlDeviceGetUtilizationRates`` says for how much of the time some kernel ran; these say how much of the chip it used,
and they are the only utilization of a MIG instance. One object per device; it knows nothing of other devices and never
waits.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Final

import pynvml

from collector.probe import Values
from collector.probe.nvml_codes import FATAL_CODES, UNSUPPORTED_CODES

_COLUMNS: Final = {
    pynvml.NVML_GPM_METRIC_SM_UTIL: "sm_active_ratio",
    pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL: "tensor_active_ratio",
    pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL: "dram_active_ratio",
}
_PCIE_RATES: Final = {
    pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC: "pcie_tx_bytes",
    pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC: "pcie_rx_bytes",
}
_PERCENT: Final = 100.0
_BYTES_PER_MIB: Final = 2**20


class Gpm:
    """GPM of one device as long as it can be had; what is refused is asked again after :meth:`forget`."""

    columns: Final = tuple(_COLUMNS.values())

    def __init__(self, board: Any, *, wanted: bool, gpu_instance: int | None = None) -> None:
        """Ask nothing yet. ``board`` is the handle of the whole GPU, also for one of its MIG instances."""
        self.unsupported_code: int | None = None
        self.pcie_bytes_per_s: dict[str, float] = {}
        """Mean rates since the reading before, by the column of the counter they belong to; empty until wanted."""
        self._board = board
        self._wanted = wanted
        self._gpu_instance = gpu_instance
        self._wants_pcie = False
        self._samples: _Samples | None = None

    @property
    def gives_pcie(self) -> bool:
        """Whether GPM can be had at all, as far as is known."""
        return self._wanted and self.unsupported_code is None

    def want_pcie(self) -> None:
        """Read the PCIe rates too: the byte counters of this device need help."""
        if not self._wants_pcie:
            self._wants_pcie = True
            if self._samples is not None:
                self._samples.ask((*_COLUMNS, *_PCIE_RATES))

    def forget(self) -> None:
        """Try again what was refused."""
        self.unsupported_code = None

    def read(self, values: Values, errors: Counter[str]) -> None:
        """Add the mean ratios since the last call. Raises pynvml.NVMLError for a lost device or driver."""
        self.pcie_bytes_per_s = {}
        if not self._wanted or self.unsupported_code is not None:
            return
        try:
            if self._samples is None:
                self._samples = _Samples(self._board, self._gpu_instance)
                self._samples.ask((*_COLUMNS, *_PCIE_RATES) if self._wants_pcie else tuple(_COLUMNS))
                return
            answers = self._samples.read()
        except pynvml.NVMLError as error:
            if error.value in FATAL_CODES:
                raise
            if error.value in UNSUPPORTED_CODES:
                self.close()
                self.unsupported_code = error.value
            else:
                errors[f"gpm:{error.value}"] += 1
            return
        for metric, value in answers.items():
            if metric in _COLUMNS:
                values[_COLUMNS[metric]] = None if value is None else value / _PERCENT
            elif value is not None:
                self.pcie_bytes_per_s[_PCIE_RATES[metric]] = value * _BYTES_PER_MIB

    def close(self) -> None:
        """Free what the driver keeps for us."""
        samples, self._samples = self._samples, None
        if samples is not None:
            samples.free()


class _Samples:
    """Two samples used in turn, so that each reading covers the time since the one before without a gap."""

    def __init__(self, board: Any, gpu_instance: int | None) -> None:
        """Take the first sample. Raises pynvml.NVMLError where the device, driver or our rights do not allow it."""
        if not pynvml.nvmlGpmQueryDeviceSupport(board).isSupportedDevice:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        self._board = board
        self._gpu_instance = gpu_instance
        self._metrics: tuple[int, ...] = ()
        self._request = pynvml.c_nvmlGpmMetricsGet_t()  # 19 kB: allocated once
        self._request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        self._samples: list[Any] = []
        try:
            self._samples = [pynvml.nvmlGpmSampleAlloc(), pynvml.nvmlGpmSampleAlloc()]
            self._take(self._samples[0])
        except pynvml.NVMLError:
            self.free()
            raise

    def ask(self, metrics: tuple[int, ...]) -> None:
        """Read these metrics from now on."""
        self._metrics = metrics
        self._request.numMetrics = len(metrics)
        for position, metric in enumerate(metrics):
            self._request.metrics[position].metricId = metric

    def read(self) -> dict[int, float | None]:
        """Return the means since the last call by metric; None for one that this device does not give."""
        earlier, later = self._samples
        self._take(later)
        self._samples.reverse()
        self._request.sample1, self._request.sample2 = earlier, later
        pynvml.nvmlGpmMetricsGet(self._request)
        answers: dict[int, float | None] = {}
        for position, number in enumerate(self._metrics):
            metric = self._request.metrics[position]
            answers[number] = metric.value if metric.nvmlReturn == 0 and math.isfinite(metric.value) else None
        return answers

    def free(self) -> None:
        for sample in self._samples:
            try:
                pynvml.nvmlGpmSampleFree(sample)
            except pynvml.NVMLError:
                return  # the driver that owned the samples is gone, and they with it
        self._samples = []

    def _take(self, sample: Any) -> None:
        if self._gpu_instance is None:
            pynvml.nvmlGpmSampleGet(self._board, sample)
        else:
            pynvml.nvmlGpmMigSampleGet(self._board, self._gpu_instance, sample)
