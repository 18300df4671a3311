"""Makes the probes and sources that the settings ask for; the one place that knows them all.

Each is imported only where it is wanted: what a node does not have costs it no memory. It reads nothing.
"""

from __future__ import annotations

from collector.clock import Clock
from collector.config import Settings
from collector.probe import Probe, Source


def make_probes(
    settings: Settings, clock: Clock, *, boot_id: str, driver_epochs: dict[str, int]
) -> list[tuple[str, Probe]]:
    """Return the device probes by name, the authoritative one first; ``driver_epochs`` has the number each goes on with."""
    probes: list[tuple[str, Probe]] = []
    if settings.nvml:
        from collector.probe.nvml import NvmlProbe  # noqa: PLC0415

        epoch = driver_epochs.get("nvml", 0)
        probes.append(("nvml", NvmlProbe(clock, boot_id=boot_id, driver_epoch=epoch, gpm=settings.gpm)))
    return probes


def make_sources(settings: Settings, clock: Clock) -> list[Source]:
    """Return the sources of everything else."""
    del settings, clock
    return []
