"""Who is on a device, as the driver sees it."""

from __future__ import annotations

import pytest

from collector.probe import ProcessReading
from tests.fakes.nvml.build import FakeNvml
from tests.fakes.nvml.harness import Node, values_of

pytestmark = pytest.mark.contract


def test_each_process_has_its_memory_and_its_share_of_the_time(nvml: FakeNvml) -> None:
    nvml.configure(2, faults="process:1:77:c:1000:30,process:1:76:c:2000:12")
    node = Node(nvml)
    sweep = node.sweep()
    board, other = (device.uuid for device in sweep.devices)
    at_us = sweep.readings[1].at_us
    first, *rest = node.probe.processes()
    # Nobody told the fake who is on device 0: one process with all that is in use.
    assert (first.device_uuid, first.pid, first.used_memory_bytes) == (board, 4_000, (20_000 - 600) << 20)
    assert rest == [
        ProcessReading(other, 76, at_us, 2_000 << 20, 12, 6, None, "compute"),
        ProcessReading(other, 77, at_us, 1_000 << 20, 30, 15, None, "compute"),
    ]
    assert values_of(sweep, 1)["processes"] == 2


def test_a_process_that_runs_nothing_took_nothing(nvml: FakeNvml) -> None:
    # With nobody running, the driver says NOT_FOUND, and for a list without entries SUCCESS, which the binding takes for an error.
    nvml.configure(1, faults="process:0:77:c:1000:0")
    node = Node(nvml)
    assert node.sweep().errors == {}
    (entry,) = node.probe.processes()
    assert (entry.sm_util_percent, entry.memory_util_percent) == (0, 0)


def test_an_idle_device_has_no_processes_and_that_is_no_error(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="process:0:77:c:1000:5@0-3")
    node = Node(nvml)
    node.sweep()
    assert len(node.probe.processes()) == 1
    sweep = node.sweep(5.0)
    assert (sweep.errors, node.probe.processes(), values_of(sweep)["processes"]) == ({}, (), 0)


def test_clients_of_mps_are_told_apart_and_counted_once(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="process:0:9:c:30:0,process:0:11:m:500:20,process:0:12:m:500:60,process:0:5:g:10:1")
    node = Node(nvml)
    sweep = node.sweep()
    assert [(entry.pid, entry.kind) for entry in node.probe.processes()] == [
        (5, "graphics"),
        (9, "compute"),
        (11, "mps"),
        (12, "mps"),
    ]
    assert values_of(sweep)["processes"] == 3, "graphics does not count as work"


def test_they_are_asked_every_five_seconds(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="process:0:77:c:1000:5@3")
    node = Node(nvml)
    seen = []
    for _ in range(8):
        node.sweep()
        seen.append(len(node.probe.processes()))
    assert seen == [0, 0, 0, 0, 0, 1, 1, 1]


def test_a_list_longer_than_the_room_is_read_whole(nvml: FakeNvml) -> None:
    nvml.configure(1, faults=",".join(f"process:0:{1_000 + number}:c:1:1" for number in range(100)))
    node = Node(nvml)
    assert values_of(node.sweep())["processes"] == 100
    assert len(node.probe.processes()) == 100


def test_without_utilization_the_memory_stays(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="call:nvmlDeviceGetProcessUtilization:4")
    node = Node(nvml)
    node.sweep()
    (entry,) = node.probe.processes()
    assert (entry.used_memory_bytes, entry.sm_util_percent, entry.memory_util_percent) == (19_400 << 20, None, None)


def test_a_lost_device_has_no_processes(nvml: FakeNvml) -> None:
    nvml.configure(2, faults="lost:1@5")
    node = Node(nvml)
    node.sweep()
    assert len(node.probe.processes()) == 2
    node.sweep(5.0)
    assert {entry.pid for entry in node.probe.processes()} == {4_000}
