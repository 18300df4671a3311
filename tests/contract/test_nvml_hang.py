"""Driver calls that do not come back: they cost one device, not the others, and never the process."""

from __future__ import annotations

import threading
import time

import pytest

from collector.probe.nvml_reader import MAX_HANGING
from tests.fakes.nvml.build import FakeNvml
from tests.fakes.nvml.harness import Node, kinds

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
    assert [reading.device for reading in hit.readings] == [position for position in range(64) if position != 17]
    assert kinds(hit) == [(17, "hung", None)]
    assert PATIENCE_S <= took_s < 5 * PATIENCE_S, "it costs its own patience once"
    for _ in range(100):
        sweep = node.sweep()
        assert (len(sweep.readings), sweep.events, sweep.errors) == (63, (), {})
    assert readers() == 2, "the one that hangs, and its successor"
    assert {entry.device_uuid for entry in node.probe.processes()} == {
        device.uuid for position, device in enumerate(sweep.devices) if position != 17
    }
    nvml.release()
    node.wait_for_calls()
    assert len(node.sweep().readings) == 63, "it is left alone for half a minute"
    back = node.sweep(31.0)
    assert kinds(back) == [(17, "recovered", None)]
    assert len(back.readings) == 64
    node.probe.close()
    assert nvml.held == (0, 0)


def test_who_hangs_again_is_left_alone_for_longer(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="hang:0:nvmlDeviceGetUtilizationRates@10-11,hang:0:nvmlDeviceGetUtilizationRates@50-51")
    node = Node(nvml, patience_s=PATIENCE_S)
    node.sweep()
    assert kinds(node.sweep(9.5)) == [(0, "hung", None)]
    nvml.set_time(12.0)
    node.wait_for_calls()
    assert node.sweep(9.5).readings == ()  # at 20 s, when it is found to be back
    assert len(node.sweep(30.0).readings) == 0  # at 50 s: it hangs again, and is not told again
    nvml.set_time(60.0)
    node.wait_for_calls()
    assert node.sweep(20.0).events == ()  # at 70 s
    assert node.sweep(59.0).readings == ()
    assert kinds(node.sweep(2.0)) == [(0, "recovered", None)]  # 60 s later, not 30


def test_more_than_a_few_that_hang_stop_the_asking_until_one_is_back(nvml: FakeNvml) -> None:
    faults = ",".join(f"hang:{gpu}:nvmlDeviceGetFieldValues@5" for gpu in range(MAX_HANGING + 2))
    nvml.configure(8, faults=faults)
    node = Node(nvml, patience_s=PATIENCE_S)
    assert len(node.sweep().readings) == 8
    hit = node.sweep(4.0)
    assert kinds(hit) == [(gpu, "hung", None) for gpu in range(MAX_HANGING)]
    assert (hit.readings, readers()) == ((), MAX_HANGING)
    began_s = time.monotonic()
    assert node.sweep().readings == ()
    assert time.monotonic() - began_s < PATIENCE_S, "nothing is asked, nothing is waited for"
    nvml.release()
    node.wait_for_calls()
    assert [reading.device for reading in node.sweep().readings] == [4, 5, 6, 7]
    assert len(node.sweep(31.0).readings) == 8


def test_a_driver_that_hangs_at_the_start_does_not_hold_up_the_agent(nvml: FakeNvml) -> None:
    nvml.configure(2, faults="hang:-1:nvmlInitWithFlags@0")
    node = Node(nvml, patience_s=PATIENCE_S / 8)
    began_s = time.monotonic()
    assert node.sweep().errors == {"init:hung": 1}
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
    assert sweep.errors == {"open:hung": 1}
    nvml.release()
    node.wait_for_calls()
    sweep = node.sweep()
    assert [device.uuid[-1] for device in sweep.devices] == ["0", "2", "1"], "a position keeps its meaning"
    assert len(sweep.readings) == 3


def test_an_event_set_that_hangs_leaves_the_readings(nvml: FakeNvml) -> None:
    nvml.configure(2, faults="hang:-1:nvmlEventSetWait_v2@5")
    node = Node(nvml, patience_s=PATIENCE_S)
    node.sweep()
    assert node.sweep(5.0).errors == {"events:hung": 1}
    assert (len(node.sweep().readings), node.sweep().errors) == (2, {})


def test_an_exact_reading_gives_up_on_who_hangs_and_the_next_sweep_tells(nvml: FakeNvml) -> None:
    nvml.configure(3, faults="hang:1:nvmlDeviceGetFieldValues@5")
    node = Node(nvml, patience_s=PATIENCE_S)
    uuids = [device.uuid for device in node.sweep().devices]
    nvml.set_time(5.0)
    exact = node.probe.read_exact(uuids)
    assert [reading.device for reading in exact.readings] == [0, 2]
    assert (exact.events, exact.errors) == ((), {"exact:hung": 1})
    assert kinds(node.sweep()) == [(1, "hung", None)]


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
