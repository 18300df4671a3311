"""Lineage and outcomes over HTTP to committed rows: each once, in any order, of one tenant."""

from __future__ import annotations

import gzip
import itertools
import json
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from ingest.settings import Settings
from ingest.store import tokens
from ingest.store.engine import Database
from ingest.store.tokens import Scope
from tests.db.ingest_harness import make_site, now_us, run
from tests.unit.test_open_lineage import RUN, event

pytestmark = pytest.mark.db
START = "2026-11-18T07:00:00Z"
END = "2026-11-18T09:00:00Z"


def rows(db: Database, query: str) -> list[tuple[Any, ...]]:
    with db.connect("admin") as conn:
        return conn.execute(query.encode()).fetchall()


def writer(db: Database, site_id: int, tenant: str | None, *scopes: Scope) -> dict[str, str]:
    engine = db.create_engine("admin")
    with engine.begin() as conn:
        if tenant:
            conn.execute(sa.text("INSERT INTO tenants (path) VALUES (:path) ON CONFLICT DO NOTHING"), {"path": tenant})
        issued = tokens.create(conn, "w", scopes or [Scope.WRITE], actor="t", site_id=site_id, tenant_path=tenant)
    engine.dispose()
    return {"authorization": f"Bearer {issued.secret}"}


async def post(client: httpx.AsyncClient, path: str, body: Any, headers: dict[str, str]) -> httpx.Response:
    return await client.post(path, content=json.dumps(body).encode(), headers=headers)


def test_a_run_is_the_same_in_whatever_order_and_however_often_its_events_come(db: Database) -> None:
    site = make_site(db)
    headers = {"authorization": f"Bearer {site.site_token}"}
    job = {"facets": {"wattledger_job": {"cluster": "c1", "nativeId": "7", "kind": "fine_tune"}}}
    events = [
        event(eventType="START", eventTime=START, run={"runId": "{run}", **job}, outputs=[]),
        event(eventType="RUNNING", eventTime="2026-11-18T08:00:00Z", run={"runId": "{run}"}, inputs=[], outputs=[]),
        event(eventType="COMPLETE", eventTime=END, run={"runId": "{run}"}, inputs=[]),
    ]

    async def scenario(client: httpx.AsyncClient) -> None:
        for number, order in enumerate(itertools.permutations(events)):
            for each in [*order, order[0]]:
                sent = json.loads(json.dumps(each).replace("{run}", RUN[:-1] + str(number)))
                answer = await post(client, "/api/v1/lineage", sent, headers)
                assert answer.status_code == 201, answer.text
            assert answer.json()["summary"]["known"] == 1

    run(Settings(db), scenario)
    kept = rows(
        db,
        "SELECT DISTINCT state, kind, cluster, native_id, first_event_at::text, ended_at::text, job_namespace, job_name "
        "FROM lineage_runs",
    )
    assert kept == [
        ("complete", "fine_tune", "c1", "7", "2026-11-18 07:00:00+00", "2026-11-18 09:00:00+00", "train", "nlp.sft")
    ]
    assert rows(db, "SELECT count(*), count(DISTINCT lineage_run_id) FROM lineage_events") == [(18, 6)]
    assert rows(
        db, "SELECT direction, namespace, name, count(*) FROM lineage_datasets GROUP BY 1, 2, 3 ORDER BY 1"
    ) == [
        ("input", "s3://data", "chats", 6),
        ("output", "models", "nlp-7b-sft", 6),
    ]


def test_a_run_is_of_a_job_that_somebody_named_and_of_none_put_together(db: Database) -> None:
    site = make_site(db)
    headers = {"authorization": f"Bearer {site.site_token}"}
    named: list[dict[str, str]] = [{"cluster": "c1", "nativeId": "4711"}, {"cluster": "a9", "nativeId": "9999"}, {}]
    seconds = ("07", "08", "09")

    async def scenario(client: httpx.AsyncClient) -> None:
        for number, order in enumerate(itertools.permutations(named)):
            for at, job in zip(seconds, order, strict=True):
                told = {"runId": RUN[:-1] + str(number), "facets": {"wattledger_job": job} if job else {}}
                sent = event(eventType="RUNNING", eventTime=f"2026-11-18T{at}:00:00Z", run=told)
                answer = await post(client, "/api/v1/lineage", sent, headers)
                assert answer.status_code == 201, answer.text

    run(Settings(db), scenario)
    # Before, the lesser of each: a9/4711, a job with costs and a tenant of its own.
    assert rows(db, "SELECT DISTINCT cluster, native_id FROM lineage_runs") == [("a9", "9999")]


def test_a_batch_keeps_its_good_events_and_names_the_bad_ones(db: Database) -> None:
    headers = writer(db, make_site(db).site_id, None)

    async def scenario(client: httpx.AsyncClient) -> None:
        batch = [event(), event(eventTime="yesterday"), {"dataset": {"namespace": "n", "name": "d"}}]
        packed = gzip.compress(json.dumps(batch).encode())
        answer = await client.post(
            "/api/v1/lineage/batch", content=packed, headers={**headers, "content-encoding": "gzip"}
        )
        assert answer.status_code == 201
        told = answer.json()
        assert told["status"] == "partial_success"
        assert told["summary"] == {
            "received": 3,
            "successful": 1,
            "failed": 1,
            "known": 0,
            "without_run": 1,
            "facets_ignored": {},
            "left_out": {},
            "not_kept": [{"index": 2, "reason": told["summary"]["not_kept"][0]["reason"]}],
        }
        assert told["failed_events"] == [{"index": 1, "reason": "eventTime 'yesterday' is no RFC 3339 instant"}]
        alone = await post(client, "/api/v1/lineage", batch[1], headers)
        assert (alone.status_code, alone.json()["type"]) == (400, "urn:wattledger:problem:bad_event")
        assert (await client.post("/api/v1/lineage", content=b"[", headers=headers)).status_code == 400

    run(Settings(db), scenario)
    assert rows(db, "SELECT count(*) FROM lineage_runs") == [(1,)]


