"""A node for the job source: a /proc, hooks' files, a driver's list of processes, facts that survive a restart, and a clock."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from collector.errors import SpoolError
from collector.jobs import state
from collector.jobs.ledger import Ledger
from collector.jobs.mapping import MappingFolder
from collector.jobs.processes import ProcessTable
from collector.jobs.roster import Roster
from collector.jobs.source import FACT, JobPlaces, JobSettings, JobSource
from collector.probe import ProcessReading, Row
from collector.wire import DeviceRef, Stream
from tests.fakes.clock import FixedClock
from tests.fakes.proc import BOOT_AT_US, TICKS_PER_S, FakeProc

S = 1_000_000
GPUS = tuple(DeviceRef(f"GPU-0000000{n}-aaaa", "H100", pci_bus_id=f"00000000:{0x10 + n:02X}:00.0") for n in range(4))


class FakeFacts:
    """Facts in memory; ``broken`` makes both ways fail."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.broken = False
        self.writes = 0

    def recall(self, name: str) -> str | None:
        if self.broken:
            raise SpoolError("the disk is gone")
        return self.values.get(name)

    def remember(self, name: str, value: str) -> None:
        if self.broken:
            raise SpoolError("the disk is full")
        self.writes += 1
        self.values[name] = value


class JobNode:
    """One node; :meth:`restart` gives it a new agent, which knows what the facts and the folders tell it."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root = root
        self.clock = FixedClock()
        self.proc = FakeProc(root / "proc")
        for gpu in range(len(GPUS)):
            self.board(gpu, minor=gpu)
        self.facts = FakeFacts()
        # As an agent leaves them that ran here before and saw nothing.
        memory = state.Memory("boot-1", at_us=self.clock.wall_us)
        self.facts.values[FACT] = state.dump(memory, Ledger(), Roster("lab"))
        self.settings = JobSettings(cluster="lab", **settings)
        self.hooks = root / "hooks"
        self.mapping = root / "gpustat"
        self.socket = root / "kubelet.sock"
        self.devices: tuple[DeviceRef, ...] = GPUS
        self.boot_id = "boot-1"
        self.list: list[ProcessReading] = []
        self.rows: dict[Stream, list[Row]] = {}
        self.errors: dict[str, int] = {}
        self.pids = 1_000
        self.source = self.restart()

    def restart(self) -> JobSource:
        if hasattr(self, "source"):
            self.source.close()  # as the kernel does for one that was killed
        self.source = JobSource(
            clock=self.clock,
            processes=lambda: tuple(self.list),
            devices=lambda: self.devices,
            boot_id=self.boot_id,
            facts=self.facts,
            settings=self.settings,
            places=JobPlaces(
                self.proc.root,
                self.hooks,
                (MappingFolder(self.mapping, "minor"),),
                self.socket,
                self.root / "pods",
            ),
            table=ProcessTable(
                proc_root=self.proc.root,
                environ=self.settings.environ,
                boot_at_us=lambda: BOOT_AT_US,
                ticks_per_s=TICKS_PER_S,
            ),
        )
        return self.source

    def board(self, gpu: int, *, minor: int) -> None:
        """Have the driver give a GPU that minor number."""
        folder = self.proc.root / "driver" / "nvidia" / "gpus" / f"0000:{0x10 + gpu:02x}:00.0"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "information").write_text(
            f"Model: \t\t NVIDIA H100\nGPU UUID: \t {GPUS[gpu].uuid}\nDevice Minor: \t {minor}\n"
        )

    def hook(self, action: str, job: int, gpus: str = "", *, ago_s: float = 0.0, **fields: object) -> Path:
        """Leave what a prolog (``start``) or epilog (``end``) would have left ``ago_s`` before now."""
        self.hooks.mkdir(exist_ok=True, mode=0o755)
        self.pids += 1
        at_ns = (self.clock.wall_us - round(ago_s * S)) * 1_000
        lines = {
            "wattledger-hook": 1,
            "event": action,
            "at_ns": at_ns,
            "job": job,
            "cluster": "lab",
            "uid": 1000,
            "boot": self.boot_id,
        }
        path = self.hooks / f"{at_ns}.{self.pids}.{action}.{job}"
        path.write_text("".join(f"{key}={value}\n" for key, value in {**lines, "gpus": gpus, **fields}.items()))
        os.utime(path, ns=(at_ns, at_ns))
        return path

    def run(self, pid: int, gpu: int, cgroup: str, *, ago_s: float = 1.0, **more: Any) -> None:
        """Start a process and have the driver list it."""
        reading = {name: more.pop(name) for name in ("memory", "sm", "kind") if name in more}
        start_s = (self.clock.wall_us - BOOT_AT_US) / S - ago_s
        self.proc.start(pid, cgroup=cgroup, start_s=start_s, **more)
        self.on(pid, gpu, **reading)

    def on(self, pid: int, gpu: int, *, memory: int | None = 1, sm: int | None = 10, kind: Any = "compute") -> None:
        """Have the driver list a process on a GPU."""
        uuid = GPUS[gpu].uuid
        self.list.append(ProcessReading(uuid, pid, self.clock.wall_us, memory, sm, None, None, kind))

    def end(self, pid: int) -> None:
        self.proc.end(pid)
        self.list = [reading for reading in self.list if reading.pid != pid]

    def read(self, after_s: float = 5.0) -> list[str]:
        """Let time pass, the driver look again, and the agent read; return the allocation rows in words."""
        self.clock.advance(after_s)
        now_us = self.clock.wall_us
        self.list = [
            ProcessReading(
                r.device_uuid, r.pid, now_us, r.used_memory_bytes, r.sm_util_percent, None, r.gpu_instance, r.kind
            )
            for r in self.list
        ]
        observation = self.source.read()
        self.rows = {stream: list(rows) for stream, rows in observation.rows.items()}
        self.errors = observation.errors
        return [in_words(row) for row in self.rows.get(Stream.ALLOCATION, [])]


def in_words(row: Row) -> str:
    """Say an allocation row shortly: seconds since the tests' clock began, sign, job, GPU, evidence."""
    at_us = row["at_us"]
    assert isinstance(at_us, int)
    at_s = f"{(at_us - 1_800_000_000 * S) / S:.6f}".rstrip("0").rstrip(".")
    gpu = next(number for number, device in enumerate(GPUS) if device.uuid == row["device_uuid"])
    share = "" if row["share_ratio"] is None else f" {row['share_ratio']:g}"
    return f"{at_s} {'+' if row['action'] == 1 else '-'}{row['native_job_id']} gpu{gpu}{share} {row['evidence']}"
