"""A real Prometheus scrapes a dcgm-exporter and kube-state-metrics and writes into a real server, through an outage of the database.

All arrives, once.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ingest.store import identities, tokens
from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import Database
from ingest.store.migrate import upgrade
from ingest.store.tokens import Scope
from tests.e2e.fleet_stand import await_true, free_port, rows, serving
from tests.fakes import kube_state_metrics
from tests.fakes.dcgm_exporter import POWER_W, STEP_MJ, Exporter, exporting
from tests.fakes.kube_state_metrics import Pod
from tests.scratch import quick_folder

pytestmark = pytest.mark.e2e
CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s, external_labels: {{cluster: prod}}}}
scrape_configs:
  - job_name: dcgm
    static_configs: [{{targets: ["127.0.0.1:{exporter_port}"]}}]
  - job_name: kube-state-metrics
    static_configs: [{{targets: ["127.0.0.1:{kube_port}"], labels: {{pod: ksm-0, namespace: monitoring}}}}]
remote_write:
  - url: {url}/api/v1/write
    authorization: {{credentials: "{secret}"}}
    # Small pieces over several shards: no request holds all of an instant.
    queue_config: {{min_shards: 3, max_shards: 3, capacity: 60, max_samples_per_send: 4, batch_send_deadline: 500ms,
                   min_backoff: 50ms, max_backoff: 500ms}}
"""
UID, CHAT = "0a1b2c3d-0000-4000-8000-00000000000a", "0a1b2c3d-0000-4000-8000-00000000000b"
JOBS = (
    "SELECT native_id, cluster, namespace, workload, nodes.name, allocations.accelerators, start_at, end_at, state FROM jobs "
    "JOIN allocations ON job_id = jobs.id AND superseded_at IS NULL JOIN nodes ON nodes.id = node_id ORDER BY 1"
)


@contextmanager
def own_database() -> Iterator[tuple[EmbeddedServer, Database]]:
    """A migrated database on a server of its own, which may be stopped."""
    home = quick_folder("wl-prom-")
    server = EmbeddedServer.in_home(home)
    try:
        server.start()
        upgrade(server.database().url)
        yield server, server.database()
    finally:
        server.destroy()
        shutil.rmtree(home)


def token(database: Database) -> str:
    engine = database.create_engine("admin")
    with engine.begin() as conn:
        site_id = identities.site_ids(conn, ["site-1"])["site-1"]
        secret = tokens.create(conn, "prometheus", [Scope.WRITE], actor="test", site_id=site_id).secret
    engine.dispose()
    return secret


@contextmanager
def prometheus(config: str, folder: Path) -> Iterator[Path]:
    """Run the real thing; yield its log."""
    (folder / "prometheus.yml").write_text(config)
    log = folder / "prometheus.log"
    words = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*words, f"--web.listen-address=127.0.0.1:{free_port()}"], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield log
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_every_scrape_arrives_once_though_the_database_was_away(tmp_path: Path) -> None:
    assert shutil.which("prometheus"), "install the Debian package prometheus; .ci/run does"
    exporter = Exporter()
    start = float(int(time.time()) - 600)
    train, chat = Pod(UID, start=start), Pod(CHAT, name="chat-0", owner=("StatefulSet", "chat"), start=start)
    kube = kube_state_metrics.Exporter(train, chat)
    with own_database() as (server, database), serving(database, tmp_path) as url, exporting(exporter), exporting(kube):
        config = CONFIG.format(exporter_port=exporter.port, kube_port=kube.port, url=url, secret=token(database))
        with prometheus(config, tmp_path) as log:

            def arrived(scrapes: int) -> bool:
                counters = rows(
                    database, "SELECT device_id, array_agg(DISTINCT energy_mj) FROM device_samples GROUP BY 1"
                )
                return len(counters) == 2 and all(
                    set(range(STEP_MJ, (scrapes + 1) * STEP_MJ, STEP_MJ)) <= set(told) for _, told in counters
                )

            await_true(lambda: arrived(2), 60, "the first scrapes arrive", log, tmp_path / "serve-wattledger.log")
            await_true(lambda: len(rows(database, JOBS)) == 2, 30, "both pods are jobs", log)
            server.stop()
            # While the database is away one ends, and the other is deleted: Prometheus' stale marker tells of it.
            kube.pods = (train.over("Succeeded", start + 590),)
            asked = exporter.scrapes
            await_true(lambda: exporter.scrapes >= asked + 2, 30, "Prometheus goes on without us", log)
            server.start()
            asked = exporter.scrapes + 1
            await_true(lambda: arrived(asked), 60, "what was told meanwhile arrives", log)
            gone = "SELECT uid FROM kube_pods WHERE gone_at > seen_at"
            await_true(
                lambda: rows(database, gone) == [(CHAT,)], 30, "the pod that is no longer told of is missed", log
            )
        jobs = rows(database, JOBS)
        merged = rows(
            database,
            "SELECT uuid, at, max(energy_mj), max(power_average_mw), max(gpu_util_percent), max(memory_used_bytes), "
            "count(*) FROM device_samples JOIN devices ON devices.id = device_id GROUP BY 1, 2 ORDER BY 1, 2",
        )
        facts = rows(
            database,
            "SELECT name, feed, origin, cadence_us FROM epochs JOIN nodes ON nodes.id = node_id ORDER BY epochs.id",
        )
        health = rows(database, "SELECT count(*) FROM rejections")
    began = datetime.fromtimestamp(start, UTC)
    assert jobs == [
        (UID, "prod", "nlp", "Job/train", "gpu-1", 4, began, began + timedelta(seconds=590), "completed"),
        (CHAT, "prod", "nlp", "StatefulSet/chat", "gpu-1", 4, began, None, "running"),
    ]
    # Scraped each second, which it takes a few scrapes to see.
    assert facts == [("gpu-1", 3, 1, 15_000_000), ("gpu-1", 3, 1, 1_000_000)]
    assert health == [(0,)]
    assert {row[0] for row in merged} == {"GPU-a", "GPU-b"}
    for uuid in exporter.uuids:
        mine = [row for row in merged if row[0] == uuid]
        # Each instant is one scrape: a step further than the one before, with all its gauges.
        whole = [row for row in mine if row[2] is not None and None not in row]
        steps = [row[2] for row in whole[:asked]]
        assert steps == [STEP_MJ * number for number in range(1, asked + 1)]
        assert {row[3:6] for row in whole[:asked]} == {(POWER_W * 1000, 42, 1024 * 2**20)}
        # 100 W over these seconds, by the counter: a joule a scrape.
        assert steps[-1] - steps[0] == (asked - 1) * STEP_MJ
    assert any(row[6] > 1 for row in merged), "some instant came in pieces"
