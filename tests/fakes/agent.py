"""Probes and sources under the test's control, and an agent composed of them over a real spool."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from collector.agent import Agent, Beside, Ending
from collector.config import Settings
from collector.doorbell import Doorbell
from collector.probe import DeviceReading, Epoch, Observation, Probe, Sight, Source, Sweep
from collector.probe_thread import ProbeThread
from collector.service import ServiceManager
from collector.ship import Shipper
from collector.source_thread import SourceThreads
from collector.spool import Spool
from collector.wire import DeviceRef, Feed, Origin
from tests.fakes.bodies import Body, read_body
from tests.fakes.clock import FixedClock

GPU_0, GPU_1 = DeviceRef("GPU-0", "H100"), DeviceRef("GPU-1", "H100")


class ScriptedProbe:
    """Two devices whose counters are the monotonic clock in milliseconds; over after so many readings."""

    def __init__(
        self, clock: FixedClock, *, readings: int, feed: Feed = Feed.NATIVE, devices: Sequence[DeviceRef] = ()
    ) -> None:
        self.clock = clock
        self.left = readings
        self.devices = tuple(devices) or (GPU_0, GPU_1)
        self.epoch = Epoch("boot", 0, feed, Origin.LIVE)
        self.open = False
        self.opened = 0
        self.before_read: Callable[[int], object] = lambda _left: None

    @property
    def finished(self) -> bool:
        return self.left <= 0

    def read(self) -> Sweep:
        self.left -= 1
        self.before_read(self.left)
        if not self.open:
            self.open = True
            self.opened += 1
        return self._sweep(range(len(self.devices)))

    def read_exact(self, device_uuids: Collection[str]) -> Sweep:
        return self._sweep([at for at, device in enumerate(self.devices) if device.uuid in device_uuids])

    def close(self) -> None:
        self.open = False

    def _sweep(self, positions: Sequence[int] | range) -> Sweep:
        now = self.clock.now()
        mj = now.monotonic_us // 1_000
        readings = tuple(
            DeviceReading(at, now.wall_us, {"energy_mj": mj, "power_average_mw": 1_000}) for at in positions
        )
        return Sweep(self.epoch, self.devices, readings)


class ListedSource:
    """Gives one observation after the other, then empty ones."""

    def __init__(self, observations: Sequence[Observation], *, name: str = "listed", period_s: float = 0.01) -> None:
        self.name = name
        self.period_s = period_s
        self.left = list(observations)
        self.closed = False

    def read(self) -> Observation:
        return self.left.pop(0) if self.left else Observation()

    def sights(self) -> tuple[Sight, ...]:
        return (Sight(self.name, seen=True, detail="as listed"),)

    def close(self) -> None:
        self.closed = True


class Stand:
    """An agent over fakes; :meth:`run` runs its loop to the end of the first probe, faster than time."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.clock = FixedClock()
        self.settings = Settings(**{"node": "gpu-01", "release_file": "", **settings})  # type: ignore[arg-type]
        self.spool = Spool(folder / "spool.db", max_bytes=1 << 24)
        self.doorbell = Doorbell()
        self.probes: dict[str, Probe] = {}
        self.sources: list[Source] = []
        self.beside: list[Beside] = []
        self.shipper: Shipper | None = None
        self.agent: Agent | None = None
        self.reload: Callable[[], bool] = lambda: False
        self.overdue_s = 15.0
        self.owing: list[ProbeThread] = []
        self.service: ServiceManager | None = None

    def run(self) -> Ending:
        sources = SourceThreads(
            self.sources, self.clock, ring=self.doorbell.ring, jitter=lambda: 0.0, overdue_s=self.overdue_s
        )
        devices = [ProbeThread(name, probe) for name, probe in self.probes.items()]
        self.agent = Agent(
            self.settings,
            devices,
            sources,
            self.spool,
            self.clock,
            self.shipper,
            boot_id="boot",
            doorbell=self.doorbell,
            reload=self.reload,
            owing=self.owing,
            service=self.service,
        )
        self.agent.beside += self.beside
        return self.agent.run(threading.Event())

    def bodies(self) -> list[Body]:
        found: list[Body] = []
        last = 0
        while (batch := self.spool.oldest(after=last)) is not None:
            last = batch.sequence
            found.append(read_body(batch.body))
        return found
