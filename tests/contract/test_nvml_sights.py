"""What an operator is told about what the node shows and hides."""

from __future__ import annotations

from pathlib import Path

import pytest

from collector.probe import Sight
from tests.fakes.nvml.build import FakeNvml
from tests.fakes.nvml.harness import Node

pytestmark = pytest.mark.contract


def sights(node: Node) -> dict[str, Sight]:
    node.sweep()
    node.sweep()
    return {sight.subject: sight for sight in node.probe.sights()}


def test_on_a_node_that_shows_all_there_is_nothing_to_do(nvml: FakeNvml) -> None:
    nvml.configure(2)
    seen = sights(Node(nvml))
    assert seen["NVIDIA driver"].detail == "2 GPUs, driver 590.48.01"
    assert seen["energy counter"] == Sight("energy counter", True, "all 2 devices")
    assert {name for name, sight in seen.items() if not sight.seen} == {"retired pages"}
    assert [sight.remedy for sight in seen.values() if sight.remedy] == []
    assert seen["XID events"].seen
    assert seen["MIG instances"].detail == "MIG is off"


def test_each_gap_has_its_reason_and_its_remedy(nvml: FakeNvml) -> None:
    nvml.configure(
        1,
        faults="field:83:3,field:185:2,call:nvmlGpmSampleGet:4,call:nvmlDeviceGetEncoderUtilization:3,"
        "call:nvmlDeviceGetProcessUtilization:4,call:nvmlDeviceGetTemperatureThreshold:13,call:nvmlDeviceRegisterEvents:3",
    )
    seen = sights(Node(nvml))
    assert not seen["energy counter"].seen
    assert seen["energy counter"].remedy is None, "no right and no driver makes a counter"
    assert seen["power, 1 s average"].remedy == "a newer NVIDIA driver"
    assert "NVreg_RestrictProfilingToAdminUsers=0" in (seen["true utilization (GPM)"].remedy or "")
    half = seen["encoder and decoder utilization"]
    assert half.seen
    assert "without encoder_util_percent" in half.detail
    assert "this user may not read it" in seen["utilization per process"].detail
    assert seen["temperature thresholds"].remedy == "a newer NVIDIA driver"
    assert "kernel log" in (seen["XID events"].remedy or "")


def test_without_a_driver_the_way_to_one_is_said(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="gone@0")
    node = Node(nvml)
    (sight,) = sights(node).values()
    assert (sight.subject, sight.seen, sight.remedy) == (
        "NVIDIA driver",
        False,
        "load the kernel module: modprobe nvidia",
    )


def test_a_driver_that_does_not_answer_is_told_from_a_node_without_devices(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="hang:-1:nvmlInitWithFlags@0")
    node = Node(nvml, patience_s=0.01)
    (sight,) = sights(node).values()
    assert (sight.seen, sight.detail) == (False, "not asked, or it has not answered yet")
    nvml.configure(0)
    assert sights(Node(nvml))["NVIDIA driver"].detail == "0 GPUs, driver 590.48.01"


def test_what_lowers_the_clocks_now_is_named(nvml: FakeNvml, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("".join(f"0,{gpu},300000,50,20000,55,1700,{bits},40\n" for gpu, bits in ((0, 4), (1, 2052))))
    nvml.configure(2, trace=trace)
    detail = sights(Node(nvml))["reasons for lowered clocks"].detail
    assert detail == "all 2 devices; now: power cap on 2, unknown 0x800 on 1"


def test_a_lost_device_and_instances_are_named(nvml: FakeNvml) -> None:
    nvml.configure(3, faults="lost:0@2,mig:1:1g.10gb+3g.40gb@0")
    node = Node(nvml)
    seen = sights(node)
    lost = seen["GPU-fa4e0000-0000-4000-8000-000000000000"]
    assert (lost.seen, lost.detail) == (False, "lost")
    assert seen["MIG instances"].detail == "2 on 1 boards; power and energy exist for whole boards only"
    assert "1 of 2 devices" in seen["utilization"].detail
    assert seen["retired pages"].detail.startswith("0 of 2 devices")
    # Device 2, and the instance that holds a process, which nobody can say how much of it used.
    assert seen["utilization per process"].detail.startswith("2 of 3 devices")


def test_a_gpu_that_hangs_from_the_start_is_told_with_its_index_until_it_answers(nvml: FakeNvml) -> None:
    nvml.configure(4, faults="hang:2:*@0-1000")
    node = Node(nvml, patience_s=0.2)
    seen = sights(node)
    assert seen["NVIDIA driver"].detail == "3 of 4 GPUs, driver 590.48.01"
    missing = seen["GPUs that cannot be read"]
    assert not missing.seen
    assert missing.detail == "1 of 4 (index 2): it does not answer"
    assert "kernel log" in (missing.remedy or "")
    nvml.release()
    node.wait_for_calls()
    seen = sights(node)
    assert "GPUs that cannot be read" not in seen
    assert seen["NVIDIA driver"].detail == "4 GPUs, driver 590.48.01"
