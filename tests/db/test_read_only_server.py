"""A server that turns read-only under us, as after a fail-over: nothing is refused, all of it is kept when it writes again."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
import sqlalchemy as sa

from ingest.settings import Settings
from ingest.store.engine import Database
from ingest.store.outages import OUTAGES
from tests.db.ingest_harness import batch_meta, body_of, device_row, make_site, now_us, run, send

pytestmark = pytest.mark.db


def query(db: Database, statement: str) -> list[tuple[object, ...]]:
    with db.connect("admin") as conn:
        return conn.execute(statement.encode()).fetchall()


def test_while_the_server_is_read_only_senders_are_told_to_come_again_and_none_is_refused(db: Database) -> None:
    site = make_site(db)
    meta, at = batch_meta(), now_us()

    async def sample(client: httpx.AsyncClient, sequence: int) -> httpx.Response:
        row = device_row(at + sequence)
        body = body_of(batch_meta(spool=meta.spool, sequence=sequence), row)
        return await send(client, body, site.node_tokens["node-1"])

    async def others(client: httpx.AsyncClient) -> list[int]:
        told = {"authorization": f"Bearer {site.site_token}", "content-type": "application/json"}
        span = {
            "traceId": "0" * 31 + "1",
            "spanId": "0" * 15 + "1",
            "name": "chat",
            "startTimeUnixNano": str(at * 1000),
            "endTimeUnixNano": str(at * 1000 + 1000),
            "attributes": [
                {"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}},
                {"key": "gen_ai.provider.name", "value": {"stringValue": "openai"}},
                {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "10"}},
            ],
        }
        traces = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
        known = {"cluster": "c1", "id": "1", "start": "2026-11-21T10:00:00Z"}
        job = {"version": 1, "source": "slurm", "events": [{"kind": "job", "at": "2026-11-21T10:00:00Z", "job": known}]}
        answers = [
            await client.post(path, content=json.dumps(body), headers=told)
            for path, body in (("/v1/traces", traces), ("/v1/jobs/events", job))
        ]
        return [answer.status_code for answer in answers]

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await sample(client, 1)).status_code == 200
        with db.named("postgres").connect("admin", autocommit=True) as admin:
            admin.execute(f"ALTER DATABASE {db.name} SET default_transaction_read_only = on")
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [db.name])
            for _ in range(3):
                answer = await sample(client, 2)
                assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (503, "database_unavailable")
                assert int(answer.headers["retry-after"]) >= 1
            first, second = await others(client)
            assert (first, second) == (503, 503)
            admin.execute(f"ALTER DATABASE {db.name} RESET default_transaction_read_only")
        # Nobody cuts the connections this time: those to the server that was read-only are let go of by ourselves.
        for _ in range(100):
            if (await sample(client, 2)).status_code == 200 and await others(client) == [200, 200]:
                break
            await asyncio.sleep(0.1)
        else:
            pytest.fail("it stays with connections that do not write")

    run(Settings(db), scenario)
    assert query(db, "SELECT count(*) FROM device_samples") == [(2,)]
    assert query(db, "SELECT (SELECT count(*) FROM api_calls), (SELECT count(*) FROM jobs)") == [(1, 1)]


def test_an_engine_tells_trouble_of_the_server_from_values_it_does_not_take(db: Database) -> None:
    engine = db.create_engine("writer", pool_size=1)
    with engine.connect() as conn:
        conn.execute(sa.text("SET TRANSACTION READ ONLY"))
        with pytest.raises(sa.exc.OperationalError, match="read-only"):
            conn.execute(sa.text("INSERT INTO sites (name) VALUES ('x')"))
    with engine.connect() as conn, pytest.raises(OUTAGES):
        conn.execute(sa.text("SELECT * FROM ledger_lines_of_a_newer_schema"))
    with engine.connect() as conn, pytest.raises(sa.exc.DataError):
        conn.execute(sa.text("SELECT 1 / 0"))
    engine.dispose()
