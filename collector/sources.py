"""Makes the probes and sources that the settings ask for; the one place that knows them all.

Each is imported only where it is wanted: what a node does not have costs it no memory. It reads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

from collector.clock import Clock
from collector.config import Settings
from collector.probe import Probe, ProcessReading, Source


@dataclass(frozen=True, slots=True)
class Around:
    """What sources may use of the rest of the agent."""

    clock: Clock
    boot_id: str
    probes: Mapping[str, Probe] = field(default_factory=dict)
    recall: Callable[[str], str | None] | None = None
    """Facts that outlive the process (the spool's); None where nothing is to be kept."""
    remember: Callable[[str, str], None] | None = None

    def processes(self) -> tuple[ProcessReading, ...]:
        """Return who used the devices when the drivers were last asked; asks none itself."""
        found: tuple[ProcessReading, ...] = ()
        for probe in self.probes.values():
            ask = getattr(probe, "processes", None)
            if ask is not None:
                found += cast("tuple[ProcessReading, ...]", ask())
        return found

    def now_us(self) -> tuple[int, int]:
        """Return wall and monotonic time."""
        now = self.clock.now()
        return now.wall_us, now.monotonic_us


def make_probes(
    settings: Settings, clock: Clock, *, boot_id: str, driver_epochs: Mapping[str, int]
) -> list[tuple[str, Probe]]:
    """Return the device probes by name, the authoritative one first; ``driver_epochs`` has the number each goes on with."""
    probes: list[tuple[str, Probe]] = []
    if settings.nvml:
        from collector.probe.nvml import NvmlProbe  # noqa: PLC0415

        epoch = driver_epochs.get("nvml", 0)
        probes.append(("nvml", NvmlProbe(clock, boot_id=boot_id, driver_epoch=epoch, gpm=settings.gpm)))
    if settings.dcgm_url:
        from collector.probe.dcgm import DcgmProbe  # noqa: PLC0415

        dcgm = DcgmProbe(settings.dcgm_url, clock, boot_id=boot_id, driver_epoch=driver_epochs.get("dcgm", 0))
        probes.append(("dcgm", dcgm))
    return probes


def make_sources(settings: Settings, around: Around) -> list[Source]:
    """Return the sources of everything else."""
    return [*_node_sources(settings, around)]


def _node_sources(settings: Settings, around: Around) -> list[Source]:
    found: list[Source] = []
    if settings.host:
        from collector.source.host import HostSource  # noqa: PLC0415

        found.append(HostSource())
    if settings.rapl:
        from collector.source.rapl import RaplSource  # noqa: PLC0415

        found.append(RaplSource())
    if settings.infiniband:
        from collector.source.infiniband import InfinibandSource  # noqa: PLC0415

        found.append(InfinibandSource())
    if settings.kernel_log:
        from collector.source.kernel_log import KernelLogSource  # noqa: PLC0415

        found.append(
            KernelLogSource(
                boot_id=around.boot_id, recall=around.recall, remember=around.remember, now_us=around.now_us
            )
        )
    return found
