"""Puts the agent where it disturbs least: off the cores that jobs own, behind everything else in the queues.

Best effort: what the kernel refuses is told, never an error. It takes no right the process does not have.
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path
from typing import Final

HOUSEKEEPING: Final = "housekeeping"
NICE: Final = 10
# ioprio_set(2) has no wrapper in any libc; its number is the architecture's.
_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30, "ppc64le": 273, "riscv64": 30}
_IOPRIO_WHO_PROCESS: Final = 1
_IOPRIO_BEST_EFFORT_LOWEST: Final = (2 << 13) | 7


def parse_cpus(text: str) -> frozenset[int]:
    """Read a list as the kernel writes it, ``0-3,8``. Raises ValueError."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if not part:
            continue
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if not 0 <= low <= high < 65_536:
            raise ValueError(f"no range of processors: {part!r}")
        cpus.update(range(low, high + 1))
    return frozenset(cpus)


def housekeeping_cpus(cpu_root: Path = Path("/sys/devices/system/cpu")) -> frozenset[int]:
    """Return the processors that are online and neither isolated nor tickless: where the system's own work belongs."""
    return _listed(cpu_root / "online") - _listed(cpu_root / "isolated") - _listed(cpu_root / "nohz_full")


def pin(affinity: str, cpu_root: Path = Path("/sys/devices/system/cpu")) -> str | None:
    """Bind all threads of this process to come to a list of processors or :data:`HOUSEKEEPING`; return why it could not be done."""
    cpus = housekeeping_cpus(cpu_root) if affinity == HOUSEKEEPING else parse_cpus(affinity)
    if not cpus:
        return f"no processor is left by {affinity}"
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        return f"cannot run on processors {affinity}: {error}"
    return None


def step_back() -> list[str]:
    """Lower the priority for processor and disk, unless it is lower already; return what could not be done."""
    faults = []
    try:
        if os.getpriority(os.PRIO_PROCESS, 0) < NICE:
            os.setpriority(os.PRIO_PROCESS, 0, NICE)
    except OSError as error:
        faults.append(f"cannot lower the priority: {error}")
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_BEST_EFFORT_LOWEST) != 0:
            faults.append(f"cannot lower the disk priority: {os.strerror(ctypes.get_errno())}")
    return faults


def _listed(path: Path) -> frozenset[int]:
    try:
        return parse_cpus(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return frozenset()  # not every kernel has isolated or nohz_full; "(null)" is how some write an empty list
