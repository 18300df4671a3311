"""The form every decoder of named series ends in: a column each of series numbers, instants and values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples of one request. ``series`` are numbers of :class:`ingest.series.book.Book`."""

    series: np.ndarray[Any, Any]
    """int32"""
    at_us: np.ndarray[Any, Any]
    """int64, microseconds since the Unix epoch."""
    values: np.ndarray[Any, Any]
    """float64; NaN where the sender said that there is no value."""
    invalid: Counter[str] = field(default_factory=Counter)
    """Series that no receiver may take, by reason; their samples are not among the others."""
    uncounted: Counter[str] = field(default_factory=Counter)
    """What came along that holds no sample we read, by kind: metadata, exemplars, native histograms."""

    def only(self, chosen: np.ndarray[Any, Any]) -> Samples:
        """Return the samples that a mask chooses; what was counted stays with them."""
        return Samples(self.series[chosen], self.at_us[chosen], self.values[chosen], self.invalid, self.uncounted)

    def __len__(self) -> int:
        return len(self.series)
