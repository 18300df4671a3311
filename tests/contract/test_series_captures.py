"""Every captured body of series is read with the counts that were sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ingest.receivers import remote_write
from ingest.receivers.otlp_metrics import MetricsReader
from ingest.receivers.otlp_metrics_json import read_json
from ingest.series.book import Book
from ingest.series.intake import Intake, Taken
from ingest.series.names import DCGM, DCGM_HEALTH

pytestmark = pytest.mark.contract
NOW_US = 1_795_300_000_000_000

REMOTE_WRITE = {
    # body: samples, of them with a place, metadata entries
    "remote-write-1.snappy": (0, 0, 23),
    "remote-write-2.snappy": (88, 9, 0),
    "remote-write-3.snappy": (0, 0, 23),
    "remote-write-4.snappy": (90, 9, 0),
}
OTLP = {
    # sender's body: points, each of them a client's account of calls that come as spans, or its library's own
    "openllmetry-openai/metrics-1": 17,
    "otel-openai-v2/metrics-1": 9,
    "otel-openai-v2-latest/metrics-1": 9,
    "traceloop-sdk/metrics-1": 17,
    "traceloop-sdk/metrics-2": 17,
    "traceloop-sdk-0.45-legacy/metrics-1": 17,
    "traceloop-sdk-0.45-legacy/metrics-2": 17,
}


def taken_from(intake: Intake, body: bytes) -> Taken:
    return intake.remote_write(body, 1, None, NOW_US, None)


@pytest.mark.parametrize("name", REMOTE_WRITE)
def test_what_prometheus_wrote_is_read(shared: Path, name: str) -> None:
    body = (shared / "captures/otlp/prometheus" / name).read_bytes()
    taken = taken_from(Intake(), body)
    samples, placed, metadata = REMOTE_WRITE[name]
    assert (taken.samples, taken.tally.samples["kept"], taken.uncounted["metadata"]) == (samples, placed, metadata)
    assert taken.tally.by_name.total() == samples - placed
    assert not taken.invalid
    assert (
        remote_write.decompressed(body)
        == (shared / "captures/otlp/prometheus" / name.replace("snappy", "pb")).read_bytes()
    )


def test_a_retry_is_read_as_what_it_repeats(shared: Path) -> None:
    folder = shared / "captures/otlp/prometheus"
    intake = Intake()
    first, again = (taken_from(intake, (folder / f"remote-write-{number}.snappy").read_bytes()) for number in (1, 3))
    assert (first.uncounted, first.bodies) == (again.uncounted, again.bodies)


@pytest.mark.parametrize("name", OTLP)
def test_a_clients_histograms_are_counted_by_name_and_nothing_of_them_is_kept(shared: Path, name: str) -> None:
    data = (shared / "captures/otlp" / f"{name}.pb").read_bytes()
    taken = Intake().otlp(data, 1, None, NOW_US, None, is_json=False)
    assert (taken.samples, taken.bodies, taken.invalid) == (OTLP[name], [], {})
    client = {name: reason for (name, reason), _ in taken.tally.by_name.items() if name.startswith("gen_ai.client.")}
    assert client
    assert set(client.values()) == {"client_histogram"}


@pytest.mark.parametrize("name", OTLP)
def test_the_same_export_in_json_is_read_the_same(shared: Path, name: str) -> None:
    folder = shared / "captures/otlp"
    plain = Intake().otlp((folder / f"{name}.pb").read_bytes(), 1, None, NOW_US, None, is_json=False)
    as_json = Intake().otlp((folder / f"{name}.json").read_bytes(), 1, None, NOW_US, None, is_json=True)
    assert plain.tally.by_name == as_json.tally.by_name


def test_the_specifications_own_example_is_read(shared: Path) -> None:
    data = (shared / "data/fixtures/otlp/metrics.json").read_bytes()
    taken = Intake().otlp(data, 1, None, NOW_US, None, is_json=True)
    assert taken.tally.by_name == {
        ("my.counter", "unmapped"): 1,
        ("my.gauge", "unmapped"): 1,
        ("my.histogram_count", "unmapped"): 1,
    }
    assert taken.uncounted["exponential_histogram"] == 1
    assert len(read_json(data, Book())) == len(json.loads(data)["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]) - 1


def test_a_steady_sender_is_read_by_layout_as_by_walking(shared: Path) -> None:
    reader = MetricsReader(Book())
    data = (shared / "captures/otlp/traceloop-sdk/metrics-1.pb").read_bytes()
    walked, gathered = reader.read(data), reader.read(data)
    assert walked.series.tolist() == gathered.series.tolist()
    assert walked.values.tolist() == gathered.values.tolist()
    assert walked.at_us.tolist() == gathered.at_us.tolist()


def test_agent_and_ingest_agree_on_the_names_of_dcgm() -> None:
    """Ingest may not import the agent's table, so there are two: whatever both read means one column in both."""
    from collector.probe.dcgm_fields import HEALTH_MEANINGS, MEANINGS  # noqa: PLC0415 - the agent's, for this comparison alone

    own = {"xid", "engine_active_ratio", "nvlink_errors"}  # made of several readings, or of one and the one before
    coarse = {"DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL"}  # beside the millijoule counter it would run backwards
    theirs = {name: meaning.column for name, meaning in MEANINGS.items() if meaning.column not in own}
    assert {name: meaning.column for name, meaning in DCGM.items()} == {
        name: column for name, column in theirs.items() if name not in coarse
    }
    assert {name: meaning.column for name, meaning in DCGM_HEALTH.items()} == {
        name: meaning.column for name, meaning in HEALTH_MEANINGS.items()
    }
    assert all(DCGM[name].board == MEANINGS[name].board for name in DCGM)
