"""Makes the probes and sources that the settings ask for; the one place that knows them all.

Each is imported only where it is wanted: what a node does not have costs it no memory. It reads nothing.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, cast

from collector.clock import Clock
from collector.config import Settings
from collector.errors import AgentError
from collector.probe import Probe, ProcessReading, Source
from collector.wire import DeviceRef

_LOG = logging.getLogger(__name__)

_NVML_LIBRARY: Final = "libnvidia-ml.so.1"
_AMD_DRIVER: Final = (Path("/sys/module/amdgpu"), Path("/dev/kfd"))


class Facts(Protocol):
    """Texts by name, kept over restarts."""

    def recall(self, name: str) -> str | None:
        """Return a fact, or None."""
        ...

    def remember(self, name: str, value: str) -> None:
        """Keep a fact, durably."""
        ...


@dataclass(frozen=True, slots=True)
class Around:
    """What sources may use of the rest of the agent."""

    clock: Clock
    boot_id: str
    probes: Mapping[str, Probe] = field(default_factory=dict)
    facts: Facts | None = None
    """Facts that outlive the process (the spool's); None where nothing is to be kept."""
    devices: Callable[[], tuple[DeviceRef, ...]] = tuple
    """The devices that were read so far."""

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
    settings: Settings,
    clock: Clock,
    *,
    boot_id: str,
    driver_epochs: Mapping[str, int],
    nvml_library: str = _NVML_LIBRARY,
) -> list[tuple[str, Probe]]:
    """Return the device probes by name, the authoritative one first; ``driver_epochs`` has the number each goes on with.

    With ``nvidia_smi`` the library itself decides at the start: a driver that is late has its library on the disk already.
    """
    probes: list[tuple[str, Probe]] = []
    by_tool = by_nvidia_smi(settings, nvml_library)
    if by_tool:
        from collector.probe.nvidia_smi import NvidiaSmiProbe  # noqa: PLC0415

        if settings.nvml:
            _LOG.warning("%s cannot be loaded: NVIDIA devices are read by nvidia-smi, without a counter", nvml_library)
        epoch = driver_epochs.get("nvidia_smi", 0)
        probes.append(("nvidia_smi", NvidiaSmiProbe(clock, boot_id=boot_id, driver_epoch=epoch)))
    elif settings.nvml:
        from collector.probe.nvml import NvmlProbe  # noqa: PLC0415

        epoch = driver_epochs.get("nvml", 0)
        probes.append(("nvml", NvmlProbe(clock, boot_id=boot_id, driver_epoch=epoch, gpm=settings.gpm)))
    if settings.amd and any(place.exists() for place in _AMD_DRIVER):
        from collector.probe.amd import AmdProbe  # noqa: PLC0415

        probes.append(("amd", AmdProbe(clock, boot_id=boot_id, driver_epoch=driver_epochs.get("amd", 0))))
    if settings.dcgm_url:
        from collector.probe.dcgm import DcgmProbe  # noqa: PLC0415

        epoch = driver_epochs.get("dcgm", 0)
        # MIG instances have no UUID with DCGM: from both feeds they would be two devices.
        instances = by_tool or not settings.nvml
        dcgm = DcgmProbe(settings.dcgm_url, clock, boot_id=boot_id, driver_epoch=epoch, instances=instances)
        probes.append(("dcgm", dcgm))
    return probes


def by_nvidia_smi(settings: Settings, nvml_library: str = _NVML_LIBRARY) -> bool:
    """Say whether NVIDIA devices are read by running nvidia-smi: where that is wanted and NVML cannot be used."""
    if not settings.nvidia_smi or not settings.nvml:
        return settings.nvidia_smi
    import ctypes  # noqa: PLC0415

    try:
        ctypes.CDLL(nvml_library)
    except OSError:
        return True
    return False


def make_sources(settings: Settings, around: Around) -> list[Source]:
    """Return the sources of everything else."""
    return [*_job_sources(settings, around), *_node_sources(settings, around), *_remote_sources(settings)]


def _job_sources(settings: Settings, around: Around) -> list[Source]:
    if not settings.jobs:
        return []
    from pathlib import Path  # noqa: PLC0415

    from collector.jobs.mapping import MappingFolder  # noqa: PLC0415
    from collector.jobs.source import MAPPING_FOLDERS, JobPlaces, JobSettings, JobSource  # noqa: PLC0415

    folders = MAPPING_FOLDERS
    if settings.job_mapping_dir:
        folders = (*folders, MappingFolder(Path(settings.job_mapping_dir), "index"))
    jobs = JobSource(
        clock=around.clock,
        processes=around.processes,
        devices=around.devices,
        boot_id=around.boot_id,
        facts=around.facts,
        settings=JobSettings(
            cluster=settings.cluster,
            node=settings.node,
            environ="hint" if settings.environ == "hint" else "never",
            slurm_shared=settings.slurm_shared,
        ),
        places=JobPlaces(mapping_folders=folders),
    )
    return [cast("Source", jobs)]  # its name is final, which a protocol's attribute cannot say


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

        facts = around.facts
        found.append(
            KernelLogSource(
                boot_id=around.boot_id,
                recall=facts.recall if facts else None,
                remember=facts.remember if facts else None,
                now_us=around.now_us,
            )
        )
    if settings.ipmi:
        from collector.source.ipmi import IpmiSource  # noqa: PLC0415

        found.append(IpmiSource(period_s=settings.node_power_s))
    return found


def _remote_sources(settings: Settings) -> list[Source]:
    found: list[Source] = []
    if settings.redfish_url:
        from collector.source.redfish import RedfishSource  # noqa: PLC0415

        found.append(
            RedfishSource(
                settings.redfish_url,
                credentials=settings.redfish_credentials,
                verify=_trust(settings),
                period_s=settings.node_power_s,
            )
        )
    if settings.cloud:
        from collector.source.cloud import CloudSource, Provider  # noqa: PLC0415

        found.append(CloudSource(cast("Provider", settings.cloud)))
    if settings.engine_urls:
        from collector.source.engines import EngineSource  # noqa: PLC0415

        found.append(EngineSource([url for url in settings.engine_urls.split(",") if url]))
    return found


def _trust(settings: Settings) -> ssl.SSLContext | bool:
    if not settings.redfish_ca_file:
        return settings.redfish_verify
    try:
        return ssl.create_default_context(cafile=settings.redfish_ca_file)
    except (OSError, ssl.SSLError) as error:
        raise AgentError(f"cannot load redfish_ca_file {settings.redfish_ca_file}: {error}") from error
