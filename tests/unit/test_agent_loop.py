"""The loop: what it reads when, what it does at signals, and what it tells of itself."""

from __future__ import annotations

import itertools
import json
import signal
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from collector.agent import Ending
from collector.errors import LibraryReplacedError
from collector.probe import DeviceEvent, Observation, Row, Sweep
from collector.probe_thread import ProbeThread
from collector.service import ServiceManager
from collector.ship import Shipper
from collector.source_thread import Seen
from collector.wire import DeviceRef, Feed, Reading, Stream
from tests.fakes.agent import ListedSource, ScriptedProbe, Stand

pytestmark = pytest.mark.unit

START: Row = {
    "device_uuid": "GPU-1",
    "action": 1,
    "cluster": "c",
    "native_job_id": "7",
    "job_started_at_us": 5,
    "evidence": "hook",
}


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    stand = Stand(tmp_path)
    yield stand
    stand.spool.close()


def rows(stand: Stand, stream: Stream) -> list[dict[str, Any]]:
    return [row for body in stand.bodies() if stream in body.streams for row in body.streams[stream].to_dicts()]


def events(stand: Stand) -> list[tuple[str, str | None]]:
    return [(row["kind"], row["subject"]) for row in rows(stand, Stream.NODE_EVENT)]


def test_ten_readings_become_one_row_a_device_and_the_agent_tells_how_it_was(stand: Stand) -> None:
    stand.probes["nvml"] = ScriptedProbe(stand.clock, readings=20)
    assert stand.run() is Ending.STOPPED
    assert [row["samples"] for row in rows(stand, Stream.DEVICE)] == [10, 10, 10, 10]
    assert events(stand) == [("agent_started", None), ("agent_stopped", None)]
    (health,) = rows(stand, Stream.AGENT)
    assert (health["samples"], health["samples_missed"], health["probe_errors"]) == (40, 0, 0)
    assert (health["sample_us"], health["released"], health["durable"]) == (1_000_000, 0, 1)
    assert health["rss_bytes"] > 1_000_000


def test_two_probes_fill_batches_of_their_own_epochs(stand: Stand) -> None:
    stand.probes["nvml"] = ScriptedProbe(stand.clock, readings=10)
    dcgm = ScriptedProbe(stand.clock, readings=10, feed=Feed.DCGM, devices=(DeviceRef("GPU-9", "A100"),))
    stand.probes["dcgm"] = dcgm
    stand.run()
    fed = [(body.meta.feed, len(body.meta.devices)) for body in stand.bodies() if Stream.DEVICE in body.streams]
    assert sorted(fed) == [(Feed.NATIVE, 2), (Feed.DCGM, 1)]
    # What is of the node travels with the native probe's batch.
    assert all(body.meta.feed is Feed.NATIVE for body in stand.bodies() if Stream.AGENT in body.streams)


def test_a_start_carries_the_counter_of_its_instant_and_an_exact_row_beside_it(stand: Stand) -> None:
    probe = ScriptedProbe(stand.clock, readings=10)
    seen = threading.Event()

    def wait_for_the_source(left: int) -> None:
        if left == 8:
            at_us = stand.clock.wall_us + 1_000_000  # the hook ran just before the next tick takes it in
            stand.agent._sources._waiting.put(seen_of({Stream.ALLOCATION: ({**START, "at_us": at_us},)}))  # type: ignore[union-attr]
            seen.set()

    def seen_of(found: dict[Stream, tuple[Row, ...]]) -> Seen:
        return Seen("jobs", stand.clock.wall_us, 0, Observation(found))

    probe.before_read = wait_for_the_source
    stand.probes["nvml"] = probe
    stand.run()
    (start,) = rows(stand, Stream.ALLOCATION)
    (exact,) = [row for row in rows(stand, Stream.DEVICE) if row["reading"] == Reading.ALLOCATION_START]
    # The tick after the second reading: 5,003 s of the monotonic clock, which is the counter in ms.
    assert (start["device"], start["energy_mj"]) == (1, 5_003_000)
    assert (exact["energy_mj"], exact["at_us"]) == (5_003_000, start["at_us"])
    assert exact["span_us"] == 0


