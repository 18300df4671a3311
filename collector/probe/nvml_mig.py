"""The MIG instances of a board: finds them, and reads what one of them has of its own.

An instance has memory, processes and GPM. Power, energy, clocks and temperatures exist for the whole board only, and the
driver has no utilization for either of them while MIG is on. Compute instances that share a GPU instance share its memory and its
GPM: each of them reports those of the whole GPU instance. Handles die when the instances are rearranged and may be given to
others afterwards, so that an instance is known by its UUID only and looked for again at each enumeration.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Final

import pynvml

from collector.clock import Clock
from collector.probe.nvml_codes import FATAL_CODES
from collector.probe.nvml_gpm import Gpm
from collector.probe.nvml_processes import Processes
from collector.probe.nvml_visit import PROCESSES_US, RETRY_UNSUPPORTED_US, Pace, Visit
from collector.wire import DeviceRef

_BYTES_PER_MIB: Final = 2**20
_MIB_PER_GIB: Final = 1_024
_MAX_INSTANCES: Final = 32
"""More than any board can be cut into; bounds the enumeration where a driver says nonsense."""


@dataclass(frozen=True, slots=True)
class InstanceFound:
    """One instance as the enumeration of its board saw it."""

    ref: DeviceRef
    handle: Any
    handle_value: int | None
    gpu_instance: int
    compute_instance: int


def find_instances(board: Any, board_uuid: str, model: str) -> tuple[InstanceFound, ...]:
    """Return the instances of a board. Raises pynvml.NVMLError where it cannot be enumerated.

    An instance that vanishes meanwhile is left out.
    """
    slices = pynvml.nvmlDeviceGetMaxMigDeviceCount(board)
    found = []
    for index in range(min(slices, _MAX_INSTANCES)):
        try:
            handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(board, index)
            found.append(_describe(handle, board_uuid, model, slices))
        except pynvml.NVMLError as error:
            if error.value in FATAL_CODES:
                raise
        except UnicodeDecodeError:
            continue  # the binding decodes what the driver says; one without a name is left out
    return tuple(found)


def _describe(handle: Any, board_uuid: str, model: str, slices: int) -> InstanceFound:
    attributes = pynvml.nvmlDeviceGetAttributes_v2(handle)
    # "NVIDIA H100 80GB HBM3 MIG 1g.10gb": the profile's name is part of the model's.
    _, _, profile = pynvml.nvmlDeviceGetName(handle).partition(" MIG ")
    gib = round(attributes.memorySizeMB / _MIB_PER_GIB)
    ref = DeviceRef(
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        model=model,
        kind="mig",
        parent_uuid=board_uuid,
        mig_profile=profile or f"{attributes.gpuInstanceSliceCount}g.{gib}gb",
        # Compute slices of the board's (7 on a H100, 4 on an A30): what a compute instance can use at most.
        slice_ratio=min(1.0, max(1, attributes.computeInstanceSliceCount) / max(1, slices)),
        memory_bytes=attributes.memorySizeMB * _BYTES_PER_MIB,
    )
    return InstanceFound(
        ref=ref,
        handle=handle,
        handle_value=ctypes.cast(handle, ctypes.c_void_p).value,
        gpu_instance=pynvml.nvmlDeviceGetGpuInstanceId(handle),
        compute_instance=pynvml.nvmlDeviceGetComputeInstanceId(handle),
    )


class MigInstance:
    """Reads one instance through the handle it was found with."""

    def __init__(self, found: InstanceFound, board: Any, *, gpm: bool, share: float) -> None:
        """Ask nothing yet. ``share`` spreads what is read rarely over its period."""
        self.handle_value = found.handle_value
        self.gpu_instance = found.gpu_instance
        self._handle = found.handle
        self._gpm = Gpm(board, wanted=gpm, gpu_instance=found.gpu_instance)
        self._processes = Processes(found.handle, found.ref.uuid, instance=(found.gpu_instance, found.compute_instance))
        self._slow = Pace(PROCESSES_US, share)
        self._retry = Pace(RETRY_UNSUPPORTED_US, share)

    @property
    def unsupported(self) -> dict[str, int]:
        """The columns and driver functions this instance does not give, with NVML's code for why."""
        gpm = self._gpm.unsupported_code
        columns = {} if gpm is None else dict.fromkeys(Gpm.columns, gpm)
        return columns | self._processes.unsupported

    def visit(self, clock: Clock) -> Visit:
        """Read it. Raises pynvml.NVMLError where the handle has died, or the board or driver with it."""
        at = clock.now()
        visit = Visit(at)
        if self._retry.due(at.monotonic_us):
            self._gpm.forget()
            self._processes.forget()
        # Every instance has memory: whatever is wrong with this call is wrong with the instance.
        memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle, version=pynvml.nvmlMemory_v2)
        visit.values["memory_used_bytes"] = memory.used
        self._gpm.read(visit.values, visit.errors)
        if self._slow.due(at.monotonic_us):
            visit.processes = self._processes.read(at, visit.errors)
            if visit.processes is not None:
                visit.values["processes"] = sum(entry.kind != "graphics" for entry in visit.processes)
        visit.drop_out_of_range()
        return visit

    def close(self) -> None:
        """Free what was allocated for this instance."""
        self._gpm.close()
