"""A token that tells of too many new things is refused what is too much, and keeps what is not; others notice nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from collector.wire import Stream
from ingest.settings import Settings
from ingest.store.engine import Database
from tests.db.ingest_harness import batch_meta, body_of, make_site, now_us, rows, run, send
from tests.fakes.kube_state_metrics import Pod
from tests.fakes.series import HEADERS, series, write_request
from tests.unit.test_open_lineage import RUN, event

pytestmark = pytest.mark.db
START = "2026-11-18T07:00:00Z"


def count(db: Database, table: str) -> int:
    with db.connect("admin") as conn:
        return len(conn.execute(f"SELECT FROM {table}".encode()).fetchall())


def job(number: int, **more: Any) -> dict[str, Any]:
    told = {"cluster": "c", "id": str(number), "start": START}
    return {"kind": "job", "at": START, "job": told, "state": "running", **more}


def body(*events: dict[str, Any]) -> bytes:
    return json.dumps({"version": 1, "source": "slurm", "events": events}).encode()


def refusals(text: str, stream: str) -> list[str]:
    return [
        line.rsplit(" ", 1)[1] for line in text.splitlines() if f'stream="{stream}"' in line and "too_many_new" in line
    ]


def test_jobs_beyond_the_hours_limit_are_refused_one_by_one_and_the_others_kept(db: Database) -> None:
    site = make_site(db)
    headers = {"authorization": f"Bearer {site.site_token}", "content-type": "application/json"}

    async def scenario(client: httpx.AsyncClient) -> None:
        first = await client.post(
            "/v1/jobs/events", content=body(*(job(number) for number in range(8))), headers=headers
        )
        told = first.json()
        assert (first.status_code, told["accepted"], told["refused_count"]) == (200, 5, 3)
        assert {(each["index"], each["reason"]) for each in told["refused"]} == {
            (number, "too_many_new") for number in (5, 6, 7)
        }
        assert "5 new jobs in an hour (WATTLEDGER_INGEST_SITE_JOBS_PER_H)" in told["refused"][0]["detail"]
        again = await client.post("/v1/jobs/events", content=body(job(0), job(4)), headers=headers)
        assert (again.status_code, again.json()["refused_count"]) == (200, 0)  # heard of this hour
        more = await client.post("/v1/jobs/events", content=body(job(9)), headers=headers)
        assert more.status_code == 429
        assert 0 < int(more.headers["retry-after"]) <= 3_600
        assert more.json()["type"] == "urn:wattledger:problem:too_many_new"
        shown = (await client.get("/metrics")).text
        assert refusals(shown, "work") == ["4"]

    run(Settings(db, site_jobs_per_h=5), scenario)
    assert count(db, "jobs") == 5


def test_nodes_that_jobs_are_said_to_hold_count_as_names_too(db: Database) -> None:
    site = make_site(db, nodes=())
    headers = {"authorization": f"Bearer {site.site_token}", "content-type": "application/json"}
    wide = job(1, holds=[{"node": f"made-up-{number}", "accelerators": 8} for number in range(50)])

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/jobs/events", content=body(wide, job(2)), headers=headers)
        assert (answer.json()["accepted"], answer.json()["refused_count"]) == (1, 1)

    run(Settings(db, site_jobs_per_h=20), scenario)
    assert count(db, "nodes") == 0


def test_an_agent_that_makes_up_jobs_is_told_to_come_again_and_loses_nothing(db: Database) -> None:
    site = make_site(db)
    told = {"device": 0, "action": 1, "cluster": "c", "job_started_at_us": now_us() - 1, "evidence": "hook"}

    def batch(sequence: int, *ids: str) -> bytes:
        events = [{**told, "at_us": now_us(), "native_job_id": name} for name in ids]
        return body_of(batch_meta(sequence=sequence), allocation=rows(Stream.ALLOCATION, *events))

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await send(client, batch(1, "1", "2"), site.node_tokens["node-1"])).status_code == 200
        refused = await send(client, batch(2, "3", "4"), site.node_tokens["node-1"])
        assert (refused.status_code, refused.json()["type"].rsplit(":", 1)[1]) == (429, "too_many_new")
        assert "retry-after" in refused.headers
        assert (await send(client, batch(3, "1", "2", "3"), site.node_tokens["node-1"])).status_code == 200

    run(Settings(db, node_jobs_per_h=3), scenario)
    assert count(db, "jobs") == 3


def test_runs_and_datasets_beyond_the_hours_limit_are_refused_and_known_ones_are_not(db: Database) -> None:
    site = make_site(db)
    headers = {"authorization": f"Bearer {site.site_token}"}
    # A run, its event, two datasets: four names each.
    three = [event(run={"runId": RUN[:-1] + str(number)}) for number in range(3)]

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post("/api/v1/lineage", content=json.dumps(three).encode(), headers=headers)
        told = answer.json()
        assert (answer.status_code, told["summary"]["successful"], told["summary"]["failed"]) == (201, 2, 1)
        assert told["failed_events"][0]["index"] == 2
        assert "WATTLEDGER_INGEST_LINEAGE_PER_H" in told["failed_events"][0]["reason"]
        again = await client.post("/api/v1/lineage", content=json.dumps(three[:2]).encode(), headers=headers)
        assert again.json()["summary"]["known"] == 2
        last = await client.post("/api/v1/lineage", content=json.dumps(three[2]).encode(), headers=headers)
        assert (last.status_code, "retry-after" in last.headers) == (503, True)
        assert refusals((await client.get("/metrics")).text, "lineage") == ["2"]

    run(Settings(db, lineage_per_h=8), scenario)
    assert count(db, "lineage_runs") == 2


def test_outcomes_beyond_the_hours_limit_are_refused_by_their_place(db: Database) -> None:
    site = make_site(db)
    headers = {"authorization": f"Bearer {site.site_token}"}
    at = datetime.now(UTC).isoformat()
    bad: dict[str, Any] = {"kind": "thumbs"}
    good = [{"response_id": f"r{number}", "kind": "thumbs", "label": "up", "at": at} for number in range(4)]

    async def scenario(client: httpx.AsyncClient) -> None:
        sent = json.dumps([bad, *good]).encode()
        answer = await client.post("/v1/outcomes", content=sent, headers=headers)
        told = answer.json()
        assert (answer.status_code, told["summary"]["successful"], told["summary"]["failed"]) == (201, 3, 2)
        assert sorted(each["index"] for each in told["failed_events"]) == [0, 4]
        last = await client.post("/v1/outcomes", content=json.dumps(good[3]).encode(), headers=headers)
        assert (last.status_code, "retry-after" in last.headers) == (429, True)
        assert refusals((await client.get("/metrics")).text, "outcomes") == ["2"]

    run(Settings(db, outcomes_per_h=3), scenario)
    assert count(db, "outcomes") == 3


def test_pods_of_a_scrape_count_as_the_jobs_they_are(db: Database) -> None:
    site = make_site(db)
    headers = {**HEADERS, "authorization": f"Bearer {site.site_token}"}
    now_ms = now_us() // 1_000
    told = [
        series({"__name__": name, **labels, "instance": "ksm:8080", "job": "ksm", "cluster": "c"}, (value, now_ms))
        for number in range(5)
        for name, labels, value in Pod(
            f"0a1b2c3d-0000-4000-8000-00000000000{number}", start=now_ms // 1_000 - 60.0
        ).series
    ]

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post("/api/v1/write", content=write_request(*told), headers=headers)
        assert (answer.status_code, "2 too_many_new" in answer.json()["detail"]) == (400, True), answer.text

    run(Settings(db, site_jobs_per_h=3), scenario)
    assert count(db, "kube_pods") == 3
