"""What an operator can see of the NVIDIA devices of a node, what not, and which right, driver or setting would add it.

It reads what the visits remembered and asks no driver.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import pynvml

from collector.probe import Sight
from collector.probe.nvml_codes import OLD_DRIVER_CODES, WRAPS, reason_names
from collector.probe.nvml_device import NvmlDevice
from collector.probe.nvml_mig import MigInstance
from collector.probe.nvml_table import Slot

_NEWER_DRIVER: Final = "a newer NVIDIA driver"
_PROFILING: Final = "run as root, or load the driver with NVreg_RestrictProfilingToAdminUsers=0"
_MAX_NAMED: Final = 16
_RIGHTS: Final = "run as root, or as a user the driver's device files allow it"


class _Group(NamedTuple):
    """Columns that are seen or not seen together, as an operator would name them."""

    subject: str
    columns: tuple[str, ...]
    right: str = _RIGHTS
    """What to do about NO_PERMISSION."""


_GROUPS: Final = (
    _Group("energy counter", ("energy_mj",)),
    _Group("power, 1 s average", ("power_average_mw",)),
    _Group("power, instant", ("power_instant_mw",)),
    _Group("power limits", ("power_limit_mw", "power_limit_min_mw", "power_limit_max_mw", "power_limit_default_mw")),
    _Group("utilization", ("gpu_util_percent", "memory_util_percent")),
    _Group("encoder and decoder utilization", ("encoder_util_percent", "decoder_util_percent")),
    _Group("true utilization (GPM)", ("sm_active_ratio", "tensor_active_ratio", "dram_active_ratio"), _PROFILING),
    _Group("memory", ("memory_used_bytes", "memory_total_bytes")),
    _Group("temperature", ("temp_c",)),
    _Group("memory temperature", ("memory_temp_c",)),
    _Group("temperature thresholds", ("slowdown_temp_c", "shutdown_temp_c", "memory_max_temp_c")),
    _Group("clocks", ("sm_clock_mhz", "memory_clock_mhz", "sm_clock_max_mhz", "memory_clock_max_mhz", "pstate")),
    _Group(
        "time spent throttled",
        (
            "throttle_power_cap_ns",
            "throttle_sw_thermal_ns",
            "throttle_hw_thermal_ns",
            "throttle_power_brake_ns",
            "throttle_sync_boost_ns",
        ),
    ),
    _Group("PCIe traffic", ("pcie_tx_bytes", "pcie_rx_bytes"), _PROFILING),
    _Group("PCIe link", ("pcie_generation", "pcie_width", "pcie_replays")),
    _Group("NVLinks", ("nvlink",)),
    _Group("ECC errors", ("ecc_corrected", "ecc_uncorrected", "ecc_corrected_aggregate", "ecc_uncorrected_aggregate")),
    _Group("remapped rows", ("remapped_rows_corrected", "remapped_rows_uncorrected", "remapping_pending")),
    _Group("retired pages", ("retired_pages_corrected", "retired_pages_uncorrected")),
    _Group("recovery action", ("recovery_action",)),
    _Group("processes and their memory", ("nvmlDeviceGetComputeRunningProcesses_v3",)),
    _Group("utilization per process", ("nvmlDeviceGetProcessUtilization",)),
)
_PROCESSES: Final = frozenset({"processes and their memory", "utilization per process"})
"""What is asked of the instances instead of their board."""
_OF_INSTANCES: Final = frozenset({"true utilization (GPM)", "memory"}) | _PROCESSES
"""What a MIG instance is asked for."""


@dataclass(frozen=True, slots=True)
class DriverState:
    """How the probe stands with the driver."""

    code: int | None
    """NVML's code while there is none to talk to."""
    opened: bool
    version: str | None
    has_events: bool
    count: int
    """Of the boards the driver says there are."""
    unidentified: Mapping[int, int | None]
    """NVML's codes of boards that did not say what they are, by index; None where the call did not come back."""


def describe(slots: Sequence[Slot], driver: DriverState) -> tuple[Sight, ...]:
    """Return one sight per group of columns, the driver's and troubled devices' first."""
    if driver.code is not None:
        return (_no_driver(driver.code),)
    if not driver.opened:
        detail = "not asked, or it has not answered yet"
        return (
            Sight(
                "NVIDIA driver", seen=False, detail=detail, remedy="does nvidia-smi answer? look into the kernel log"
            ),
        )
    boards = [slot for slot in slots if slot.board is None]
    of = f" of {driver.count}" if driver.unidentified else ""
    detail = f"{len(boards)}{of} GPUs" + (f", driver {driver.version}" if driver.version else "")
    sights = [Sight("NVIDIA driver", seen=True, detail=detail)]
    if driver.unidentified:
        sights.append(_unidentified(driver))
    sights += [_trouble(slot) for slot in slots if slot.trouble is not None]
    read = [slot.device for slot in slots if slot.device is not None]
    if read:
        sights += [_group(group, read) for group in _GROUPS]
        sights.append(_reasons(read))
        sights.append(
            _events([device for device in read if isinstance(device, NvmlDevice)], has_events=driver.has_events)
        )
        sights.append(_mig(slots))
    return tuple(sights)


