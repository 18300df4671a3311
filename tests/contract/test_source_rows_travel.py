"""Rows of every source are what the wire takes, as recorded hardware and engines give them."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from collector.probe import Probe, Row, Source
from collector.probe.dcgm import DcgmProbe
from collector.probe.nvidia_smi import NvidiaSmiProbe
from collector.rows import fault_of
from collector.source.engines import EngineSource
from collector.source.host import HostSource
from collector.source.infiniband import InfinibandSource
from collector.source.rapl import RaplSource
from collector.wire import Reading, Stream
from tests.fakes.clock import FixedClock

pytestmark = pytest.mark.contract

AT_US = 1_800_000_000_000_000


def travelling(stream: Stream, row: Row) -> Row:
    """The row as the recorder completes it: with the instant, and the device's position for its UUID."""
    whole: Row = {"at_us": AT_US} | row
    if "device_uuid" in whole:
        del whole["device_uuid"]
        whole["device"] = 0
    return whole


def test_rows_of_sources_fit_the_wire(shared: Path) -> None:
    fixtures = shared / "data/fixtures"
    vllm = (shared / "captures/otlp/vllm/metrics.txt").read_text()
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=vllm))
    sources: list[Source] = [
        HostSource(),
        InfinibandSource(sys_root=fixtures / "sysfs"),
        RaplSource(sys_root=fixtures / "sysfs-kepler"),
        EngineSource(["http://127.0.0.1:8000"], transport=transport),
    ]
    seen = 0
    for source in sources:
        for _ in range(2):
            for stream, rows in source.read().rows.items():
                for row in rows:
                    assert fault_of(stream, travelling(stream, row)) is None, (source.name, row)
                    seen += 1
        source.close()
    assert seen == 2 * (1 + 4 + 1 + 1)


def test_readings_and_health_of_probes_fit_the_wire(shared: Path) -> None:
    fixtures = shared / "data/fixtures"
    dcgm = (fixtures / "prometheus-text/dcgm_exporter_t4_idle.prom").read_text()
    xml = (fixtures / "nvidia-smi-xml/a100-sxm4-v12.xml").read_text()
    clock = FixedClock()
    probes: list[Probe] = [
        DcgmProbe(
            "http://127.0.0.1:9400/metrics",
            clock,
            boot_id="b1",
            background=False,
            transport=httpx.MockTransport(lambda _: httpx.Response(200, text=dcgm)),
        ),
        NvidiaSmiProbe(
            clock, boot_id="b1", background=False, run=lambda command, _: xml if "-x" in command else refuse()
        ),
    ]
    for probe in probes:
        sweep = probe.read()
        assert sweep.readings
        for reading in sweep.readings:
            row: Row = {"at_us": reading.at_us, "device": reading.device, "reading": int(Reading.PERIODIC)}
            row |= {"span_us": 0, "samples": 1, "samples_missed": 0}
            row.update(reading.values)
            assert fault_of(Stream.DEVICE, row) is None
        for stream, rows in sweep.rows.items():
            assert all(fault_of(stream, travelling(stream, row)) is None for row in rows)


def refuse() -> str:
    from collector.source.command import CommandError  # noqa: PLC0415

    raise CommandError("exit_2", "not a valid field to query")
