"""Real senders of metrics: the OpenTelemetry SDK's exporter, straight and through a real collector."""

from __future__ import annotations

import os
import subprocess
import time
from importlib import util
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import Database
from tests.db import ingest_server
from tests.db.ingest_harness import make_site
from tests.db.test_otlp_senders import PATIENCE_S, _await_listening, serving

pytestmark = pytest.mark.db
GPU = {"hw.id": "GPU-sdk", "hw.type": "gpu", "hw.model": "NVIDIA L4"}


def told(exporter: OTLPMetricExporter, exports: int) -> None:
    """A program that watches a GPU of 70 W: at each export a counter 700 J further on, and a histogram that is nobody's."""
    count = iter(range(1, 1_000))

    def energy(_: CallbackOptions) -> list[Observation]:
        return [Observation(700.0 * next(count), GPU)]

    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
    provider = MeterProvider([reader], Resource.create({"host.name": "gpu-sdk"}), shutdown_on_exit=False)
    meter = provider.get_meter("watch")
    meter.create_observable_counter("hw.energy", [energy], unit="J")
    meter.create_observable_gauge("hw.power", [lambda _: [Observation(70, GPU)]], unit="W")
    spent = meter.create_histogram("gen_ai.client.token.usage")
    for _ in range(exports):
        spent.record(250, {"gen_ai.token.type": "output"})
        assert provider.force_flush()
        time.sleep(0.01)
    provider.shutdown()  # which exports once more


def kept(db: Database) -> list[tuple[object, ...]]:
    with db.connect("admin") as conn:
        return conn.execute(
            "SELECT DISTINCT name, uuid, model, energy_mj, power_average_mw FROM device_samples "
            "JOIN devices ON devices.id = device_id JOIN epochs ON epochs.id = epoch_id JOIN nodes ON nodes.id = node_id "
            "ORDER BY energy_mj"
        ).fetchall()


EXPECTED = [("gpu-sdk", "GPU-sdk", "NVIDIA L4", 700_000 * number, 70_000) for number in (1, 2, 3)]


def test_what_the_sdk_exports_is_kept_straight_and_through_a_collector(
    db: Database, server: EmbeddedServer, tmp_path: Path
) -> None:
    site = make_site(db)
    with serving(server, db) as url:
        headers = {"Authorization": f"Bearer {site.site_token}"}
        told(OTLPMetricExporter(f"{url}/v1/metrics", headers=headers, compression=Compression.Gzip), 3)
        assert kept(db)[:3] == EXPECTED
        with db.connect("admin", autocommit=True) as conn:
            conn.execute("DELETE FROM device_samples")
        found = util.find_spec("rotel")
        assert found is not None
        assert found.origin is not None
        grpc_port, http_port = ingest_server.free_port(), ingest_server.free_port()
        command = [
            str(Path(found.origin).parent / "rotel-agent"),
            "start",
            *("--otlp-grpc-endpoint", f"127.0.0.1:{grpc_port}"),
            *("--otlp-http-endpoint", f"127.0.0.1:{http_port}"),
            *("--exporter", "otlp", "--otlp-exporter-protocol", "http", "--otlp-exporter-endpoint", url),
            *("--otlp-exporter-custom-headers", f"Authorization=Bearer {site.site_token}"),
            *("--batch-timeout", "200ms"),
        ]
        with (tmp_path / "rotel.log").open("wb") as log:
            environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
            collector = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=tmp_path)
        try:
            _await_listening(f"http://127.0.0.1:{http_port}/v1/traces")
            told(OTLPMetricExporter(f"http://127.0.0.1:{http_port}/v1/metrics"), 3)
            deadline = time.monotonic() + PATIENCE_S
            while len(kept(db)) < len(EXPECTED) and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            collector.kill()
            collector.wait()
        assert kept(db)[:3] == EXPECTED, (tmp_path / "rotel.log").read_text()
