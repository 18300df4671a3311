"""Which probes and sources an agent has: what the settings ask for, and nothing imported for what they do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from collector.config import Settings
from collector.errors import AgentError
from collector.source_thread import Eager
from collector.sources import Around, make_probes, make_sources
from tests.fakes.clock import FixedClock

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
EVERYTHING = {
    "redfish_url": "https://192.0.2.1",
    "engine_urls": "http://127.0.0.1:8000",
    "ipmi": True,
    "cloud": "aws",
}


def names(**settings: object) -> list[str]:
    made = make_sources(Settings(**settings), Around(FixedClock(), "boot"))  # type: ignore[arg-type]
    found = [source.name for source in made]
    for source in made:
        source.close()
    return found


def test_by_default_the_node_itself_is_read_and_nobody_is_asked_over_a_network() -> None:
    assert names() == ["jobs", "host", "rapl", "infiniband", "kernel_log"]


def test_each_source_can_be_switched_on_and_off() -> None:
    assert names(**EVERYTHING)[-4:] == ["ipmi", "redfish", "cloud", "engines"]
    off = dict.fromkeys(("jobs", "host", "rapl", "infiniband", "kernel_log"), False)
    assert names(**off) == []


def test_probes_go_on_with_the_epoch_they_had() -> None:
    settings = Settings(dcgm_url="http://127.0.0.1:9400/metrics")
    made = make_probes(settings, FixedClock(), boot_id="boot", driver_epochs={"dcgm": 4})
    assert [name for name, _ in made] == ["nvml", "dcgm"]
    for _, probe in made:
        probe.close()
    assert make_probes(Settings(nvml=False), FixedClock(), boot_id="boot", driver_epochs={}) == []


@pytest.mark.parametrize(
    ("settings", "library", "read_by"),
    [
        ({"nvidia_smi": True}, "libc.so.6", ["nvml"]),
        ({"nvidia_smi": True}, "libnone.so.9", ["nvidia_smi"]),
        ({"nvidia_smi": True, "nvml": False}, "libc.so.6", ["nvidia_smi"]),
        ({}, "libnone.so.9", ["nvml"]),
    ],
)
def test_nvidia_smi_is_run_only_where_it_is_asked_for_and_the_library_cannot_be_used(
    settings: dict[str, bool], library: str, read_by: list[str]
) -> None:
    wanted = Settings(**settings)  # type: ignore[arg-type]
    made = make_probes(wanted, FixedClock(), boot_id="boot", driver_epochs={}, nvml_library=library)
    assert [name for name, _ in made] == read_by
    for _, probe in made:
        probe.close()


def test_an_authority_that_cannot_be_loaded_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="redfish_ca_file"):
        names(redfish_url="https://192.0.2.1", redfish_ca_file=str(tmp_path / "none"))


def test_the_source_of_jobs_is_woken_by_hooks() -> None:
    (jobs, *_) = make_sources(Settings(), Around(FixedClock(), "boot"))
    assert isinstance(jobs, Eager)
    jobs.close()


def test_what_is_switched_off_is_not_imported() -> None:
    program = (
        "import sys; from collector.config import Settings; from collector.sources import *; "
        "from collector.clock import SystemClock; import threading; clock = SystemClock(threading.Event()); "
        "make_probes(Settings(nvml=False), clock, boot_id='b', driver_epochs={}); "
        "make_sources(Settings(jobs=False, rapl=False, infiniband=False, kernel_log=False), Around(clock, 'b')); "
        "print(' '.join(name for name in sys.modules if name.startswith(('collector.', 'pynvml', 'httpx'))))"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "collector.source.host" in loaded
    assert not loaded & {"pynvml", "httpx", "collector.jobs.source", "collector.source.redfish", "collector.probe.dcgm"}
