"""A probe on a fake node, for the tests of the probe; the fixtures reach them through their folder's conftest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import ClassVar

import pynvml
import pytest

from collector.probe import Row, Sweep, Values
from collector.probe.nvml import NvmlProbe
from collector.wire import Stream
from tests.fakes.clock import FixedClock
from tests.fakes.nvml.build import FakeNvml, build_or_skip


class Node:
    """A probe on a fake node; :meth:`sweep` lets a second pass, on the clock and in the library, and reads."""

    made: ClassVar[list[Node]] = []

    def __init__(self, library: FakeNvml, *, patience_s: float = 5.0) -> None:
        self.library = library
        self.clock = FixedClock()
        self.time_s = 0.0
        self.probe = NvmlProbe(self.clock, boot_id="boot", driver_epoch=4, patience_s=patience_s)
        self.made.append(self)

    def sweep(self, after_s: float = 1.0) -> Sweep:
        self.time_s += after_s
        self.clock.advance(after_s)
        self.library.set_time(self.time_s)
        return self.probe.read()

    def wait_for_calls(self) -> None:
        """Return when no driver call hangs any more."""
        for _ in range(500):
            if not self.probe._reader.hanging:
                return
            time.sleep(0.01)
        raise AssertionError("a driver call does not come back")


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> FakeNvml:
    return FakeNvml(build_or_skip(tmp_path_factory.mktemp("nvml")))


@pytest.fixture
def nvml(nvml_library: FakeNvml) -> Iterator[FakeNvml]:
    """The fake driver as the one pynvml talks to."""
    pynvml.nvmlLib = nvml_library.cdll
    yield nvml_library
    nvml_library.release()
    while Node.made:
        node = Node.made.pop()
        node.wait_for_calls()  # who comes back later would find the devices of the next test
        node.probe.close()
    pynvml.nvmlLib = None
    pynvml._nvmlGetFunctionPointer_cache.clear()


def kinds(sweep: Sweep) -> list[tuple[int, str, int | None]]:
    """The events of a sweep: device, kind, code."""
    return [(event.device, event.kind, event.code) for event in sweep.events]


def values_of(sweep: Sweep, device: int = 0) -> Values:
    """What one device said."""
    return next(reading.values for reading in sweep.readings if reading.device == device)


def health_of(sweep: Sweep, device: int = 0) -> Row:
    """The health row of one device."""
    uuid = sweep.devices[device].uuid
    return next(row for row in sweep.rows[Stream.DEVICE_HEALTH] if row["device_uuid"] == uuid)
