"""Driver calls that do not come back: they cost one device, not the others, and never the process."""

from __future__ import annotations

import threading
import time

import pytest

from collector.probe.nvml_reader import MAX_HANGING
from collector.probe_thread import ProbeThread
from tests.fakes.nvml.build import FakeNvml
from tests.fakes.nvml.harness import Node, kinds, values_of

pytestmark = pytest.mark.contract
PATIENCE_S = 0.2


def readers() -> int:
    return sum(thread.name == "nvml-reader" for thread in threading.enumerate())


def test_of_64_devices_one_hangs_and_the_others_keep_their_cadence(nvml: FakeNvml) -> None:
    nvml.configure(64, faults="hang:17:nvmlDeviceGetUtilizationRates@10")
    node = Node(nvml, patience_s=PATIENCE_S)
    assert len(node.sweep().readings) == 64
    node.sweep(8.0)
    began_s = time.monotonic()
    hit = node.sweep()
    took_s = time.monotonic() - began_s
    others = [position for position in range(64) if position != 17]
    assert ([reading.device for reading in hit.readings], hit.errors) == (others, {"device:late": 1})
    assert PATIENCE_S <= took_s < 5 * PATIENCE_S, "it costs its own patience once"
    assert hit.events == (), "drivers stall for a second or two when jobs begin"
    told = []
    for _ in range(60):
        sweep = node.sweep()
        assert ([reading.device for reading in sweep.readings], sweep.errors) == (others, {})
        told += kinds(sweep)
    assert told == [(17, "hung", None)]
    assert readers() == 2, "the one that hangs, and its successor"
    assert {entry.device_uuid for entry in node.probe.processes()} == {sweep.devices[other].uuid for other in others}
    nvml.release()
    node.wait_for_calls()
    back = node.sweep()
    assert (kinds(back), len(back.readings)) == ([(17, "recovered", None)], 63)
    assert len(node.sweep(58.0).readings) == 63, "it hung for a minute, and is left alone for one"
    assert len(node.sweep(2.0).readings) == 64
    node.probe.close()
    assert nvml.held == (0, 0)


def test_a_call_that_is_late_by_little_costs_a_reading_and_nothing_else(nvml: FakeNvml) -> None:
    nvml.configure(2, faults="hang:1:nvmlDeviceGetUtilizationRates@10-11")
    node = Node(nvml, patience_s=PATIENCE_S)
    node.sweep()
    late = node.sweep(9.0)
    assert ([reading.device for reading in late.readings], late.errors) == ([0], {"device:late": 1})
    assert len(node.probe.processes()) == 2, "nobody left the device"
    nvml.set_time(11.0)
    node.wait_for_calls()
    # Left alone for as long as the call took, which is the second that passed.
    assert [len(node.sweep().readings) for _ in range(3)] == [1, 2, 2]
    assert values_of(node.sweep(), 1)["sm_active_ratio"] == pytest.approx(0.4), "its GPM samples are the same"
    assert nvml.held == (1, 1 + 4)


def test_more_than_a_few_that_hang_stop_the_asking_until_one_is_back(nvml: FakeNvml) -> None:
    faults = ",".join(f"hang:{gpu}:nvmlDeviceGetFieldValues@5" for gpu in range(MAX_HANGING))
    nvml.configure(10, faults=faults)
    node = Node(nvml, patience_s=PATIENCE_S)
    assert len(node.sweep().readings) == 10
    began_s = time.monotonic()
    hit = node.sweep(4.0)
    assert time.monotonic() - began_s < 10 * PATIENCE_S, "the first costs its patience, the others less"
    assert (hit.readings, hit.errors, readers()) == ((), {"device:late": MAX_HANGING}, MAX_HANGING)
    began_s = time.monotonic()
    assert node.sweep().readings == ()
    assert time.monotonic() - began_s < PATIENCE_S, "nothing is asked, nothing is waited for"
    assert kinds(node.sweep(5.0)) == [(gpu, "hung", None) for gpu in range(MAX_HANGING)]
    nvml.release()
    node.wait_for_calls()
    assert [reading.device for reading in node.sweep().readings] == [8, 9]
    assert len(node.sweep(31.0).readings) == 10


def test_a_board_that_hangs_takes_its_instances_along_in_one_thread(nvml: FakeNvml) -> None:
    nvml.configure(3, faults="mig:1:1g.10gb+1g.10gb+1g.10gb@0,hang:1:nvmlDeviceGetMemoryInfo_v2@10")
    node = Node(nvml, patience_s=PATIENCE_S)
    node.sweep()
    assert len(node.sweep().readings) == 6
    assert [reading.device for reading in node.sweep(9.0).readings] == [0, 2]
    assert readers() == 2
    told = [event for _ in range(10) for event in kinds(node.sweep())]
    assert told == [(1, "hung", None)]
    nvml.release()
    node.wait_for_calls()
    assert kinds(node.sweep()) == [(1, "recovered", None)]
    assert len(node.sweep(20.0).readings) == 6
    node.probe.close()
    assert nvml.held == (0, 0)


def test_a_driver_that_hangs_at_the_start_does_not_hold_up_the_agent(nvml: FakeNvml) -> None:
    nvml.configure(2, faults="hang:-1:nvmlInitWithFlags@0")
    node = Node(nvml, patience_s=PATIENCE_S / 8)
    began_s = time.monotonic()
    assert node.sweep().errors == {"init:late": 1}
    assert all(node.sweep().readings == () for _ in range(100))
    assert time.monotonic() - began_s < 10 * PATIENCE_S
    assert (readers(), node.probe.released) == (1, False)
    nvml.release()
    node.wait_for_calls()
    assert len(node.sweep().readings) == 2


