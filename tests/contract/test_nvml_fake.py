"""The NVML probe against a driver library of our own: what it reads, and what it survives."""

from __future__ import annotations

from pathlib import Path

import pynvml
import pytest

from collector.errors import LibraryReplacedError
from tests.fakes.nvml.build import FakeNvml
from tests.fakes.nvml.harness import Node, kinds, values_of

pytestmark = pytest.mark.contract


def test_every_column_is_read_and_in_its_unit(nvml: FakeNvml) -> None:
    nvml.configure(2)
    node = Node(nvml)
    node.sweep(10.0)
    sweep = node.sweep(1.0)
    assert [device.uuid[-2:] for device in sweep.devices] == ["00", "01"]
    assert sweep.devices[0].model == "NVIDIA H100 80GB HBM3"
    assert sweep.devices[0].memory_bytes == 81_559 << 20
    assert sweep.devices[1].pci_bus_id == "00000000:01:00.0"
    assert values_of(sweep) == {
        # 300 W for 11 s on top of the million joules of before: 1,000,000,000 mJ + 3,300,000 mJ.
        "energy_mj": 1_003_300_000,
        "power_average_mw": 300_000,
        "power_instant_mw": 300_000,
        "memory_temp_c": 65,
        "throttle_power_cap_ns": 0,
        "throttle_sw_thermal_ns": 0,
        "throttle_hw_thermal_ns": 0,
        "throttle_power_brake_ns": 0,
        "throttle_sync_boost_ns": 0,
        "pcie_tx_bytes": 11_000_000,
        "pcie_rx_bytes": 11_000_000,
        "pcie_replays": 0,
        "nvlink_tx_kib": 110_000,
        "nvlink_rx_kib": 110_000,
        "nvlink_errors": 0,
        "ecc_corrected": 0,
        "ecc_uncorrected": 0,
        "gpu_util_percent": 50,
        "memory_util_percent": 25,
        "encoder_util_percent": 0,
        "decoder_util_percent": 0,
        "memory_used_bytes": 20_000 << 20,
        "temp_c": 55,
        "sm_clock_mhz": 1_700,
        "memory_clock_mhz": 2_619,
        "clocks_event_reasons": 0,
        "sm_active_ratio": 0.4,
        "tensor_active_ratio": 0.2,
        "dram_active_ratio": 0.1,
    }
    # Asked only every five seconds: the limit, the P-state and how many processes there are.
    assert "power_limit_mw" not in values_of(sweep)
    later = values_of(node.sweep(5.0))
    assert (later["power_limit_mw"], later["pstate"], later["processes"]) == (700_000, 0, 1)


