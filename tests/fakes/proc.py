"""A /proc in a folder: processes that a test puts there, with as many files as the agent reads of them."""

from __future__ import annotations

import shutil
from pathlib import Path

BOOT_AT_US = 1_800_000_000_000_000 - 5_000_000_000
"""The machine of the tests was booted 5,000 s before the clock of the tests begins."""
TICKS_PER_S = 100


class FakeProc:
    """Processes below ``root``; a process's start is given in seconds since boot."""

    def __init__(self, root: Path) -> None:
        root.mkdir(exist_ok=True)
        self.root = root
        self.start(1, comm="systemd", parent=0, start_s=1.0, cgroup="0::/init.scope")

    def start(
        self,
        pid: int,
        *,
        cgroup: str = "0::/",
        start_s: float = 4_000.0,
        parent: int = 1,
        uid: int | tuple[int, int] = 1000,
        comm: str = "python",
        title: str | None = None,
        environ: dict[str, str] | None = None,
    ) -> None:
        """Put a process there; ``uid`` may be (real, effective)."""
        folder = self.root / str(pid)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        real, effective = uid if isinstance(uid, tuple) else (uid, uid)
        ticks = round(start_s * TICKS_PER_S)
        rest = f"S {parent} 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 {ticks} 1 1 0"
        (folder / "stat").write_bytes(f"{pid} ({comm}) {rest}\n".encode())
        (folder / "status").write_text(f"Name:\t{comm}\nUid:\t{real}\t{effective}\t{effective}\t{effective}\n")
        (folder / "cgroup").write_text(cgroup + "\n")
        (folder / "cmdline").write_bytes((title or comm).encode() + b"\0")
        (folder / "environ").write_bytes(b"".join(f"{k}={v}\0".encode() for k, v in (environ or {}).items()))

    def stepd(
        self, pid: int, job: str, step: str = "batch", *, uid: int | tuple[int, int] = 0, start_s: float = 3_000.0
    ) -> None:
        """Put a slurmstepd there."""
        title = f"slurmstepd: [{job}.{step}]"
        self.start(
            pid, comm="slurmstepd", title=title, uid=uid, start_s=start_s, cgroup="0::/system.slice/slurmd.service"
        )

    def end(self, pid: int) -> None:
        shutil.rmtree(self.root / str(pid))