def test_a_device_that_hangs_when_it_is_looked_for_is_added_once_it_answers(nvml: FakeNvml) -> None:
    nvml.configure(3, faults="hang:1:nvmlDeviceGetUUID@0")
    node = Node(nvml, patience_s=PATIENCE_S)
    sweep = node.sweep()
    assert [device.uuid[-1] for device in sweep.devices] == ["0", "2"]
    assert sweep.errors == {"open:late": 1}
    nvml.release()
    node.wait_for_calls()
    sweep = node.sweep()
    assert [device.uuid[-1] for device in sweep.devices] == ["0", "2", "1"], "a position keeps its meaning"
    assert len(sweep.readings) == 3


def test_an_event_set_that_hangs_leaves_the_readings(nvml: FakeNvml) -> None:
    nvml.configure(2, faults="hang:-1:nvmlEventSetWait_v2@5,xid:1:31@15")
    node = Node(nvml, patience_s=PATIENCE_S)
    node.sweep()
    assert node.sweep(5.0).errors == {"events:late": 1}
    assert (len(node.sweep().readings), node.sweep().errors) == (2, {})
    nvml.release()
    node.wait_for_calls()
    assert kinds(node.sweep(10.0)) == [(1, "xid", 31)], "what comes back goes on"


def test_an_exact_reading_gives_up_on_who_hangs_and_the_next_sweep_tells(nvml: FakeNvml) -> None:
    nvml.configure(3, faults="hang:1:nvmlDeviceGetFieldValues@5")
    node = Node(nvml, patience_s=PATIENCE_S)
    uuids = [device.uuid for device in node.sweep().devices]
    nvml.set_time(5.0)
    exact = node.probe.read_exact(uuids)
    assert [reading.device for reading in exact.readings] == [0, 2]
    assert (exact.events, exact.errors) == ((), {"exact:late": 1})
    assert kinds(node.sweep(5.0)) == [(1, "hung", None)]


def test_an_exact_reading_has_the_counter_of_its_instant_for_one_call_each(nvml: FakeNvml) -> None:
    nvml.configure(3)
    node = Node(nvml)
    uuids = [device.uuid for device in node.sweep(10.0).devices]
    node.clock.advance(0.25)
    nvml.set_time(10.25)
    before = nvml.calls
    exact = node.probe.read_exact([uuids[2], "GPU-of-another-node"])
    assert nvml.calls - before == 1
    (reading,) = exact.readings
    assert (reading.device, reading.at_us) == (2, node.clock.wall_us)
    # 302 W for 10.25 s on top of the million joules of before.
    assert reading.values["energy_mj"] == 1_000_000_000 + 3_095_500
    assert exact.epoch == node.probe.read().epoch


def test_what_hangs_is_not_shut_down_beside_but_as_soon_as_it_is_back(nvml: FakeNvml) -> None:
    nvml.configure(2, faults="hang:1:nvmlDeviceGetUtilizationRates@5")
    node = Node(nvml, patience_s=PATIENCE_S)
    node.sweep()
    node.sweep(5.0)
    node.probe.close()
    assert (node.probe.released, nvml.held[0]) == (False, 1)
    nvml.release()
    node.wait_for_calls()
    node.probe.close()
    assert (node.probe.released, nvml.held[0]) == (True, 0)
    sweep = node.sweep(31.0)
    assert len(sweep.readings) == 2
    assert sweep.epoch.driver_epoch == 4, "the driver was there all the time"


def test_released_for_maintenance_it_may_be_taken_up_again_while_a_call_still_hangs(nvml: FakeNvml) -> None:
    nvml.configure(2, faults="hang:1:nvmlDeviceGetUtilizationRates@5")
    node = Node(nvml, patience_s=PATIENCE_S)
    node.sweep()
    node.sweep(5.0)
    node.probe.close()
    assert [reading.device for reading in node.sweep().readings] == [0]
    assert nvml.held[0] == 1, "it was never shut down, so it is not initialised twice"


def test_a_slow_driver_is_waited_for(nvml: FakeNvml) -> None:
    nvml.configure(4, faults="slow:*:200")
    node = Node(nvml)
    assert [len(node.sweep().readings) for _ in range(3)] == [4, 4, 4]


def test_closing_lets_go_of_everything(nvml: FakeNvml) -> None:
    nvml.configure(3, faults="mig:2:1g.10gb+1g.10gb@0")
    node = Node(nvml)
    node.sweep()
    node.sweep()
    node.sweep()
    # An event set, and two samples each of three boards and two instances.
    assert nvml.held == (1, 1 + 2 * (3 + 2))
    node.probe.close()
    assert nvml.held == (0, 0)
    assert node.probe.released


def test_a_probe_made_anew_during_a_hang_has_let_go_only_when_the_one_before_it_has(nvml: FakeNvml) -> None:
    nvml.configure(2, faults="hang:0:*@5-1000")
    node = Node(nvml, patience_s=PATIENCE_S)
    before = ProbeThread("nvml", node.probe)
    node.sweep()
    node.sweep(5.0)
    before.begin_close()  # as a reload of the settings does
    assert not before.closed(0.2)
    again = Node(nvml, patience_s=PATIENCE_S)
    after = ProbeThread("nvml", again.probe, before=[before])
    after.ask()
    assert after.sweep(5.0) is not None
    assert not after.release()
    assert nvml.held[0] > 0
    nvml.release()
    until_s = time.monotonic() + 5.0
    while not after.let_go() and time.monotonic() < until_s:
        time.sleep(0.01)
    assert nvml.held[0] == 0
    after.begin_close()
    assert after.closed(1.0)