def test_a_trace_is_followed_and_its_power_integrated(nvml: FakeNvml, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    # 100 W for 10 s, then 400 W with throttling, until the trace ends at 20 s.
    trace.write_text(
        "t_s,gpu,power_mw,gpu_util_percent,memory_mib,temp_c,sm_mhz,reasons,sm_percent\n"
        "0,0,100000,0,500,40,345,1,0\n10,0,400000,100,30000,70,1980,4,80\n20,0,400000,100,30000,70,1980,4,80\n"
    )
    nvml.configure(1, trace=trace)
    node = Node(nvml)
    idle = values_of(node.sweep(5.0))
    busy = values_of(node.sweep(10.0))
    assert (idle["gpu_util_percent"], idle["processes"], idle["pstate"]) == (0, 0, 8)
    assert (busy["gpu_util_percent"], busy["processes"], busy["clocks_event_reasons"]) == (100, 1, 4)
    # From 5 s to 15 s: 5 s of 100 W and 5 s of 400 W.
    assert (busy["energy_mj"] or 0) - (idle["energy_mj"] or 0) == 5 * 100_000 + 5 * 400_000


def test_what_is_not_supported_is_told_once_and_null_never_zero(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="field:185:3,call:nvmlDeviceGetEncoderUtilization:3,call:nvmlGpmQueryDeviceSupport:13")
    node = Node(nvml)
    first = node.sweep()
    told = sorted(event.detail or "" for event in first.events)
    assert told == [
        "dram_active_ratio",
        "encoder_util_percent",
        "power_average_mw",
        "sm_active_ratio",
        "tensor_active_ratio",
    ]
    assert {event.kind for event in first.events} == {"not_supported"}
    second = node.sweep()
    assert second.events == ()
    assert "power_average_mw" not in values_of(second)
    assert values_of(second)["power_instant_mw"] == 300_000


def test_what_was_not_supported_is_asked_again_each_hour_and_not_told_again(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="field:185:3")
    node = Node(nvml)
    assert len(node.sweep().events) == 1
    node.library.configure(1)
    node.probe.close()  # the library forgot that it was initialised
    assert values_of(node.sweep())["power_average_mw"] == 300_000
    node.library.configure(1, faults="field:82:3")
    node.probe.close()
    assert len(node.sweep().events) == 1
    node.library.configure(1, faults="")
    node.library.cdll.nvmlInitWithFlags(0)
    assert "memory_temp_c" not in values_of(node.sweep())
    node.sweep(3_600.0)
    assert values_of(node.sweep())["memory_temp_c"] == 65


def test_part_of_a_sum_that_is_not_supported_leaves_the_rest(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="field:38:3,field:45:3,field:52:3")
    assert values_of(Node(nvml).sweep())["nvlink_errors"] == 0
    nvml.configure(1, faults="field:38:3,field:45:3,field:52:3,field:59:3")
    sweep = Node(nvml).sweep()
    assert "nvlink_errors" not in values_of(sweep)
    assert [event.detail for event in sweep.events] == ["nvlink_errors"]


def test_an_old_driver_is_asked_for_its_temperature_the_old_way(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="call:nvmlDeviceGetTemperatureV:13")
    node = Node(nvml)
    assert node.sweep().events == ()
    assert values_of(node.sweep())["temp_c"] == 55


@pytest.mark.parametrize(("capability", "column"), [("8:0", "power_instant_mw"), ("9:0", "power_average_mw")])
def test_an_old_driver_has_one_power_gauge_whose_meaning_depends_on_the_chip(
    nvml: FakeNvml, capability: str, column: str
) -> None:
    nvml.configure(1, faults=f"field:185:2,field:186:2,capability:{capability}")
    node = Node(nvml)
    (other,) = {"power_instant_mw", "power_average_mw"} - {column}
    sweep = node.sweep()
    assert [event.detail for event in sweep.events] == [other]
    assert values_of(sweep)[column] == 300_000
    assert other not in values_of(node.sweep())


def test_a_driver_without_fields_gives_what_has_calls(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="call:nvmlDeviceGetFieldValues:13")
    node = Node(nvml)
    node.sweep()
    values = values_of(node.sweep())
    assert (values["gpu_util_percent"], values["power_average_mw"]) == (50, 300_000)
    assert "energy_mj" not in values


def test_a_device_that_needs_a_reset_is_lost_until_it_had_one(nvml: FakeNvml) -> None:
    nvml.configure(2, faults="down:1:16@5-60")
    node = Node(nvml)
    node.sweep()
    assert kinds(node.sweep(5.0)) == [(1, "lost", pynvml.NVML_ERROR_RESET_REQUIRED)]
    assert [event for _ in range(70) for event in kinds(node.sweep())] == [(1, "recovered", None)]


def test_a_counter_reset_on_one_device_is_told_for_that_one(nvml: FakeNvml) -> None:
    nvml.configure(2, faults="counter_reset:1@5")
    node = Node(nvml)
    node.sweep()
    sweep = node.sweep(6.0)
    assert kinds(sweep) == [(1, "counter_reset", None)]
    assert values_of(sweep, 1)["energy_mj"] == 2 * 301_000  # reset at 5 s, and now it is 7 s
    assert sweep.epoch.driver_epoch == 4, "the server sees the decrease; the driver is the same"


def test_a_lost_device_is_told_once_and_the_others_go_on(nvml: FakeNvml) -> None:
    nvml.configure(3, faults="lost:1@5-100")
    node = Node(nvml)
    assert len(node.sweep().readings) == 3
    lost = node.sweep(5.0)
    assert kinds(lost) == [(1, "lost", pynvml.NVML_ERROR_GPU_IS_LOST)]
    assert [reading.device for reading in lost.readings] == [0, 2]
    assert all(node.sweep().events == () for _ in range(60))
    back = node.sweep(60.0)
    assert kinds(back) == [(1, "recovered", None)]
    assert [reading.device for reading in back.readings] == [0, 1, 2]
    assert back.epoch.driver_epoch == 4


def test_a_reloaded_driver_begins_a_new_epoch_with_the_devices_found_by_uuid(nvml: FakeNvml) -> None:
    nvml.configure(2, faults="reload@10")
    node = Node(nvml)
    before = node.sweep()
    stale = node.sweep(10.0)
    assert stale.readings == ()
    after = node.sweep(1.0)
    assert (before.epoch.driver_epoch, after.epoch.driver_epoch) == (4, 5)
    assert before.devices == after.devices
    assert kinds(after) == [(0, "driver_reload", None), (1, "driver_reload", None)]
    # The counter started over at 10 s; now it is 12 s: 2 s of 300 W.
    assert values_of(after)["energy_mj"] == 600_000
    assert node.sweep().events == ()


def released(node: Node, for_s: float) -> int:
    """Let go of the driver for so long after ten seconds; return how many epochs later it is read again."""
    before = node.sweep(10.0)
    node.probe.close()
    after = node.sweep(for_s)
    assert [device.uuid for device in after.devices] == [device.uuid for device in before.devices]
    assert len(after.readings) == len(before.readings)
    assert node.sweep().epoch == after.epoch
    return after.epoch.driver_epoch - before.epoch.driver_epoch


def test_after_a_short_release_the_counter_went_on_as_it_could_not_have_counted_so_far(nvml: FakeNvml) -> None:
    nvml.configure(2)
    # It stands at a megajoule; whatever a board draws, in a minute it is no 300 kJ.
    assert released(Node(nvml), 60.0) == 0


@pytest.mark.parametrize("reset_at", [11, 15])
def test_a_gpu_that_was_reset_during_a_release_begins_a_new_epoch(nvml: FakeNvml, reset_at: int) -> None:
    nvml.configure(2, faults=f"counter_reset:1@{reset_at}")
    assert released(Node(nvml), 60.0) == 1


def test_a_reset_counter_that_has_overtaken_where_it_stood_is_not_taken_for_the_same(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="counter_reset:0@20")
    node = Node(nvml)
    # Reset at 20 s. At 10,010 s it stands at 9,990 s x 300 W = 2,997 kJ, above the 1,003 kJ of before.
    assert released(node, 10_000.0) == 1


def test_after_a_long_release_nothing_proves_that_the_counter_went_on(nvml: FakeNvml) -> None:
    nvml.configure(1)
    assert released(Node(nvml), 10_000.0) == 1


def test_an_opening_that_failed_before_anything_was_read_begins_no_new_epoch(nvml: FakeNvml) -> None:
    nvml.configure(1)
    node = Node(nvml)
    node.probe.close()
    assert node.sweep().epoch.driver_epoch == 4
    node.probe.close()
    node.probe.close()
    assert node.sweep().epoch.driver_epoch == 4


def test_a_lost_device_that_took_a_reset_to_come_back_begins_a_new_epoch(nvml: FakeNvml) -> None:
    nvml.configure(2, faults="lost:1@5-100,counter_reset:1@90")
    node = Node(nvml)
    node.sweep()
    node.sweep(5.0)
    back = [sweep for _ in range(130) if (1, "recovered", None) in kinds(sweep := node.sweep())]
    assert [sweep.epoch.driver_epoch for sweep in back] == [5]
    assert node.sweep().epoch.driver_epoch == 5


def test_an_unloaded_driver_is_tried_with_growing_pauses_until_it_is_back(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="gone@5-40")
    node = Node(nvml)
    node.sweep()
    swept = [node.sweep() for _ in range(70)]
    found = [sweep for sweep in swept if sweep.readings]
    assert found[-1].epoch.driver_epoch == 5
    # Tried 1, 2, 4, 8, 16 and 32 s after the time before: at 5, 6, 8, 12, 20, 36 and so 68 s.
    assert len([sweep for sweep in swept if not sweep.readings]) == 68 - 5
    assert node.probe.unavailable_code is None


def test_a_node_without_a_driver_at_first_is_read_once_there_is_one(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="gone@0-10")
    node = Node(nvml)
    assert node.sweep().devices == ()
    assert node.probe.unavailable_code == pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    while not (sweep := node.sweep()).readings:
        assert node.time_s < 60
    assert sweep.epoch.driver_epoch == 4


def test_a_driver_upgraded_under_us_asks_for_a_new_process(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="version@5")
    node = Node(nvml)
    node.sweep()
    assert node.sweep(5.0).readings == ()
    with pytest.raises(LibraryReplacedError):
        node.sweep()


def test_a_mismatched_driver_at_the_start_is_waited_for(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="version@0")
    node = Node(nvml)
    assert all(node.sweep().readings == () for _ in range(10))
    assert node.probe.unavailable_code == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH


def test_xid_events_name_the_device_and_the_code(nvml: FakeNvml) -> None:
    nvml.configure(4, faults="xid:2:79@3,xid:1:31@3")
    node = Node(nvml)
    assert node.sweep().events == ()
    assert sorted(kinds(node.sweep(3.0))) == [(1, "xid", 31), (2, "xid", 79)]
    assert node.sweep().events == ()


def test_the_xid_of_a_device_that_is_lost_with_it_is_told(nvml: FakeNvml) -> None:
    nvml.configure(2, faults="xid:1:79@5,lost:1@5")
    node = Node(nvml)
    node.sweep()
    assert kinds(node.sweep(5.0)) == [(1, "lost", pynvml.NVML_ERROR_GPU_IS_LOST), (1, "xid", 79)]


def test_a_lost_device_does_not_keep_the_events_of_the_others_for_long(nvml: FakeNvml) -> None:
    # Registered, it makes the driver answer GPU_IS_LOST for the whole set.
    nvml.configure(3, faults="lost:1@5,xid:2:31@30,spoiling")
    node = Node(nvml)
    node.sweep()
    assert node.sweep(5.0).errors == {"events:15": 1}
    errors = [kind for _ in range(20) for kind in node.sweep().errors]
    assert 0 < errors.count("events:15") < 15
    assert kinds(node.sweep(6.0)) == [(2, "xid", 31)]
    assert nvml.held == (1, 1 + 2 * 2), "the old set is freed"


def test_a_counter_that_goes_back_is_an_event(nvml: FakeNvml) -> None:
    nvml.configure(1)
    node = Node(nvml)
    node.sweep(10.0)
    node.time_s = 0.0  # the fake's counter follows its time
    (event,) = node.sweep(1.0).events
    assert (event.kind, event.detail) == ("counter_reset", "from 1003000000 mJ")


def test_closing_lets_go_of_the_driver_and_reading_takes_it_up_again(nvml: FakeNvml) -> None:
    nvml.configure(1)
    node = Node(nvml)
    node.sweep()
    node.probe.close()
    with pytest.raises(pynvml.NVMLError):
        pynvml.nvmlDeviceGetCount()
    assert len(node.sweep().readings) == 1


def test_a_mistake_about_one_device_costs_that_one(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.configure(3)
    node = Node(nvml)
    node.sweep()

    utilization = pynvml.nvmlDeviceGetUtilizationRates

    def stumble(handle: object) -> object:
        if pynvml.nvmlDeviceGetUUID(handle).endswith("1"):
            raise ZeroDivisionError
        return utilization(handle)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", stumble)
    sweep = node.sweep()
    assert [reading.device for reading in sweep.readings] == [0, 2]
    assert sweep.errors == {"visit:broken": 1}