def test_nobody_adds_to_the_run_of_another_tenant(db: Database) -> None:
    site_id = make_site(db).site_id
    ours, theirs = writer(db, site_id, "acme/nlp"), writer(db, site_id, "globex")
    agent = writer(db, site_id, None, Scope.AGENT)

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await post(client, "/api/v1/lineage", event(), ours)).status_code == 201
        refused = await post(client, "/api/v1/lineage", event(eventType="FAIL"), theirs)
        assert (refused.status_code, refused.json()["type"]) == (403, "urn:wattledger:problem:run_of_another")
        assert (await post(client, "/api/v1/lineage", event(), agent)).status_code == 403
        assert (await post(client, "/v1/outcomes", {}, agent)).status_code == 403
        assert (await post(client, "/api/v1/lineage", event(), {})).status_code == 401

    run(Settings(db), scenario)
    assert rows(db, "SELECT state, path FROM lineage_runs JOIN tenants ON tenants.id = tenant_id") == [
        ("complete", "acme/nlp")
    ]
    assert rows(db, "SELECT count(*) FROM lineage_events") == [(1,)]


def test_outcomes_are_kept_once_and_bad_ones_named(db: Database) -> None:
    headers = writer(db, make_site(db).site_id, "acme/nlp")
    good = {"response_id": "r-1", "kind": "revenue", "value": "12.305", "value_unit": "EUR", "at": END}

    async def scenario(client: httpx.AsyncClient) -> None:
        first = await post(client, "/v1/outcomes", [good, good, {"kind": "x"}], headers)
        assert first.status_code == 201
        assert first.json()["summary"] == {"received": 3, "successful": 2, "failed": 1, "known": 1}
        again = await post(client, "/v1/outcomes", good, headers)
        assert again.json()["summary"]["known"] == 1

    run(Settings(db), scenario)
    assert rows(
        db,
        "SELECT response_id, kind, value::text, value_unit, path FROM outcomes JOIN tenants ON tenants.id = tenant_id",
    ) == [("r-1", "revenue", "12.305", "EUR", "acme/nlp")]


def test_evaluations_in_traces_are_outcomes_once_however_often_the_export_comes(db: Database) -> None:
    headers = {**writer(db, make_site(db).site_id, "acme/nlp"), "content-type": "application/json"}
    start_ns = (now_us() - 5_000_000) * 1_000
    judged = [
        {"key": "gen_ai.evaluation.name", "value": {"stringValue": "helpfulness"}},
        {"key": "gen_ai.evaluation.score.value", "value": {"doubleValue": 0.75}},
        {"key": "gen_ai.evaluation.explanation", "value": {"stringValue": "a customer's words"}},
    ]
    span = {
        "traceId": "ab" * 16,
        "spanId": "cd" * 8,
        "startTimeUnixNano": str(start_ns),
        "endTimeUnixNano": str(start_ns + 1_000),
        "attributes": [
            {"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}},
            {"key": "gen_ai.provider.name", "value": {"stringValue": "openai"}},
            {"key": "gen_ai.request.model", "value": {"stringValue": "m"}},
            {"key": "gen_ai.response.id", "value": {"stringValue": "r-1"}},
        ],
        "events": [{"name": "gen_ai.evaluation.result", "timeUnixNano": str(start_ns + 900), "attributes": judged}],
    }

    async def scenario(client: httpx.AsyncClient) -> None:
        for _ in range(2):
            answer = await post(client, "/v1/traces", {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}, headers)
            assert answer.status_code == 200, answer.text

    run(Settings(db), scenario)
    assert rows(
        db,
        "SELECT response_id, trace_id, kind, score, source, path FROM outcomes JOIN tenants ON tenants.id = tenant_id",
    ) == [("r-1", "ab" * 16, "helpfulness", 0.75, "span", "acme/nlp")]
    assert rows(db, "SELECT count(*) FROM api_calls") == [(1,)]
    assert "customer" not in str(rows(db, "SELECT o::text FROM outcomes AS o UNION ALL SELECT s::text FROM spans AS s"))


def test_a_slash_at_the_end_of_a_path_is_the_same_path(db: Database) -> None:
    headers = writer(db, make_site(db).site_id, None)

    async def scenario(client: httpx.AsyncClient) -> None:
        # A redirection has no body that an exporter would follow: it drops what it sent.
        assert (await post(client, "/api/v1/lineage/", event(), headers)).status_code == 201
        for path in ("/v1/traces/", "/v1/metrics/", "/api/v1/write/", "/v1/samples/"):
            assert (await post(client, path, {}, {})).status_code == 401, path
        assert (await post(client, "/v1/nothing/", {}, headers)).status_code == 404

    run(Settings(db), scenario)
    assert rows(db, "SELECT count(*) FROM lineage_runs") == [(1,)]
