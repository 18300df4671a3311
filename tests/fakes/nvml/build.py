"""Builds the fake driver library (its faults are listed in ``node.c``) and runs the real agent against it, for tests and the ``agent.cost`` benchmark."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

_FOLDER: Final = Path(__file__).parent
_ROOT: Final = Path(__file__).resolve().parents[3]
LIBRARY_NAME: Final = "libnvidia-ml.so.1"


def build(folder: Path) -> Path:
    """Compile the library into the folder, under the name the agent loads, and return its path."""
    library = folder / LIBRARY_NAME
    warnings = ["-Wall", "-Wextra", "-Werror"]
    linking = [f"-Wl,-soname,{LIBRARY_NAME}", "-Wl,-Bsymbolic"]
    sources = [str(path) for path in sorted(_FOLDER.glob("*.c"))]
    command = ["cc", "-std=gnu11", "-O2", "-shared", "-fPIC", *warnings, *linking, "-o", str(library), *sources, "-lm"]
    subprocess.run(command, check=True)
    return library


def build_or_skip(folder: Path) -> Path:
    """Compile the library, or skip the test that asks where nobody could; in CI (``CI=true``) a missing compiler fails."""
    if shutil.which("cc") is None:
        reason = "no C compiler (cc); .ci/run installs it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return build(folder)


class FakeNvml:
    """The library loaded into this process, its time and faults under the test's control."""

    def __init__(self, library: Path) -> None:
        """Load the library; the caller sets ``pynvml.nvmlLib`` to :attr:`cdll`."""
        self.cdll = ctypes.CDLL(str(library))
        self.cdll.fake_nvml_configure.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p]
        self.cdll.fake_nvml_configure.restype = None
        self.cdll.fake_nvml_set_time.argtypes = [ctypes.c_double]
        self.cdll.fake_nvml_set_time.restype = None
        self.cdll.fake_nvml_release.restype = None
        self.cdll.fake_nvml_calls.restype = ctypes.c_ulonglong

    def configure(self, gpus: int, *, faults: str = "", trace: Path | None = None) -> None:
        """Start over with these devices and faults, at time 0, which moves by :meth:`set_time` only."""
        self.cdll.fake_nvml_configure(gpus, str(trace).encode() if trace else None, faults.encode())
        self.set_time(0.0)

    def set_time(self, t_s: float) -> None:
        """Set the seconds since the start."""
        self.cdll.fake_nvml_set_time(t_s)

    def release(self) -> None:
        """Let calls that hang come back, and none hang any more."""
        self.cdll.fake_nvml_release()

    @property
    def calls(self) -> int:
        """Calls about devices or the driver since the library was loaded."""
        return int(self.cdll.fake_nvml_calls())

    @property
    def held(self) -> tuple[int, int]:
        """How often it is initialised, and how many event sets and GPM samples are not freed."""
        return self.cdll.fake_nvml_init_count(), self.cdll.fake_nvml_open_objects()


def environment(library: Path, *, gpus: int, faults: str = "") -> dict[str, str]:
    """Return the environment in which a new process finds the fake driver."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("WATTLEDGER_AGENT_")},
        "LD_LIBRARY_PATH": str(library.parent),
        "FAKE_NVML_GPUS": str(gpus),
        "FAKE_NVML_FAULTS": faults,
        "PYTHONPATH": str(_ROOT),
    }


def start_agent(library: Path, spool: Path, *flags: str, gpus: int = 8, faults: str = "") -> subprocess.Popen[str]:
    """Start the real agent process against the fake driver; its log is the process's stderr."""
    command = [sys.executable, "-m", "collector", "run", "--spool-path", str(spool), *flags]
    env = environment(library, gpus=gpus, faults=faults)
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@dataclass(frozen=True, slots=True)
class AgentCost:
    """What an agent process took from its node."""

    cpu_ratio: float
    """CPU seconds per second of one core, between two readings while it ran; starting up is not in it."""
    rss_bytes: int
    startup_cpu_s: float
    total_s: float
    log: str


def measure_agent_cost(library: Path, spool: Path, *flags: str, gpus: int = 8, duration_s: float = 30.0) -> AgentCost:
    """Run the agent for a while and measure CPU and peak memory from outside, as the kernel accounts them."""
    process = start_agent(library, spool, *flags, gpus=gpus)
    try:
        time.sleep(3.0)  # imports, the spool, the first readings
        startup_cpu_s, started_s = _cpu_s(process.pid), time.monotonic()
        time.sleep(duration_s)
        cpu_s, total_s = _cpu_s(process.pid) - startup_cpu_s, time.monotonic() - started_s
        peak_bytes = _peak_rss_bytes(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=15)
    return AgentCost(cpu_s / total_s, peak_bytes, startup_cpu_s, total_s, log)


def _cpu_s(pid: int) -> float:
    # schedstat counts nanoseconds; /proc/PID/stat only clock ticks of 10 ms, as much as the agent uses in seconds.
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def _peak_rss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} tells no VmHWM")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    cost = measure_agent_cost(build(folder), folder / "spool.db", *sys.argv[3:], duration_s=float(sys.argv[2]))
    sys.stdout.write(
        f"cpu {cost.cpu_ratio:.4%} of a core, peak {cost.rss_bytes / 2**20:.1f} MiB, start {cost.startup_cpu_s:.2f} s\n{cost.log}"
    )
