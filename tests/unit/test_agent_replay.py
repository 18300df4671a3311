"""Replaying a recorded trace: the values as recorded, the instants moved to now, the origin plain to see."""

from __future__ import annotations

from pathlib import Path

import pytest

from collector.errors import TraceError
from collector.probe.replay import ReplayProbe
from collector.wire import Origin, Stream
from tests.fakes.clock import FixedClock

pytestmark = pytest.mark.unit

CSV = """\
at_us,uuid,model,energy_mj,power_average_mw,sm_active_ratio
1000000,GPU-a,A100,5000,300000,0.5
1200000,GPU-b,A100,7000,,0.25
3000000,GPU-a,A100,5600,310000.4,
"""


def probe_of(tmp_path: Path, text: str, name: str = "trace.csv") -> tuple[ReplayProbe, FixedClock]:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    clock = FixedClock()
    return ReplayProbe(file, clock, boot_id="replay-1"), clock


def test_readings_come_when_they_are_due_and_only_once(tmp_path: Path) -> None:
    probe, clock = probe_of(tmp_path, CSV)
    start_us = clock.wall_us
    first = probe.read()
    assert first.epoch.origin is Origin.REPLAYED
    assert [device.uuid for device in first.devices] == ["GPU-a", "GPU-b"]
    assert [(reading.device, reading.at_us - start_us) for reading in first.readings] == [(0, 0)]
    assert first.readings[0].values == {"energy_mj": 5_000, "power_average_mw": 300_000, "sm_active_ratio": 0.5}
    clock.advance(1.0)
    (second,) = probe.read().readings
    assert (second.device, second.at_us - start_us, second.values["power_average_mw"]) == (1, 200_000, None)
    assert probe.read().readings == ()
    assert not probe.finished
    clock.advance(1.0)
    (third,) = probe.read().readings
    assert third.values == {"energy_mj": 5_600, "power_average_mw": 310_000, "sm_active_ratio": None}
    assert probe.finished


def test_json_lines_say_the_same(tmp_path: Path) -> None:
    probe, _ = probe_of(tmp_path, '{"at_us": 5, "uuid": "GPU-a", "energy_mj": 9, "temp_c": null}\n\n', "trace.jsonl")
    (reading,) = probe.read().readings
    assert reading.values == {"energy_mj": 9, "temp_c": None}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("at_us,uuid\n", "holds no reading"),
        ("at_us,uuid,colour\n1,GPU-a,red\n", "trace.csv:2: no such column: colour"),
        ("at_us,uuid,temp_c\n1,GPU-a,warm\n", "trace.csv:2: temp_c is not a number: 'warm'"),
        ("at_us,uuid,temp_c\n1,GPU-a,nan\n", "temp_c is not a number"),
        ("at_us,uuid\n1,\n", "needs the uuid"),
        ("at_us,uuid\n,GPU-a\n", "needs at_us"),
        ("at_us,uuid\n1\n", "line 2 of the trace has not as many cells"),
        ("at_us,uuid\n1,GPU-a,3\n", "line 2 of the trace has not as many cells"),
    ],
)
def test_a_bad_trace_is_refused_with_the_line(text: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError) as caught:
        probe_of(tmp_path, text)
    assert fault in str(caught.value)


def test_a_trace_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot read the trace"):
        ReplayProbe(tmp_path / "none.csv", FixedClock(), boot_id="b")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="cannot read the trace"):
        ReplayProbe(tmp_path / "binary.csv", FixedClock(), boot_id="b")
    with pytest.raises(TraceError, match="line 1 of the trace is not JSON"):
        probe_of(tmp_path, "{", "trace.jsonl")


def test_rows_of_other_streams_come_with_the_readings_around_them(tmp_path: Path) -> None:
    lines = (
        '{"at_us": 1000000, "uuid": "GPU-a", "energy_mj": 9}\n'
        '{"at_us": 2500000, "stream": "fabric_samples", "port": "nvlink/GPU-a/0", "span_us": 0, "tx_bytes": 7}\n'
        '{"at_us": 1000000, "stream": "device_health", "uuid": "GPU-a", "recovery_action": 1, "mig_enabled": null}\n'
        '{"at_us": 2000000, "uuid": "GPU-a", "energy_mj": 10}\n'
    )
    probe, clock = probe_of(tmp_path, lines, "trace.jsonl")
    start_us = clock.wall_us
    health = {"at_us": start_us, "device_uuid": "GPU-a", "recovery_action": 1, "mig_enabled": None}
    assert probe.read().rows == {Stream.DEVICE_HEALTH: (health,)}
    clock.advance(1.0)
    assert probe.read().rows == {}
    assert not probe.finished
    clock.advance(1.0)
    link = {"at_us": start_us + 1_500_000, "port": "nvlink/GPU-a/0", "span_us": 0, "tx_bytes": 7}
    assert probe.read().rows == {Stream.FABRIC: (link,)}
    assert probe.finished


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"at_us": 1, "stream": "node_samples"}', "no such stream: 'node_samples'"),
        ('{"at_us": 1, "stream": "device_health", "colour": 1}', "no such column: colour"),
        ('{"at_us": 1, "stream": "fabric_samples", "port": "p", "tx_bytes": "many"}', "tx_bytes is not a number"),
    ],
)
def test_a_row_that_is_none_stops_the_start(tmp_path: Path, line: str, fault: str) -> None:
    with pytest.raises(TraceError, match=fault):
        probe_of(tmp_path, '{"at_us": 1, "uuid": "GPU-a"}\n' + line, "trace.jsonl")