def test_a_start_found_long_after_it_happened_has_no_counter_but_the_device_is_read(stand: Stand) -> None:
    probe = ScriptedProbe(stand.clock, readings=10)
    late = {**START, "at_us": stand.clock.wall_us - 300_000}
    stand.probes["nvml"] = probe
    stand.sources.append(ListedSource([Observation(), Observation({Stream.ALLOCATION: (late,)})], period_s=0.01))
    probe.before_read = lambda _left: time.sleep(0.02)
    stand.run()
    (start,) = rows(stand, Stream.ALLOCATION)
    assert start["energy_mj"] is None
    assert start["at_us"] == late["at_us"]
    assert [row["device"] for row in rows(stand, Stream.DEVICE) if row["reading"] == Reading.ALLOCATION_START] == [1]


def test_a_start_on_a_mig_instance_carries_the_counter_of_its_board(stand: Stand) -> None:
    board = DeviceRef("GPU-0", "H100")
    instance = DeviceRef("MIG-1", "H100", kind="mig", parent_uuid="GPU-0", mig_profile="1g.10gb", slice_ratio=1 / 7)
    probe = ScriptedProbe(stand.clock, readings=10, devices=(board, instance))
    read_exact = probe.read_exact

    def read_board(device_uuids: Collection[str]) -> Sweep:
        return read_exact(["GPU-0"] if "MIG-1" in device_uuids else [])

    def start(left: int) -> None:
        if left == 8:
            row: Row = {**START, "at_us": stand.clock.wall_us + 1_000_000, "device_uuid": "MIG-1"}
            seen = Seen("jobs", 1, 0, Observation({Stream.ALLOCATION: (row,)}))
            stand.agent._sources._waiting.put(seen)  # type: ignore[union-attr]

    probe.read_exact = read_board  # type: ignore[method-assign]
    probe.before_read = start
    stand.probes["nvml"] = probe
    stand.run()
    (event,) = rows(stand, Stream.ALLOCATION)
    (exact,) = [row for row in rows(stand, Stream.DEVICE) if row["reading"] == Reading.ALLOCATION_START]
    assert (event["device"], event["energy_mj"]) == (1, 5_003_000)
    assert (exact["device"], exact["energy_mj"]) == (0, 5_003_000)


def test_a_burst_of_begins_and_ends_costs_one_exact_reading(stand: Stand) -> None:
    probe = ScriptedProbe(stand.clock, readings=10)
    exact: list[list[str]] = []
    read_exact = probe.read_exact

    def counting(device_uuids: Collection[str]) -> Sweep:
        exact.append(sorted(device_uuids))
        return read_exact(device_uuids)

    def burst(left: int) -> None:
        if left == 8:
            at_us = stand.clock.wall_us + 1_000_000
            for job, device, action in (("7", "GPU-0", 1), ("7", "GPU-0", 2), ("8", "GPU-1", 1), ("9", "GPU-77", 2)):
                row: Row = {**START, "at_us": at_us, "device_uuid": device, "native_job_id": job, "action": action}
                seen = Seen("jobs", at_us, 0, Observation({Stream.ALLOCATION: (row,)}))
                stand.agent._sources._waiting.put(seen)  # type: ignore[union-attr]

    probe.read_exact = counting  # type: ignore[method-assign]
    probe.before_read = burst
    stand.probes["nvml"] = probe
    stand.run()
    assert exact == [["GPU-0", "GPU-1"]]
    found = {(row["native_job_id"], row["action"]): row["energy_mj"] for row in rows(stand, Stream.ALLOCATION)}
    assert found == {("7", 1): 5_003_000, ("7", 2): 5_003_000, ("8", 1): 5_003_000, ("9", 2): None}


def test_rows_of_sources_travel_and_those_of_unknown_devices_are_counted(stand: Stand) -> None:
    probe = ScriptedProbe(stand.clock, readings=10)
    probe.before_read = lambda _left: time.sleep(0.02)
    stand.probes["nvml"] = probe
    share: Row = {"device_uuid": "GPU-77", "processes": 1, "evidence": "cgroup", "method": "measured"}
    node: Row = {"meter": "rapl", "energy_mj": 5}
    bad: Row = {"meter": "rapl", "colour": 5}
    found = {Stream.DEVICE_SHARE: (share,), Stream.NODE: (node, bad)}
    stand.sources.append(ListedSource([Observation(), Observation(found, {"rapl:denied": 2})]))
    stand.run()
    (meter,) = rows(stand, Stream.NODE)
    assert (meter["meter"], meter["energy_mj"]) == ("rapl", 5)
    assert rows(stand, Stream.DEVICE_SHARE) == []
    (health,) = rows(stand, Stream.AGENT)
    errors = json.loads(health["probe_errors_by_kind"])
    errors.pop("listed:slow", None)  # this clock flies
    assert errors == {
        "rapl:denied": 2,
        "refused:device_shares:of an unknown device": 1,
        "refused:node_samples:there is no column colour": 1,
    }


