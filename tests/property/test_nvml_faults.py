"""No answer of the driver stops the probe, whatever it is and to whichever question."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.errors import LibraryReplacedError
from collector.probe import out_of_range
from collector.probe.nvml_fields import FIELDS
from collector.wire import COLUMNS, DEVICE_STREAMS
from tests.fakes.nvml.build import FakeNvml
from tests.fakes.nvml.harness import Node

pytestmark = pytest.mark.property
CALLS = (
    "nvmlInitWithFlags",
    "nvmlShutdown",
    "nvmlSystemGetDriverVersion",
    "nvmlDeviceGetCount_v2",
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetHandleByUUID",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetName",
    "nvmlDeviceGetPciInfo_v3",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetEncoderUtilization",
    "nvmlDeviceGetDecoderUtilization",
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetTemperatureV",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetTemperatureThreshold",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetMaxClockInfo",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetPerformanceState",
    "nvmlDeviceGetEnforcedPowerLimit",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetCudaComputeCapability",
    "nvmlDeviceGetCurrPcieLinkGeneration",
    "nvmlDeviceGetMaxPcieLinkGeneration",
    "nvmlDeviceGetCurrPcieLinkWidth",
    "nvmlDeviceGetMaxPcieLinkWidth",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetMaxMigDeviceCount",
    "nvmlDeviceGetMigDeviceHandleByIndex",
    "nvmlDeviceGetGpuInstanceId",
    "nvmlDeviceGetComputeInstanceId",
    "nvmlDeviceGetAttributes_v2",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetGraphicsRunningProcesses_v3",
    "nvmlDeviceGetMPSComputeRunningProcesses_v3",
    "nvmlDeviceGetProcessUtilization",
    "nvmlGpmQueryDeviceSupport",
    "nvmlGpmSampleAlloc",
    "nvmlGpmSampleGet",
    "nvmlGpmMigSampleGet",
    "nvmlGpmMetricsGet",
    "nvmlEventSetCreate",
    "nvmlDeviceGetSupportedEventTypes",
    "nvmlDeviceRegisterEvents",
    "nvmlEventSetWait_v2",
)
FIELD_NUMBERS = sorted(
    {field.number for field in FIELDS}
    | {5, 6, 29, 30, 91, 142, 143, 144, 145, 161, 162, 163, 164, 165, 187, 188, 189}
    | {202, 204, 206, 207, 208, 209, 211, 212, 215, 221, 230}
)
CODES = (1, 2, 3, 4, 6, 7, 9, 10, 13, 15, 16, 18, 25, 999, 12345)
FAULTS = st.one_of(
    st.builds("call:{}:{}".format, st.sampled_from(CALLS), st.sampled_from(CODES)),
    st.builds("field:{}:{}".format, st.sampled_from(FIELD_NUMBERS), st.sampled_from(CODES)),
    st.builds("value:{}:{}".format, st.sampled_from(FIELD_NUMBERS), st.integers(0, 2**64 - 1)),
    st.builds("type:{}:{}".format, st.sampled_from(FIELD_NUMBERS), st.integers(1, 9)),
    st.builds(
        "down:{}:{}@{}-{}".format, st.integers(0, 1), st.sampled_from(CODES), st.integers(0, 9), st.integers(5, 70)
    ),
    st.builds("reload@{}".format, st.integers(0, 9)),
    st.builds("gone@{}-{}".format, st.integers(0, 5), st.integers(6, 9)),
    st.builds("xid:{}:{}@{}/{}".format, st.integers(0, 1), st.integers(1, 200), st.integers(0, 9), st.integers(-1, 3)),
    st.builds("action:{}:{}@{}".format, st.integers(0, 1), st.integers(0, 9), st.integers(0, 9)),
    st.builds("counter_reset:{}@{}".format, st.integers(0, 1), st.integers(0, 9)),
    st.builds("nvlink:{}:{}".format, st.sampled_from((0, 4, 5)), st.integers(0, 60)),
    st.sampled_from(("field:185:3,field:186:3", "pcie32", "process:0:7:m:100:5", "process:1:8:g:1:0@3-6")),
    st.builds(
        "mig:{}:{}@{}".format,
        st.integers(0, 1),
        st.sampled_from(("1g.10gb", "3g.40gb+1g.10gb", "none", "off")),
        st.integers(0, 9),
    ),
)


def survives(nvml: FakeNvml, faults: list[str], pauses_s: tuple[int, ...] = (1, 1, 5, 61)) -> None:
    nvml.configure(2, faults=",".join(dict.fromkeys(faults)))
    node = Node(nvml)
    for pause_s in pauses_s:
        try:
            sweep = node.sweep(pause_s)
            exact = node.probe.read_exact([device.uuid for device in sweep.devices])
        except LibraryReplacedError:
            assert any(fault.endswith((":18", "@")) or ":18@" in fault for fault in faults)
            break
        assert not [kind for kind in sweep.errors if kind.endswith(":broken")]
        known = {device.uuid for device in sweep.devices}
        assert len(known) == len(sweep.devices)
        assert all(0 <= event.device < len(sweep.devices) for event in sweep.events)
        assert len({reading.device for reading in sweep.readings}) == len(sweep.readings)
        for reading in (*sweep.readings, *exact.readings):
            assert 0 <= reading.device < len(sweep.devices)
        for reading in sweep.readings:
            assert out_of_range(reading.values) == []
        for stream, rows in sweep.rows.items():
            columns = {column.name for column in COLUMNS[stream]} | {"device_uuid"}
            for row in rows:
                assert row.keys() <= columns
                assert out_of_range(row, stream) == []
                assert stream not in DEVICE_STREAMS or row["device_uuid"] in known
        assert {entry.device_uuid for entry in node.probe.processes()} <= known
        node.probe.sights()
    node.probe.close()
    Node.made.clear()


@pytest.mark.parametrize("code", CODES)
def test_every_call_may_answer_every_code(nvml: FakeNvml, code: int) -> None:
    for name in CALLS:
        instead = ("field:185:3", "field:186:3") if "Power" in name or "Capability" in name else ()
        survives(nvml, [f"call:{name}:{code}", "mig:0:3g.40gb+1g.10gb@0", "mig:0:1g.10gb@4", *instead])


@pytest.mark.parametrize("code", CODES)
def test_every_field_may_answer_every_code(nvml: FakeNvml, code: int) -> None:
    for number in FIELD_NUMBERS:
        survives(nvml, [f"field:{number}:{code}"], (1, 1))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(FAULTS, max_size=6))
def test_no_mixture_of_faults_stops_it(nvml: FakeNvml, faults: list[str]) -> None:
    survives(nvml, faults, (1, 1, 1, 2, 5, 1, 61, 1, 1))
