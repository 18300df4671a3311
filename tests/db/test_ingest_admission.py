"""What a sender is told that sends more than its share, and all senders while the disk is nearly full."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from ingest.settings import Settings
from ingest.store.engine import Database
from tests.db.ingest_harness import batch_meta, body_of, device_row, make_site, now_us, run, send

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
