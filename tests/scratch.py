"""Where tests put a PostgreSQL: in memory where there is room, else on disk; either way a folder others may pass through.

A database is some nine hundred files. Making them on a journaling file system took 0.4 s of processor for each copy of the
template, in memory 0.03 s. Nothing is proven less: no test pulls the plug, and what a killed process wrote is with the kernel
on both. What is about folders and file systems themselves (the launcher, the wheel, the agent's spool) stays on disk.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

_MEMORY = Path("/dev/shm")
_GIB = 1 << 30
_ROOM_BYTES = 4 * _GIB
"""Two processes with a PostgreSQL each and the fleets of the longest tests take less than 2 GiB."""


def quick_folder(prefix: str) -> Path:
    """Make a folder for the home of a PostgreSQL; who asks removes it."""
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=_MEMORY if _has_room() else None))
    made.chmod(0o711)  # or as root the data would move elsewhere
    return made


@cache
def _has_room() -> bool:
    return (
        os.access(_MEMORY, os.W_OK)
        and shutil.disk_usage(_MEMORY).free > _ROOM_BYTES
        and _available_bytes() > 2 * _ROOM_BYTES
    )


def _available_bytes() -> int:
    """Return what the machine, or the group of processes we are confined to, can still give."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    machine_bytes = int(fields["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
    except OSError:  # no group of our own
        return machine_bytes
    return machine_bytes if limit == "max" else min(machine_bytes, int(limit) - int(used))
