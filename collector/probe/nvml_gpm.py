"""GPU performance monitoring (Hopper and later): how busy the parts of a GPU really were between two readings.

``nvmlDeviceGetUtilizationRates`` says for how much of the time some kernel ran; these say how much of the chip it used.
One object per device; it knows nothing of other devices and never waits.
"""

from __future__ import annotations

import math
from typing import Any, Final

import pynvml

from collector.probe import Values

_COLUMNS: Final = {
    pynvml.NVML_GPM_METRIC_SM_UTIL: "sm_active_ratio",
    pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL: "tensor_active_ratio",
    pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL: "dram_active_ratio",
}
_PERCENT: Final = 100.0


class GpmReader:
    """Two samples used in turn, so that each reading covers the time since the one before without a gap."""

    columns: Final = tuple(_COLUMNS.values())

    def __init__(self, handle: Any) -> None:
        """Take the first sample. Raises pynvml.NVMLError where the device, driver or our rights do not allow it."""
        if not pynvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        self._handle = handle
        self._samples = [pynvml.nvmlGpmSampleAlloc(), pynvml.nvmlGpmSampleAlloc()]
        self._request = pynvml.c_nvmlGpmMetricsGet_t()  # 19 kB: allocated once
        self._request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        self._request.numMetrics = len(_COLUMNS)
        for position, metric in enumerate(_COLUMNS):
            self._request.metrics[position].metricId = metric
        pynvml.nvmlGpmSampleGet(handle, self._samples[0])

    def read(self, values: Values) -> None:
        """Add the mean ratios since the last call. Raises pynvml.NVMLError."""
        earlier, later = self._samples
        pynvml.nvmlGpmSampleGet(self._handle, later)
        self._samples.reverse()
        self._request.sample1, self._request.sample2 = earlier, later
        pynvml.nvmlGpmMetricsGet(self._request)
        for position, column in enumerate(_COLUMNS.values()):
            metric = self._request.metrics[position]
            usable = metric.nvmlReturn == 0 and math.isfinite(metric.value)
            values[column] = metric.value / _PERCENT if usable else None

    def close(self) -> None:
        """Free the samples. Raises pynvml.NVMLError once the driver is gone."""
        for sample in self._samples:
            pynvml.nvmlGpmSampleFree(sample)
