"""What was learned of series: a number for each, and its place. Bounded: whoever sends a million series costs only time.

Decoders ask it by whatever identifies a series on their wire, so that the labels of a steady sender are read once. Numbers
hold until :meth:`Book.tidy`, which is called between requests. Used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from ingest.series.labels import Skip
from ingest.series.places import NODE_LABELS, Entry, place, reason_of

MAX_SERIES: Final = 300_000
"""Series remembered: 10,000 GPUs have 260,000 with dcgm-exporter's default set. Beyond it all is learned again."""
MAX_KEY_BYTES: Final = 128 * 1024 * 1024
MAX_NAMES: Final = 4_096
"""Names of series without a place that are told apart."""
MAX_NAME_CHARACTERS: Final = 128
MAX_LABELS: Final = 128
"""A series may have; Prometheus' own limits, where set, are lower."""
MAX_LABELS_BYTES: Final = 64 * 1024
"""Of one series, names and values together."""
OTHER: Final = "other"


class Book:
    """Places by number, and numbers by key."""

    def __init__(
        self,
        node_labels: tuple[str, ...] = NODE_LABELS,
        *,
        max_series: int = MAX_SERIES,
        max_key_bytes: int = MAX_KEY_BYTES,
        max_names: int = MAX_NAMES,
    ) -> None:
        self._node_labels = node_labels
        self._limits = (max_series, max_key_bytes, max_names)
        self.generation = 0
        """Changes when all numbers are void."""
        self.entries: list[Entry] = []
        self.known: dict[bytes, int] = {}
        """Numbers by key; decoders look here first."""
        self.unplaced: dict[bytes, int] = {}
        """Numbers by name of series that have no place whatever their labels; for decoders too."""
        self._skipped: dict[tuple[str, str], int] = {}
        self._placed: dict[Entry, int] = {}
        self._key_bytes = 0

    def tidy(self) -> None:
        """Forget everything once it is too much; between requests."""
        max_series, max_key_bytes, _ = self._limits
        if len(self.known) <= max_series and self._key_bytes <= max_key_bytes:
            return
        self.entries, self.known, self.unplaced, self._key_bytes = [], {}, {}, 0
        self._skipped, self._placed = {}, {}
        self.generation += 1

    def learn(self, key: bytes, name: str, labels: Callable[[], Mapping[str, str]]) -> int:
        """Return the number of the series ``name`` with these labels and remember it under the key."""
        found = place(name, labels(), self._node_labels)
        number = self.skipped(found.name, found.reason) if isinstance(found, Skip) else self._number(found)
        if key not in self.known:
            self._key_bytes += len(key)
        self.known[key] = number
        return number

    def learn_name(self, name: str) -> int:
        """Return the number of a name that :func:`~ingest.series.places.is_known` does not know."""
        number = self.skipped(name, reason_of(name))
        if len(self.unplaced) < self._limits[2] and len(name) < MAX_NAME_CHARACTERS:
            self.unplaced[name.encode()] = number
        return number

    def skipped(self, name: str, reason: str) -> int:
        """Return the number under which a name without a place is counted; of too many names, of all others together."""
        number = self._skipped.get((name, reason))
        if number is not None:
            return number
        max_names = self._limits[2]
        if len(name) > MAX_NAME_CHARACTERS or not name.isprintable() or len(self._skipped) >= max_names:
            name = OTHER
            number = self._skipped.get((name, reason))
        if number is None:
            number = self._skipped[name, reason] = len(self.entries)
            self.entries.append(Skip(name, reason))
        return number

    def _number(self, found: Entry) -> int:
        number = self._placed.get(found)
        if number is None:
            number = self._placed[found] = len(self.entries)
            self.entries.append(found)
        return number