def test_a_node_without_any_device_still_tells_of_itself(stand: Stand) -> None:
    stand.sources.append(ListedSource([Observation({Stream.NODE: ({"meter": "host"},)})]))
    thread = threading.Timer(0.3, lambda: stand.doorbell._signals.append(signal.SIGTERM))
    thread.start()

    def during(duration_s: float) -> None:
        time.sleep(0.001)
        stand.clock.advance(duration_s)

    stand.clock.wait = during  # type: ignore[method-assign]
    assert stand.run() is Ending.STOPPED
    thread.join()
    body = stand.bodies()[0]
    assert (body.meta.devices, body.meta.boot_id) == ((), "boot")
    assert len(rows(stand, Stream.NODE)) == 1


@pytest.mark.parametrize("step_s", [-3_600.0, 3_600.0])
def test_a_clock_step_is_an_event_with_its_size_and_no_row_spans_it(stand: Stand, step_s: float) -> None:
    probe = ScriptedProbe(stand.clock, readings=20)
    probe.before_read = lambda left: stand.clock.step(step_s) if left == 14 else None
    stand.probes["nvml"] = probe
    stand.run()
    (step,) = [row for row in rows(stand, Stream.NODE_EVENT) if row["kind"] == "clock_step"]
    assert step["code"] == step_s * 1_000_000
    assert all(row["span_us"] <= 10_000_000 for row in rows(stand, Stream.DEVICE))
    # All but the sweep during which the clock was set.
    assert sum(row["samples"] for row in rows(stand, Stream.DEVICE)) == 38
    (health,) = rows(stand, Stream.AGENT)
    assert (health["clock_steps"], health["clock_step_us"]) == (1, step_s * 1_000_000)


def test_the_clock_s_offset_that_batches_carry_is_this_clock_minus_the_server_s(stand: Stand) -> None:
    # The node's clock is an hour ahead: 08:00:00 here, 07:00:00 in the server's answer, which means 07:00:00.5 on the average.
    def answer(request: httpx.Request) -> httpx.Response:
        del request
        return httpx.Response(204, headers={"Date": "Fri, 15 Jan 2027 07:00:00 GMT"})

    before = stand.spool.put(lambda _uuid, _sequence: b"of before", 0)
    stand.probes["nvml"] = ScriptedProbe(stand.clock, readings=20)
    with httpx.Client(transport=httpx.MockTransport(answer), base_url="https://ledger.test") as client:
        stand.shipper = Shipper(client, stand.spool, stand.clock, token=lambda: None)
        stand.shipper.step()
        stand.spool.acknowledge(before)
        stand.run()
    assert {body.meta.clock_offset_us for body in stand.bodies()} == {3_600_000_000 - 500_000}
    (skew,) = [row for row in rows(stand, Stream.NODE_EVENT) if row["kind"] == "clock_skew"]
    assert skew["code"] == 3_599_500_000


def test_a_flag_file_releases_the_devices_and_they_are_opened_again_after(tmp_path: Path) -> None:
    flag = tmp_path / "release"
    stand = Stand(tmp_path, release_file=str(flag))
    probe = ScriptedProbe(stand.clock, readings=12)
    open_at_wait: list[bool] = []

    def during(duration_s: float) -> None:
        stand.clock.advance(duration_s)
        open_at_wait.append(probe.open)
        if len(open_at_wait) == 5:
            flag.touch()
        if len(open_at_wait) == 15:
            flag.unlink()

    stand.clock.wait = during  # type: ignore[method-assign]
    stand.probes["nvml"] = probe
    stand.run()
    assert probe.opened == 2
    assert open_at_wait[6:15] == [False] * 9
    told = rows(stand, Stream.NODE_EVENT)
    assert [(row["kind"], row["subject"]) for row in told] == [
        ("agent_started", None),
        ("released", "nvml"),
        ("reopened", "nvml"),
        ("agent_stopped", None),
    ]
    assert str(flag) in told[1]["detail"]
    stand.spool.close()