def _no_driver(code: int) -> Sight:
    remedies = {
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "install the NVIDIA driver's libnvidia-ml.so.1; in a container, add the NVIDIA "
        "runtime with NVIDIA_DRIVER_CAPABILITIES=utility",
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "load the kernel module: modprobe nvidia",
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "library and kernel module differ: reload the module, or reboot",
        pynvml.NVML_ERROR_NO_PERMISSION: "give this user access to /dev/nvidiactl and /dev/nvidia*",
    }
    return Sight("NVIDIA driver", seen=False, detail=str(pynvml.NVMLError(code)), remedy=remedies.get(code))


def _unidentified(driver: DriverState) -> Sight:
    indices = sorted(driver.unidentified)
    named = ", ".join(map(str, indices[:_MAX_NAMED])) + (", ..." if len(indices) > _MAX_NAMED else "")
    whys = {
        "it does not answer" if code is None else str(pynvml.NVMLError(code)) for code in driver.unidentified.values()
    }
    return Sight(
        "GPUs that cannot be read",
        seen=False,
        detail=f"{len(indices)} of {driver.count} (index {named}): {'; '.join(sorted(whys))}",
        remedy="look into the kernel log for XIDs; reset it (nvidia-smi -r -i INDEX) or reboot. Once it answers it is metered",
    )


def _trouble(slot: Slot) -> Sight:
    if slot.trouble == "hung":
        return Sight(
            slot.ref.uuid, seen=False, detail="a driver call does not return", remedy="look into the kernel log"
        )
    return Sight(
        slot.ref.uuid, seen=False, detail="lost", remedy="look into the kernel log for XIDs; reset it or reboot"
    )


def _group(group: _Group, devices: Sequence[NvmlDevice | MigInstance]) -> Sight:
    asked = [device for device in devices if _is_asked(group, device)]
    missing: Counter[tuple[str, int]] = Counter(
        (column, device.unsupported[column])
        for device in asked
        for column in group.columns
        if column in device.unsupported
    )
    if not missing:
        return Sight(group.subject, seen=bool(asked), detail=_count(len(asked), len(asked)))
    whole = [device for device in asked if not device.unsupported.keys() & set(group.columns)]
    partly = [device for device in asked if set(group.columns) - device.unsupported.keys()]
    codes = sorted({code for _, code in missing})
    columns = sorted({column for column, _ in missing})
    why = "; ".join(dict.fromkeys(_why(code) for code in codes))
    detail = _count(len(whole), len(asked)) + (f" without {', '.join(columns)}" if len(partly) > len(whole) else "")
    return Sight(group.subject, seen=bool(partly), detail=f"{detail}: {why}", remedy=_remedy(codes, group.right))


def _is_asked(group: _Group, device: NvmlDevice | MigInstance) -> bool:
    if isinstance(device, MigInstance):
        return group.subject in _OF_INSTANCES
    return not (device.mig_enabled and group.subject in _PROCESSES)


def _reasons(devices: Sequence[NvmlDevice | MigInstance]) -> Sight:
    sight = _group(_Group("reasons for lowered clocks", ("clocks_event_reasons",)), devices)
    now: Counter[str] = Counter()
    for device in devices:
        if isinstance(device, NvmlDevice) and device.reasons is not None:
            now.update(reason_names(int(device.reasons)))
    if not now:
        return sight
    return replace(
        sight, detail=f"{sight.detail}; now: {', '.join(f'{name} on {count}' for name, count in sorted(now.items()))}"
    )


def _count(seen: int, of: int) -> str:
    if seen != of or not of:
        return f"{seen} of {of} devices"
    return f"all {of} devices" if of > 1 else "the device"


def _why(code: int) -> str:
    if code == WRAPS:
        return "the counter is 32 bits wide and wraps between two readings"
    if code == pynvml.NVML_ERROR_NO_PERMISSION:
        return "this user may not read it"
    if code in OLD_DRIVER_CODES:
        return "the driver does not know it"
    return "not supported by this GPU or driver, or not while MIG is on"


def _remedy(codes: Iterable[int], right: str) -> str | None:
    for code in codes:
        if code == pynvml.NVML_ERROR_NO_PERMISSION:
            return right
        if code == WRAPS:
            return "GPM (Hopper or later, gpm = true) tells how often it wraps"
        if code in OLD_DRIVER_CODES:
            return _NEWER_DRIVER
    return None


def _events(boards: Sequence[NvmlDevice], *, has_events: bool) -> Sight:
    if not has_events:
        return Sight(
            "XID events", seen=False, detail="the driver gives no event set", remedy="the kernel log tells them too"
        )
    refused = [device.events_code for device in boards if device.events_code is not None]
    if refused:
        detail = f"{_count(len(boards) - len(refused), len(boards))}: {_why(refused[0])}"
        return Sight(
            "XID events", seen=len(refused) < len(boards), detail=detail, remedy="the kernel log tells them too"
        )
    return Sight("XID events", seen=True, detail=_count(len(boards), len(boards)))


def _mig(slots: Sequence[Slot]) -> Sight:
    boards = [slot for slot in slots if isinstance(slot.device, NvmlDevice) and slot.device.mig_enabled]
    instances = sum(isinstance(slot.device, MigInstance) for slot in slots)
    if not boards:
        return Sight("MIG instances", seen=True, detail="MIG is off")
    detail = f"{instances} on {len(boards)} boards; power and energy exist for whole boards only"
    return Sight("MIG instances", seen=True, detail=detail)
