"""What a sender is told that sends more than its share, and all senders while the disk is nearly full."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from ingest import admission, runtime
from ingest.settings import Settings
from ingest.store.engine import Database
from tests.db.ingest_harness import SECOND_US, batch_meta, body_of, device_row, make_site, now_us, run, send, wide_body

pytestmark = pytest.mark.db


def test_a_node_that_sends_too_fast_is_told_when_to_come_again_and_others_are_not_held_up(db: Database) -> None:
    site = make_site(db)
    at = now_us()

    async def scenario(client: httpx.AsyncClient) -> None:
        first = batch_meta()
        for number in range(1, 11):
            body = body_of(batch_meta(spool=first.spool, sequence=number), device_row(at))
            assert (await send(client, body, site.node_tokens["node-1"])).status_code == 200
        late = body_of(batch_meta(spool=first.spool, sequence=11), device_row(at))
        refused = await send(client, late, site.node_tokens["node-1"])
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["type"] == "urn:wattledger:problem:rate_limited"
        other = body_of(batch_meta(node="node-2"), device_row(at))
        assert (await send(client, other, site.node_tokens["node-2"])).status_code == 200
        for _ in range(20):  # the whole site's token is another sender, without a limit here
            assert (await send(client, body_of(batch_meta(), device_row(at)), site.site_token)).status_code == 200

    run(Settings(db, linger_ms=0, node_bodies_per_s=1), scenario)


def test_a_database_that_has_all_it_may_have_costs_senders_only_time(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a full disk does at the end of its room, without one: tests/e2e/test_weather_disk.py fills a real one."""
    monkeypatch.setattr(runtime, "_MEASURE_EVERY_S", 0.02)
    monkeypatch.setattr(admission, "_LOOK_AGAIN_S", 0.0)
    site, rows_each = make_site(db), 2_000
    with db.connect("admin", autocommit=True) as admin:
        admin.execute("CREATE TABLE ballast AS SELECT repeat(md5(n::text), 30) FROM generate_series(1, 20000) AS n")
        ((size,),) = admin.execute("SELECT pg_database_size(current_database())").fetchall()
    bound_mib = int(str(size)) // (1024 * 1024) + 5
    statuses: list[int] = []

    async def scenario(client: httpx.AsyncClient) -> None:
        first, at_us, kept = batch_meta(), now_us(), 0
        while kept < 20:
            meta = batch_meta(spool=first.spool, sequence=kept + 1)
            answer = await send(
                client, wide_body(meta, rows_each, at_us - kept * rows_each // 2 * SECOND_US), site.site_token
            )
            statuses.append(answer.status_code)
            if answer.status_code == 200:
                kept += 1
                continue
            assert answer.json()["type"] == "urn:wattledger:problem:disk_nearly_full", answer.text
            if statuses.count(503) == 1:
                assert (
                    f"of the {bound_mib} MiB it may have" in (await client.get("/readyz")).json()["faults"][0]["fault"]
                )
                metrics = (await client.get("/metrics")).text
                assert "wattledger_ingest_disk_guarded 1" in metrics
                with db.connect("admin", autocommit=True) as admin:
                    admin.execute("DROP TABLE ballast")
                    admin.execute("CHECKPOINT")  # which gives the room back
            assert statuses.count(503) < 500, "there is room again"
            await asyncio.sleep(0.02)

    run(Settings(db, linger_ms=0, min_free_mib=1, database_max_mib=bound_mib), scenario)
    assert statuses.count(200) == 20
    assert 503 in statuses[1:], "taken at first, and then refused"
    with db.connect("admin") as connection:
        counted = connection.execute("SELECT count(*), count(DISTINCT (device_id, at)) FROM device_samples")
        assert counted.fetchone() == (20 * rows_each, 20 * rows_each)


def test_while_the_disk_is_nearly_full_nothing_is_taken_and_readiness_says_so(db: Database, tmp_path: Path) -> None:
    site = make_site(db)
    body = body_of(batch_meta(), device_row(now_us()))
    more_than_any_disk_mib = 1024 * 1024 * 1024

    async def scenario(client: httpx.AsyncClient) -> None:
        refused = await send(client, body, site.node_tokens["node-1"])
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "60"
        assert refused.json()["type"] == "urn:wattledger:problem:disk_nearly_full"
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        assert "MiB are free where the database keeps its files" in ready.json()["faults"][0]["fault"]
        assert (await client.get("/healthz")).status_code == 200

    run(Settings(db, min_free_mib=more_than_any_disk_mib, data_paths=(tmp_path,)), scenario)
