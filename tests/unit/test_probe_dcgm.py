"""dcgm-exporter as it writes before and after DCGM 4.6, with MIG, shared devices, blanks and a cache."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from collector.probe import Sweep, Values
from collector.probe.dcgm import DcgmProbe
from collector.probe.dcgm_fields import ViolationUnit
from collector.wire import Feed, Stream
from tests.fakes.clock import FixedClock

BOARD = 'gpu="0",UUID="GPU-a",device="nvidia0",modelName="NVIDIA H100 80GB HBM3",Hostname="n1"'


class Exporter:
    """Answers with a text, or fails."""

    def __init__(self, text: str = "") -> None:
        self.text = text
        self.status = 200
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return httpx.Response(self.status, text=self.text)


class Stand:
    """A probe on an exporter, read every five seconds."""

    def __init__(self, proc_root: Path, **settings: object) -> None:
        self.exporter = Exporter()
        self.clock = FixedClock()
        (proc_root / "uptime").write_text("1000.00 3000.00\n")  # the node is up for 1000 s
        self.probe = DcgmProbe(
            "http://127.0.0.1:9400/metrics",
            self.clock,
            boot_id="b1",
            background=False,
            transport=httpx.MockTransport(self.exporter),
            proc_root=proc_root,
            **settings,  # type: ignore[arg-type]
        )

    def read(self, text: str | None = None, *, after_s: float = 5.0) -> Sweep:
        if text is not None:
            self.exporter.text = text
        self.clock.advance(after_s)
        return self.probe.read()

    def values(self, text: str, *, after_s: float = 5.0) -> Values:
        (reading,) = self.read(text, after_s=after_s).readings
        return reading.values


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(tmp_path)


def lines(labels: str = BOARD, **metrics: object) -> str:
    return "".join(f"DCGM_FI_{name}{{{labels}}} {value}\n" for name, value in metrics.items())


@pytest.mark.unit
def test_the_names_before_4_6_become_columns_in_their_units(stand: Stand) -> None:
    values = stand.values(
        lines(
            DEV_TOTAL_ENERGY_CONSUMPTION=128996013,
            DEV_POWER_USAGE="8.969000",
            DEV_POWER_USAGE_INSTANT="9.100000",
            DEV_ENFORCED_POWER_LIMIT="70.000000",
            DEV_GPU_UTIL=93,
            DEV_FB_USED=15109,
            DEV_GPU_TEMP=25,
            DEV_SM_CLOCK=300,
            DEV_PSTATE=8,
            DEV_CLOCK_THROTTLE_REASONS=1,
            PROF_SM_ACTIVE="0.875000",
            PROF_PIPE_TENSOR_ACTIVE="0.250000",
            PROF_DRAM_ACTIVE="0.500000",
            PROF_PCIE_TX_BYTES=123456,
        )
    )
    assert values == {
        "energy_mj": 128_996_013,
        "power_average_mw": 8_969,
        "power_instant_mw": 9_100,
        "power_limit_mw": 70_000,
        "gpu_util_percent": 93,
        "memory_used_bytes": 15_109 * 1_048_576,
        "temp_c": 25,
        "sm_clock_mhz": 300,
        "pstate": 8,
        "clocks_event_reasons": 1,
        "sm_active_ratio": 0.875,
        "tensor_active_ratio": 0.25,
        "dram_active_ratio": 0.5,
    }  # a rate of PCIe bytes is not the counter the column wants


@pytest.mark.unit
def test_the_names_since_4_6_mean_the_same(stand: Stand) -> None:
    values = stand.values(
        lines(
            DEV_BOARD_POWER_WATTS="631.950000",
            DEV_BOARD_POWER_RAW_WATTS="640.000000",
            DEV_BOARD_POWER_LIMIT_ENFORCED_WATTS="700.000000",
            DEV_GPU_TEMP_CELSIUS=59,
            DEV_MEMORY_TEMP_CELSIUS=70,
            DEV_PCIE_REPLAY_TOTAL=4,
            PROF_SM_UTIL_RATIO="0.875000",
            PROF_TENSOR_UTIL_RATIO="0.250000",
            PROF_DRAM_UTIL_RATIO="0.500000",
        )
    )
    assert values == {
        "power_average_mw": 631_950,
        "power_instant_mw": 640_000,
        "power_limit_mw": 700_000,
        "temp_c": 59,
        "memory_temp_c": 70,
        "pcie_replays": 4,
        "sm_active_ratio": 0.875,
        "tensor_active_ratio": 0.25,
        "dram_active_ratio": 0.5,
    }


@pytest.mark.unit
def test_of_an_old_and_a_new_name_one_counts(stand: Stand) -> None:
    both = lines(DEV_POWER_USAGE="70.000000", DEV_BOARD_POWER_WATTS="70.000000")
    assert stand.values(both) == {"power_average_mw": 70_000}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("written", "percent"),
    [
        ("93", 93),
        ("0", 0),
        ("0.930000", 93),
        ("1.000000", 100),
        ("0.004000", 0),
        ("100", 100),
        ("1", None),
        ("101", None),
    ],
)
def test_a_utilization_ratio_is_told_from_percent_by_how_it_is_written(
    stand: Stand, written: str, percent: int | None
) -> None:
    assert stand.values(lines(DEV_GPU_UTIL_RATIO=written))["gpu_util_percent"] == percent


@pytest.mark.unit
def test_a_profiling_ratio_that_was_made_percent_is_a_ratio_again(stand: Stand) -> None:
    assert stand.values(lines(PROF_SM_ACTIVE="87.5"))["sm_active_ratio"] == 0.875


@pytest.mark.unit
@pytest.mark.parametrize(
    "blank",
    ["9223372036854775794", "9.223372036854775807e+18", "2147483632", "2147483634", "140737488355328.000000", "NaN"],
)
def test_what_dcgm_leaves_blank_is_null_and_counted(stand: Stand, blank: str) -> None:
    sweep = stand.read(lines(DEV_MEMORY_TEMP=blank, DEV_GPU_TEMP=30))
    assert sweep.readings[0].values == {"temp_c": 30, "memory_temp_c": None}
    assert sweep.errors == {"dcgm:blank": 1}


@pytest.mark.unit
def test_a_counter_may_pass_through_the_32_bit_blank_on_its_way(stand: Stand) -> None:
    assert stand.values(lines(DEV_TOTAL_ENERGY_CONSUMPTION=2147483634)) == {"energy_mj": 2_147_483_634}
    assert stand.values(lines(DEV_TOTAL_ENERGY_CONSUMPTION=9223372036854775794)) == {"energy_mj": None}


@pytest.mark.unit
def test_a_counter_that_is_always_0_is_not_there(stand: Stand) -> None:
    assert stand.values(lines(DEV_TOTAL_ENERGY_CONSUMPTION=0, DEV_POWER_USAGE="70.0"))["energy_mj"] is None
    assert stand.values(lines(DEV_TOTAL_ENERGY_CONSUMPTION=700, DEV_POWER_USAGE="70.0"))["energy_mj"] == 700


@pytest.mark.unit
def test_joules_stand_in_only_where_millijoules_were_never_told(stand: Stand) -> None:
    joules = lines(DEV_GPU_ENERGY_JOULES_TOTAL=128996)
    assert stand.values(joules) == {"energy_mj": 128_996_000}
    assert stand.values(joules + lines(DEV_TOTAL_ENERGY_CONSUMPTION=128996999)) == {"energy_mj": 128_996_999}
    sweep = stand.read(joules + lines(DEV_GPU_TEMP=30))
    assert sweep.readings[0].values == {"temp_c": 30}  # 128996 J would be a counter that runs backwards
    assert sweep.events == ()


@pytest.mark.unit
def test_a_counter_that_went_back_is_an_event(stand: Stand) -> None:
    stand.read(lines(DEV_TOTAL_ENERGY_CONSUMPTION=5000))
    (event,) = stand.read(lines(DEV_TOTAL_ENERGY_CONSUMPTION=100)).events
    assert (event.kind, event.detail) == ("counter_reset", "from 5000 mJ")


@pytest.mark.unit
def test_the_same_text_again_is_no_new_reading(stand: Stand) -> None:
    text = lines(DEV_TOTAL_ENERGY_CONSUMPTION=5000, DEV_GPU_TEMP=30)
    assert len(stand.read(text).readings) == 1
    repeated = stand.read()
    assert (repeated.readings, repeated.errors) == ((), {"dcgm:same_again": 1})
    # However long it lasts: a counter that stands still while time goes on is an exporter that hangs.
    assert stand.read(after_s=3_600).readings == ()
    assert len(stand.read(lines(DEV_TOTAL_ENERGY_CONSUMPTION=5001, DEV_GPU_TEMP=30)).readings) == 1


@pytest.mark.unit
def test_without_a_counter_the_same_text_is_a_reading_after_the_exporters_interval(stand: Stand) -> None:
    text = lines(DEV_POWER_USAGE="70.000000")
    assert len(stand.read(text).readings) == 1
    assert [len(stand.read().readings) for _ in range(6)] == [0, 0, 0, 0, 0, 1]  # 6 x 5 s


@pytest.mark.unit
def test_instants_of_the_exporter_date_the_readings(stand: Stand) -> None:
    now_ms = stand.clock.wall_us // 1_000
    text = lines(DEV_TOTAL_ENERGY_CONSUMPTION=f"5000 {now_ms}")
    (reading,) = stand.read(text).readings
    assert reading.at_us == now_ms * 1_000
    old = stand.read(lines(DEV_TOTAL_ENERGY_CONSUMPTION=f"5001 {now_ms - 600_000}"))
    assert (old.readings, old.errors) == ((), {"dcgm:stale": 1})
    same_instant = stand.read(lines(DEV_TOTAL_ENERGY_CONSUMPTION=f"5002 {now_ms}"))
    assert (same_instant.readings, same_instant.errors) == ((), {"dcgm:same_again": 1})


@pytest.mark.unit
def test_a_board_with_instances_has_its_power_once_and_each_instance_its_own_activity(stand: Stand) -> None:
    first = BOARD + ',GPU_I_PROFILE="1g.10gb",GPU_I_ID="7"'
    second = BOARD + ',GPU_I_PROFILE="3g.40gb",GPU_I_ID="2"'
    sweep = stand.read(
        lines(
            first, DEV_POWER_USAGE="295.010000", DEV_TOTAL_ENERGY_CONSUMPTION=1010, DEV_FB_USED=10, PROF_SM_ACTIVE="0.5"
        )
        + lines(second, DEV_POWER_USAGE="295.010000", DEV_TOTAL_ENERGY_CONSUMPTION=1000, DEV_FB_USED=20)
        + lines(second, PROF_GR_ENGINE_ACTIVE="0.750000")
    )
    board, seventh, third = sweep.devices
    assert (board.uuid, board.kind) == ("GPU-a", "gpu")
    assert (seventh.uuid, seventh.kind, seventh.parent_uuid, seventh.mig_profile) == (
        "MIG-GPU-a/7/0",
        "mig",
        "GPU-a",
        "1g.10gb",
    )
    assert [seventh.slice_ratio, third.slice_ratio] == pytest.approx([1 / 7, 3 / 7])
    assert {reading.device: reading.values for reading in sweep.readings} == {
        0: {"energy_mj": 1_000, "power_average_mw": 295_010},  # instance 2's, the lowest: always the same one
        1: {"memory_used_bytes": 10 * 1_048_576, "sm_active_ratio": 0.5},
        2: {"memory_used_bytes": 20 * 1_048_576, "gpu_util_percent": 75},
    }


@pytest.mark.unit
def test_beside_nvml_a_board_s_instances_are_nvml_s_to_tell(tmp_path: Path) -> None:
    stand = Stand(tmp_path, instances=False)
    instance = BOARD + ',GPU_I_PROFILE="1g.10gb",GPU_I_ID="7"'
    sweep = stand.read(lines(instance, DEV_POWER_USAGE="295.010000", PROF_SM_ACTIVE="0.5"))
    assert [device.uuid for device in sweep.devices] == ["GPU-a"]
    assert [reading.values for reading in sweep.readings] == [{"power_average_mw": 295_010}]


@pytest.mark.unit
def test_a_device_shared_by_jobs_and_pods_is_read_once_whoever_holds_it(stand: Stand) -> None:
    one = BOARD + ',hpc_job="1352"'
    two = BOARD + ',hpc_job="1353"'
    pod = BOARD + ',namespace="research",pod="train-0",container="main",pod_uid="u1"'
    sweep = stand.read(
        "".join(lines(labels, DEV_TOTAL_ENERGY_CONSUMPTION=5000, DEV_GPU_UTIL=90) for labels in (one, two, pod))
    )
    assert [reading.values for reading in sweep.readings] == [{"energy_mj": 5_000, "gpu_util_percent": 90}]
    # The job ends while the values are still the cached ones.
    assert stand.read(lines(BOARD, DEV_TOTAL_ENERGY_CONSUMPTION=5000, DEV_GPU_UTIL=90)).readings != ()


@pytest.mark.unit
def test_pods_that_contradict_each_other_tell_nothing_of_the_device(stand: Stand) -> None:
    pods = [BOARD + f',pod="p{number}",namespace="n"' for number in (1, 2)]
    sweep = stand.read(lines(pods[0], DEV_GPU_UTIL=10) + lines(pods[1], DEV_GPU_UTIL=80))
    assert sweep.readings[0].values == {}
    assert sweep.errors == {"dcgm:contradiction:DCGM_FI_DEV_GPU_UTIL": 1}
    alone = lines(pods[0], DEV_GPU_UTIL=10) + lines(pods[1], DEV_GPU_UTIL=81) + lines(DEV_GPU_UTIL=91)
    assert stand.values(alone) == {"gpu_util_percent": 91}


@pytest.mark.unit
def test_a_new_xid_is_an_event_and_the_one_found_at_the_start_is_not(stand: Stand) -> None:
    assert stand.read(lines(DEV_XID_ERRORS=31, DEV_GPU_TEMP=30)).events == ()
    assert stand.read(lines(DEV_XID_ERRORS=31, DEV_GPU_TEMP=31)).events == ()
    (event,) = stand.read(lines(DEV_XID_ERROR=79, DEV_GPU_TEMP=31)).events
    assert (event.kind, event.code) == ("xid", 79)


@pytest.mark.unit
def test_violations_are_nanoseconds_once_microseconds_are_impossible(stand: Stand) -> None:
    # Up for 1000 s = 1e9 us: 5e8 could be 500 s of microseconds or half a second of nanoseconds.
    text = lines(DEV_POWER_VIOLATION=500_000_000, DEV_THERMAL_VIOLATION=0)
    assert stand.values(text) == {"throttle_power_cap_ns": None, "throttle_sw_thermal_ns": 0}
    text = lines(DEV_POWER_VIOLATION=1_100_000_000, DEV_THERMAL_VIOLATION=70)
    assert stand.values(text) == {"throttle_power_cap_ns": 1_100_000_000, "throttle_sw_thermal_ns": 70}


@pytest.mark.unit
def test_violations_that_grow_with_the_clock_are_microseconds(stand: Stand) -> None:
    seen = [
        stand.values(lines(DEV_CLOCK_THROTTLE_REASONS=4, DEV_POWER_VIOLATION=10_000_000 + turn * 4_000_000))
        for turn in range(5)
    ]
    # Three growths of 4 s in 5 s under the power cap: in nanoseconds that would be 0.08 % of the time.
    assert [values["throttle_power_cap_ns"] for values in seen] == [None, None, None, 22_000_000_000, 26_000_000_000]


@pytest.mark.unit
def test_a_clock_that_was_set_back_costs_no_reading_and_proves_no_unit(stand: Stand) -> None:
    stand.read(lines(DEV_TOTAL_ENERGY_CONSUMPTION=5000, DEV_POWER_VIOLATION=10))
    stand.clock.step(-3_600)
    values = stand.values(lines(DEV_TOTAL_ENERGY_CONSUMPTION=5100, DEV_POWER_VIOLATION=20))
    assert values == {"energy_mj": 5_100, "throttle_power_cap_ns": None}


@pytest.mark.unit
def test_a_violation_unit_that_was_set_is_not_guessed() -> None:
    unit = ViolationUnit("us")
    unit.learn(10**15, uptime_us=1, grown=None, elapsed_us=1, throttled=False)
    assert unit.to_ns(7) == 7_000


@pytest.mark.unit
def test_counters_in_nanoseconds_by_name_win_over_violations(stand: Stand) -> None:
    text = lines(DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP_NS=2_000, DEV_POWER_VIOLATION=5_000)
    assert stand.values(text) == {"throttle_power_cap_ns": 2_000}


@pytest.mark.unit
def test_an_exporter_that_fails_is_counted_and_asked_again(stand: Stand) -> None:
    stand.exporter.status = 503
    sweep = stand.read()
    assert (sweep.readings, sweep.errors, sweep.epoch.feed) == ((), {"dcgm:status_503": 1}, Feed.DCGM)
    assert stand.probe.sights()[0].seen is False
    stand.exporter.status = 200
    assert len(stand.read(lines(DEV_GPU_TEMP=30)).readings) == 1
    assert stand.probe.sights()[0].seen is True
    missing = {sight.subject: sight.remedy for sight in stand.probe.sights() if not sight.seen}
    assert (
        missing["energy_mj through DCGM"]
        == "add DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION to the exporter's collectors file"
    )


@pytest.mark.unit
def test_a_device_the_exporter_no_longer_tells_of_is_lost_and_recovers(stand: Stand) -> None:
    other = BOARD.replace("GPU-a", "GPU-b")
    texts = [lines(DEV_GPU_TEMP=30 + turn) for turn in range(4)]
    stand.read(texts[0] + lines(other, DEV_GPU_TEMP=20))
    events = [event.kind for turn in (1, 2, 3) for event in stand.read(texts[turn]).events]
    assert events == ["lost"]
    assert [event.kind for event in stand.read(texts[3] + lines(other, DEV_GPU_TEMP=20)).events] == ["recovered"]


@pytest.mark.unit
def test_only_the_named_host_is_read_under_both_spellings(tmp_path: Path) -> None:
    stand = Stand(tmp_path, hostname="n1")
    foreign = 'UUID="GPU-x",hostname="n2"'
    ours = 'UUID="GPU-c",hostname="n1"'
    sweep = stand.read(lines(DEV_GPU_TEMP=30) + lines(foreign, DEV_GPU_TEMP=20) + lines(ours, DEV_GPU_TEMP=25))
    assert [device.uuid for device in sweep.devices] == ["GPU-a", "GPU-c"]
    assert sweep.errors == {"dcgm:other_host": 1}


@pytest.mark.unit
def test_what_changes_rarely_is_a_health_row_once_a_minute(stand: Stand) -> None:
    text = lines(DEV_FB_TOTAL=81559, DEV_SLOWDOWN_TEMP=93, DEV_ROW_REMAP_FAILURE=0, DEV_UNCORRECTABLE_REMAPPED_ROWS=2)
    (row,) = stand.read(text).rows[Stream.DEVICE_HEALTH]
    assert row == {
        "device_uuid": "GPU-a",
        "at_us": stand.clock.wall_us,
        "memory_total_bytes": 81_559 * 1_048_576,
        "slowdown_temp_c": 93,
        "remapping_failed": 0,
        "remapped_rows_uncorrected": 2,
    }
    assert stand.read(text + lines(DEV_GPU_TEMP=30)).rows == {}
    assert stand.read(text + lines(DEV_GPU_TEMP=31), after_s=60).rows != {}


@pytest.mark.unit
def test_nonsense_costs_its_own_column_only(stand: Stand) -> None:
    sweep = stand.read(
        lines(DEV_GPU_TEMP=4_000_000, DEV_SM_CLOCK=300) + 'DCGM_FI_DEV_SM_CLOCK{gpu="1"} 300\nnot a line\n'
    )
    assert sweep.readings[0].values == {"temp_c": None, "sm_clock_mhz": 300}
    assert sweep.errors == {"dcgm:out_of_range:temp_c": 1, "dcgm:no_uuid": 1, "dcgm:malformed_lines": 1}


@pytest.mark.real
def test_the_recorded_exporter_gives_the_values_in_its_file(stand: Stand, shared: Path) -> None:
    sweep = stand.read((shared / "data/fixtures/prometheus-text/dcgm_exporter_t4_idle.prom").read_text())
    first, _ = sweep.devices  # the file is two recordings in one, of two cards
    assert (first.uuid, first.model) == ("GPU-20c56d28-0da5-6d26-a36a-e7af1ce2586e", "Tesla T4")
    assert sweep.readings[0].values == {
        "energy_mj": 128_996_013,
        "power_average_mw": 8_969,
        "gpu_util_percent": 0,
        "memory_util_percent": 0,
        "encoder_util_percent": 0,
        "decoder_util_percent": 0,
        "memory_used_bytes": 0,
        "temp_c": 25,
        "sm_clock_mhz": 300,
        "memory_clock_mhz": 405,
        "pcie_replays": 0,
    }
    assert sweep.readings[1].values == {"pstate": 8, "clocks_event_reasons": 1}
    assert [row["slowdown_temp_c"] for row in sweep.rows[Stream.DEVICE_HEALTH]] == [93]
    assert sweep.errors == {}


@pytest.fixture
def slow_exporter() -> Iterator[tuple[str, Callable[[], None]]]:
    release = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            release.wait(10)
            body = lines(DEV_GPU_TEMP=30).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/metrics", release.set
    release.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.contract
def test_a_slow_exporter_never_delays_a_reading(slow_exporter: tuple[str, Callable[[], None]]) -> None:
    url, release = slow_exporter
    probe = DcgmProbe(url, FixedClock(), boot_id="b1", period_s=0.05)
    began = time.monotonic()
    assert probe.read().readings == ()
    assert time.monotonic() - began < 0.5
    release()
    deadline = time.monotonic() + 5
    readings: tuple[object, ...] = ()
    while not readings and time.monotonic() < deadline:
        time.sleep(0.02)
        readings = probe.read().readings
    assert len(readings) == 1
    thread = probe._latest._thread
    assert thread is not None
    probe.close()
    thread.join(5)
    assert not thread.is_alive()
