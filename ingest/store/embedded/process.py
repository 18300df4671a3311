"""Processes as Linux shows them in /proc, named so that a recycled pid is never taken for the one meant.

Refuses to guess: a process that cannot be read is not ours, and a signal goes only to the exact process recorded.
"""

import os
import signal as signals
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


def boot_id() -> str:
    """Name this boot; pids and start times from another boot mean nothing."""
    return (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def start_ticks(pid: int) -> int | None:
    """Return when the process started, in clock ticks since boot; None when it is gone or a zombie.

    A zombie holds no memory, files or locks. Its pid lingers until the parent reaps it, which in a container whose
    pid 1 reaps nothing is never, so waiting for the pid to vanish would wait for ever.
    """
    try:
        stat = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the command name in parentheses may hold spaces
    return None if fields[0] in {"Z", "X"} else int(fields[19])


@dataclass(frozen=True)
class ProcessId:
    """One process for all time: its pid and when it started."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> "ProcessId | None":
        """Name the living process behind a pid, None when there is none."""
        ticks = start_ticks(pid)
        return None if ticks is None else cls(pid, ticks)

    def is_alive(self) -> bool:
        return start_ticks(self.pid) == self.start_ticks

    def signal(self, number: signals.Signals) -> bool:
        """Send a signal to exactly this process; False when it is already gone."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        except OSError:  # a kernel before 5.3: check, then signal, with a gap of microseconds
            return self._signal_by_pid(number)
        try:
            if not self.is_alive():
                return False
            signals.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)
        return True

    def _signal_by_pid(self, number: signals.Signals) -> bool:
        if not self.is_alive():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def all_pids() -> list[int]:
    """List the pids visible from here."""
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]


def works_in(pid: int, folder: Path) -> bool:
    """Say whether the process's working directory is the folder (given resolved); zombies have none."""
    try:
        return (PROC / str(pid) / "cwd").readlink() == folder
    except OSError:
        return False


def processes_in(folder: Path) -> list[ProcessId]:
    """List the processes whose working directory is the folder, as that of every PostgreSQL process is its data."""
    found = (ProcessId.of(pid) for pid in all_pids() if works_in(pid, folder))
    return [process for process in found if process is not None]


def carriers_of(name: str, value: str) -> list[ProcessId]:
    """List the processes started with this environment variable set so; those of other users cannot be read."""
    wanted = f"{name}={value}".encode()
    found = []
    for pid in all_pids():
        process = ProcessId.of(pid)
        try:
            environment = (PROC / str(pid) / "environ").read_bytes()
        except OSError:
            continue
        if process is not None and wanted in environment.split(b"\0"):
            found.append(process)
    return found
