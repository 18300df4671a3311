"""Series through two servers, and of two scrapers that call things otherwise: the same rows, and nothing good lost."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import httpx
import pytest

from analytics.jobs import HourCloser, WorkerSettings
from collector.wire import Feed
from ingest.settings import Settings
from ingest.store.engine import Database
from tests.db.ingest_harness import Site, make_site, run, running
from tests.db.ledger_fixture import HOUR, HOUR_AT
from tests.db.test_series_remote_write import export, rows, write
from tests.fakes.series import device_series, otlp_export, write_request

pytestmark = pytest.mark.db
POWER = "DCGM_FI_DEV_POWER_USAGE"
ENERGY = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
EPOCHS = (
    "SELECT nodes.name, feed, cadence_us / 1000000, count(*) FROM device_samples JOIN epochs ON epochs.id = epoch_id "
    "JOIN nodes ON nodes.id = node_id GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
)


@pytest.fixture
def site(db: Database) -> Site:
    return make_site(db, nodes=("node-1",))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def scrape(at_ms: int, host: str = "gpu-1", uuid: str = "GPU-1", **values: float) -> bytes:
    return write_request(*device_series(uuid, at_ms, values or {POWER: 100.0}, host))


def test_a_restart_and_a_second_server_go_on_with_the_spacing_that_was_learned(db: Database, site: Site) -> None:
    from_ms = now_ms() - 600_000

    async def told(client: httpx.AsyncClient, *numbers: int) -> None:
        for number in numbers:
            body = scrape(from_ms + number * 30_000)
            assert (await write(client, site.site_token, body)).status_code == 204

    async def first(client: httpx.AsyncClient) -> None:
        await told(client, 0, 1, 2, 3)  # three steps: it is 30 s

    async def again(client: httpx.AsyncClient) -> None:
        async with AsyncExitStack() as stack:
            other = await stack.enter_async_context(running(Settings(db)))
            await told(client, 4)
            await told(other, 5)

    run(Settings(db), first)
    assert rows(db, EPOCHS) == [("gpu-1", 3, 15, 3), ("gpu-1", 3, 30, 1)]
    run(Settings(db), again)
    assert rows(db, EPOCHS) == [("gpu-1", 3, 15, 3), ("gpu-1", 3, 30, 3)]


def test_a_spacing_that_was_another_before_is_the_last_one_after_a_restart(db: Database, site: Site) -> None:
    from_ms = now_ms() - 600_000
    instants = [0, 30, 60, 90, 105, 120, 135, 150]  # 30 s, then 15 s again

    async def first(client: httpx.AsyncClient) -> None:
        for second in instants:
            assert (await write(client, site.site_token, scrape(from_ms + second * 1000))).status_code == 204

    async def again(client: httpx.AsyncClient) -> None:
        assert (await write(client, site.site_token, scrape(from_ms + 165_000))).status_code == 204

    run(Settings(db), first)
    before: dict[Any, Any] = {row[2]: row[3] for row in rows(db, EPOCHS)}
    run(Settings(db), again)
    after: dict[Any, Any] = {row[2]: row[3] for row in rows(db, EPOCHS)}
    assert after == before | {15: before[15] + 1}
    assert rows(db, "SELECT node, cadence_us FROM series_nodes") == [("gpu-1", 15_000_000)]


def test_a_second_scraper_that_calls_the_node_otherwise_loses_nothing_and_takes_nothing(
    db: Database, site: Site
) -> None:
    at_ms = now_ms() - 60_000

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await write(client, site.site_token, scrape(at_ms))).status_code == 204
        assert (await write(client, site.site_token, scrape(at_ms + 500, host="exporter-x7z"))).status_code == 204

    run(Settings(db), scenario)
    run(Settings(db), scenario)  # after a restart, and through another server
    assert rows(db, EPOCHS) == [
        ("exporter-x7z", int(Feed.SECOND_SCRAPER), 15, 2),
        ("gpu-1", int(Feed.REMOTE_WRITE), 15, 2),
    ]
    placed = "SELECT nodes.name FROM placements JOIN nodes ON nodes.id = node_id WHERE superseded_at IS NULL"
    assert rows(db, placed) == [("gpu-1",)]
    told = rows(db, "SELECT kind, evidence->>'rows' FROM findings")
    assert told == [("device_on_two_nodes", "kept")]


def test_a_token_of_a_node_takes_no_device_of_another(db: Database, site: Site) -> None:
    at_ms = now_ms() - 60_000
    other = otlp_export([(POWER, {"UUID": "GPU-1"}, 7.0, at_ms * 1_000_000)], {}).SerializeToString()

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await write(client, site.site_token, scrape(at_ms))).status_code == 204
        refused = await export(client, site.node_tokens["node-1"], other)
        assert b"1 device_on_two_nodes" in refused.content

    run(Settings(db), scenario)
    run(Settings(db), scenario)
    assert [row[:2] for row in rows(db, EPOCHS)] == [("gpu-1", 3)]


def test_of_a_node_tokens_request_the_own_part_is_kept(db: Database, site: Site) -> None:
    at_ms = now_ms()
    body = write_request(
        *device_series("GPU-1", at_ms, {POWER: 1.0}, "node-1"), *device_series("GPU-2", at_ms, {POWER: 1.0}, "gpu-2")
    )

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await write(client, site.node_tokens["node-1"], body)
        assert (answer.status_code, answer.json()["detail"]) == (400, "kept but for what cannot be: 1 wrong_node")

    run(Settings(db), scenario)
    assert [row[0] for row in rows(db, EPOCHS)] == ["node-1"]


def test_a_device_that_one_scraper_does_not_describe_is_described_by_the_other(db: Database, site: Site) -> None:
    at_ms = now_ms()

    async def scenario(client: httpx.AsyncClient) -> None:
        bare = list(device_series("GPU-1", at_ms, {POWER: 1.0}, modelName=""))
        assert (await write(client, site.site_token, write_request(*bare))).status_code == 204
        assert (await write(client, site.site_token, write_request(*bare, scrape_of(at_ms)))).status_code == 204

    def scrape_of(at_ms: int) -> bytes:
        return b"".join(device_series("GPU-1", at_ms, {"DCGM_FI_DEV_GPU_TEMP": 40.0}))

    run(Settings(db), scenario)
    assert rows(db, "SELECT uuid, model FROM devices") == [("GPU-1", "NVIDIA H100 80GB HBM3")]


def test_two_scrapers_of_one_device_are_billed_once(db: Database) -> None:
    site = make_site(db, nodes=())
    start_ms = int(HOUR_AT.timestamp() * 1000)

    def hour(host: str, late_ms: int, behind: int) -> bytes:
        """100 W: 1500 J in 15 s."""
        parts: list[bytes] = []
        for number in range(241):
            values = {ENERGY: 1e9 + 1_500_000.0 * (number - behind)}
            parts += device_series("GPU-1", start_ms + number * 15_000 + late_ms, values, host)
        return write_request(*parts)

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await write(client, site.site_token, hour("gpu-1", 0, 0))).status_code == 204
        # The cache of the second exporter is half a minute behind: its counter lies below the first's.
        assert (await write(client, site.site_token, hour("exporter-x7z", 500, 2))).status_code == 204

    run(Settings(db), scenario)
    HourCloser(db, WorkerSettings(code_version="test")).run(HOUR_AT + timedelta(hours=4))
    usage = rows(db, "SELECT hour_at, feed, sum(energy_mj) FROM current_usage_hours WHERE energy_mj > 0 GROUP BY 1, 2")
    # 100 W x 3600 s; of the next hour only the second told, half a second.
    assert sorted(usage) == [
        (HOUR_AT, int(Feed.REMOTE_WRITE), 360_000_000),
        (HOUR_AT + HOUR, int(Feed.SECOND_SCRAPER), 50_000),
    ]


def test_a_hosts_exporters_are_one_node_and_two_hosts_devices_of_one_number_are_two(db: Database) -> None:
    site = make_site(db, nodes=("node-1", "node-2"))
    at_ns = now_ms() * 1_000_000
    by_exporter: dict[str, tuple[str, dict[str, str], float]] = {
        "gpu-7:9100": ("node_memory_MemTotal_bytes", {}, 64e9),
        "gpu-7:9400": (POWER, {"UUID": "GPU-1", "modelName": "H100"}, 300.0),
        "gpu-7:8000": ("vllm:num_requests_running", {"model_name": "m", "engine": "0"}, 3.0),
    }

    async def scenario(client: httpx.AsyncClient) -> None:
        for instance, point in by_exporter.items():
            told = otlp_export([(*point, at_ns)], {"service.instance.id": instance})
            assert (await export(client, site.site_token, told.SerializeToString())).status_code == 200
        for name in ("node-1", "node-2"):
            told = otlp_export([("hw.power", {"hw.id": "0", "hw.type": "gpu"}, 100.0, at_ns)], {})
            answer = await export(client, site.node_tokens[name], told.SerializeToString())
            assert (answer.status_code, answer.content) == (200, b"")

    run(Settings(db), scenario)
    placed = "SELECT uuid, nodes.name FROM placements JOIN devices ON devices.id = device_id JOIN nodes ON nodes.id = node_id ORDER BY 1"
    assert rows(db, placed) == [("GPU-1", "gpu-7"), ("hw:node-1/0", "node-1"), ("hw:node-2/0", "node-2")]
    assert rows(db, "SELECT name FROM nodes WHERE name LIKE 'gpu%'") == [("gpu-7",)]


def xid(at_ms: int, code: float, host: str = "gpu-1") -> bytes:
    values = {POWER: 100.0, "DCGM_FI_DEV_XID_ERRORS": code}
    return write_request(*device_series("GPU-1", at_ms, values, host))


def test_an_error_that_a_gauge_shows_is_an_event_once_through_two_servers_and_a_restart(
    db: Database, site: Site
) -> None:
    from_ms = now_ms() - 600_000
    told = [(0, 31.0), (30, 31.0), (60, 79.0), (90, 79.0), (120, 0.0), (150, 79.0), (150, 79.0)]

    async def scenario(client: httpx.AsyncClient) -> None:
        async with AsyncExitStack() as stack:
            other = await stack.enter_async_context(running(Settings(db)))
            for number, (second, code) in enumerate(told):
                body = xid(from_ms + second * 1000, code)
                assert (await write((client, other)[number % 2], site.site_token, body)).status_code == 204

    run(Settings(db), scenario)
    events = "SELECT uuid, device_events.kind, code, extract(epoch FROM at) * 1000 FROM device_events JOIN devices ON devices.id = device_id ORDER BY at"
    # The first is of nobody knows when; what stands is no news, and after a while without it is another.
    once = [("GPU-1", "xid", 79, from_ms + 60_000), ("GPU-1", "xid", 79, from_ms + 150_000)]
    assert rows(db, events) == once
    run(Settings(db), scenario)
    assert rows(db, events) == once


def test_errors_of_a_device_that_an_agent_has_are_the_agents_to_tell(db: Database, site: Site) -> None:
    from_ms = now_ms() - 600_000

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await write(client, site.site_token, xid(from_ms, 0.0))).status_code == 204
        with db.connect("admin", autocommit=True) as admin:
            admin.execute("UPDATE placements SET feed = 1")
        assert (await write(client, site.site_token, xid(from_ms + 30_000, 79.0))).status_code == 204

    run(Settings(db), scenario)
    assert rows(db, "SELECT count(*) FROM device_events") == [(0,)]
