"""Boards that are cut into MIG instances, and cut anew under the agent."""

from __future__ import annotations

import pytest

from collector.probe import Sweep
from tests.fakes.nvml.build import FakeNvml
from tests.fakes.nvml.harness import Node, health_of, kinds, values_of

pytestmark = pytest.mark.contract


def instances(sweep: Sweep) -> list[tuple[str | None, float]]:
    return [(ref.mig_profile, round(ref.slice_ratio, 6)) for ref in sweep.devices if ref.kind == "mig"]


def test_instances_are_devices_with_parent_profile_and_slice(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="mig:0:1g.10gb+3g.40gb@0")
    node = Node(nvml)
    first = node.sweep()
    sweep = node.sweep()
    board, small, large = sweep.devices
    assert (board.kind, board.slice_ratio) == ("gpu", 1.0)
    assert {small.parent_uuid, large.parent_uuid} == {board.uuid}
    assert small.uuid.startswith("MIG-")
    assert small.model == board.model
    assert instances(sweep) == [("1g.10gb", round(1 / 7, 6)), ("3g.40gb", round(3 / 7, 6))]
    assert (small.memory_bytes, large.memory_bytes) == (9_856 << 20, 3 * 9_856 << 20)
    assert health_of(first)["mig_enabled"] == 1


def test_a_whole_board_cut_up_is_a_whole_board(nvml: FakeNvml) -> None:
    # The layout of a real H200 (nvidia-smi -L): two compute instances that share a GPU instance, and three instances.
    nvml.configure(1, faults="mig:0:1c.3g.71gb+2c.3g.71gb+2g.35gb+1g.18gb+1g.18gb@0")
    node = Node(nvml)
    node.sweep()
    found = instances(node.sweep())
    assert [profile for profile, _ in found] == ["1c.3g.71gb", "2c.3g.71gb", "2g.35gb", "1g.18gb", "1g.18gb"]
    assert sum(ratio for _, ratio in found) == pytest.approx(1.0, abs=1e-5)


def test_power_is_the_boards_and_use_the_instances(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="mig:0:1g.10gb+3g.40gb@0,process:0:31:c:700:9:2")
    node = Node(nvml)
    node.sweep()
    told = [(event.device, event.kind, event.detail) for event in node.sweep().events]
    assert told == [(0, "not_supported", "gpu_util_percent"), (0, "not_supported", "memory_util_percent")]
    sweep = node.sweep(5.0)
    board, small, large = (values_of(sweep, position) for position in range(3))
    assert board["power_instant_mw"] == 300_000
    assert not board.keys() & {"gpu_util_percent", "processes"}
    # Only what an instance has of its own; the fake's instances are a little busier than their board, each by its number.
    assert small == {
        "processes": 0,
        "memory_used_bytes": 100 << 20,
        "sm_active_ratio": pytest.approx(0.41),
        "tensor_active_ratio": pytest.approx(0.205),
        "dram_active_ratio": pytest.approx(0.1025),
    }
    assert large["processes"] == 1
    assert large["sm_active_ratio"] == pytest.approx(0.42)
    (entry,) = node.probe.processes()
    assert (entry.device_uuid, entry.pid, entry.gpu_instance) == (sweep.devices[2].uuid, 31, 2)
    assert entry.sm_util_percent is None


def test_an_exact_reading_of_instances_is_one_of_their_board(nvml: FakeNvml) -> None:
    nvml.configure(2, faults="mig:1:1g.10gb+3g.40gb@0")
    node = Node(nvml)
    node.sweep()
    sweep = node.sweep(10.0)
    node.clock.advance(0.25)
    nvml.set_time(11.25)
    small, large = (ref.uuid for ref in sweep.devices if ref.kind == "mig")
    exact = node.probe.read_exact([small, large])
    (reading,) = exact.readings
    # Instances have no counter of their own.
    assert exact.devices[reading.device].uuid == next(ref.parent_uuid for ref in sweep.devices if ref.uuid == small)
    assert isinstance(reading.values["energy_mj"], int)


def test_a_board_cut_anew_is_told_and_its_instances_are_found_again(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="mig:0:3g.40gb+3g.40gb@0,mig:0:3g.40gb+1g.10gb+1g.10gb@20")
    node = Node(nvml)
    node.sweep()
    assert len(node.sweep().readings) == 3
    node.sweep(10.0)
    died = node.sweep(8.0)  # the handles are dead; whether the instances are is seen with the next sweep
    assert [reading.device for reading in died.readings] == [0]
    assert died.errors == {"instance:6": 2}
    found = node.sweep()
    assert kinds(found) == [(2, "removed", None), (0, "mig_reconfigured", None)]
    assert found.events[1].detail == "instances now: 2 x 1g.10gb, 1 x 3g.40gb"
    # The first one is the same as before, at its old position; the second gave way to two new ones.
    assert [ref.mig_profile for ref in found.devices] == [None, "3g.40gb", "3g.40gb", "1g.10gb", "1g.10gb"]
    after = node.sweep()
    assert after.events == ()
    assert [reading.device for reading in after.readings] == [0, 1, 3, 4]


def test_switching_mig_off_leaves_the_board(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="mig:0:7g.80gb@0,mig:0:off@20")
    node = Node(nvml)
    node.sweep()
    node.sweep()
    sweeps = [node.sweep() for _ in range(80)]
    told = [event for sweep in sweeps for event in kinds(sweep)]
    assert told == [(1, "removed", None), (0, "mig_reconfigured", None)]
    assert values_of(sweeps[-1])["gpu_util_percent"] == 50, "the board has utilization again"
    assert [reading.device for reading in sweeps[-1].readings] == [0]


def test_switching_mig_on_is_told(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="mig:0:1g.10gb@20")
    node = Node(nvml)
    node.sweep()
    told = [event for sweep in (node.sweep() for _ in range(62)) for event in kinds(sweep)]
    assert (0, "mig_reconfigured", None) in told
    assert instances(node.sweep()) == [("1g.10gb", round(1 / 7, 6))]


def test_an_xid_of_an_instance_names_it(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="mig:0:3g.40gb+3g.40gb@0,xid:0:13@5/2")
    node = Node(nvml)
    node.sweep()
    node.sweep()
    sweep = node.sweep(5.0)
    (event,) = sweep.events
    assert (event.device, event.kind, event.code) == (0, "xid", 13)
    assert event.detail == f"gpu instance 2 {sweep.devices[2].uuid}"


def test_a_lost_board_takes_its_instances_along_without_an_event_for_each(nvml: FakeNvml) -> None:
    nvml.configure(2, faults="mig:0:3g.40gb+3g.40gb@0,lost:0@10-30")
    node = Node(nvml)
    node.sweep()
    node.sweep()
    lost = node.sweep(10.0)
    assert kinds(lost) == [(0, "lost", 15)]
    assert [reading.device for reading in lost.readings] == [1]
    told = [event for sweep in (node.sweep() for _ in range(32)) for event in kinds(sweep)]
    assert told == [(0, "recovered", None)]
    assert len(node.sweep().readings) == 4
