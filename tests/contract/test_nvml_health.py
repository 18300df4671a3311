"""What is read rarely of a board: its health, and what the driver tells of its own accord."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from collector.probe.nvml_codes import reason_names
from collector.wire import COLUMNS, Stream
from tests.fakes.nvml.build import FakeNvml
from tests.fakes.nvml.harness import Node, health_of, kinds, values_of

pytestmark = pytest.mark.contract


def test_health_is_read_at_the_start_with_every_column_in_its_unit(nvml: FakeNvml) -> None:
    nvml.configure(1)
    sweep = Node(nvml).sweep()
    assert health_of(sweep) == {
        "at_us": sweep.readings[0].at_us,
        "device_uuid": sweep.devices[0].uuid,
        "memory_total_bytes": 81_559 << 20,
        "memory_reserved_bytes": 560 << 20,
        "slowdown_temp_c": 89,
        "shutdown_temp_c": 92,
        "memory_max_temp_c": 95,
        "sm_clock_max_mhz": 1_980,
        "memory_clock_max_mhz": 2_619,
        "power_limit_min_mw": 200_000,
        "power_limit_max_mw": 700_000,
        "power_limit_default_mw": 700_000,
        "pcie_generation": 5,
        "pcie_generation_max": 5,
        "pcie_width": 16,
        "pcie_width_max": 16,
        "ecc_corrected_aggregate": 0,
        "ecc_uncorrected_aggregate": 0,
        "remapped_rows_corrected": 0,
        "remapped_rows_uncorrected": 0,
        "remapping_pending": 0,
        "remapping_failed": 0,
        "recovery_action": 0,
        "mig_enabled": 0,
        # No retired pages: the fake is a Hopper, which remaps rows instead. What is absent becomes null.
    }
    known = {column.name for column in COLUMNS[Stream.DEVICE_HEALTH]}
    assert health_of(sweep).keys() - {"device_uuid"} <= known


def test_health_is_read_each_minute_and_devices_take_turns(nvml: FakeNvml) -> None:
    nvml.configure(4)
    node = Node(nvml)
    assert len(node.sweep().rows[Stream.DEVICE_HEALTH]) == 4
    read_at: dict[str, list[int]] = {}
    for second in range(2, 182):
        for row in node.sweep().rows.get(Stream.DEVICE_HEALTH, ()):
            read_at.setdefault(str(row["device_uuid"]), []).append(second)
    pauses = {later - earlier for times in read_at.values() for earlier, later in itertools.pairwise(times)}
    assert pauses == {60}
    assert len({times[0] for times in read_at.values()}) == 4, "no second in which two of four were read"


def test_health_is_read_again_right_after_an_event(nvml: FakeNvml) -> None:
    nvml.configure(2, faults="xid:1:63@5,value:142:3")
    node = Node(nvml)
    node.sweep()
    assert kinds(node.sweep(4.0)) == [(1, "xid", 63)]
    (row,) = node.sweep().rows[Stream.DEVICE_HEALTH]
    assert row["device_uuid"] == node.probe.read().devices[1].uuid
    assert row["remapped_rows_corrected"] == 3


def test_what_the_driver_asks_for_is_an_event_once_and_its_end_too(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="action:0:1@5")
    node = Node(nvml)
    assert node.sweep().events == ()
    node.sweep(5.0)  # the driver's event, which has the health read with the next sweep
    sweep = node.sweep()
    assert kinds(sweep) == [(0, "recovery_action", 1)]
    assert health_of(sweep)["recovery_action"] == 1
    assert all(node.sweep().events == () for _ in range(65))
    node.time_s = 0.0
    node.sweep(2.0)  # before it asked; with it goes the counter, which has the health read
    assert (0, "recovery_action", 0) in kinds(node.sweep())


def test_an_answer_the_wire_cannot_hold_is_null_and_counted(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="value:142:5000000000,type:142:3")
    sweep = Node(nvml).sweep()
    assert health_of(sweep)["remapped_rows_corrected"] is None
    assert sweep.errors == {"out_of_range:remapped_rows_corrected": 1}


def test_an_old_board_gives_what_it_has_and_is_asked_for_the_rest_each_hour(nvml: FakeNvml) -> None:
    absent = "field:142:3,field:143:3,field:144:3,field:145:3,field:230:3,call:nvmlDeviceGetMigMode:3"
    nvml.configure(1, faults=absent + ",value:29:2,value:30:1")
    node = Node(nvml)
    row = health_of(node.sweep())
    assert (row["retired_pages_corrected"], row["retired_pages_uncorrected"]) == (2, 1)
    assert not row.keys() & {"remapped_rows_corrected", "remapping_pending", "recovery_action", "mig_enabled"}
    nvml.configure(1)
    nvml.cdll.nvmlInitWithFlags(0)
    assert "mig_enabled" not in health_of(node.sweep(60.0))
    node.sweep(3_600.0)
    assert health_of(node.sweep(60.0))["mig_enabled"] == 0


def test_a_reason_nobody_knows_yet_is_kept(nvml: FakeNvml, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("0,0,300000,50,20000,55,1700,2052,40\n")  # 0x804: power cap, and a bit that has no name
    nvml.configure(1, trace=trace)
    reasons = values_of(Node(nvml).sweep())["clocks_event_reasons"]
    assert reasons == 0x804
    assert reason_names(int(reasons)) == ("power cap", "unknown 0x800")
