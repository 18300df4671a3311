"""Bodies of one kind that are stuck in the database hold up no other kind, no token, no probe."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from ingest.settings import Settings
from ingest.store.engine import Database
from tests.db.ingest_harness import batch_meta, body_of, device_row, make_site, now_us, run, send
from tests.unit.test_open_lineage import RUN, event

pytestmark = pytest.mark.db


def test_lineage_that_waits_for_a_lock_holds_up_nobody_else(db: Database) -> None:
    site = make_site(db)
    bearer = {"authorization": f"Bearer {site.site_token}"}

    async def scenario(client: httpx.AsyncClient) -> None:
        with db.connect("admin") as admin:
            admin.execute("LOCK TABLE lineage_runs IN ACCESS EXCLUSIVE MODE")
            bodies = [json.dumps(event(run={"runId": RUN[:-1] + str(number)})).encode() for number in range(8)]
            stuck = [
                asyncio.create_task(client.post("/api/v1/lineage", content=body, headers=bearer)) for body in bodies
            ]
            await asyncio.sleep(0.2)
            async with asyncio.timeout(5):
                # A node's token that nobody has shown yet: it has to be asked for.
                batch = body_of(batch_meta(), device_row(now_us()))
                assert (await send(client, batch, site.node_tokens["node-1"])).status_code == 200
                judged = {"response_id": "r", "kind": "thumbs", "label": "up", "at": "2026-11-18T07:00:00Z"}
                assert (await client.post("/v1/outcomes", json=judged, headers=bearer)).status_code == 201
                for path in ("/readyz", "/metrics", "/healthz"):
                    assert (await client.get(path)).status_code == 200
            assert not any(each.done() for each in stuck)
            admin.rollback()
        assert {(await each).status_code for each in stuck} == {201}

    run(Settings(db), scenario)
