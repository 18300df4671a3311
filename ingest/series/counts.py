"""How many samples became what, and the names of those that have no place here: for ``/metrics``, with a bound on names."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final

from ingest.series.book import OTHER
from ingest.series.intake import Taken

MAX_NAMES: Final = 1_000
"""Names shown in ``/metrics``; the samples of all further ones are counted together."""


class SeriesCounts:
    """Counts since the start; several threads may add."""

    def __init__(self, max_names: int = MAX_NAMES) -> None:
        self._max_names = max_names
        self._lock = threading.Lock()
        self.outcomes: Counter[tuple[str, str]] = Counter()
        """Samples by protocol and outcome."""
        self.names: Counter[tuple[str, str]] = Counter()
        """Samples without a place by name and reason."""

    def add(self, protocol: str, taken: Taken) -> None:
        """Count what a request was read as."""
        with self._lock:
            for outcome, samples in taken.tally.samples.items():
                self.outcomes[protocol, outcome] += samples
            self.outcomes[protocol, "late_rows"] += taken.tally.late_rows
            for counted in (taken.invalid, taken.uncounted):
                for what, samples in counted.items():
                    self.outcomes[protocol, what] += samples
            for (name, reason), samples in taken.tally.by_name.items():
                self.outcomes[protocol, "by_name"] += samples
                known = (name, reason) in self.names or len(self.names) < self._max_names
                self.names[name if known else OTHER, reason] += samples
