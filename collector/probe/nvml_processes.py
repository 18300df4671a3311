"""Which processes are on one device, how much of its memory they hold and how much of its time they took.

It names processes by pid only: whose they are, and of which job, is found out elsewhere. The lists are read into memory laid
out once, because the binding's own functions ask twice each time, and one of them takes "no process" for an error (it
raises ``NVMLError(SUCCESS)`` for an empty list of utilizations).
"""

from __future__ import annotations

import ctypes
from collections import Counter
from typing import Any, Final, Literal

import pynvml

from collector.clock import Instant
from collector.probe import ProcessReading
from collector.probe.nvml_codes import FATAL_CODES, UNSUPPORTED_CODES

_ROOM: Final = 64
_MAX_ROOM: Final = 4_096
"""Entries read at most: beyond, the list is left out and counted, and memory stays bounded."""
_NO_INSTANCE: Final = 0xFFFFFFFF
_MAX_PERCENT: Final = 100
_Kind = Literal["compute", "graphics", "mps"]
# The order matters: what is a client of MPS is in the first list too, and the last word counts.
_LISTS: Final[tuple[tuple[_Kind, str], ...]] = (
    ("graphics", "nvmlDeviceGetGraphicsRunningProcesses_v3"),
    ("compute", "nvmlDeviceGetComputeRunningProcesses_v3"),
    ("mps", "nvmlDeviceGetMPSComputeRunningProcesses_v3"),
)
_UTILIZATION: Final = "nvmlDeviceGetProcessUtilization"


class Processes:
    """Reads one device, which may be a MIG instance."""

    def __init__(self, handle: Any, uuid: str, *, instance: tuple[int, int] | None = None) -> None:
        """Assume that all lists are supported. ``instance`` are MIG's numbers of the GPU and the compute instance."""
        self.unsupported: dict[str, int] = {}
        """The driver functions that are not, with NVML's code for why."""
        self._handle = handle
        self._uuid = uuid
        self._lists = {kind: _List(name, pynvml.c_nvmlProcessInfo_v3_t) for kind, name in _LISTS}
        self._utilization = _List(_UTILIZATION, pynvml.c_nvmlProcessUtilizationSample_t)
        self._seen_us = 0
        self._instance = instance

    @property
    def counts_compute(self) -> bool:
        """Whether the list of compute processes can be had, without which a count of them means nothing."""
        return _LISTS[1][1] not in self.unsupported

    def forget(self) -> None:
        """Ask for all lists again."""
        self.unsupported = {}

    def read(self, at: Instant, errors: Counter[str]) -> tuple[ProcessReading, ...] | None:
        """Return one reading per process, by pid; None where the list of compute processes cannot be read now.

        Raises pynvml.NVMLError for a lost device or driver.
        """
        found: dict[int, tuple[_Kind, Any]] = {}
        complete = True
        for kind, processes in self._lists.items():
            entries = self._ask(processes, errors)
            if entries is not None:
                found.update({entry.pid: (kind, entry) for entry in entries if self._is_here(entry)})
            elif kind == "compute":
                complete = False
        if not complete:
            return None
        shares = self._shares(errors) if found else None
        return tuple(self._reading(found[pid], at.wall_us, shares) for pid in sorted(found))

    def _is_here(self, entry: Any) -> bool:
        """Leave out what a driver lists of a neighbour, so that nobody is counted on two instances."""
        if self._instance is None:
            return True
        numbers = (entry.gpuInstanceId, entry.computeInstanceId)
        return all(number in (mine, _NO_INSTANCE) for number, mine in zip(numbers, self._instance, strict=True))

    def _reading(
        self, found: tuple[_Kind, Any], at_us: int, shares: dict[int, tuple[int, int]] | None
    ) -> ProcessReading:
        kind, entry = found
        memory = entry.usedGpuMemory
        # A process that ran nothing lately has no sample: it took nothing of the device.
        share: tuple[int | None, int | None] = (None, None) if shares is None else shares.get(entry.pid, (0, 0))
        return ProcessReading(
            device_uuid=self._uuid,
            pid=entry.pid,
            at_us=at_us,
            used_memory_bytes=None if memory == pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value else memory,
            sm_util_percent=share[0],
            memory_util_percent=share[1],
            gpu_instance=None if entry.gpuInstanceId == _NO_INSTANCE else entry.gpuInstanceId,
            kind=kind,
        )

    def _shares(self, errors: Counter[str]) -> dict[int, tuple[int, int]] | None:
        samples = self._ask(self._utilization, errors, after_us=self._seen_us)
        if samples is None:
            return None
        newest: dict[int, Any] = {}
        for sample in samples:
            if sample.pid not in newest or sample.timeStamp >= newest[sample.pid].timeStamp:
                newest[sample.pid] = sample
            self._seen_us = max(self._seen_us, sample.timeStamp)
        return {
            pid: (min(sample.smUtil, _MAX_PERCENT), min(sample.memUtil, _MAX_PERCENT)) for pid, sample in newest.items()
        }

    def _ask(self, processes: _List, errors: Counter[str], after_us: int | None = None) -> list[Any] | None:
        if processes.name in self.unsupported:
            return None
        code, entries = processes.read(self._handle, after_us)
        if code == pynvml.NVML_SUCCESS:
            return entries
        if code == pynvml.NVML_ERROR_NOT_FOUND and after_us is not None:
            return []  # no process ran anything since
        if code in FATAL_CODES:
            raise pynvml.NVMLError(code)
        if code in UNSUPPORTED_CODES:
            self.unsupported[processes.name] = code
        else:
            errors[f"processes:{code}"] += 1
        return None


class _List:
    """One driver function that fills a list, and the memory it fills."""

    def __init__(self, name: str, entry: Any) -> None:
        self.name = name
        self._entry = entry
        self._array: Any = None
        self._count = ctypes.c_uint(0)

    def read(self, handle: Any, after_us: int | None) -> tuple[int, list[Any]]:
        """Return NVML's code and the entries; asks again with more room where there was too little."""
        try:
            ask = getattr(pynvml.nvmlLib, self.name)
        except AttributeError:
            return pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, []
        room = _ROOM if self._array is None else len(self._array)
        while True:
            if self._array is None or len(self._array) < room:
                self._array = (self._entry * room)()
            self._count.value = room
            if after_us is None:
                code = ask(handle, ctypes.byref(self._count), self._array)
            else:
                code = ask(handle, self._array, ctypes.byref(self._count), ctypes.c_ulonglong(after_us))
            if code != pynvml.NVML_ERROR_INSUFFICIENT_SIZE or room >= _MAX_ROOM:
                break
            room = min(_MAX_ROOM, max(2 * room, self._count.value + _ROOM))
        if code != pynvml.NVML_SUCCESS:
            return code, []
        return code, [self._array[position] for position in range(min(self._count.value, room))]