def test_sigusr1_toggles_the_release_and_health_says_so(stand: Stand) -> None:
    probe = ScriptedProbe(stand.clock, readings=5)
    probe.before_read = lambda left: ring(stand, signal.SIGUSR1) if left == 2 else None
    stand.probes["nvml"] = probe
    waits = 0

    def during(duration_s: float) -> None:
        nonlocal waits
        waits += 1
        stand.clock.advance(duration_s)
        if waits == 70:
            ring(stand, signal.SIGTERM)

    stand.clock.wait = during  # type: ignore[method-assign]
    stand.run()
    assert not probe.open
    assert ("released", "nvml") in events(stand)
    assert [row["released"] for row in rows(stand, Stream.AGENT)] == [1, 1]


def test_a_release_is_told_once_the_driver_is_really_let_go_of(stand: Stand) -> None:
    class Held(ScriptedProbe):
        """Owes its closing while a call hangs, as the probe of the driver's library does; it comes back at the fourth ask."""

        closings = 0

        @property
        def released(self) -> bool:
            return self.closings >= 4

        def close(self) -> None:
            self.closings += 1
            super().close()

    probe = Held(stand.clock, readings=5)
    probe.before_read = lambda left: ring(stand, signal.SIGUSR1) if left == 2 else None
    stand.probes["nvml"] = probe
    told_after: list[int] = []

    def during(duration_s: float) -> None:
        time.sleep(0.002)
        stand.clock.advance(duration_s)
        agent = stand.agent
        assert agent is not None
        if agent.health.events["released"] and not told_after:
            told_after.append(probe.closings)
            ring(stand, signal.SIGTERM)

    stand.clock.wait = during  # type: ignore[method-assign]
    stand.run()
    assert told_after == [4]
    assert events(stand)[1:3] == [("driver_held", "nvml"), ("released", "nvml")]
    assert [row["code"] for row in rows(stand, Stream.NODE_EVENT) if row["kind"] == "released"] == [1]


def test_a_driver_that_an_agent_before_still_holds_is_told_though_its_probe_is_switched_off(stand: Stand) -> None:
    class Held(ScriptedProbe):
        released = False

    held = Held(stand.clock, readings=1)
    owing = ProbeThread("nvml", held)
    owing.begin_close()
    stand.owing.append(owing)
    probe = ScriptedProbe(stand.clock, readings=6)
    probe.before_read = lambda left: ring(stand, signal.SIGUSR1) if left == 4 else None
    stand.probes["dcgm"] = probe
    freed = False

    def during(duration_s: float) -> None:
        nonlocal freed
        time.sleep(0.002)
        stand.clock.advance(duration_s)
        agent = stand.agent
        assert agent is not None
        if agent.health.events["driver_held"] and not freed:
            freed = True
            assert agent.health.events["released"] == 1
            held.released = True  # the call came back
        if agent.health.events["released"] == 2:
            ring(stand, signal.SIGTERM)

    stand.clock.wait = during  # type: ignore[method-assign]
    stand.run()
    assert events(stand)[1:4] == [("released", "dcgm"), ("driver_held", "nvml"), ("released", "nvml")]


def ring(stand: Stand, number: int) -> None:
    stand.doorbell._note(number, None)


def test_sighup_ends_the_loop_for_new_settings_only_where_they_are_others(stand: Stand) -> None:
    probe = ScriptedProbe(stand.clock, readings=10)
    probe.before_read = lambda left: ring(stand, signal.SIGHUP) if left in (7, 4) else None
    answers = [True, False]
    stand.reload = answers.pop
    stand.probes["nvml"] = probe
    assert stand.run() is Ending.RELOAD
    assert (answers, probe.open) == ([], False)
    # Nothing that was read is lost: 6 readings of 2 devices at the least.
    assert sum(row["samples"] for row in rows(stand, Stream.DEVICE)) >= 12


