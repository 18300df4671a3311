"""Series over HTTP to committed rows: Prometheus remote write and OTLP metrics, each instant once whatever is sent twice."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

from collector.wire import Feed
from ingest.settings import Settings
from ingest.store import tokens
from ingest.store.engine import Database
from ingest.store.tokens import Scope
from tests.db.ingest_harness import Site, make_site, run
from tests.fakes.series import (
    HEADERS,
    SPELLED_STALE,
    device_labels,
    device_series,
    otlp_export,
    series,
    write_request,
)

pytestmark = pytest.mark.db
PATH = "/api/v1/write"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def write(client: httpx.AsyncClient, secret: str, body: bytes, **headers: str) -> httpx.Response:
    given = {**HEADERS, "authorization": f"Bearer {secret}", **{k.replace("_", "-"): v for k, v in headers.items()}}
    return await client.post(PATH, content=body, headers=given)


async def export(client: httpx.AsyncClient, secret: str, body: bytes, **headers: str) -> httpx.Response:
    given = {"content-type": "application/x-protobuf", "authorization": f"Bearer {secret}", **headers}
    return await client.post("/v1/metrics", content=body, headers=given)


def rows(database: Database, query: str) -> Sequence[tuple[Any, ...]]:
    with database.connect("admin") as conn:
        return conn.execute(query).fetchall()


def site_of(database: Database) -> Site:
    return make_site(database, nodes=("node-1",))


def test_a_scrape_of_a_device_is_a_row_of_its_columns(db: Database) -> None:
    site, at_ms = site_of(db), now_ms()
    values = {
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": 5_000_123.0,
        "DCGM_FI_DEV_POWER_USAGE": 312.5,
        "DCGM_FI_DEV_FB_USED": 2.0,
        "DCGM_FI_DEV_GPU_UTIL": 87.0,
        "DCGM_FI_PROF_SM_ACTIVE": 0.25,
        "DCGM_FI_DEV_GPU_TEMP": 55.0,
        "DCGM_FI_DEV_MEMORY_TEMP": 9223372036854775794.0,  # DCGM's "no value"
    }

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await write(client, site.site_token, write_request(*device_series("GPU-1", at_ms, values)))
        assert (answer.status_code, answer.content, dict(answer.headers)) == (204, b"", {})

    run(Settings(db), scenario)
    found = rows(
        db,
        "SELECT energy_mj, power_average_mw, memory_used_bytes, gpu_util_percent, sm_active_ratio, temp_c, memory_temp_c, "
        "span_us, feed, origin, nodes.name, devices.uuid, devices.model FROM device_samples "
        "JOIN epochs ON epochs.id = epoch_id JOIN nodes ON nodes.id = node_id JOIN devices ON devices.id = device_id",
    )
    gauges = (5_000_123, 312_500, 2 * 2**20, 87, 0.25, 55, None)
    assert found == [(*gauges, 0, int(Feed.REMOTE_WRITE), 1, "gpu-1", "GPU-1", "NVIDIA H100 80GB HBM3")]


def test_what_is_told_of_an_instance_goes_to_it_and_what_is_the_boards_to_the_board_once(db: Database) -> None:
    site, at_ms = site_of(db), now_ms()
    parts = [
        part
        for number in ("1", "2")
        for part in device_series(
            "GPU-1",
            at_ms,
            {"DCGM_FI_DEV_POWER_USAGE": 200.0, "DCGM_FI_DEV_FB_USED": float(number)},
            GPU_I_ID=number,
            GPU_I_PROFILE="3g.40gb",
        )
    ]

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await write(client, site.site_token, write_request(*parts))).status_code == 204

    run(Settings(db), scenario)
    found = rows(
        db,
        "SELECT uuid, kind, round(slice_ratio, 3)::float8, power_average_mw, memory_used_bytes FROM device_samples "
        "JOIN devices ON devices.id = device_id ORDER BY uuid",
    )
    assert found == [
        ("GPU-1", "gpu", 1.0, 200_000, None),
        ("MIG-GPU-1/1/0", "mig", 0.429, None, 2**20),
        ("MIG-GPU-1/2/0", "mig", 0.429, None, 2 * 2**20),
    ]


def test_node_exporter_and_an_engine_have_their_streams(db: Database) -> None:
    site, at_ms = site_of(db), now_ms()
    node = {"instance": "gpu-1:9100", "job": "node"}
    engine = {"instance": "gpu-1:8000", "engine": "0", "model_name": "llama"}

    def told(name: str, labels: dict[str, str], value: float, before_ms: int = 0, **more: str) -> bytes:
        return series({"__name__": name, **labels, **more}, (value, at_ms - before_ms))

    parts = [
        told("node_memory_MemTotal_bytes", node, 1000.0),
        told("node_memory_MemAvailable_bytes", node, 400.0),
        *(told("node_cpu_seconds_total", node, 50.0, 10_000, cpu=cpu, mode="idle") for cpu in "01"),
        told("node_cpu_seconds_total", node, 60.0, cpu="0", mode="idle"),  # 10 s idle of 10
        told("node_cpu_seconds_total", node, 52.5, cpu="1", mode="idle"),  # 2.5 s idle of 10
        told("node_rapl_package_joules_total", node, 12.5, index="0", path="/sys/class/powercap/intel-rapl:0"),
        told("node_hwmon_power_average_watt", node, 81.5, chip="pmbus_0", sensor="power1"),
        told("node_infiniband_port_data_received_bytes_total", node, 77.0, device="mlx5_0", port="1"),
        told("vllm:num_requests_running", engine, 3.0),
        told("vllm:prompt_tokens_total", engine, 125_340.0),
        told("vllm:kv_cache_usage_perc", engine, 0.5),
    ]

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await write(client, site.site_token, write_request(*parts))).status_code == 204

    run(Settings(db), scenario)
    nodes = "SELECT meters.name, memory_total_bytes, memory_used_bytes, cpu_util_ratio, energy_mj, power_mw FROM node_samples"
    assert rows(db, f"{nodes} JOIN meters ON meters.id = meter_id ORDER BY 1") == [
        ("host", 1000, 600, 0.375, None, None),
        ("hwmon/pmbus_0/power1", None, None, None, None, 81_500),
        ("rapl/intel-rapl:0", None, None, None, 12_500, None),
    ]
    assert rows(db, "SELECT name, rx_bytes FROM fabric_samples JOIN fabric_ports ON fabric_ports.id = port_id") == [
        ("mlx5_0/1", 77)
    ]
    engines = "SELECT name, model, requests_running, prompt_tokens, kv_cache_usage_ratio FROM engine_samples"
    assert rows(db, f"{engines} JOIN engines ON engines.id = engine_id") == [("gpu-1:8000", "llama", 3, 125_340, 0.5)]


def test_stale_markers_and_series_without_a_place_are_counted_and_not_stored(db: Database) -> None:
    site, at_ms = site_of(db), now_ms()
    parts = (
        series(device_labels("DCGM_FI_DEV_POWER_USAGE", "GPU-1"), (SPELLED_STALE, at_ms)),
        series({"__name__": "up", "instance": "gpu-1:9400"}, (1.0, at_ms)),
        series({"__name__": "gen_ai_client_token_usage_sum", "instance": "app"}, (1000.0, at_ms)),
    )

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await write(client, site.site_token, write_request(*parts))).status_code == 204
        metrics = (await client.get("/metrics")).text
        assert 'series_samples_total{outcome="stale",protocol="remote_write"} 1' in metrics
        assert 'series_not_stored_total{reason="unmapped",series="up"} 1' in metrics
        assert 'reason="client_histogram",series="gen_ai_client_token_usage_sum"} 1' in metrics

    run(Settings(db), scenario)
    assert rows(db, "SELECT count(*) FROM device_samples") == [(0,)]


def test_what_cannot_be_kept_is_answered_400_and_the_rest_is_committed(db: Database) -> None:
    site, at_ms = site_of(db), now_ms()
    good = series(device_labels("DCGM_FI_DEV_POWER_USAGE", "GPU-1"), (100.0, at_ms))
    future = series(device_labels("DCGM_FI_DEV_POWER_USAGE", "GPU-1"), (100.0, at_ms + 3_600_000))
    long = series({"__name__": "x", "instance": "i" * 1_000_000}, (1.0, at_ms))
    nameless = series({"instance": "i"}, (1.0, at_ms))

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await write(client, site.site_token, write_request(good, future, long, nameless))
        assert answer.status_code == 400
        assert answer.json()["detail"] == (
            "kept but for what cannot be: 1 from_the_future; 1 labels_too_long; 1 no_metric_name"
        )

    run(Settings(db), scenario)
    assert rows(db, "SELECT power_average_mw FROM device_samples") == [(100_000,)]


def test_other_encodings_versions_and_scopes_are_refused(db: Database) -> None:
    site = site_of(db)
    engine = db.create_engine("admin")
    with engine.begin() as conn:
        reader = tokens.create(conn, "reader", [Scope.READ], actor="test", tenant_path="*").secret
    engine.dispose()
    body = write_request(series({"__name__": "up"}, (1.0, now_ms())))

    async def scenario(client: httpx.AsyncClient) -> None:
        async def status(body: bytes = body, secret: str = site.site_token, **headers: str) -> int:
            return (await write(client, secret, body, **headers)).status_code

        v2 = "application/x-protobuf;proto=io.prometheus.write.v2.Request"
        assert await status(content_type=v2) == 415
        assert await status(x_prometheus_remote_write_version="2.0.0") == 415
        assert await status(content_encoding="gzip") == 415
        assert await status(content_type="application/json") == 415
        assert await status(body=b"not snappy") == 400
        assert await status(body=b"\xff\xff\xff\xff\x7f" + body) == 413
        assert await status(secret=reader) == 403
        assert await status(secret="wl_unknown") == 401
        assert await status(wattledger_cadence_seconds="soon") == 400
        assert await status(content_type="application/x-protobuf;proto=prometheus.WriteRequest") == 204

    run(Settings(db), scenario)


def test_a_token_of_a_node_speaks_for_that_node_only(db: Database) -> None:
    site, at_ms = site_of(db), now_ms()
    other = write_request(*device_series("GPU-1", at_ms, {"DCGM_FI_DEV_POWER_USAGE": 1.0}, "gpu-1"))
    nameless = {"UUID": "GPU-2", "modelName": "H100"}
    own = otlp_export([("DCGM_FI_DEV_POWER_USAGE", nameless, 7.0, at_ms * 1_000_000)], {}).SerializeToString()

    async def scenario(client: httpx.AsyncClient) -> None:
        secret = site.node_tokens["node-1"]
        assert (await write(client, secret, other)).status_code == 403
        assert (await export(client, secret, own)).status_code == 200
        refused = await export(client, site.site_token, own)
        answer = ExportMetricsServiceResponse.FromString(refused.content).partial_success
        assert (answer.rejected_data_points, answer.error_message) == (1, "1 no_node")

    run(Settings(db), scenario)
    query = "SELECT nodes.name FROM device_samples JOIN epochs ON epochs.id = epoch_id JOIN nodes ON nodes.id = node_id"
    assert rows(db, query) == [("node-1",)]


def test_otlp_hardware_metrics_are_rows_like_any_others(db: Database) -> None:
    site, at_ns = site_of(db), time.time_ns()
    gpu = {"hw.id": "GPU-7", "hw.type": "gpu", "hw.model": "NVIDIA L4"}
    points = [
        ("hw.energy", gpu, 12.5, at_ns),
        ("hw.power", gpu, 71.0, at_ns),
        ("hw.gpu.utilization", {**gpu, "hw.gpu.task": "general"}, 0.75, at_ns),
        ("hw.gpu.memory.usage", gpu, 1024, at_ns),
        ("hw.power", {"hw.id": "psu-0", "hw.type": "power_supply"}, 410.0, at_ns),
        ("my.own", {}, 1.0, at_ns),
    ]
    body = otlp_export(points, {"host.name": "gpu-9"}, counters=["hw.energy"]).SerializeToString()

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await export(client, site.site_token, gzip.compress(body), **{"content-encoding": "gzip"})
        assert (answer.status_code, answer.content) == (200, b"")

    run(Settings(db), scenario)
    query = "SELECT uuid, energy_mj, power_average_mw, gpu_util_percent, memory_used_bytes FROM device_samples"
    assert rows(db, f"{query} JOIN devices ON devices.id = device_id") == [("GPU-7", 12_500, 71_000, 75, 1024)]
    assert rows(db, "SELECT name, power_mw FROM node_samples JOIN meters ON meters.id = meter_id") == [
        ("hw/power_supply/psu-0", 410_000)
    ]


def test_two_that_send_the_same_node_at_once_are_both_answered(db: Database) -> None:
    site, at_ms = site_of(db), now_ms()
    bodies = [
        write_request(*device_series(f"GPU-{n}", at_ms, {"DCGM_FI_DEV_POWER_USAGE": 1.0}, f"node-{n % 3}"))
        for n in range(12)
    ]

    async def scenario(client: httpx.AsyncClient) -> None:
        answers = await asyncio.gather(*(write(client, site.site_token, body) for body in bodies * 2))
        assert {answer.status_code for answer in answers} == {204}

    run(Settings(db), scenario)
    assert rows(db, "SELECT count(DISTINCT (device_id, at)), count(*) FROM device_samples") == [(12, 24)]


def test_the_spacing_is_the_senders_word_or_learned_from_three_steps_in_a_row(db: Database) -> None:
    site, at_ms = site_of(db), now_ms() - 600_000

    async def scenario(client: httpx.AsyncClient) -> None:
        for stated in ("0", "3601", "ten"):
            body = write_request(*device_series("GPU-told", at_ms, {"DCGM_FI_DEV_POWER_USAGE": 1.0}, "told"))
            answer = await write(client, site.site_token, body, **{"wattledger-cadence-seconds": stated})
            assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (400, "cadence")
        for number in range(6):
            for host, headers in (("told", {"wattledger-cadence-seconds": "30"}), ("learned", {})):
                body = write_request(
                    *device_series(f"GPU-{host}", at_ms + number * 30_000, {"DCGM_FI_DEV_POWER_USAGE": 1.0}, host)
                )
                assert (await write(client, site.site_token, body, **headers)).status_code == 204

    run(Settings(db), scenario)
    query = "SELECT nodes.name, cadence_us / 1000000, count(*) FROM device_samples JOIN epochs ON epochs.id = epoch_id"
    assert rows(db, f"{query} JOIN nodes ON nodes.id = node_id GROUP BY 1, 2 ORDER BY 1, 2") == [
        ("learned", 15, 3),
        ("learned", 30, 3),
        ("told", 30, 6),
    ]


def test_what_changes_rarely_about_a_board_is_a_row_a_minute(db: Database) -> None:
    site, at_ms = site_of(db), now_ms() - 600_000
    values = {"DCGM_FI_DEV_FB_TOTAL": 81_559.0, "DCGM_FI_DEV_ROW_REMAP_FAILURE": 0.0}

    async def scenario(client: httpx.AsyncClient) -> None:
        for seconds in (0, 15, 30, 45, 60, 75):
            for name, value in values.items():  # each in a request of its own
                body = write_request(*device_series("GPU-1", at_ms + seconds * 1000, {name: value}))
                assert (await write(client, site.site_token, body)).status_code == 204

    run(Settings(db), scenario)
    query = "SELECT max(memory_total_bytes), max(remapping_failed) FROM device_health GROUP BY at ORDER BY at"
    assert rows(db, query) == [(81_559 * 2**20, 0)] * 2


def test_meters_known_by_series_alone_never_bill(db: Database) -> None:
    site = site_of(db)
    labels = {"__name__": "node_rapl_package_joules_total", "instance": "gpu-1:9100", "path": "intel-rapl:0"}

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await write(client, site.site_token, write_request(series(labels, (5.0, now_ms()))))).status_code == 204

    run(Settings(db), scenario)
    assert rows(db, "SELECT name, bills FROM meters") == [("rapl/intel-rapl:0", False)]


def test_every_captured_body_is_accepted_over_http(db: Database, shared: Path) -> None:
    site = site_of(db)
    folder = shared / "captures/otlp"

    async def scenario(client: httpx.AsyncClient) -> None:
        for body in sorted((folder / "prometheus").glob("*.snappy")):
            assert (await write(client, site.site_token, body.read_bytes())).status_code == 204, body.name
        exports = sorted(folder.glob("*/metrics-*.raw.bin"))
        assert len(exports) == 7
        for body in exports:
            told = json.loads(body.with_name(body.name.replace("raw.bin", "headers.json")).read_text())
            given = {name: told[name] for name in ("content-type", "content-encoding") if name in told}
            answer = await export(client, site.site_token, body.read_bytes(), **given)
            assert (answer.status_code, answer.content) == (200, b""), body
        example = (shared / "data/fixtures/otlp/metrics.json").read_bytes()
        answer = await export(client, site.site_token, example, **{"content-type": "application/json"})
        assert (answer.status_code, answer.json()) == (200, {})

    run(Settings(db), scenario)
    query = "SELECT engines.name, requests_running, generation_tokens FROM engine_samples JOIN engines ON engines.id = engine_id"
    assert set(rows(db, query)) == {("127.0.0.1:18091", 3, 48_210)}


def test_hostile_bytes_are_never_an_error_of_ours(db: Database) -> None:
    site, at_ms = site_of(db), now_ms()
    injected = "'; DROP TABLE devices; --"
    good = [
        *device_series(injected, at_ms, {"DCGM_FI_DEV_POWER_USAGE": 1.0}, injected),
        series(device_labels("DCGM_FI_DEV_POWER_USAGE", "GPU-\x00\n", "n"), (1.0, at_ms)),
        series(
            {"__name__": "node_rapl_package_joules_total", "path": "\x1b[31m" + injected, "node": "n"}, (1.0, at_ms)
        ),
        series({"__name__": injected * 10, "node": "n"}, (1.0, at_ms)),
        series(device_labels("DCGM_FI_DEV_POWER_USAGE", "GPU-9"), (1.7e308, at_ms), (1.0, 2**63 - 1), (1.0, 0)),
    ]
    plain = b"".join(good)
    chance = random.Random(4)

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await write(client, site.site_token, write_request(*good))
        assert answer.json()["detail"] == "kept but for what cannot be: 1 before_2000; 1 from_the_future"
        for _ in range(60):
            spoiled = bytearray(plain)
            for _ in range(chance.randint(1, 4)):
                spoiled[chance.randrange(len(spoiled))] = chance.randrange(256)
            answer = await write(client, site.site_token, write_request(bytes(spoiled)))
            assert answer.status_code in (204, 400, 413), answer.text

    run(Settings(db), scenario)
    assert (injected,) in rows(db, "SELECT uuid FROM devices")
    assert (injected,) in rows(db, "SELECT name FROM nodes")
