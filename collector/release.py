"""Says whether the devices are to be let go: an open NVML blocks a GPU reset, a MIG change and the driver's unloading.

An operator asks with SIGUSR1, which toggles, or with a flag file, for as long as it is there. It closes nothing itself.
"""

from __future__ import annotations

import os


class Release:
    """The two ways to ask, as one answer."""

    def __init__(self, flag_file: str = "") -> None:
        """Watch that file; empty: none."""
        self._flag_file = flag_file
        self._by_signal = False

    def watch(self, flag_file: str) -> None:
        """Watch another file from now on; what was asked by signal stays asked."""
        self._flag_file = flag_file

    def toggle(self) -> None:
        """Ask for the devices, or give them back: what the signal means."""
        self._by_signal = not self._by_signal

    def wanted(self) -> str | None:
        """Return who wants the devices let go, None where nobody does."""
        if self._by_signal:
            return "SIGUSR1"
        if self._flag_file and os.path.exists(self._flag_file):  # noqa: PTH110  asked at each tick
            return f"the file {self._flag_file}"
        return None