def test_a_reload_that_fails_is_told_and_the_signal_behind_it_is_heard(stand: Stand) -> None:
    class Manager(ServiceManager):
        told: ClassVar[list[str]] = []

        def _tell(self, state: str) -> None:
            self.told.append(state.partition("=")[0])

    def fail() -> bool:
        raise RuntimeError("nobody foresaw this")

    def both(left: int) -> None:
        if left == 7:
            ring(stand, signal.SIGHUP)
            ring(stand, signal.SIGTERM)

    probe = ScriptedProbe(stand.clock, readings=10)
    probe.before_read = both
    stand.reload, stand.service = fail, Manager({}, 1)
    stand.probes["nvml"] = probe
    assert stand.run() is Ending.STOPPED
    assert probe.left >= 6, "long before the probe's last reading"
    assert Manager.told == ["READY", "RELOADING", "READY", "STOPPING"]
    (refused,) = [row for row in rows(stand, Stream.NODE_EVENT) if row["kind"] == "settings_refused"]
    assert refused["detail"] == "RuntimeError: nobody foresaw this"


def test_a_source_that_hangs_and_a_probe_that_hangs_hold_up_nobody(stand: Stand) -> None:
    class Hanging(ListedSource):
        def read(self) -> Observation:
            never.wait(20)
            return Observation()

    never = threading.Event()
    stuck = ScriptedProbe(stand.clock, readings=10, feed=Feed.DCGM, devices=(DeviceRef("GPU-9", "A100"),))
    stuck.before_read = lambda _left: never.wait(20)
    healthy = ScriptedProbe(stand.clock, readings=10)
    stand.settings = type(stand.settings)(node="gpu-01", release_file="", sample_s=0.2, row_s=2.0, batch_s=2.0)
    stand.probes |= {"nvml": healthy, "dcgm": stuck}
    stand.sources.append(Hanging([]))
    stand.overdue_s = 0.1
    stand.doorbell._note(0, None)
    healthy.before_read = lambda left: ring(stand, signal.SIGTERM) if left == 0 else None
    began_s = time.monotonic()
    stand.run()
    took_s = time.monotonic() - began_s
    never.set()
    assert took_s < 4.0  # one patience for the probe, then none; a bounded wait for each at the end
    assert sum(row["samples"] for row in rows(stand, Stream.DEVICE)) >= 20
    (health,) = rows(stand, Stream.AGENT)
    assert json.loads(health["probe_errors_by_kind"])["dcgm:overdue"] >= 9
    assert ("driver_held", "dcgm") in events(stand)
    assert events(stand).count(("source_overdue", "listed")) == 1


def test_a_fault_nobody_foresaw_costs_one_turn_and_a_replaced_library_ends_the_agent(stand: Stand) -> None:
    def faulty(left: int) -> None:
        if left == 5:
            raise ZeroDivisionError
        if left == 2:
            raise LibraryReplacedError("restart")

    probe = ScriptedProbe(stand.clock, readings=10)
    probe.before_read = faulty
    stand.probes["nvml"] = probe
    with pytest.raises(LibraryReplacedError):
        stand.run()
    assert sum(row["samples"] for row in rows(stand, Stream.DEVICE)) == 12
    (health,) = rows(stand, Stream.AGENT)
    assert json.loads(health["probe_errors_by_kind"]) == {"loop": 1}


def test_devices_are_read_less_often_while_the_agent_takes_more_than_its_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand = Stand(tmp_path)
    probe = ScriptedProbe(stand.clock, readings=150)
    # 2 % of a core whatever it does, with a cap of 1 %.
    monkeypatch.setattr("collector.agent.cpu_s", lambda: stand.clock.monotonic_us * 0.02 / 1e6)
    stand.probes["nvml"] = probe
    stand.run()
    lowered = [row for row in rows(stand, Stream.NODE_EVENT) if row["kind"] == "cadence_lowered"]
    assert [row["code"] for row in lowered] == [2_000_000, 5_000_000, 10_000_000]
    assert all(row["samples_missed"] == 0 for row in rows(stand, Stream.DEVICE))
    assert rows(stand, Stream.AGENT)[-1]["sample_us"] == 10_000_000
    # Each row's end is read whatever the cadence: no ten seconds without a row.
    instants = sorted({row["at_us"] for row in rows(stand, Stream.DEVICE)})
    assert max(after - before for before, after in itertools.pairwise(instants)) == 10_000_000
    stand.spool.close()


def test_a_late_sweep_is_taken_with_the_next_tick_and_one_across_a_clock_step_is_thrown_away(stand: Stand) -> None:
    gate = threading.Event()
    probe = ScriptedProbe(stand.clock, readings=6)
    probe.before_read = lambda left: gate.wait(5) if left == 4 else None
    stand.settings = type(stand.settings)(node="gpu-01", release_file="", sample_s=0.05, row_s=1.0, batch_s=1.0)
    waits = 0

    def during(duration_s: float) -> None:
        nonlocal waits
        waits += 1
        stand.clock.advance(duration_s)
        if waits == 4:
            stand.clock.step(100.0)
        if waits == 6:
            gate.set()
            time.sleep(0.05)

    stand.clock.wait = during  # type: ignore[method-assign]
    stand.probes["nvml"] = probe
    stand.run()
    # Six readings of two devices, of which one sweep belonged to the clock before.
    assert sum(row["samples"] for row in rows(stand, Stream.DEVICE)) == 10


def test_a_sweep_s_own_rows_travel_with_their_device(stand: Stand) -> None:
    class WithHealth(ScriptedProbe):
        def read(self) -> Sweep:
            sweep = super().read()
            health: Row = {"device_uuid": "GPU-1", "at_us": stand.clock.wall_us, "power_limit_max_mw": 700_000}
            found: dict[Stream, tuple[Row, ...]] = {Stream.DEVICE_HEALTH: (health,)} if self.left == 3 else {}
            return Sweep(sweep.epoch, sweep.devices, sweep.readings, rows=found)

    stand.probes["nvml"] = WithHealth(stand.clock, readings=10)
    stand.run()
    (health,) = rows(stand, Stream.DEVICE_HEALTH)
    assert (health["device"], health["power_limit_max_mw"]) == (1, 700_000)


def test_with_a_slow_cadence_the_loop_still_turns_often_enough_for_a_watchdog(tmp_path: Path) -> None:
    stand = Stand(tmp_path, sample_s=300.0, row_s=300.0, batch_s=300.0)
    stand.probes["nvml"] = ScriptedProbe(stand.clock, readings=2)
    stand.run()
    assert max(stand.clock.waits_s) <= 5.0
    assert sum(row["samples"] for row in rows(stand, Stream.DEVICE)) == 4
    stand.spool.close()


def test_something_beside_the_loop_that_cannot_be_closed_delays_the_end_by_a_second_at_most(stand: Stand) -> None:
    class Stuck:
        def start(self) -> None: ...

        def close(self) -> None:
            never.wait(20)

    never = threading.Event()
    stand.beside.append(Stuck())
    stand.probes["nvml"] = ScriptedProbe(stand.clock, readings=3)
    began_s = time.monotonic()
    stand.run()
    never.set()
    assert time.monotonic() - began_s < 3.0
    assert sum(row["samples"] for row in rows(stand, Stream.DEVICE)) == 6


def test_what_happened_in_a_sweep_during_which_the_clock_was_set_is_told_all_the_same(stand: Stand) -> None:
    class WithXid(ScriptedProbe):
        def read(self) -> Sweep:
            sweep = super().read()
            if self.left != 14:
                return sweep
            stand.clock.step(3_600.0)
            return replace(sweep, events=(DeviceEvent(1, sweep.readings[1].at_us, "xid", 79),))

    stand.probes["nvml"] = WithXid(stand.clock, readings=20)
    stand.run()
    (event,) = rows(stand, Stream.DEVICE_EVENT)
    # Its counter was read in the same sweep and goes with the other readings.
    assert (event["device"], event["code"], event["energy_mj"]) == (1, 79, None)
    assert sum(row["samples"] for row in rows(stand, Stream.DEVICE)) == 38


def test_after_a_machine_that_slept_the_agent_tells_of_itself_once(tmp_path: Path) -> None:
    stand = Stand(tmp_path, health_s=5.0)
    probe = ScriptedProbe(stand.clock, readings=8)
    probe.before_read = lambda left: stand.clock.advance(3_600.0) if left == 5 else None
    stand.probes["nvml"] = probe
    stand.run()
    # At the waking, at the tick after it, and at the end.
    assert len(rows(stand, Stream.AGENT)) <= 3
    stand.spool.close()
